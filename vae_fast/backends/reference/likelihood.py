"""-log p(target | decoder output) per sample, in plain PyTorch, and its derivatives per element: images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import arithmetic_dtype, per_sample
from .noise import binarize as draw_bits
from .noise import draw_rng_state


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
    """log(1 + exp(l)) - x l; logsigmoid is the stable form, and smooth at 0."""
    if binarize:
        target = draw_bits(
            target, draw_rng_state(target.device, generator) if rng_state is None else rng_state
        )
    x, el = read(target, logits, mask=mask)
    return total(-F.logsigmoid(-el) - x * el, mask, weight)


def continuous_bernoulli_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """log(1 + exp(l)) - x l - log C,  C = l / tanh(l/2), which is 2 at 0.

    In float64, as 1/l and its like cancel around 0.
    """
    x, el = read(target, logits, mask=mask, dtype=torch.float64)
    near = el.abs() < 0.01
    far = torch.where(near, 1.0, el)  # no 0/0 in the branch that is not taken
    log_c = torch.where(
        near,
        math.log(2) + el**2 / 12 - 7 * el**4 / 1440 + 31 * el**6 / 90720,
        torch.log(far / torch.tanh(far / 2)),
    )
    nll = total(-F.logsigmoid(-el) - x * el - log_c, mask, None).to(arithmetic_dtype(target, logits))
    return nll if weight is None else nll * weight


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
    return total(0.5 * (math.log(2 * math.pi) + lv + (x - m) ** 2 * torch.exp(-lv)), mask, weight)


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
    return total(math.log(2) + s + (x - m).abs() * torch.exp(-s), mask, weight)


LEAST_LOG_SCALE = -7.0  # of a discretized logistic, as in PixelCNN++


def discretized_logistic(t: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log of the logistic's mass in the level around t in [-1, 1]: sigmoid(b) - sigmoid(a) from one edge to the other.

    The mass is sigmoid(b) sigmoid(-a) (1 - exp(a - b)), exact however small. The outer levels take all of their tail.
    """
    inverse = torch.exp(-log_scale.clamp(min=LEAST_LOG_SCALE))
    b, a = inverse * (t - mean + 1 / 255), inverse * (t - mean - 1 / 255)
    low, high = -F.logsigmoid(b), -F.logsigmoid(-a)
    inside = low + high - torch.log(-torch.expm1(-2 / 255 * inverse))
    return torch.where(t < -0.999, low, torch.where(t > 0.999, high, inside))


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


def d_continuous_bernoulli(x: Tensor, el: Tensor) -> tuple[Tensor, ...]:
    """The mean, 1 / (1 - exp(-l)) - 1/l, less x; in float64, as the two terms cancel around 0."""
    x, el = x.double(), el.double()
    near = el.abs() < 0.01
    far = torch.where(near, 1.0, el)
    mean = torch.where(near, 0.5 + el / 12 - el**3 / 720 + el**5 / 30240, -1 / torch.expm1(-far) - 1 / far)
    return (mean - x,)


def d_gaussian(x: Tensor, m: Tensor, lv: Tensor) -> tuple[Tensor, ...]:
    return (m - x) * torch.exp(-lv), 0.5 * (1 - (x - m) ** 2 * torch.exp(-lv))


def d_laplace(x: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    return -torch.sign(x - m) * torch.exp(-s), 1 - (x - m).abs() * torch.exp(-s)


def d_discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
    t = 2 * x - 1
    inverse = torch.exp(-log_scale.clamp(min=LEAST_LOG_SCALE))
    b, a, width = inverse * (t - mean + 1 / 255), inverse * (t - mean - 1 / 255), 2 / 255 * inverse
    low, high = t < -0.999, t > 0.999
    of_b = torch.where(high, 0.0, torch.sigmoid(-b))
    of_a = torch.where(low, 0.0, torch.sigmoid(a))
    of_width = torch.where(low | high, 0.0, width / torch.expm1(width))
    by_scale = b * of_b - a * of_a + of_width
    return inverse * (of_b - of_a), torch.where(log_scale < LEAST_LOG_SCALE, 0.0, by_scale)


# Derivatives of one element with respect to each parameter: (x, *params) -> (d/d param, ...).
DERIVATIVES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "bernoulli": lambda x, el: (torch.sigmoid(el) - x,),
    "continuous_bernoulli": d_continuous_bernoulli,
    "gaussian": d_gaussian,
    "laplace": d_laplace,
    "discretized_logistic": d_discretized_logistic,
}
