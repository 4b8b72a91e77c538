"""-log p(x | z) of independent normal variables."""

from __future__ import annotations

import numbers

from torch import Tensor

from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_fixed_param, check_layer


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    logvar: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | N(mean, exp logvar)) of independent normal variables, per sample.

        nll = sum (log(2 pi) + logvar + (x - mean)^2 exp(-logvar)) / 2

    The sum runs over all dims but the first. NaN and infinities propagate.

    Args:
        mean: (batch, ...) or draws as in `bernoulli_nll`, float32, bfloat16, float16 or float64, any strides.
        target: x in mean's shape: float, uint8 (255ths), bool or integers; see `bernoulli_nll`.
        logvar: the natural log of the variance. None is unit variance, a number one for all. A tensor may be a
            learned scalar (), one value per feature (mean's shape without batch), or anything that broadcasts to
            mean; it is never expanded in memory, and its gradient is summed in the kernel.
        mask, weight, reduction: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), or as `reduction` says, in nats, constant included; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.2.
    """
    if _is_zero(logvar):
        return elementwise_nll("unit_gaussian", "mean", mean, target, mask, weight, reduction)
    return elementwise_nll(
        "gaussian", "mean", mean, target, mask, weight, reduction, optional=True, logvar=logvar
    )


def linear_gaussian_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    logvar: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`gaussian_nll` of the mean hidden weight^T + bias.

    weight is (features, H), and logvar None (unit variance), a number or a tensor that broadcasts to target, with
    gradient; or weight is (2 features, H), the rows of the mean and then those of the log-variance, and logvar None.
    Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `gaussian_nll`.
    """
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1, 2))
    if heads == 1 and _is_zero(logvar):
        return linear_likelihood(
            "unit_gaussian", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
        )
    fixed_params = check_fixed_param("logvar", logvar, target, heads == 1, optional=True)
    return linear_likelihood(
        "gaussian", hidden, weight, bias, target, *fixed_params, mask=mask, sample_weight=sample_weight
    )


def _is_zero(logvar: Tensor | float | None) -> bool:
    """Whether the variance is 1, which has a kernel of its own."""
    return logvar is None or (isinstance(logvar, numbers.Real) and logvar == 0)
