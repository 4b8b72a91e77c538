"""The latent op in plain PyTorch: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and B."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .rng import draw_rng_state
from .rng import noise as draw_noise

Prior = tuple[Tensor, Tensor]
Clamp = tuple[float | None, float | None]


def arithmetic_dtype(*inputs: object) -> torch.dtype:
    """float64 if one of the tensors is, else float32."""
    double = any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in inputs)
    return torch.float64 if double else torch.float32


def widest(like: Tensor) -> torch.dtype:
    """float64, for steps that leave float32 though their result does not; float32 on Apple's GPU, which has no more."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of the arithmetic."""
    dtype = arithmetic_dtype(*tensors)
    return tuple(t.to(dtype) for t in tensors)


def per_sample(x: Tensor) -> Tensor:
    """Sum over all dims but the first."""
    return x.sum(dim=tuple(range(1, x.ndim))) if x.ndim > 1 else x


def times_exp(d: Tensor, x: Tensor) -> Tensor:
    """d exp(x), wherever it fits though exp(x) may not: in factors. 0 for d = 0, but NaN where x is infinite too."""
    limit = 0.98 * math.log(torch.finfo(x.dtype).max)
    infinite = x.isinf()
    x, beyond = torch.where(infinite, 0.0, x), torch.where(infinite, x, 0.0)
    rest = x.detach()
    for _ in range(3):
        part = rest.clamp(-limit, limit)
        d, rest = d * torch.exp(part), rest - part
    return (
        d * torch.exp(x - x.detach()) * torch.exp(beyond)
    )  # by 1, whose slope makes the slope by x the product


def half_square(d: Tensor, logvar: Tensor) -> Tensor:
    """d^2 exp(-logvar) / 2, of two factors that have slopes of their own: that of their square is twice as large."""
    return 0.5 * times_exp(d, -0.5 * logvar) * times_exp(d, -0.5 * logvar)


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
    generator: torch.Generator | None = None,
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
    mu: Tensor, logvar: Tensor, *, prior: Prior | None = None, clamp: Clamp | None = None
) -> Tensor:
    """KL(N(mu, exp logvar) || prior) per sample; the prior is N(0, 1) unless given as (mu_p, logvar_p)."""
    m, lv, *p = upcast(mu, clamped(logvar, clamp), *(prior or ()))
    if not p:
        return per_sample(0.5 * m * m + half_expm1_minus(lv, 0.5 * lv))
    mp, lvp = p
    return per_sample(half_square(m - mp, lvp) + half_expm1_minus(lv - lvp, 0.5 * lv - 0.5 * lvp))


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    prior: Prior | None = None,
    clamp: Clamp | None = None,
    generator: torch.Generator | None = None,
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
    return z, kl_divergence(mu, logvar, prior=prior, clamp=clamp)


def reparameterize_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    num_samples: int | None = None,
    prior: Prior | None = None,
    clamp: Clamp | None = None,
    generator: torch.Generator | None = None,
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
        generator=generator,
        rng_state=rng_state,
        noise=noise,
    )
