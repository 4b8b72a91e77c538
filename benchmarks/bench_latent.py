"""Sample + KL, forward and backward: z = mu + exp(logvar / 2) * eps, KL(N(mu, exp logvar) || N(0, 1)).

Every provider draws its own noise, returns (z, kl, grad_mu, grad_logvar) for given grad_z and grad_kl, and
allocates its outputs anew. The gradients are given rather than made by a loss such as (z * w).sum(): in a VAE
grad_z comes from the decoder, and a made-up loss would add the same memory traffic to everybody and hide the
difference.

    pytest benchmarks/bench_latent.py -s          python benchmarks/bench_latent.py
"""

from __future__ import annotations

from typing import Any

import pytest

from harness import Provider, Work, compare
from report import OURS, QUICK, Case, Comparison, save

SIZES = [(32, 8)] if QUICK else [(65536, 256), (4096, 64), (128, 20)]
DTYPES = ["float32", "bfloat16"]
INPUT_SETS = 2  # steps alternate between them, so that no provider sees the very same input twice in a row


def make_inputs(case: Case) -> list[tuple[Any, ...]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape, dtype = (case["batch"], case["features"]), getattr(torch, case["dtype"])

    def normal(*size: int) -> Any:
        return torch.randn(size, generator=generator)

    return [
        (
            normal(*shape).to(dtype).requires_grad_(),
            (0.5 * normal(*shape) - 1).to(dtype).requires_grad_(),
            normal(*shape).to(dtype),
            normal(shape[0]),
        )
        for _ in range(INPUT_SETS)
    ]


def check(case: Case, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Recover eps from z, see that it is standard normal, and compare the rest with the formulas in float64."""
    import torch

    mu, logvar, grad_z, grad_kl = (t.detach().double() for t in inputs)
    z, kl, grad_mu, grad_logvar = (torch.as_tensor(t).detach().double() for t in outputs)
    std = (0.5 * logvar).exp()
    eps = (z - mu) / std
    n, slack = (
        eps.numel(),
        0.001 if case["dtype"] == "float32" else 0.1,
    )  # JAX makes bfloat16 normals from 8 random bits
    assert abs(eps.mean()) < 6 / n**0.5 + slack and abs(eps.var() - 1) < 6 * (2 / n) ** 0.5 + slack, eps.var()
    exact = (
        0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(1),
        grad_z + grad_kl[:, None] * mu,
        0.5 * grad_z * eps * std + 0.5 * grad_kl[:, None] * torch.expm1(logvar),
    )
    tolerance = 1e-4 if case["dtype"] == "float32" else 0.03
    for got, want in zip((kl, grad_mu, grad_logvar), exact, strict=True):
        assert (got - want).abs().max() <= tolerance * (1 + want.abs().max())


def as_people_write_it(mu: Any, logvar: Any) -> tuple[Any, Any]:
    import torch

    std = torch.exp(0.5 * logvar)
    z = mu + torch.randn_like(std) * std
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
    return z, kl


def torch_work(case: Case, forward: Any) -> Work:
    import torch

    inputs = make_inputs(case)

    def step(i: int) -> tuple[Any, ...]:
        mu, logvar, grad_z, grad_kl = inputs[i % INPUT_SETS]
        z, kl = forward(mu, logvar)
        return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl.to(kl.dtype)))

    return Work(step, lambda i, outputs: check(case, inputs[i % INPUT_SETS], outputs))


def eager(case: Case) -> Work:
    return torch_work(case, as_people_write_it)


def compiled(case: Case) -> Work:
    import torch

    return torch_work(case, torch.compile(as_people_write_it))


def ours(case: Case) -> Work:
    import vae_fast

    return torch_work(case, vae_fast.reparameterize_kl)


def ours_reference(case: Case) -> Work:
    import vae_fast

    return torch_work(case, vae_fast.reference.reparameterize_kl)


def jax_jit(case: Case) -> Work:
    import jax
    import jax.numpy as jnp
    import torch

    def from_torch(t: Any) -> Any:
        return jnp.asarray(t.detach().float().numpy()).astype(case["dtype"] if t.ndim == 2 else "float32")

    torch_inputs = make_inputs(case)
    inputs = [tuple(from_torch(t) for t in one) for one in torch_inputs]

    @jax.jit  # one program: threefry noise, forward, backward
    def program(seed: Any, mu: Any, logvar: Any, grad_z: Any, grad_kl: Any) -> tuple[Any, ...]:
        def forward(mu: Any, logvar: Any) -> tuple[Any, Any]:
            std = jnp.exp(0.5 * logvar)
            z = mu + jax.random.normal(jax.random.key(seed), mu.shape, mu.dtype) * std
            return z, -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar), axis=1)

        (z, kl), pull_back = jax.vjp(forward, mu, logvar)
        return z, kl, *pull_back((grad_z, grad_kl.astype(kl.dtype)))

    def step(i: int) -> Any:
        return jax.block_until_ready(program(i, *inputs[i % INPUT_SETS]))

    def verify(i: int, outputs: Any) -> None:
        as_torch = tuple(torch.tensor(jax.device_get(t.astype("float32"))) for t in outputs)
        check(case, torch_inputs[i % INPUT_SETS], as_torch)

    return Work(step, verify)


PROVIDERS = [
    Provider("eager", eager),
    Provider("torch.compile", compiled),
    Provider("jax.jit", jax_jit, requires=("jax",)),
    Provider("vae_fast reference", ours_reference, requires=("vae_fast",)),
    Provider(OURS, ours, requires=("vae_fast",)),
]


def run(batch: int, features: int, dtype: str) -> Comparison:
    case = {"batch": batch, "features": features, "dtype": dtype}
    element = 4 if dtype == "float32" else 2
    # forward reads mu, logvar and writes z; backward reads mu, logvar, grad_z and writes two gradients
    bytes_moved = 8 * batch * features * element
    large = batch * features > 1 << 22
    return compare(
        f"sample + KL, forward + backward, {batch} x {features} {dtype}",
        case,
        # The reference spells Philox out in tensor operations: minutes at the large size.
        [p for p in PROVIDERS if not (large and p.build is ours_reference)],
        bytes_moved=bytes_moved,
        rounds=6 if large else 12,
    )


_done: list[Comparison] = []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "features"), SIZES)
def test_latent(batch: int, features: int, dtype: str, benchmark: Any) -> None:
    _done.append(run(batch, features, dtype))
    save("latent", _done)
    work = ours(_done[-1].case)
    benchmark.extra_info.update({r.provider: r.median for r in _done[-1].results if r.rounds})
    benchmark(work.step, 0)


if __name__ == "__main__":
    print(save("latent", [run(*size, dtype) for size in SIZES for dtype in DTYPES]))
