"""The latent op in plain PyTorch: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and B."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...likelihoods.numerics import half_square, times_exp, total, upcast
from ..contract import Generators
from .rng import draw_rng_state
from .rng import noise as draw_noise

Prior = tuple[Tensor, Tensor]
Clamp = tuple[float | None, float | None]


def half_expm1(x: Tensor) -> Tensor:
    """expm1(x) / 2, which fits a little longer than expm1(x)."""
    return torch.where(x > 1, times_exp(torch.full_like(x, 0.5), x) - 0.5, 0.5 * torch.expm1(x.clamp(max=1)))


def half_expm1_minus(x: Tensor, half: Tensor) -> Tensor:
    """(expm1(x) - x) / 2 without cancellation; `half` is x / 2."""
    small = x.abs() < 1
    near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    series = torch.stack([near**k / (2 * math.factorial(k)) for k in range(18, 1, -1)]).sum(0)
    return torch.where(small, series, half_expm1(far) - half)


def clamped(logvar: Tensor, clamp: Clamp | None) -> Tensor:
    """torch.clamp, which rounds the bounds to logvar's dtype; what it does not hold is its largest number."""
    if clamp is None:
        return logvar
    largest = torch.finfo(logvar.dtype).max
    low, high = (b if b is None or math.isinf(b) else min(max(b, -largest), largest) for b in clamp)
    return logvar.clamp(low, high)


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    clamp: Clamp | None = None,
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """z = mu + exp(logvar / 2) * eps."""
    m, lv = upcast(mu, clamped(logvar, clamp))
    if noise is None:
        if rng_state is None:
            rng_state = draw_rng_state(mu.device, generator)
        noise = draw_noise(mu.shape, rng_state, num_samples=num_samples, dtype=m.dtype)
    return (m + times_exp(noise.to(m.dtype), 0.5 * lv)).to(mu.dtype)


def kl_divergence(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: Prior | None = None,
    clamp: Clamp | None = None,
    reduction: str = "sample",
) -> Tensor:
    """KL(N(mu, exp logvar) || prior); the prior is N(0, 1) unless given as (mu_p, logvar_p)."""
    m, lv, *p = upcast(mu, clamped(logvar, clamp), *(prior or ()))
    if not p:
        return total(0.5 * m * m + half_expm1_minus(lv, 0.5 * lv), None, None, reduction)
    mp, lvp = p
    terms = half_square(m - mp, lvp) + half_expm1_minus(lv - lvp, 0.5 * lv - 0.5 * lvp)
    return total(terms, None, None, reduction)


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    prior: Prior | None = None,
    clamp: Clamp | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A sample of N(mu, exp logvar) and its KL divergence from the prior."""
    z = reparameterize(
        mu,
        logvar,
        num_samples=num_samples,
        clamp=clamp,
        generator=generator,
        rng_state=rng_state,
        noise=noise,
    )
    return z, kl_divergence(mu, logvar, prior=prior, clamp=clamp, reduction=reduction)


def reparameterize_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    num_samples: int | None = None,
    prior: Prior | None = None,
    clamp: Clamp | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """reparameterize_kl of moments = [mu | logvar] along dim."""
    mu, logvar = moments.chunk(2, dim)
    return reparameterize_kl(
        mu,
        logvar,
        num_samples=num_samples,
        prior=prior,
        clamp=clamp,
        reduction=reduction,
        generator=generator,
        rng_state=rng_state,
        noise=noise,
    )
