"""Sample + KL, forward, backward and both: z = mu + exp(logvar / 2) * eps, KL(N(mu, exp logvar) || N(0, 1)).

Every provider draws its own noise, returns (z, kl, grad_mu, grad_logvar) for given grad_z and grad_kl, and
allocates its outputs anew. The gradients are given rather than made by a loss such as (z * w).sum(): in a VAE
grad_z comes from the decoder, and a made-up loss would add the same memory traffic to everybody and hide the
difference.

    pytest benchmarks/bench_latent.py -s          python benchmarks/bench_latent.py
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest

from allocator import ALLOCATOR
from harness import Provider, Suite, Work, compare
from report import OURS, QUICK, Case, Comparison, Least, save

# what the title says of them
LAYOUTS = {
    "dense": "",
    "packed": ", packed mu and logvar",
    "channels_last": ", packed, channels-last images",
}
HOST = ": the host's time alone"
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
INPUT_SETS = 2  # steps alternate between them, so that no provider sees the very same input twice in a row


def make_inputs(case: Case) -> list[tuple[tuple[Any, ...], Any, Any]]:
    """(mu and logvar, or both in one; gradient of z; gradient of kl)"""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape, dtype = tuple(case["shape"]), getattr(torch, case["dtype"])
    order = torch.channels_last if case["layout"] == "channels_last" else torch.contiguous_format

    def normal(*size: int) -> Any:
        return torch.randn(size, generator=generator)

    def one() -> tuple[tuple[Any, ...], Any, Any]:
        params: tuple[Any, ...] = (normal(*shape), 0.5 * normal(*shape) - 1)
        if case["layout"] != "dense":
            params = (torch.cat(params, 1),)
        leaves = tuple(p.to(dtype, memory_format=order).requires_grad_() for p in params)
        return leaves, normal(*shape).to(dtype, memory_format=order), normal(shape[0])

    return [one() for _ in range(INPUT_SETS)]


def is_large(case: Case) -> bool:
    return math.prod(case["shape"]) > 1 << 22


def check(case: Case, i: int, inputs: tuple[Any, Any, Any], outputs: tuple[Any, ...]) -> None:
    """Recover eps from z, see that it is standard normal, and compare the rest with the formulas in float64."""
    import torch

    if i and is_large(case):  # float64 takes long there
        return
    params, grad_z, grad_kl = inputs
    z, kl, *grads = (torch.as_tensor(t).detach().double() for t in outputs)
    wide = [p.detach().double() for p in params]
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


def torch_work(case: Case, expression: Any) -> Work:
    import torch

    inputs = make_inputs(case)

    def step(i: int) -> tuple[Any, ...]:
        params, grad_z, grad_kl = inputs[i % INPUT_SETS]
        z, kl = expression(*params)
        return z, kl, *torch.autograd.grad((z, kl), params, (grad_z, grad_kl.to(kl.dtype)))

    def forward(i: int) -> Any:
        torch.manual_seed(i)  # the same noise in both parts
        return partial(torch.no_grad()(expression), *inputs[i % INPUT_SETS][0])

    def backward(i: int) -> Any:
        torch.manual_seed(i)
        params, grad_z, grad_kl = inputs[i % INPUT_SETS]
        z, kl = expression(*params)
        return partial(torch.autograd.grad, (z, kl), params, (grad_z, grad_kl.to(kl.dtype)))

    return Work(
        step,
        lambda i, outputs: check(case, i, inputs[i % INPUT_SETS], outputs),
        {"forward": forward, "backward": backward},
    )


def eager(case: Case) -> Work:
    return torch_work(case, as_people_write_it)


def compiled(case: Case) -> Work:
    import torch

    return torch_work(case, torch.compile(as_people_write_it))


def max_autotune(case: Case) -> Work:
    import torch

    return torch_work(case, torch.compile(as_people_write_it, mode="max-autotune"))


def distributions(case: Case) -> Work:
    return torch_work(case, as_torch_distributions_have_it)


def diffusers(case: Case) -> Work:
    return torch_work(case, as_diffusers_have_it)


def pythae(case: Case) -> Work:
    return torch_work(case, as_pythae_has_it)


def from_vae_fast(case: Case, functions: Any) -> Work:
    dense = case["layout"] == "dense"
    return torch_work(case, functions.reparameterize_kl if dense else functions.reparameterize_kl_packed)


def ours(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast)


def ours_reference(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast.reference)


def jax_jit(bits: str, case: Case) -> Work:
    import jax
    import jax.numpy as jnp
    import torch

    def from_torch(t: Any) -> Any:
        return jnp.asarray(t.detach().float().numpy()).astype(case["dtype"] if t.ndim > 1 else "float32")

    torch_inputs = make_inputs(case)
    inputs = [jax.tree.map(from_torch, one) for one in torch_inputs]

    def expression(seed: Any, *params: Any) -> tuple[Any, Any]:
        mu, logvar = params if len(params) == 2 else jnp.split(params[0], 2, axis=1)
        std = jnp.exp(0.5 * logvar)
        z = mu + jax.random.normal(jax.random.key(seed, impl=bits), mu.shape, mu.dtype) * std
        return z, -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar), axis=tuple(range(1, mu.ndim)))

    @jax.jit
    def forward_for_backward(seed: Any, *params: Any) -> Any:
        return jax.vjp(partial(expression, seed), *params)

    @jax.jit
    def backward_alone(pull_back: Any, grad_z: Any, grad_kl: Any) -> Any:
        return pull_back((grad_z, grad_kl))

    @jax.jit  # one program: noise, forward, backward
    def program(seed: Any, params: Any, grad_z: Any, grad_kl: Any) -> tuple[Any, ...]:
        (z, kl), pull_back = jax.vjp(partial(expression, seed), *params)
        return z, kl, *pull_back((grad_z, grad_kl.astype(kl.dtype)))

    forward_alone = jax.jit(expression)

    def step(i: int) -> Any:
        return jax.block_until_ready(program(i, *inputs[i % INPUT_SETS]))

    def forward(i: int) -> Any:
        params, _, _ = inputs[i % INPUT_SETS]
        return lambda: jax.block_until_ready(forward_alone(i, *params))

    def backward(i: int) -> Any:
        params, grad_z, grad_kl = inputs[i % INPUT_SETS]
        (_, kl), pull_back = jax.block_until_ready(forward_for_backward(i, *params))
        grad_kl = grad_kl.astype(kl.dtype)
        return lambda: jax.block_until_ready(backward_alone(pull_back, grad_z, grad_kl))

    def verify(i: int, outputs: Any) -> None:
        as_torch = tuple(torch.tensor(jax.device_get(t.astype("float32"))) for t in outputs)
        check(case, i, torch_inputs[i % INPUT_SETS], as_torch)

    return Work(step, verify, {"forward": forward, "backward": backward})


PROVIDERS = [
    Provider("eager", eager),
    Provider("torch.compile", compiled),
    Provider("torch.compile max-autotune", max_autotune),
    Provider("torch.distributions", distributions),
    Provider("diffusers", diffusers, requires=("diffusers",)),
    Provider("pythae", pythae, requires=("pythae",)),
    Provider("jax.jit", partial(jax_jit, "threefry2x32"), requires=("jax",)),
    Provider("jax.jit rbg", partial(jax_jit, "rbg"), requires=("jax",)),
    Provider("vae_fast reference", ours_reference, requires=("vae_fast",)),
    Provider(OURS, ours, requires=("vae_fast",)),
]


def run(shape: tuple[int, ...], dtype: str, layout: str) -> Comparison:
    case = {"shape": shape, "dtype": dtype, "layout": layout}
    elements, size = math.prod(shape), " x ".join(map(str, shape))
    array = elements * (4 if dtype == "float32" else 2)
    least = {
        "forward": Least(3 * array, normals=elements),  # reads mu, logvar and writes z
        "backward": Least(5 * array, normals=elements),  # reads mu, logvar, grad_z and writes two gradients
    }
    # The reference spells Philox out in tensor operations: minutes at the large size. A quick run compiles once.
    out = [ours_reference] * is_large(case) + [compiled, max_autotune] * (QUICK and layout != "dense")
    out += [diffusers] * (len(shape) != 4)  # its KL is that of images
    out += [pythae] * (layout != "dense")  # whose encoders return mu and logvar
    providers = [p for p in PROVIDERS if p.build not in out]
    if is_large(case) and ALLOCATOR == "tuned":  # all their heaps together are more than many a memory
        providers = [p for p in providers if p.name in ("eager", "torch.compile", "jax.jit", OURS)]
    return compare(
        f"sample + KL, forward + backward, {size} {dtype}{LAYOUTS[layout]}{HOST * (elements == 1)}",
        case,
        providers,
        least=least if elements > 1 else None,
        rounds=6,
    )


_suite = Suite("latent", ours)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"), CASES, ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v))
)
def test_latent(shape: tuple[int, ...], dtype: str, layout: str, benchmark: Any) -> None:
    _suite.add(run(shape, dtype, layout), benchmark)


if __name__ == "__main__":
    print(save("latent", [run(*case) for case in CASES]))
