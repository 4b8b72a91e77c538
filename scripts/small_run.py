#!/usr/bin/env python3
"""Every kernel of an engine once, on small tensors, with its results checked: what runs under compute-sanitizer.

    scripts/small_run.py cuda triton          on a GPU
    TRITON_INTERPRET=1 scripts/small_run.py --device cpu triton

Shapes that take each path: aligned and odd rows, one row shared by blocks, halves of a packed tensor, channels-last,
several draws, priors whose gradient is summed, every likelihood with a mask, classes and counts, images. Inputs come
from the host and results go back there, so that next to nothing but our kernels runs on the device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import vae_fast

STATE = torch.tensor([1, 2])


def latent(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, rng_state: Tensor, draws: int | None, where: Any
) -> Any:
    z, kl = where.reparameterize_kl(
        mu, logvar, prior=(prior_mu, prior_mu), clamp=(-1.0, 1.0), num_samples=draws, rng_state=rng_state
    )
    return z, kl


def packed(moments: Tensor, rng_state: Tensor, where: Any) -> Any:
    return where.reparameterize_kl_packed(moments, rng_state=rng_state)


def likelihood(mean: Tensor, logvar: Tensor, target: Tensor, where: Any) -> Any:
    return where.bernoulli_nll(mean, target), where.gaussian_nll(mean, target, logvar)


def masked(first: Tensor, second: Tensor, third: Tensor, target: Tensor, where: Any) -> Any:
    """Every other likelihood, with parameters in their range; what the first row has does not count."""
    positive, mask = (first.exp(), second.exp()), torch.ones_like(target, dtype=torch.bool)
    mask[0] = False
    return (
        where.continuous_bernoulli_nll(first, target, mask=mask),
        where.laplace_nll(first, target, second, mask=mask),
        where.discretized_logistic_nll(first, target, second, mask=mask),
        where.poisson_nll(positive[0], target, mask=mask),
        where.negative_binomial_nll(positive[0], target, positive[1], mask=mask),
        where.zero_inflated_negative_binomial_nll(positive[0], target, positive[1], third, mask=mask),
    )


def binarized(logits: Tensor, rng_state: Tensor, target: Tensor, where: Any) -> Any:
    bits = vae_fast.reference.binarize(target, rng_state)
    if where is vae_fast.reference:
        return (where.bernoulli_nll(logits, bits),)
    return (where.bernoulli_nll(logits, target, binarize=True, rng_state=rng_state),)


def categorical(logits: Tensor, counts: Tensor, where: Any) -> Any:
    return where.categorical_nll(logits, counts[..., 0] % logits.shape[-1]), where.multinomial_nll(
        logits, counts
    )


def mixture(params: Tensor, target: Tensor, where: Any) -> Any:
    return (where.discretized_logistic_mixture_nll(params, target),)


def compare(
    what: str, function: Callable[..., Any], tensors: list[Tensor], *options: Any, device: str
) -> None:
    """Values and gradients of the kernels against the reference in float64."""

    def run(where: Any, args: list[Tensor]) -> list[Tensor]:
        args = [t.detach().requires_grad_(t.is_floating_point() and t is not args[-1]) for t in args]
        outputs = function(*args, *options, where=where)
        grads = [torch.ones(o.shape, dtype=o.dtype).to(o.device) for o in outputs]
        learned = [t for t in args if t.requires_grad]
        return [*outputs, *torch.autograd.grad(outputs, learned, grads)]

    got = run(vae_fast, [t.to(device) for t in tensors])
    with vae_fast.backend("reference"):
        want = run(vae_fast.reference, [t.double() if t.is_floating_point() else t for t in tensors])
    unit = max(torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point())
    for a, b in zip(got, want, strict=True):
        error, size = (a.detach().cpu().double() - b).abs().max(), b.abs().max()
        if not error <= 1e-5 + 4 * unit * size:
            raise SystemExit(f"{what}: wrong by {error:.3g} of {size:.3g}")


def run(engine: str, device: str) -> int:
    generator = torch.Generator().manual_seed(0)
    dtypes, shapes = (torch.float32, torch.bfloat16), ((5, 64), (33, 7), (2, 20_001))
    if device == "cpu":  # Triton's interpreter is slow
        dtypes, shapes = dtypes[:1], ((3, 7),)
    checks = 0
    with vae_fast.backend(engine):
        for dtype in dtypes:
            for rows, n in shapes:

                def made(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
                    return torch.randn(shape, generator=generator).to(dtype)

                many = torch.arange(2 * rows).view(rows, 2)
                for shape, rng_state, draws in (((n,), STATE, None), ((rows, n), many, 2), ((), STATE, 3)):
                    args = [made(rows, n), made(rows, n), made(*shape), rng_state]
                    compare(f"latent {rows}x{n} {shape}", latent, args, draws, device=device)
                compare("packed", packed, [made(rows, 2 * n), STATE], device=device)
                image = made(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
                compare("packed channels-last", packed, [image, STATE], device=device)
                for shape in ((rows, n), (n,), ()):
                    for target in (
                        made(rows, n),
                        (made(rows, n) > 0),
                        (made(rows, n).sigmoid() * 255).to(torch.uint8),
                    ):
                        compare(
                            f"likelihood {shape}",
                            likelihood,
                            [made(rows, n), made(*shape), target],
                            device=device,
                        )
                ones = made(rows, n) > 0
                for shape in ((rows, n), (n,)):
                    args = [made(rows, n), made(*shape), made(*shape), ones]
                    compare(f"likelihoods {shape}", masked, args, device=device)
                grey = (made(rows, n).sigmoid() * 255).to(torch.uint8)
                compare("binarized", binarized, [made(rows, n), STATE, grey], device=device)
                counts = (2 * made(rows, n)).abs().long()
                compare("categorical", categorical, [made(rows, n), counts], device=device)
                image = (made(2, 3, n % 97 + 1).sigmoid() * 255).to(torch.uint8)
                compare("mixture", mixture, [made(2, 20, n % 97 + 1), image], device=device)
                checks += 19
        eps = vae_fast.noise((3, 5, 7), STATE.to(device), num_samples=2).cpu()
        exact = vae_fast.reference.noise((3, 5, 7), STATE, num_samples=2, dtype=torch.float64)
        if not (eps.double() - exact).abs().max() <= 4e-6:
            raise SystemExit("noise: not that of the contract")
    return checks + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    for engine in arguments.engines:
        print(f"{engine}: {run(engine, arguments.device)} checks passed", flush=True)


if __name__ == "__main__":
    main()
