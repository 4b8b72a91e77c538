"""A decoder's last linear layer and its likelihood in one step, forward, backward and both: time and peak memory.

Providers return (nll, gradient of hidden, weight, bias, ...) of the mean loss. Peak memory is that of one step above
its inputs, parameters and target.

    pytest benchmarks/bench_linear_likelihood.py -s          python benchmarks/bench_linear_likelihood.py [MEMBER ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import likelihood_members as members
from harness import Provider, Suite, Work, compare
from report import OURS, QUICK, Case, Comparison, save

SIZE = (
    {"batch": 32, "features": 24, "hidden": 8} if QUICK else {"batch": 8192, "features": 20000, "hidden": 128}
)
MEMBERS = ("bernoulli", "negative_binomial", "multinomial")


def make_inputs(case: Case) -> tuple[Any, list[Any]]:
    """target; hidden, weight, bias and, for counts, theta of every feature"""
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
    return target, [t.requires_grad_() for t in leaves]


def build(case: Case, loss: Callable[..., Any]) -> Work:
    import torch

    target, leaves = make_inputs(case)

    def step(i: int) -> tuple[Any, ...]:
        nll = loss(target, *leaves)
        return nll.detach(), *torch.autograd.grad(nll.mean(), leaves)

    def forward(i: int) -> Any:
        return torch.no_grad()(lambda: (loss(target, *leaves),))

    def backward(i: int) -> Any:
        return partial(torch.autograd.grad, loss(target, *leaves).mean(), leaves)

    def check(i: int, outputs: tuple[Any, ...]) -> None:
        if i:  # float64 takes long at this size
            return
        from vae_fast import reference

        rows = min(64, case["batch"])
        hidden, *layer = (t.detach().double().requires_grad_() for t in leaves)
        function = getattr(reference, f"linear_{case['likelihood']}_nll")
        nll = function(hidden[:rows], *layer[:2], target[:rows].double(), *layer[2:])
        (grad_hidden,) = torch.autograd.grad(nll.sum() / case["batch"], hidden)
        for got, want in ((outputs[0][:rows], nll), (outputs[1][:rows], grad_hidden[:rows])):
            assert (got.double() - want).abs().max() <= 1e-4 * want.abs().max()
        assert outputs[2].isfinite().all()

    return Work(step, check, {"forward": forward, "backward": backward})


def eager(case: Case) -> Work:
    import torch.nn.functional as F

    likelihood = getattr(members, case["likelihood"])
    counts = case["likelihood"] == "negative_binomial"

    def loss(target: Any, hidden: Any, weight: Any, bias: Any, *others: Any) -> Any:
        outputs = F.linear(hidden, weight, bias)
        return likelihood(target, outputs.exp() if counts else outputs, *others)

    return build(case, loss)


def unfused(case: Case) -> Work:
    import torch.nn.functional as F

    import vae_fast

    likelihood = getattr(vae_fast, f"{case['likelihood']}_nll")
    counts = case["likelihood"] == "negative_binomial"

    def loss(target: Any, hidden: Any, weight: Any, bias: Any, *others: Any) -> Any:
        outputs = F.linear(hidden, weight, bias)
        return likelihood(outputs.exp() if counts else outputs, target, *others)

    return build(case, loss)


def fused(case: Case) -> Work:
    import vae_fast

    likelihood = getattr(vae_fast, f"linear_{case['likelihood']}_nll")

    def loss(target: Any, hidden: Any, weight: Any, bias: Any, *others: Any) -> Any:
        return likelihood(hidden, weight, bias, target, *others)

    return build(case, loss)


PROVIDERS = [
    Provider("eager", eager),
    Provider("layer, then vae_fast", unfused, requires=("vae_fast",)),
    Provider(OURS, fused, requires=("vae_fast",)),
]


def run(likelihood: str) -> Comparison:
    case = {"likelihood": likelihood, **SIZE}
    title = "linear layer and {likelihood} nll, forward + backward, {batch} x {hidden} to {features} float32"
    return compare(title.format(**case), case, PROVIDERS, rounds=3)


_suite = Suite("linear_likelihood", fused)


@pytest.mark.parametrize("likelihood", MEMBERS)
def test_linear_likelihood(likelihood: str, benchmark: Any) -> None:
    _suite.add(run(likelihood), benchmark)


if __name__ == "__main__":
    print(save("linear_likelihood", [run(name) for name in sys.argv[1:] or MEMBERS]))
