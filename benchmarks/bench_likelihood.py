"""-log p(x given decoder output) per sample, forward and backward: Bernoulli, Gaussian.

Every provider returns (nll, gradient of each parameter) for a given grad_nll and allocates them anew.

    pytest benchmarks/bench_likelihood.py -s          python benchmarks/bench_likelihood.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from harness import Provider, Work, compare
from report import OURS, QUICK, Case, Comparison, save

CASES = (
    [("bernoulli", 32, 24), ("gaussian", 32, 24)]
    if QUICK
    else [("bernoulli", 16384, 784), ("gaussian", 4096, 784)]
)
PARAMETERS = {"bernoulli": 1, "gaussian": 2}  # logits; mean and logvar
INPUT_SETS = 2

Inputs = tuple[tuple[Any, ...], Any, Any]  # parameters, target, grad_nll


def make_inputs(case: Case) -> list[Inputs]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (case["batch"], case["features"])

    def one() -> Inputs:
        params = tuple(
            torch.randn(shape, generator=generator).requires_grad_()
            for _ in range(PARAMETERS[case["likelihood"]])
        )
        return params, torch.rand(shape, generator=generator), torch.randn(shape[0], generator=generator)

    return [one() for _ in range(INPUT_SETS)]


def check(case: Case, inputs: Inputs, outputs: tuple[Any, ...]) -> None:
    import torch

    params, target, grad_nll = inputs
    exact = [p.detach().double().requires_grad_() for p in params]
    likelihood = bernoulli if case["likelihood"] == "bernoulli" else gaussian
    nll = likelihood(target.double(), *exact)
    wants = (nll, *torch.autograd.grad(nll, exact, grad_nll.double()))
    for got, want in zip(outputs, wants, strict=True):
        assert (torch.as_tensor(got).detach().double() - want).abs().max() <= 1e-5 * (1 + want.abs().max())


def bernoulli(target: Any, logits: Any) -> Any:
    import torch.nn.functional as F

    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def gaussian(target: Any, mean: Any, logvar: Any) -> Any:
    return (0.5 * (math.log(2 * math.pi) + logvar + (target - mean) ** 2 / logvar.exp())).sum(-1)


def torch_work(case: Case, likelihood: Callable[..., Any]) -> Work:
    import torch

    inputs = make_inputs(case)

    def step(i: int) -> tuple[Any, ...]:
        params, target, grad_nll = inputs[i % INPUT_SETS]
        nll = likelihood(target, *params)
        return nll, *torch.autograd.grad(nll, params, grad_nll)

    return Work(step, lambda i, outputs: check(case, inputs[i % INPUT_SETS], outputs))


def eager(case: Case) -> Work:
    return torch_work(case, bernoulli if case["likelihood"] == "bernoulli" else gaussian)


def compiled(case: Case) -> Work:
    import torch

    return torch_work(case, torch.compile(bernoulli if case["likelihood"] == "bernoulli" else gaussian))


def from_vae_fast(case: Case, functions: Any) -> Work:
    if case["likelihood"] == "bernoulli":
        return torch_work(case, lambda target, logits: functions.bernoulli_nll(logits, target))
    return torch_work(case, lambda target, mean, logvar: functions.gaussian_nll(mean, target, logvar))


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
        check(case, torch_inputs[i % INPUT_SETS], tuple(torch.tensor(jax.device_get(t)) for t in outputs))

    return Work(step, verify)


PROVIDERS = [
    Provider("eager", eager),
    Provider("torch.compile", compiled),
    Provider("jax.jit", jax_jit, requires=("jax",)),
    Provider("vae_fast reference", ours_reference, requires=("vae_fast",)),
    Provider(OURS, ours, requires=("vae_fast",)),
]


def run(likelihood: str, batch: int, features: int) -> Comparison:
    case = {"likelihood": likelihood, "batch": batch, "features": features}
    # forward reads the parameters and the target; backward reads them again and writes each parameter's gradient
    bytes_moved = 4 * batch * features * (3 * PARAMETERS[likelihood] + 2)
    title = f"{likelihood} nll, forward + backward, {batch} x {features} float32"
    return compare(title, case, PROVIDERS, bytes_moved=bytes_moved)


_done: list[Comparison] = []


@pytest.mark.parametrize(("likelihood", "batch", "features"), CASES)
def test_likelihood(likelihood: str, batch: int, features: int, benchmark: Any) -> None:
    _done.append(run(likelihood, batch, features))
    save("likelihood", _done)
    work = ours(_done[-1].case)
    benchmark.extra_info.update({r.provider: r.median for r in _done[-1].results if r.rounds})
    benchmark(work.step, 0)


if __name__ == "__main__":
    print(save("likelihood", [run(*case) for case in CASES]))
