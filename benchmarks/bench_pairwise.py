"""All pairs of Gaussians, forward, backward and both: the total correlation of beta-TCVAE by stratified sampling, and
the KL divergence from a mixture by 30 draws, as scvi-tools' mixture prior has it.

The work is arithmetic, an exp of each pair and dim each way, so that there is no floor by bytes moved:
csrc/cpu/pairwise.cpp has the one by instructions.

    python -m benchmarks --only pairwise          pytest benchmarks/bench_pairwise.py -s
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest

from .comparison import Case, Comparison
from .harness import Provider, Suite, case_id, compare, size_of
from .settings import QUICK
from .timing import OURS
from .work import INPUT_SETS, Inputs, Work, torch_work

DATASET, DRAWS = 50_000, 30
CASES = (
    [("total correlation", (24, 24, 4)), ("mixture KL", (16, 5, 4))]
    if QUICK
    else [
        ("total correlation", (1024, 1024, 32)),
        ("total correlation", (128, 128, 10)),
        ("total correlation", (4096, 4096, 64)),  # vae_fast's alone: the lines take 31 GB
        ("mixture KL", (1024, 100, 32)),
    ]
)
LARGEST = 1 << 27  # pairs and dims that the lines have memory for


def make_inputs(case: Case) -> list[Inputs]:
    """z, mu and logvar and the gradient of each sample; or mu, logvar and the mixture's means, logvars and logits."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows, columns, dims = case["shape"]

    def normal(*size: int) -> Any:
        return torch.randn(size, generator=generator)

    def one() -> Inputs:
        mu, logvar = normal(rows, dims), 0.5 * normal(rows, dims) - 1
        params: tuple[Any, ...]
        if case["what"] == "mixture KL":
            params = (mu, logvar, normal(columns, dims), normal(columns, dims), normal(columns))
        else:
            params = (mu + torch.exp(0.5 * logvar) * normal(rows, dims), mu, logvar)
        return Inputs(tuple(p.requires_grad_() for p in params), (normal(rows) / rows,))

    return [one() for _ in range(INPUT_SETS)]


def check(case: Case, weights_of: Any, i: int, inputs: Inputs, outputs: tuple[Any, ...]) -> None:
    """Total correlations against the paper's lines in float64, in parts of the rows; an estimate against another."""
    import torch

    import vae_fast

    got, params = outputs[0].detach().double(), [p.detach().double() for p in inputs.params]
    if case["what"] == "mixture KL":
        with torch.no_grad():
            want = vae_fast.mixture_kl(*(p.detach() for p in inputs.params), num_samples=300).double()
        assert (got - want).abs().mean() < 6 * math.sqrt(case["shape"][2] / DRAWS)
        return
    if i or math.prod(case["shape"]) > LARGEST:
        return
    z, mu, logvar = params
    weights = weights_of(case["shape"][0]).double()
    want = torch.cat([lines(weights[r : r + 64], z[r : r + 64], mu, logvar) for r in range(0, len(z), 64)])
    assert (got - want).abs().max() <= 1e-3


def stratified_weights(batch: int) -> Any:
    """Of the paper, logarithms."""
    import torch

    m, at = batch - 1, torch.arange(batch)
    w = torch.full((batch, batch), 1 / m)
    w[at, at] = 1 / DATASET
    w[at, (at + 1) % batch] = (DATASET - m) / (DATASET * m)
    return w.log()


def density(z: Any, mu: Any, logvar: Any) -> Any:
    import torch

    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu) ** 2 * torch.exp(-logvar))


def lines(weights: Any, z: Any, mu: Any, logvar: Any) -> Any:
    """Of loss_function of pythae's BetaTCVAE."""
    import torch

    pairs = density(z[:, None], mu[None], logvar[None])
    log_q = torch.logsumexp(weights + pairs.sum(-1), -1)
    return log_q - torch.logsumexp(weights[..., None] + pairs, 1).sum(-1)


def mixture_lines(mu: Any, logvar: Any, means: Any, logvars: Any, logits: Any) -> Any:
    """Of MixtureOfGaussianPrior.kl of scvi-tools."""
    import torch
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    q = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    components = Independent(Normal(means, torch.exp(0.5 * logvars), validate_args=False), 1)
    prior = MixtureSameFamily(Categorical(logits=logits), components)
    z = q.rsample(torch.Size((DRAWS,)))
    return (q.log_prob(z).sum(-1) - prior.log_prob(z)).mean(0)


def expression_of(case: Case, wrap: Any = lambda function: function) -> Any:

    if case["what"] == "mixture KL":
        return wrap(mixture_lines)
    return partial(wrap(lines), stratified_weights(case["shape"][0]))


def written(case: Case) -> Work:
    expression = expression_of(case)
    return torch_work(
        make_inputs(case), lambda *p: (expression(*p),), partial(check, case, stratified_weights)
    )


def compiled(case: Case) -> Work:
    import torch

    expression = expression_of(case, torch.compile)
    return torch_work(
        make_inputs(case), lambda *p: (expression(*p),), partial(check, case, stratified_weights)
    )


def from_pythae(case: Case) -> Work:
    """Its own density and weights, in the lines of its loss_function."""
    import torch

    model = importlib.import_module("pythae.models").BetaTCVAE
    rows, weights_of = (
        case["shape"][0],
        partial(model._log_importance_weight_matrix, None, dataset_size=DATASET),
    )

    def total_correlation(z: Any, mu: Any, logvar: Any) -> Any:
        pairs = model._compute_log_gauss_density(None, z[:, None], mu[None], logvar[None])
        weights = weights_of(rows)
        log_q = torch.logsumexp(weights + pairs.sum(dim=-1), dim=-1)
        return (log_q - torch.logsumexp(weights.reshape(rows, rows, -1) + pairs, dim=1).sum(dim=-1),)

    return torch_work(make_inputs(case), total_correlation, partial(check, case, weights_of))


def ours(case: Case) -> Work:
    import vae_fast

    def expression(*params: Any) -> Any:
        if case["what"] == "mixture KL":
            return (vae_fast.mixture_kl(*params, num_samples=DRAWS),)
        z, mu, logvar = params
        return (vae_fast.aggregate_posterior(z, mu, logvar, DATASET).total_correlation,)

    return torch_work(make_inputs(case), expression, partial(check, case, stratified_weights))


PROVIDERS = [
    Provider("eager", written),
    Provider("torch.compile", compiled),
    Provider("pythae", from_pythae, requires=("pythae",)),
    Provider(OURS, ours),
]


def run(what: str, shape: tuple[int, ...]) -> Comparison:
    case = {"what": what, "shape": shape}
    out = ["pythae"] * (what == "mixture KL") + ["torch.compile"] * QUICK
    if math.prod(shape) > LARGEST:
        out += [p.name for p in PROVIDERS if p.name != OURS]
    providers = [p for p in PROVIDERS if p.name not in out]
    return compare(f"{what}, forward + backward, {size_of(shape)}", case, providers, rounds=6)


_suite = Suite("pairwise", ours)


@pytest.mark.parametrize(("what", "shape"), CASES, ids=case_id)
def test_pairwise(what: str, shape: tuple[int, ...], benchmark: Any) -> None:
    _suite.add(run(what, shape), benchmark)
