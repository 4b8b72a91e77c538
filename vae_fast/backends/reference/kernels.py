"""The reference as a backend: the kernels of contract.py.

Eager and compiled calls on the reference use the differentiable expressions themselves. These closed forms serve where
autograd cannot: inside the library ops. They say in a few lines what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...likelihoods import LIKELIHOODS
from ...likelihoods import discretized_logistic_mixture as mixture
from ...likelihoods.categorical import IGNORED, categorical_nll
from ...likelihoods.counts import of_stored
from ...likelihoods.csr import Csr, sum_by_row
from ...likelihoods.multinomial import multinomial_nll
from ...likelihoods.numerics import arithmetic_dtype, read, times_exp, upcast, widest
from ..contract import Clamp, Parametrization, Prior
from . import importance, latent
from .gaussian import Gaussian
from .rng import binarize
from .rng import noise as draw_noise

__all__ = [
    "categorical_backward",
    "categorical_forward",
    "importance_backward",
    "importance_forward",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "mixture_backward",
    "mixture_forward",
    "noise_fill",
]


def latent_forward(
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    z: Tensor | None,
    kl: Tensor | None,
    form: Parametrization | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    form = form or latent.PLAIN
    limits = None if clamp is None else (clamp[0], clamp[1])
    if z is not None:
        if noise is None:
            noise = _drawn(z, mu, logvar, rng_state)
        z.copy_(latent.sample(mu, logvar, noise, form, limits, shift, scale))
    if kl is not None:
        kl.copy_(latent.divergence(mu, logvar, prior, form, limits, _reduction(kl, mu)))


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_prior: tuple[Tensor | None, Tensor | None] | None,
    form: Parametrization | None = None,
    scale: Tensor | None = None,
) -> None:
    form = form or latent.PLAIN
    m, raw, *p = upcast(mu, logvar, *(prior or ()))
    zero = torch.zeros_like(m)
    q, d_mu, d_raw, d_prior = Gaussian(m, raw, form, clamp), zero, zero, (zero, zero)
    if grad_z is not None:  # dz/dmu = 1, dz/draw = eps dsigma/draw
        draws = grad_z.shape[0] if grad_z.ndim > mu.ndim else None
        if noise is None:
            noise = _drawn(grad_z, mu, logvar, rng_state)
        g = grad_z.to(m.dtype) if scale is None else grad_z.to(m.dtype) * scale
        slope = q.times_std_slope(g * noise.to(m.dtype))
        d_mu = d_mu + (g if draws is None else g.sum(0))
        d_raw = d_raw + (slope if draws is None else slope.sum(0))
    if grad_kl is not None:
        g = _per_element(grad_kl, mu.ndim).to(m.dtype)
        mu_p, raw_p = p or (zero, zero)
        if form.of_prior:
            prior_q = Gaussian(mu_p, raw_p, form, clamp)
        else:
            prior_q = Gaussian(mu_p, raw_p, latent.PLAIN, None)
        by_mu, by_raw, by_prior_raw = q.kl_slopes(prior_q)
        d_mu, d_raw = d_mu + g * by_mu, d_raw + g * by_raw
        d_prior = prior_q.by_given(-g * by_mu, g * by_prior_raw)
    for out, d in zip((grad_mu, grad_logvar), q.by_given(d_mu, d_raw), strict=True):
        _fill(out, d)
    for out, d in zip(grad_prior or (), d_prior, strict=False):
        _fill(out, d)


def importance_forward(
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    z: Tensor | None,
    weights: Tensor,
    first_draw: int = 0,
) -> None:
    if noise is None:
        assert rng_state is not None
        noise = importance.drawn(mu, logvar, rng_state, weights.shape[0], first_draw)
    if z is not None:
        z.copy_(latent.sample(mu, logvar, noise, clamp=clamp))
    weights.copy_(importance.weights_of(mu, logvar, noise, prior, clamp))


def importance_backward(
    grad_z: Tensor | None,
    grad_weights: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_prior: tuple[Tensor | None, Tensor | None] | None,
    path_derivative: bool = False,
    first_draw: int = 0,
) -> None:
    if noise is None:
        assert rng_state is not None
        draws = len(grad_z if grad_weights is None else grad_weights)  # type: ignore[arg-type]
        noise = importance.drawn(mu, logvar, rng_state, draws, first_draw)
    if grad_weights is None:
        latent_backward(
            grad_z, None, mu, logvar, None, None, noise, clamp,
            grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=grad_prior,
        )  # fmt: skip
        return
    m, lv, eps, mp, lvp = (t.to(widest(mu)) for t in (mu, logvar, noise, *(prior or (0 * mu, 0 * mu))))
    lv = lv if clamp is None else lv.clamp(*clamp)
    near, u, b = importance.whitened(m, lv, eps, mp, lvp)
    slope = times_exp(b, -0.5 * lvp)  # (z - mu_p) / sigma_p^2
    g = grad_weights[(..., *(None,) * (mu.ndim - 1))].to(m.dtype)
    h = 0.5 * lv - 0.5 * lvp
    spread = times_exp(eps, h)
    if path_derivative:  # toward / sigma = eps / sigma - slope
        toward = torch.where(near, -u - b * torch.expm1(torch.where(near, h, 0.0)), eps - times_exp(b, h))
        of_mu = torch.where(near, times_exp(toward, -0.5 * lv), times_exp(eps, -0.5 * lv) - slope)
        by_mu, by_logvar = g * of_mu, 0.5 * g * eps * toward
    else:
        by_mu, by_logvar = -slope * g, 0.5 * g * (1 - b * spread)
    if grad_z is not None:
        by_mu, by_logvar = by_mu + grad_z, by_logvar + times_exp(0.5 * grad_z * eps, 0.5 * lv)
    if clamp is not None:
        by_logvar = torch.where((logvar < clamp[0]) | (logvar > clamp[1]), 0.0, by_logvar)
    _fill(grad_mu, by_mu.sum(0))
    _fill(grad_logvar, by_logvar.sum(0))
    by_prior = (g * slope).sum(0), (0.5 * g * (b * b - 1)).sum(0)
    for out, d in zip(grad_prior or (), by_prior, strict=False):
        _fill(out, d)


def likelihood_forward(
    likelihood: str,
    params: Sequence[Tensor],
    target: Tensor | Csr,
    mask: Tensor | None,
    rng_state: Tensor | None,
    *,
    nll: Tensor,
    draws: int | None = None,
) -> None:
    if rng_state is not None and isinstance(target, Tensor):
        target = binarize(target, rng_state)
    first, *others = params
    reduction = _reduction(nll, target, draws is not None)
    nll.copy_(LIKELIHOODS[likelihood].nll(first, target, *others, mask=mask, reduction=reduction))


def likelihood_backward(
    likelihood: str,
    params: Sequence[Tensor],
    target: Tensor | Csr,
    mask: Tensor | None,
    rng_state: Tensor | None,
    grad_nll: Tensor,
    *,
    grads: Sequence[Tensor | None],
    draws: int | None = None,
) -> None:
    spec = LIKELIHOODS[likelihood]
    assert spec.derivatives is not None
    if isinstance(target, Csr):
        slopes = of_stored(spec.derivatives, target, *params, mask=mask)
    else:
        if rng_state is not None:
            target = binarize(target, rng_state)
        slopes = spec.derivatives(
            *read(target, *params, mask=mask, dtype=torch.float64, counts=spec.is_counts)
        )
    g = _per_element(grad_nll, target.ndim, draws is not None).to(torch.float64)
    for out, slope in zip(grads, slopes, strict=True):
        _fill(out, g * slope if mask is None else torch.where(mask, g * slope, 0.0))


def categorical_forward(
    logits: Tensor, target: Tensor | Csr, *, nll: Tensor, lse: Tensor, total: Tensor
) -> None:
    """A position at a time: logits (batch, positions, classes); target without classes is a class, else counts;
    a sparse one has a row for every position."""
    wide = logits.to(widest(logits))
    largest = wide.max(-1).values
    log_sum = torch.log(torch.exp(wide - largest[..., None]).sum(-1))
    lse.copy_(largest + log_sum)
    if isinstance(target, Csr):
        rows, _, counts = target.elements()
        total.copy_(sum_by_row(counts, rows, target.shape[0]))
        nll.copy_(multinomial_nll(logits, target))
        total.mul_(torch.exp((lse - largest) - log_sum))
        return
    each, x = logits.flatten(0, 1), target.flatten(0, 1)
    if target.ndim == logits.ndim:
        total.copy_(target.to(total.dtype).sum(-1))
        nll.copy_(multinomial_nll(each, x).view(nll.shape))
    else:
        total.copy_(target != IGNORED)
        nll.copy_(categorical_nll(each, x).view(nll.shape))
    total.mul_(torch.exp((lse - largest) - log_sum))  # makes up for lse's rounding


def categorical_backward(
    logits: Tensor, target: Tensor | Csr, lse: Tensor, total: Tensor, grad_nll: Tensor, *, grad_logits: Tensor
) -> None:
    wide = widest(logits)
    share = total[..., None] * torch.exp(logits.to(wide) - lse[..., None])
    g = grad_nll[..., None]
    if isinstance(target, Csr):
        rows, col, counts = target.elements()
        share[..., rows, col] -= counts
        grad_logits.copy_(g * share)
        return
    if target.ndim == logits.ndim:
        grad_logits.copy_(g * (share - target.to(wide)))
        return
    index, classes = target.long()[..., None], logits.shape[-1]
    hit = (index == torch.arange(classes, device=logits.device)).to(wide)
    known = torch.where((index >= 0) & (index < classes), 1.0, torch.nan)
    grad_logits.copy_(torch.where(index == IGNORED, 0.0, g * (share - hit) * known))


def mixture_forward(
    params: Tensor,
    target: Tensor,
    mask: Tensor | None,
    *,
    nll: Tensor,
    grad_params: Tensor | None = None,
) -> None:
    """params (batch, parameters, pixels), target (batch, channels, pixels), mask (batch, pixels)."""
    there = None if mask is None else mask[:, None]
    reduction = _reduction(nll, params[:, 0])
    nll.copy_(mixture.discretized_logistic_mixture_nll(params, target, mask=there, reduction=reduction))
    if grad_params is not None:
        mixture_backward(params, target, mask, nll.new_ones(()).expand_as(nll), grad_params=grad_params)


def mixture_backward(
    params: Tensor, target: Tensor, mask: Tensor | None, grad_nll: Tensor, *, grad_params: Tensor
) -> None:
    grad = _per_element(grad_nll, params.ndim - 1)[:, None] * mixture.derivatives(params, target)
    grad_params.copy_(grad if mask is None else torch.where(mask[:, None], grad, 0.0))


def noise_fill(eps: Tensor, rng_state: Tensor) -> None:
    eps.copy_(draw_noise(eps.shape[1:], rng_state, num_samples=eps.shape[0], dtype=eps.dtype))


def _drawn(sample: Tensor, mu: Tensor, logvar: Tensor, rng_state: Tensor | None) -> Tensor:
    """The noise of z, or of its gradient."""
    assert rng_state is not None
    draws = sample.shape[0] if sample.ndim > mu.ndim else None
    dtype = arithmetic_dtype(mu, logvar)
    return draw_noise(mu.shape, rng_state, num_samples=draws, dtype=dtype)


def _fill(out: Tensor | None, grad: Tensor) -> None:
    if out is not None:
        out.copy_(grad.sum_to_size(out.shape))


def _reduction(loss: Tensor, of: Tensor | Csr, has_draws: bool = False) -> str:
    return "none" if loss.ndim - has_draws == of.ndim else "sample"


def _per_element(grad: Tensor, ndim: int, has_draws: bool = False) -> Tensor:
    """A number an element, or a sample, to multiply what has `ndim` dims, after those of draws."""
    return grad if grad.ndim - has_draws == ndim else grad[(..., *(None,) * (ndim - 1))]
