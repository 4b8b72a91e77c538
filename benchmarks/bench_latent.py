"""Sample + KL, forward, backward and both: z = mu + exp(logvar / 2) * eps, KL(N(mu, exp logvar) || N(0, 1)).

Every provider draws its own noise, returns (z, kl, grad_mu, grad_logvar) for given grad_z and grad_kl, and
allocates its outputs anew. The gradients are given rather than made by a loss such as (z * w).sum(): in a VAE
grad_z comes from the decoder, and a made-up loss would add the same memory traffic to everybody and hide the
difference.

    python -m benchmarks --only test_latent          pytest benchmarks/bench_latent.py -s
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest

from .comparison import Case, Comparison
from .floors import Least
from .harness import HOST, Provider, Suite, bytes_of, case_id, compare, size_of
from .settings import ALLOCATOR, QUICK
from .timing import OURS
from .work import INPUT_SETS, Inputs, Work, jax_work, torch_work

# what the title says of them
LAYOUTS = {
    "dense": "",
    "packed": ", packed mu and logvar",
    "channels_last": ", packed, channels-last images",
}
# (shape of z, dtype, layout)
CASES = (
    [
        ((32, 8), "float32", "dense"),
        ((32, 8), "bfloat16", "packed"),
        ((2, 4, 3, 3), "float32", "channels_last"),
    ]
    if QUICK
    else [
        *(
            (shape, dtype, "dense")
            for shape in ((65536, 256), (4096, 64), (128, 20))
            for dtype in ("float32", "bfloat16")
        ),
        ((1, 1), "float32", "dense"),
        ((1024, 20), "float32", "dense"),
        ((16384, 64), "float32", "dense"),
        ((16384, 128), "float32", "packed"),
        ((64, 4, 64, 64), "float32", "channels_last"),
    ]
)


def make_inputs(case: Case) -> list[Inputs]:
    """mu and logvar, or both in one; gradients of z and kl"""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape, dtype = tuple(case["shape"]), getattr(torch, case["dtype"])
    order = torch.channels_last if case["layout"] == "channels_last" else torch.contiguous_format

    def normal(*size: int) -> Any:
        return torch.randn(size, generator=generator)

    def one() -> Inputs:
        params: tuple[Any, ...] = (normal(*shape), 0.5 * normal(*shape) - 1)
        if case["layout"] != "dense":
            params = (torch.cat(params, 1),)
        leaves = tuple(p.to(dtype, memory_format=order).requires_grad_() for p in params)
        return Inputs(leaves, (normal(*shape).to(dtype, memory_format=order), normal(shape[0])))

    return [one() for _ in range(INPUT_SETS)]


def is_large(case: Case) -> bool:
    return math.prod(case["shape"]) > 1 << 22


def check(case: Case, i: int, inputs: Inputs, outputs: tuple[Any, ...]) -> None:
    """Recover eps from z, see that it is standard normal, and compare the rest with the formulas in float64."""
    import torch

    if i and is_large(case):  # float64 takes long there
        return
    grad_z, grad_kl = inputs.grads
    z, kl, *grads = (torch.as_tensor(t).detach().double() for t in outputs)
    wide = [p.detach().double() for p in inputs.params]
    mu, logvar = wide if len(wide) == 2 else wide[0].chunk(2, 1)
    std = (0.5 * logvar).exp()
    eps = (z - mu) / std
    # JAX makes bfloat16 normals from 8 random bits
    n, slack = eps.numel(), 0.001 if case["dtype"] == "float32" else 0.1
    assert (
        abs(eps.mean()) < 6 / n**0.5 + slack and abs(eps.var(correction=0) - 1) < 6 * (2 / n) ** 0.5 + slack
    ), eps.var()
    g = grad_kl.double().view(-1, *(1,) * (z.ndim - 1))
    exact = [
        grad_z.double() + g * mu,
        0.5 * grad_z.double() * eps * std + 0.5 * g * torch.expm1(logvar),
    ]
    if len(wide) == 1:
        exact = [torch.cat(exact, 1)]
    exact_kl = 0.5 * (mu**2 + torch.expm1(logvar) - logvar).flatten(1).sum(1)
    tolerance = 1e-4 if case["dtype"] == "float32" else 0.03
    for got, want in zip((kl, *grads), (exact_kl, *exact), strict=True):
        assert (got - want).abs().max() <= tolerance * (1 + want.abs().max())


def as_people_write_it(*params: Any) -> tuple[Any, Any]:
    import torch

    mu, logvar = params if len(params) == 2 else params[0].chunk(2, dim=1)
    std = torch.exp(0.5 * logvar)
    z = mu + torch.randn_like(std) * std
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=tuple(range(1, mu.ndim)))
    return z, kl


def as_torch_distributions_have_it(*params: Any) -> tuple[Any, Any]:
    from torch.distributions import Normal, kl_divergence

    mu, logvar = params if len(params) == 2 else params[0].chunk(2, dim=1)
    posterior = Normal(mu, (0.5 * logvar).exp(), validate_args=False)
    prior = Normal(mu.new_zeros(()), mu.new_ones(()), validate_args=False)
    return posterior.rsample(), kl_divergence(posterior, prior).flatten(1).sum(1)


def as_diffusers_have_it(*params: Any) -> tuple[Any, Any]:
    import torch
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    posterior = DiagonalGaussianDistribution(params[0] if len(params) == 1 else torch.cat(params, 1))
    return posterior.sample(), posterior.kl()


def as_pythae_has_it(mu: Any, logvar: Any) -> tuple[Any, Any]:
    import torch

    VAE = importlib.import_module("pythae.models").VAE
    z, _ = VAE._sample_gauss(None, mu, torch.exp(0.5 * logvar))
    # the line of its loss_function, which goes on to the batch's mean
    return z, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=-1)


def work(case: Case, expression: Any) -> Work:
    return torch_work(make_inputs(case), expression, partial(check, case))


def written(expression: Any, case: Case) -> Work:
    return work(case, expression)


def compiled(mode: str | None, case: Case) -> Work:
    import torch

    return work(case, torch.compile(as_people_write_it, mode=mode))


def from_vae_fast(case: Case, functions: Any) -> Work:
    dense = case["layout"] == "dense"
    return work(case, functions.reparameterize_kl if dense else functions.reparameterize_kl_packed)


def ours(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast)


def ours_reference(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast.reference)


def jax_jit(bits: str, case: Case) -> Work:
    import jax
    import jax.numpy as jnp

    def expression(seed: Any, *params: Any) -> tuple[Any, Any]:
        mu, logvar = params if len(params) == 2 else jnp.split(params[0], 2, axis=1)
        std = jnp.exp(0.5 * logvar)
        z = mu + jax.random.normal(jax.random.key(seed, impl=bits), mu.shape, mu.dtype) * std
        return z, -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar), axis=tuple(range(1, mu.ndim)))

    return jax_work(make_inputs(case), expression, partial(check, case), draws=True)


PROVIDERS = [
    Provider("eager", partial(written, as_people_write_it)),
    Provider("torch.compile", partial(compiled, None)),
    Provider("torch.compile max-autotune", partial(compiled, "max-autotune")),
    Provider("torch.distributions", partial(written, as_torch_distributions_have_it)),
    Provider("diffusers", partial(written, as_diffusers_have_it), requires=("diffusers",)),
    Provider("pythae", partial(written, as_pythae_has_it), requires=("pythae",)),
    Provider("jax.jit", partial(jax_jit, "threefry2x32"), requires=("jax",)),
    Provider("jax.jit rbg", partial(jax_jit, "rbg"), requires=("jax",)),
    Provider("vae_fast reference", ours_reference),
    Provider(OURS, ours),
]


def run(shape: tuple[int, ...], dtype: str, layout: str) -> Comparison:
    case = {"shape": shape, "dtype": dtype, "layout": layout}
    elements = math.prod(shape)
    array = elements * bytes_of(dtype)
    least = {
        "forward": Least(3 * array, normals=elements),  # reads mu, logvar and writes z
        "backward": Least(5 * array, normals=elements),  # reads mu, logvar, grad_z and writes two gradients
    }
    # The reference spells Philox out in tensor operations: minutes at the large size. A quick run compiles once.
    out = ["vae_fast reference"] * is_large(case)
    out += ["torch.compile", "torch.compile max-autotune"] * (QUICK and layout != "dense")
    out += ["diffusers"] * (len(shape) != 4)  # its KL is that of images
    out += ["pythae"] * (layout != "dense")  # whose encoders return mu and logvar
    providers = [p for p in PROVIDERS if p.name not in out]
    if is_large(case) and ALLOCATOR == "tuned":  # all their heaps together are more than many a memory
        providers = [p for p in providers if p.name in ("eager", "torch.compile", "jax.jit", OURS)]
    return compare(
        f"sample + KL, forward + backward, {size_of(shape)} {dtype}{LAYOUTS[layout]}{HOST * (elements == 1)}",
        case,
        providers,
        least=least if elements > 1 else None,
        rounds=6,
    )


_suite = Suite("latent", ours)


@pytest.mark.parametrize(("shape", "dtype", "layout"), CASES, ids=case_id)
def test_latent(shape: tuple[int, ...], dtype: str, layout: str, benchmark: Any) -> None:
    _suite.add(run(shape, dtype, layout), benchmark)
