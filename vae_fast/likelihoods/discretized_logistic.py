"""A logistic variable in 256 levels: PixelCNN++ (Salimans et al., 2017), section 2.1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import Value, linear_nll
from .numerics import held_between, read, times_exp, total
from .spec import Parameter, Spec

LEAST_LOG_SCALE = -7.0  # of a discretized logistic, as in PixelCNN++
NARROW_LOG_SCALE = 10.0  # beyond, a level's mass is its width times the density
FAR = 1e4  # sigmoid(-FAR) is 0


def discretized_logistic_nll(
    mean: Tensor,
    target: Tensor,
    log_scale: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log P(level of x) under a logistic, x in [0, 1] in 256 levels; mean and scale in the units of 2 x - 1."""
    x, m, s = read(target, mean, log_scale, mask=mask)
    return total(discretized_logistic(2 * x - 1, m, s), mask, weight, reduction, target.ndim)


def discretized_logistic(t: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log of the logistic's mass in the level around t in [-1, 1]: sigmoid(b) - sigmoid(a) from one edge to the other.

    The mass is sigmoid(b) sigmoid(-a) (1 - exp(-w)), w = b - a, exact however small. The outer levels take all of their
    tail.
    """
    s = held_between(log_scale, LEAST_LOG_SCALE)
    b, a, first, last = edges(t, mean, s)
    low, high = -F.logsigmoid(b), -F.logsigmoid(-a)
    w, is_narrow = 2 / 255 * torch.exp(-s), (s > NARROW_LOG_SCALE) & s.isfinite()
    narrow = math.log(2 / 255) - s - w / 2 + w * w / 24
    wide = torch.log(-torch.expm1(-torch.where(is_narrow, 1.0, w)))
    log_mass = torch.where(is_narrow, narrow, wide)
    return low + high - torch.where(first | last, 0.0, log_mass)


def d_discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
    t, s = 2 * x - 1, log_scale.clamp(min=LEAST_LOG_SCALE)
    b, a, first, last = edges(t, mean, s)
    of_b, of_a, inverse = torch.sigmoid(-b), torch.sigmoid(a), torch.exp(-s)
    w = 2 / 255 * inverse
    of_width = torch.where((s > NARROW_LOG_SCALE) & s.isfinite(), 1 - w / 2, w / torch.expm1(w))
    by_scale = b * of_b - a * of_a + torch.where(first | last, 0.0, of_width)
    return inverse * (of_b - of_a), torch.where(log_scale < LEAST_LOG_SCALE, 0.0, by_scale)


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


DISCRETIZED_LOGISTIC = Spec(
    "discretized_logistic",
    (Parameter("mean"), Parameter("log_scale", may_be_fixed=True, default=0.0)),
    support="unit",
    nll=discretized_logistic_nll,
    derivatives=d_discretized_logistic,
    source='Salimans et al., "PixelCNN++", 2017',
)


def linear_discretized_logistic_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        DISCRETIZED_LOGISTIC,
        hidden,
        weight,
        bias,
        target,
        log_scale,
        mask=mask,
        sample_weight=sample_weight,
    )
