"""The latent op in plain PyTorch: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and B."""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import draw_rng_state
from .noise import noise as draw_noise

Prior = tuple[Tensor, Tensor]
Clamp = tuple[float | None, float | None]


def arithmetic_dtype(*inputs: object) -> torch.dtype:
    """float64 if one of the tensors is, else float32."""
    double = any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in inputs)
    return torch.float64 if double else torch.float32


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of the arithmetic."""
    dtype = arithmetic_dtype(*tensors)
    return tuple(t.to(dtype) for t in tensors)


def per_sample(x: Tensor) -> Tensor:
    """Sum over all dims but the first."""
    return x.sum(dim=tuple(range(1, x.ndim))) if x.ndim > 1 else x


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
    m, lv = upcast(mu, logvar)
    if clamp is not None:
        lv = lv.clamp(*clamp)
    if noise is None:
        if rng_state is None:
            rng_state = draw_rng_state(mu.device, generator)
        noise = draw_noise(mu.shape, rng_state, num_samples=num_samples, dtype=m.dtype)
    return (m + torch.exp(0.5 * lv) * noise.to(m.dtype)).to(mu.dtype)


def kl_divergence(
    mu: Tensor, logvar: Tensor, *, prior: Prior | None = None, clamp: Clamp | None = None
) -> Tensor:
    """KL(N(mu, exp logvar) || prior) per sample; the prior is N(0, 1) unless given as (mu_p, logvar_p)."""
    if prior is None:
        m, lv = upcast(mu, logvar)
        if clamp is not None:
            lv = lv.clamp(*clamp)
        return per_sample(0.5 * (m * m + torch.expm1(lv) - lv))
    m, lv, mp, lvp = upcast(mu, logvar, *prior)
    if clamp is not None:
        lv = lv.clamp(*clamp)
    d = lv - lvp
    return per_sample(0.5 * (torch.expm1(d) - d + (m - mp) ** 2 * torch.exp(-lvp)))


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
