"""Importance weights, forward, backward and both: `log_weights` alone, and a step of IWAE with 50 draws of a batch of
100 of MNIST's size, 784-200-200-50 and back as Burda et al. have it, next to pythae's lines.

`log_weights` moves z and one number a draw; eps is made in registers both ways. A step is mostly matrix
products, of draws x batch rows.

    python -m benchmarks --only importance          pytest benchmarks/bench_importance.py -s
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from .comparison import Case, Comparison
from .harness import Provider, Suite, case_id, compare, size_of
from .settings import QUICK
from .timing import OURS
from .work import INPUT_SETS, Inputs, Work, torch_work

PIXELS, HIDDEN = (12, 8) if QUICK else (784, 200)
CASES = (
    [("log_weights", (3, 8, 4)), ("IWAE", (3, 4, 2))]
    if QUICK
    else [
        ("log_weights", (50, 100, 50)),
        ("log_weights", (50, 4096, 64)),
        ("IWAE", (50, 100, 50)),
    ]
)


def make_inputs(case: Case) -> list[Inputs]:
    """mu, logvar and the gradients of z and the weights; or images, the networks' weights and the gradient of each
    bound."""
    import torch

    generator = torch.Generator().manual_seed(0)
    draws, batch, dims = case["shape"]

    def normal(*size: int) -> Any:
        return torch.randn(size, generator=generator)

    def one() -> Inputs:
        if case["what"] == "log_weights":
            params = (normal(batch, dims), 0.5 * normal(batch, dims) - 1)
            grads = (normal(draws, batch, dims), normal(draws, batch))
            return Inputs(tuple(p.requires_grad_() for p in params), grads)
        layers = [(PIXELS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * dims)]
        layers += [(dims, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, PIXELS)]
        weights = tuple((normal(o, i) / math.sqrt(i)).requires_grad_() for i, o in layers)
        return Inputs(weights, (normal(batch),), (torch.rand(batch, PIXELS, generator=generator),))

    return [one() for _ in range(INPUT_SETS)]


def check(case: Case, i: int, inputs: Inputs, outputs: tuple[Any, ...]) -> None:
    """Weights and gradients by the formula in float64, of the z that came; a bound by another one."""
    import torch

    draws = case["shape"][0]
    if case["what"] == "IWAE":
        with torch.no_grad():
            want = bound(draws, fused_terms, *inputs.data, *inputs.params)
        assert (outputs[0] - want).abs().mean() < 1 / math.sqrt(draws) + 0.05 * want.abs().mean()
        return
    mu, logvar = (p.detach().double() for p in inputs.params)
    z, weights, by_mu, by_logvar = (t.detach().double() for t in outputs)
    of_z, of_weights = (g.double() for g in inputs.grads)
    spread, g = z - mu, of_weights[..., None]
    eps = spread * torch.exp(-0.5 * logvar)
    assert abs(eps.mean()) < 6 / eps.numel() ** 0.5, "the noise is not standard normal"
    wants = (
        0.5 * (eps**2 + logvar - z**2).sum(-1),
        (of_z - g * z).sum(0),
        0.5 * (of_z * spread + g * (1 - z * spread)).sum(0),
    )
    for got, want in zip((weights, by_mu, by_logvar), wants, strict=True):
        assert (got - want).abs().max() <= 1e-4 * (1 + want.abs().max())


def terms(draws: int, mu: Any, logvar: Any) -> tuple[Any, Any]:
    """z and its log weights, in the lines of pythae's IWAE."""
    import torch

    mu, logvar = (t.expand(draws, *t.shape) for t in (mu, logvar))
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    log_q = (-0.5 * (logvar + (z - mu) ** 2 / logvar.exp())).sum(-1)
    return z, (-0.5 * z**2).sum(-1) - log_q


def nll(logits: Any, x: Any) -> Any:
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    return bce(logits, x.expand_as(logits), reduction="none").sum(-1)


def fused_terms(draws: int, mu: Any, logvar: Any) -> tuple[Any, Any]:
    import vae_fast

    z, weights = vae_fast.log_weights(mu, logvar, num_samples=draws)
    return z, weights


def bound(draws: int, terms_of: Any, x: Any, *weights: Any) -> Any:
    """log p(x) is at least this: of the terms by their function, and a Bernoulli's of the same engine."""
    import vae_fast

    *encoder, head, first, second, last = weights
    hidden = x
    for w in encoder:
        hidden = (hidden @ w.T).tanh()
    z, log_w = terms_of(draws, *(hidden @ head.T).chunk(2, -1))
    for w in (first, second):
        z = (z @ w.T).tanh()
    logits = z @ last.T
    each = vae_fast.bernoulli_nll(logits, x) if terms_of is fused_terms else nll(logits, x)
    return (log_w - each).logsumexp(0) - math.log(draws)


def expression_of(case: Case, terms_of: Any) -> Any:
    if case["what"] == "IWAE":
        return lambda *inputs: (bound(case["shape"][0], terms_of, *inputs),)
    return partial(terms_of, case["shape"][0])


def work(case: Case, terms_of: Any, wrap: Any = lambda function: function) -> Work:
    return torch_work(make_inputs(case), wrap(expression_of(case, terms_of)), partial(check, case))


def written(case: Case) -> Work:
    return work(case, terms)


def compiled(case: Case) -> Work:
    import torch

    return work(case, terms, torch.compile)


def ours(case: Case) -> Work:
    return work(case, fused_terms)


PROVIDERS = [Provider("eager", written), Provider("torch.compile", compiled), Provider(OURS, ours)]


def run(what: str, shape: tuple[int, ...]) -> Comparison:
    case = {"what": what, "shape": shape}
    providers = [p for p in PROVIDERS if not (QUICK and p.name == "torch.compile")]
    return compare(f"{what}, forward + backward, {size_of(shape)}", case, providers, rounds=6)


_suite = Suite("importance", ours)


@pytest.mark.parametrize(("what", "shape"), CASES, ids=case_id)
def test_importance(what: str, shape: tuple[int, ...], benchmark: Any) -> None:
    _suite.add(run(what, shape), benchmark)
