"""A normal variable."""

from __future__ import annotations

import math

from torch import Tensor

from .linear import Value, linear_nll
from .numerics import half_square, read, times_exp, total
from .spec import Parameter, Spec


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    logvar: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """(log 2 pi + logvar + (x - mean)^2 exp(-logvar)) / 2; logvar None is unit variance."""
    x, m, lv = read(target, mean, logvar, mask=mask)
    return total(
        0.5 * math.log(2 * math.pi) + 0.5 * lv + half_square(x - m, lv), mask, weight, reduction, target.ndim
    )


def d_gaussian(x: Tensor, m: Tensor, lv: Tensor) -> tuple[Tensor, ...]:
    scaled = times_exp(m - x, -0.5 * lv)
    return times_exp(scaled, -0.5 * lv), 0.5 - 0.5 * scaled * scaled


GAUSSIAN = Spec(
    "gaussian",
    (Parameter("mean"), Parameter("logvar", may_be_fixed=True, default=0.0)),
    support="real",
    nll=gaussian_nll,
    derivatives=d_gaussian,
    source='Kingma and Welling, "Auto-encoding variational Bayes", 2014',
)
# Without a logvar: a parameter fewer to read, and none to make of nothing.
UNIT_GAUSSIAN = Spec(
    "unit_gaussian",
    (Parameter("mean"),),
    support="real",
    nll=gaussian_nll,
    derivatives=lambda x, m: (m - x,),
    source=GAUSSIAN.source,
)


def linear_gaussian_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    logvar: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(GAUSSIAN, hidden, weight, bias, target, logvar, mask=mask, sample_weight=sample_weight)
