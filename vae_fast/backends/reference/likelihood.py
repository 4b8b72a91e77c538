"""-log p(target | decoder output) per sample, in plain PyTorch, and its derivatives per element: images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import arithmetic_dtype, half_square, per_sample, times_exp, widest
from .rng import binarize as draw_bits
from .rng import draw_rng_state


def read(
    target: Tensor,
    *params: Tensor | float | None,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
    counts: bool = False,
) -> tuple[Tensor, ...]:
    """Target and parameters in the dtype of the arithmetic; None is 0, uint8 targets that do not count are 255ths.

    What the mask leaves out becomes 1, so that it is neither NaN nor infinite, and learns nothing.
    """
    dtype = dtype or arithmetic_dtype(target, *params)
    x = target.to(dtype)
    if target.dtype == torch.uint8 and not counts:
        x = x / 255
    numbers = [torch.as_tensor(p or 0.0) if not isinstance(p, Tensor) else p for p in params]
    values = [x, *(p.to(device=target.device, dtype=dtype) for p in numbers)]
    return tuple(values if mask is None else (torch.where(mask, v, 1.0) for v in values))


def total(terms: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """The weighted sum of each sample, over what the mask leaves in."""
    nll = per_sample(terms if mask is None else torch.where(mask, terms, 0.0))
    return nll if weight is None else nll * weight


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    binarize: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """x log(1 + exp(-l)) + (1 - x) log(1 + exp(l)), of which nothing cancels."""
    if binarize:
        target = draw_bits(
            target, draw_rng_state(target.device, generator) if rng_state is None else rng_state
        )
    x, el = read(target, logits, mask=mask)
    return total(-x * F.logsigmoid(el) - (1 - x) * F.logsigmoid(-el), mask, weight)


def bernoulli_nll_from_probs(
    probs: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-x max(log p, -100) - (1 - x) max(log(1 - p), -100), NaN where p or x is no probability."""
    x, p = read(target, probs, mask=mask)
    valid = (p >= 0) & (p <= 1) & (x >= 0) & (x <= 1)
    x, safe = torch.where(valid, x, 0.5), torch.where(valid, p, 0.5)
    flat = (
        safe * (1 - safe) < 1e-12
    )  # where the slope is (p - x) 1e12 by definition, not the slope of a logarithm
    near = F.binary_cross_entropy(torch.where(flat, 0.5, safe), x, reduction="none")
    parabola = 0.5e12 * (safe - x.detach()) ** 2
    far = F.binary_cross_entropy(safe.detach(), x, reduction="none") + (parabola - parabola.detach())
    invalid = torch.where(valid, 0.0, p) * torch.where(valid, 1.0, torch.nan)
    return total(torch.where(flat, far, near) + invalid, mask, weight)


bernoulli_probs_nll = bernoulli_nll_from_probs  # the likelihood's name


def continuous_bernoulli_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """max(l, 0) - x l + log((1 - exp(-|l|)) / |l|), and for |l| < 2 the same as (1/2 - x) l + log(sinh(l/2) / (l/2)).

    In float64, as 1/l and its like cancel around 0.
    """
    x, el = read(target, logits, mask=mask, dtype=widest(logits))
    small = el.abs() < 2
    near = (0.5 - x) * el + torch.log1p(_sinh_series(torch.where(small, el / 2, 0.0))[0])
    a = torch.where(small, 2.0, el.abs())
    far = a * torch.where(el < 0, x, 1 - x) + torch.log1p(-torch.exp(-a)) - torch.log(a)
    nll = total(torch.where(small, near, far), mask, None).to(arithmetic_dtype(target, logits))
    return nll if weight is None else nll * weight


def _sinh_series(h: Tensor) -> tuple[Tensor, Tensor]:
    """sinh(h)/h - 1 and its derivative, for |h| <= 1."""
    terms = [(2 * k, math.factorial(2 * k + 1)) for k in range(1, 10)]
    value, slope = torch.zeros_like(h), torch.zeros_like(h)
    for power, divisor in terms:
        value, slope = value + h**power / divisor, slope + power * h ** (power - 1) / divisor
    return value, slope


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    logvar: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """(log 2 pi + logvar + (x - mean)^2 exp(-logvar)) / 2; logvar None is unit variance."""
    x, m, lv = read(target, mean, logvar, mask=mask)
    return total(0.5 * math.log(2 * math.pi) + 0.5 * lv + half_square(x - m, lv), mask, weight)


def laplace_nll(
    location: Tensor,
    target: Tensor,
    log_scale: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """log 2 + s + |x - m| exp(-s); log_scale None is 0."""
    x, m, s = read(target, location, log_scale, mask=mask)
    distance = times_exp(x - m, -s) * sign(x - m).detach()
    return total(math.log(2) + s + distance, mask, weight)


def sign(x: Tensor) -> Tensor:
    """torch.sign, but NaN of NaN."""
    return torch.where(x.isnan(), x, torch.sign(x))


LEAST_LOG_SCALE = -7.0  # of a discretized logistic, as in PixelCNN++
NARROW_LOG_SCALE = 10.0  # beyond, a level's mass is its width times the density
FAR = 1e4  # sigmoid(-FAR) is 0


def edges(t: Tensor, mean: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The upper and the lower edge of the level around t in units of the scale, +-FAR where there is none or it is no
    nearer; whether it is the first level, and the last one."""
    first, last = t < -0.999, t > 0.999

    def edge(side: int, none: Tensor) -> Tensor:
        d = t - mean + side / 255
        flat = none | ((side * times_exp(d, -s) > FAR) & d.isfinite())
        held = torch.where(flat & d.isinf(), 0.0, d) * torch.where(flat, 0.0, 1.0)
        return times_exp(held, -s) + torch.where(flat, side * FAR, 0.0)

    return edge(1, last), edge(-1, first), first, last


def discretized_logistic(t: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log of the logistic's mass in the level around t in [-1, 1]: sigmoid(b) - sigmoid(a) from one edge to the other.

    The mass is sigmoid(b) sigmoid(-a) (1 - exp(-w)), w = b - a, exact however small. The outer levels take all of their
    tail.
    """
    s = log_scale.clamp(min=LEAST_LOG_SCALE)
    b, a, first, last = edges(t, mean, s)
    low, high = -F.logsigmoid(b), -F.logsigmoid(-a)
    w, is_narrow = 2 / 255 * torch.exp(-s), (s > NARROW_LOG_SCALE) & s.isfinite()
    narrow = math.log(2 / 255) - s - w / 2 + w * w / 24
    wide = torch.log(-torch.expm1(-torch.where(is_narrow, 1.0, w)))
    log_mass = torch.where(is_narrow, narrow, wide)
    return low + high - torch.where(first | last, 0.0, log_mass)


def discretized_logistic_nll(
    mean: Tensor,
    target: Tensor,
    log_scale: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log P(level of x) under a logistic, x in [0, 1] in 256 levels; mean and scale in the units of 2 x - 1."""
    x, m, s = read(target, mean, log_scale, mask=mask)
    return total(discretized_logistic(2 * x - 1, m, s), mask, weight)


def d_bernoulli_probs(x: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    valid = (p >= 0) & (p <= 1) & (x >= 0) & (x <= 1)
    return (torch.where(valid, (p - x) / (p * (1 - p)).clamp(min=1e-12), torch.nan),)


def d_continuous_bernoulli(x: Tensor, el: Tensor) -> tuple[Tensor, ...]:
    """The mean less x: from the nearer end of [0, 1], which is 1/|l| - 1 / expm1(|l|) away, or for |l| < 2 from 1/2."""
    x, el = x.to(widest(x)), el.to(widest(x))
    small = el.abs() < 2
    u, slope = _sinh_series(torch.where(small, el / 2, 0.0))
    a = torch.where(small, 2.0, el.abs())
    from_end = 1 / a - 1 / torch.expm1(a)
    far = torch.where(el < 0, from_end - x, (1 - x) - from_end)
    return (torch.where(small, (0.5 - x) + 0.5 * slope / (1 + u), far),)


def d_gaussian(x: Tensor, m: Tensor, lv: Tensor) -> tuple[Tensor, ...]:
    scaled = times_exp(m - x, -0.5 * lv)
    return times_exp(scaled, -0.5 * lv), 0.5 - 0.5 * scaled * scaled


def d_laplace(x: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    return times_exp(sign(m - x), -s), 1 - times_exp((x - m).abs(), -s)


def d_discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
    t, s = 2 * x - 1, log_scale.clamp(min=LEAST_LOG_SCALE)
    b, a, first, last = edges(t, mean, s)
    of_b, of_a, inverse = torch.sigmoid(-b), torch.sigmoid(a), torch.exp(-s)
    w = 2 / 255 * inverse
    of_width = torch.where((s > NARROW_LOG_SCALE) & s.isfinite(), 1 - w / 2, w / torch.expm1(w))
    by_scale = b * of_b - a * of_a + torch.where(first | last, 0.0, of_width)
    return inverse * (of_b - of_a), torch.where(log_scale < LEAST_LOG_SCALE, 0.0, by_scale)


# Derivatives of one element with respect to each parameter: (x, *params) -> (d/d param, ...).
DERIVATIVES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "bernoulli": lambda x, el: ((1 - x) * torch.sigmoid(el) - x * torch.sigmoid(-el),),
    "bernoulli_probs": d_bernoulli_probs,
    "continuous_bernoulli": d_continuous_bernoulli,
    "gaussian": d_gaussian,
    "laplace": d_laplace,
    "discretized_logistic": d_discretized_logistic,
}
