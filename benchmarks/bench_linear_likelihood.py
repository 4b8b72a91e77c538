"""A decoder's last linear layer and its likelihood in one step, forward, backward and both: time and peak memory.

Providers return (nll, gradient of hidden, weight, bias, ...) of the mean loss. Peak memory is that of one step above
its inputs, parameters and target.

    python -m benchmarks --only linear          pytest benchmarks/bench_linear_likelihood.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from .comparison import Case, Comparison
from .harness import Provider, Suite, compare
from .likelihoods import LIKELIHOODS
from .settings import QUICK
from .timing import OURS
from .work import INPUT_SETS, Inputs, Work, as_tuple, torch_work

SIZE = (
    {"batch": 32, "features": 24, "hidden": 8} if QUICK else {"batch": 8192, "features": 20000, "hidden": 128}
)
CASES = ("bernoulli", "negative_binomial", "multinomial")


def make_inputs(case: Case) -> list[Inputs]:
    """target; hidden, weight, bias and, for counts, theta of every feature. One set: the memory holds no second."""
    import torch

    generator = torch.Generator().manual_seed(0)
    batch, features, size = case["batch"], case["features"], case["hidden"]
    rate = 0.3 if case["likelihood"] != "negative_binomial" else 0.25
    target = torch.empty(batch, features)
    for row in target:  # without a second matrix of its size, which would leave holes in the memory
        row.copy_(torch.poisson(torch.full((features,), rate), generator=generator))
    if case["likelihood"] == "bernoulli":
        target.clamp_(max=1)
    leaves = [
        torch.randn(batch, size, generator=generator),
        torch.randn(features, size, generator=generator) * 0.05,
        torch.zeros(features),
    ]
    if case["likelihood"] == "negative_binomial":
        leaves.append(torch.rand(features, generator=generator) + 0.5)
    grad_nll = torch.tensor(1 / batch).expand(batch)  # as that of the mean
    return INPUT_SETS * [Inputs(tuple(t.requires_grad_() for t in leaves), (grad_nll,), (target,))]


def check(case: Case, i: int, inputs: Inputs, outputs: tuple[Any, ...]) -> None:
    if i:  # float64 takes long at this size
        return
    import torch

    from vae_fast import reference

    rows, (target,) = min(64, case["batch"]), inputs.data
    hidden, *layer = (t.detach().double().requires_grad_() for t in inputs.params)
    function = getattr(reference, f"linear_{case['likelihood']}_nll")
    nll = function(hidden[:rows], *layer[:2], target[:rows].double(), *layer[2:])
    (grad_hidden,) = torch.autograd.grad(nll.sum() / case["batch"], hidden)
    for got, want in ((outputs[0][:rows], nll), (outputs[1][:rows], grad_hidden[:rows])):
        assert (got.double() - want).abs().max() <= 1e-4 * want.abs().max()
    assert outputs[2].isfinite().all()


def work(case: Case, loss: Callable[..., Any]) -> Work:
    return torch_work(make_inputs(case), as_tuple(loss), partial(check, case))


def of_layer(case: Case, likelihood: Callable[..., Any]) -> Work:
    """The linear layer, then `likelihood(target, its outputs, ...)`."""
    import torch.nn.functional as F

    counts = case["likelihood"] == "negative_binomial"

    def loss(target: Any, hidden: Any, weight: Any, bias: Any, *others: Any) -> Any:
        outputs = F.linear(hidden, weight, bias)
        return likelihood(target, outputs.exp() if counts else outputs, *others)

    return work(case, loss)


def eager(case: Case) -> Work:
    return of_layer(case, LIKELIHOODS[case["likelihood"]].eager)


def unfused(case: Case) -> Work:
    import vae_fast

    function = getattr(vae_fast, f"{case['likelihood']}_nll")
    return of_layer(case, lambda target, first, *others: function(first, target, *others))


def fused(case: Case) -> Work:
    import vae_fast

    function = getattr(vae_fast, f"linear_{case['likelihood']}_nll")

    def loss(target: Any, hidden: Any, weight: Any, bias: Any, *others: Any) -> Any:
        return function(hidden, weight, bias, target, *others)

    return work(case, loss)


PROVIDERS = [
    Provider("eager", eager),
    Provider("layer, then vae_fast", unfused),
    Provider(OURS, fused),
]


def run(likelihood: str) -> Comparison:
    case = {"likelihood": likelihood, **SIZE}
    title = "linear layer and {likelihood} nll, forward + backward, {batch} x {hidden} to {features} float32"
    return compare(title.format(**case), case, PROVIDERS, rounds=3)


_suite = Suite("linear_likelihood", fused)


@pytest.mark.parametrize("likelihood", CASES)
def test_linear_likelihood(likelihood: str, benchmark: Any) -> None:
    _suite.add(run(likelihood), benchmark)
