"""The op `importance` in plain PyTorch: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", 2016.

With h = log(sigma / sigma_p), b = (z - mu_p) / sigma_p and u = b - eps, log p(z) - log q(z) = h - u (u / 2 + eps).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...likelihoods.numerics import arithmetic_dtype, per_sample, times_exp, widest
from ..contract import Generators
from .latent import Clamp, Pair, clamped, reparameterize
from .rng import draw_rng_state, state_of_draws
from .rng import noise as draw_noise


def log_weights(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int,
    prior: Pair | None = None,
    clamp: Clamp | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    path_derivative: bool = False,
    first_draw: int = 0,
    return_z: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """num_samples draws of N(mu, exp logvar), and log p(z) - log N(z; mu, exp logvar) of each."""
    if noise is None:
        if rng_state is None:
            rng_state = draw_rng_state(mu.device, generator, mu.shape[0])
        noise = drawn(mu, logvar, rng_state, num_samples, first_draw)
    z = reparameterize(mu, logvar, num_samples=num_samples, clamp=clamp, noise=noise) if return_z else None
    return z, weights_of(mu, logvar, noise, prior, clamp, path_derivative)


def drawn(
    mu: Tensor,
    logvar: Tensor,
    rng_state: Tensor,
    num_samples: int,
    first_draw: int,
    draw: Callable[..., Tensor] = draw_noise,
) -> Tensor:
    """The noise of draws first_draw and on."""
    dtype = arithmetic_dtype(mu, logvar)
    if rng_state.ndim == 1:
        later = state_of_draws(rng_state, first_draw, mu.shape[0])
        return draw(mu.shape, later, num_samples=num_samples, dtype=dtype)
    return draw(mu.shape, rng_state, num_samples=first_draw + num_samples, dtype=dtype)[first_draw:]


def weights_of(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    prior: Pair | None,
    clamp: Clamp | None = None,
    path_derivative: bool = False,
) -> Tensor:
    """log p(z) - log q(z) of z = mu + sigma eps: (draws, batch)."""
    m, lv, eps = (t.to(widest(mu)) for t in (mu, clamped(logvar, clamp), noise))
    mp, lvp = (t.to(m.dtype) for t in prior or (torch.zeros_like(m), torch.zeros_like(m)))
    if path_derivative:  # z moves, q's parameters do not: eps is (z - mu) / sigma, for constant mu and sigma
        held = lv.detach()
        moved = times_exp(m - m.detach(), -0.5 * held) + eps * torch.expm1(0.5 * (lv - held))  # 0
        m, lv, eps = m.detach(), held, eps + moved
    near, u, b = whitened(m, lv, eps, mp, lvp)
    terms = torch.where(near, -u * (0.5 * u + eps), 0.5 * eps * eps - 0.5 * b * b)
    return per_sample(0.5 * lv - 0.5 * lvp + terms, mu.ndim).to(arithmetic_dtype(mu, logvar, *(prior or ())))


def whitened(m: Tensor, lv: Tensor, eps: Tensor, mp: Tensor, lvp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where q is near p; u, without cancellation there; and b, without eps."""
    h = 0.5 * lv - 0.5 * lvp
    near = h.abs() <= 0.5
    scaled, growth = times_exp(m - mp, -0.5 * lvp), torch.expm1(torch.where(near, h, 0.0))
    far = times_exp(m - mp + times_exp(eps, 0.5 * lv), -0.5 * lvp)
    u = torch.where(near, scaled + eps * growth, far - eps)
    return near, u, torch.where(near, scaled + (eps + eps * growth), far)
