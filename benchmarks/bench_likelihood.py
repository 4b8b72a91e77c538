"""-log p(x given decoder output) per sample, forward and backward, for every member of the family.

Every provider returns (nll, gradient of each parameter) for a given grad_nll and allocates them anew.

    pytest benchmarks/bench_likelihood.py -s          python benchmarks/bench_likelihood.py [MEMBER ...]
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

import pytest

from harness import Provider, Suite, Work, compare
from likelihood_members import MEMBERS, Expression
from report import OURS, QUICK, Case, Comparison, save

INPUT_SETS = 2

Inputs = tuple[tuple[Any, ...], Any, Any]  # parameters, target, grad_nll


def make_inputs(case: Case) -> list[Inputs]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape, member = tuple(case["shape"]), MEMBERS[case["likelihood"]]

    def one() -> Inputs:
        target, *params = member.make(shape, generator)
        grad_nll = torch.randn(shape[0], generator=generator)
        return tuple(p.requires_grad_() for p in params), target, grad_nll

    return [one() for _ in range(INPUT_SETS)]


def check(case: Case, inputs: Inputs, outputs: tuple[Any, ...], tolerance: float) -> None:
    import torch

    from vae_fast import reference

    params, target, grad_nll = inputs
    (first, *others) = exact = [p.detach().double().requires_grad_() for p in params]
    x = target.double() if target.is_floating_point() else target
    nll = getattr(reference, f"{case['likelihood']}_nll")(first, x, *others)
    wants = (nll, *torch.autograd.grad(nll, exact, grad_nll.double()))
    for got, want in zip(outputs, wants, strict=True):
        error = (torch.as_tensor(got).detach().double() - want).abs().max() / (1 + want.abs().max())
        assert error <= tolerance, f"off by {error:.2g} of the largest value, {tolerance:.2g} allowed"


def torch_work(case: Case, expression: Expression, tolerance: float) -> Work:
    import torch

    inputs = make_inputs(case)

    def step(i: int) -> tuple[Any, ...]:
        params, target, grad_nll = inputs[i % INPUT_SETS]
        nll = expression(target, *params)
        return nll, *torch.autograd.grad(nll, params, grad_nll)

    return Work(step, lambda i, outputs: check(case, inputs[i % INPUT_SETS], outputs, tolerance))


def eager(case: Case) -> Work:
    member = MEMBERS[case["likelihood"]]
    return torch_work(case, member.eager, member.tolerance)


def compiled(case: Case) -> Work:
    import torch

    member = MEMBERS[case["likelihood"]]
    return torch_work(case, torch.compile(member.eager), member.tolerance)


def library(name: str, case: Case) -> Work:
    member = MEMBERS[case["likelihood"]]
    return torch_work(case, member.libraries[name][1](), member.tolerance)


def from_vae_fast(case: Case, functions: Any) -> Work:
    function = getattr(functions, f"{case['likelihood']}_nll")
    return torch_work(case, lambda target, first, *others: function(first, target, *others), 1e-5)


def ours(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast)


def ours_reference(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast.reference)


def jax_jit(case: Case) -> Work:
    import jax
    import jax.numpy as jnp
    import torch

    def bernoulli(target: Any, logits: Any) -> Any:  # as optax.sigmoid_binary_cross_entropy
        each = -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)
        return jnp.sum(each, axis=-1)

    def gaussian(target: Any, mean: Any, logvar: Any) -> Any:
        return jnp.sum(
            0.5 * (math.log(2 * math.pi) + logvar + (target - mean) ** 2 / jnp.exp(logvar)), axis=-1
        )

    likelihood = bernoulli if case["likelihood"] == "bernoulli" else gaussian

    @jax.jit
    def program(params: Any, target: Any, grad_nll: Any) -> tuple[Any, ...]:
        nll, pull_back = jax.vjp(lambda *p: likelihood(target, *p), *params)
        return nll, *pull_back(grad_nll)

    torch_inputs = make_inputs(case)
    inputs = jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), torch_inputs)

    def step(i: int) -> Any:
        return jax.block_until_ready(program(*inputs[i % INPUT_SETS]))

    def verify(i: int, outputs: Any) -> None:
        got = tuple(torch.tensor(jax.device_get(t)) for t in outputs)
        check(case, torch_inputs[i % INPUT_SETS], got, 1e-5)

    return Work(step, verify)


def providers(likelihood: str) -> list[Provider]:
    member = MEMBERS[likelihood]
    # Compilation is the slowest of all: a quick run has it once.
    compiles = not QUICK or likelihood == "bernoulli"
    return [
        Provider("eager", eager),
        *([Provider("torch.compile", compiled)] if compiles else []),
        *([Provider("jax.jit", jax_jit, requires=("jax",))] if member.jax else []),
        *(
            Provider(name, partial(library, name), requires=(module,))
            for name, (module, _) in member.libraries.items()
        ),
        Provider("vae_fast reference", ours_reference, requires=("vae_fast",)),
        Provider(OURS, ours, requires=("vae_fast",)),
    ]


def run(likelihood: str) -> Comparison:
    member = MEMBERS[likelihood]
    shape = member.tiny if QUICK else member.shape
    case = {"likelihood": likelihood, "shape": shape}
    # forward reads the parameters and the target; backward reads them again and writes each parameter's gradient
    params, target, _ = make_inputs(case)[0]
    bytes_moved = 2 * target.nbytes + 3 * sum(p.nbytes for p in params)
    size = " x ".join(map(str, shape))
    title = f"{likelihood} nll, forward + backward, {size} float32"
    return compare(title, case, providers(likelihood), bytes_moved=bytes_moved, rounds=6)


_suite = Suite("likelihood", ours)


@pytest.mark.parametrize("likelihood", MEMBERS)
def test_likelihood(likelihood: str, benchmark: Any) -> None:
    _suite.add(run(likelihood), benchmark)


if __name__ == "__main__":
    print(save("likelihood", [run(name) for name in sys.argv[1:] or MEMBERS]))
