"""The latent op in plain PyTorch: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and B."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...likelihoods.numerics import (
    arithmetic_dtype,
    half_square,
    held_between,
    times_exp,
    total,
    upcast,
    widest,
)
from ..contract import Generators, Parametrization
from .rng import draw_rng_state
from .rng import noise as draw_noise

Pair = tuple[Tensor, Tensor]
Clamp = tuple[float | None, float | None]
PLAIN = Parametrization()


def half_expm1(x: Tensor) -> Tensor:
    """expm1(x) / 2, which fits a little longer than expm1(x)."""
    return torch.where(
        x > 1, times_exp(torch.full_like(x, 0.5), x) - 0.5, 0.5 * torch.expm1(held_between(x, high=1))
    )


def half_expm1_minus(x: Tensor, half: Tensor) -> Tensor:
    """(expm1(x) - x) / 2 without cancellation; `half` is x / 2."""
    small = x.abs() < 1
    near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    series = torch.stack([near**k / (2 * math.factorial(k)) for k in range(18, 1, -1)]).sum(0)
    return torch.where(small, series, half_expm1(far) - half)


def half_square_minus_log(ratio: Tensor, minus_1: Tensor) -> Tensor:
    """(r^2 - 1) / 2 - log r, of r and of r - 1."""
    near = minus_1.abs() < 0.5
    log = torch.where(
        near, torch.log1p(torch.where(near, minus_1, 0.0)), torch.log(torch.where(near, 1.0, ratio))
    )
    return 0.5 * minus_1 * minus_1 + (minus_1 - log)


def clamped(logvar: Tensor, clamp: Clamp | None) -> Tensor:
    """torch.clamp, which rounds the bounds to logvar's dtype; what it does not hold is its largest number."""
    if clamp is None:
        return logvar
    largest = torch.finfo(logvar.dtype).max
    low, high = (b if b is None or math.isinf(b) else min(max(b, -largest), largest) for b in clamp)
    return held_between(logvar, low, high)


def soft_clamped(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else limit * torch.tanh(x / limit)


class Std(NamedTuple):
    value: Tensor
    minus_1: Tensor


def std_of(raw: Tensor, form: Parametrization) -> Std:
    """sigma and sigma - 1, in float64 where there is one."""
    x, epsilon = raw.to(widest(raw)), form.epsilon
    near = x.abs() < 1  # beyond, autograd's derivative of expm1 cancels
    small = torch.where(near, x, 0.0)
    if form.name == "logvar":
        std = torch.sqrt(torch.exp(x) + epsilon)
        return Std(std, torch.where(near, (torch.expm1(small) + epsilon) / (std + 1), std - 1))
    if form.name == "logstd":
        std = torch.exp(x) + epsilon
        return Std(std, torch.where(near, torch.expm1(small) + epsilon, std - 1))
    std = (x if form.name == "std" else F.softplus(x, threshold=40)) + epsilon
    return Std(std, std - 1)


class InverseStd(NamedTuple):
    """Of a prior: sigma_p, or -log(sigma_p^2) / 2 where that is what is known."""

    std: Tensor | None
    log: Tensor | None

    def times(self, x: Tensor) -> Tensor:
        """x / sigma_p"""
        if self.log is not None:
            return times_exp(x.to(self.log.dtype), self.log)
        assert self.std is not None
        return x / self.std

    def ratio(self, std: Tensor) -> Std:
        """std / sigma_p"""
        ratio = self.times(std)
        return Std(ratio, ratio - 1 if self.std is None else self.times(std - self.std))


def inverse_std(prior_raw: Tensor, form: Parametrization) -> InverseStd:
    if form.of_prior:
        return InverseStd(std_of(prior_raw, form).value, None)
    return InverseStd(None, -0.5 * prior_raw.to(widest(prior_raw)))


def sample(
    mu: Tensor,
    raw: Tensor,
    noise: Tensor,
    form: Parametrization = PLAIN,
    clamp: Clamp | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> Tensor:
    """z = (mu + sigma eps - shift) scale"""
    m, x = _clamped_pair(mu, raw, form, clamp)
    eps = noise.to(m.dtype)
    if form.has_exact_logvar:
        z = m + times_exp(eps, 0.5 * x if form.name == "logvar" else x)
    else:
        z = m + std_of(x, form).value * eps
    z = z if shift is None else z - shift
    return (z if scale is None else z * scale).to(mu.dtype)


def divergence(
    mu: Tensor,
    raw: Tensor,
    prior: Pair | None,
    form: Parametrization = PLAIN,
    clamp: Clamp | None = None,
    reduction: str = "sample",
) -> Tensor:
    """KL(N(mu, sigma^2) || prior), of N(0, 1) if that is None."""
    m, x, *p = upcast(*_clamped_pair(mu, raw, form, clamp), *(prior or ()))
    if p and form.of_prior and prior is not None:
        p = list(_clamped_pair(*prior, form, clamp, m.dtype))
    terms = _exact_terms(m, x, p, form) if form.has_exact_logvar else _terms(m, x, p, form)
    return total(terms.to(m.dtype), None, None, reduction)


def _clamped_pair(
    mu: Tensor, raw: Tensor, form: Parametrization, clamp: Clamp | None, dtype: torch.dtype | None = None
) -> Pair:
    m, x = upcast(mu, clamped(raw, clamp))
    m, x = m.to(dtype or m.dtype), x.to(dtype or x.dtype)
    return soft_clamped(m, form.soft_clamp), soft_clamped(x, form.soft_clamp)


def _exact_terms(m: Tensor, raw: Tensor, p: list[Tensor], form: Parametrization) -> Tensor:
    times = 1 if form.name == "logvar" else 2
    lv = times * raw
    if not p:
        return 0.5 * m * m + half_expm1_minus(lv, 0.5 * lv)
    mp, lvp = p[0], times * p[1] if form.of_prior else p[1]
    return half_square(m - mp, lvp) + half_expm1_minus(lv - lvp, 0.5 * lv - 0.5 * lvp)


def _terms(m: Tensor, raw: Tensor, p: list[Tensor], form: Parametrization) -> Tensor:
    std = std_of(raw, form)
    if not p:
        return 0.5 * m * m + half_square_minus_log(*std)
    inverse = inverse_std(p[1], form)
    scaled = inverse.times(m - p[0])
    return 0.5 * scaled * scaled + half_square_minus_log(*inverse.ratio(std.value))


def split_prior(prior: Tensor, dim: int, ndim: int) -> Pair:
    """The halves of a packed prior along `dim` of what it broadcasts to, which has `ndim` dims."""
    mu, raw = prior.chunk(2, dim - ndim if dim >= 0 else dim)
    return mu, raw


def _pair_of(prior: Pair | Tensor | None, dim: int, ndim: int) -> Pair | None:
    return split_prior(prior, dim, ndim) if isinstance(prior, Tensor) else prior


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    clamp: Clamp | None = None,
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> Tensor:
    """z = (mu + sigma * eps - shift) * scale, where sigma = exp(logvar / 2) unless parametrization says otherwise."""
    if noise is None:
        if rng_state is None:
            rng_state = draw_rng_state(mu.device, generator, mu.shape[0])
        noise = draw_noise(mu.shape, rng_state, num_samples=num_samples, dtype=arithmetic_dtype(mu, logvar))
    form = Parametrization(parametrization, epsilon, soft_clamp)
    return sample(mu, logvar, noise, form, clamp, shift, scale)


def kl_divergence(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: Pair | Tensor | None = None,
    clamp: Clamp | None = None,
    reduction: str = "sample",
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
) -> Tensor:
    """KL(N(mu, sigma^2) || prior); the prior is N(0, 1) unless given as (mu_p, logvar_p), or as mu_p and raw_p packed
    along dim 1, which is read as mu and logvar are."""
    form = Parametrization(parametrization, epsilon, soft_clamp, isinstance(prior, Tensor))
    return divergence(mu, logvar, _pair_of(prior, 1, mu.ndim), form, clamp, reduction)


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    prior: Pair | Tensor | None = None,
    clamp: Clamp | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """A sample of N(mu, sigma^2) and its KL divergence from the prior."""
    z = reparameterize(
        mu,
        logvar,
        num_samples=num_samples,
        clamp=clamp,
        generator=generator,
        rng_state=rng_state,
        noise=noise,
        parametrization=parametrization,
        epsilon=epsilon,
        soft_clamp=soft_clamp,
        shift=shift,
        scale=scale,
    )
    kl = kl_divergence(
        mu,
        logvar,
        prior=prior,
        clamp=clamp,
        reduction=reduction,
        parametrization=parametrization,
        epsilon=epsilon,
        soft_clamp=soft_clamp,
    )
    return z, kl


def reparameterize_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    num_samples: int | None = None,
    prior: Pair | Tensor | None = None,
    clamp: Clamp | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """reparameterize_kl of moments = [mu | logvar] along dim; a packed prior is packed along dim, too."""
    mu, logvar = moments.chunk(2, dim)
    z = reparameterize(
        mu,
        logvar,
        num_samples=num_samples,
        clamp=clamp,
        generator=generator,
        rng_state=rng_state,
        noise=noise,
        parametrization=parametrization,
        epsilon=epsilon,
        soft_clamp=soft_clamp,
        shift=shift,
        scale=scale,
    )
    form = Parametrization(parametrization, epsilon, soft_clamp, isinstance(prior, Tensor))
    return z, divergence(mu, logvar, _pair_of(prior, dim, mu.ndim), form, clamp, reduction)
