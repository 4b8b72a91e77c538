"""-log p(x | z) of independent Laplace variables."""

from __future__ import annotations

from torch import Tensor

from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_fixed_param, check_layer


def laplace_nll(
    location: Tensor,
    target: Tensor,
    log_scale: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | Laplace(location, exp log_scale)) of independent Laplace variables, per sample.

        nll = sum log 2 + s + |x - location| exp(-s)

    With log_scale None (a scale of 1) it is the L1 distance, and a constant; the slope at x = location is 0.

    Args:
        location: (batch, ...) or draws as in `bernoulli_nll`, float32, bfloat16, float16 or float64, any strides.
        target: x in location's shape: float, uint8 (255ths), bool or integers; see `bernoulli_nll`.
        log_scale: s, the natural log of the scale: None, a number, or a tensor that broadcasts to location, as the
            logvar of `gaussian_nll`.
        mask, weight, reduction: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), or as `reduction` says, in nats, constant included; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `gaussian_nll`.

    Source: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, whose first stage
    minimises it with one learned log-scale for all.
    """
    return elementwise_nll(
        "laplace", "location", location, target, mask, weight, reduction, optional=True, log_scale=log_scale
    )


def linear_laplace_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`laplace_nll` of the location hidden weight^T + bias.

    weight is (features, H), and log_scale None (0), a number or a tensor that broadcasts to target, with gradient; or
    weight is (2 features, H), the rows of the location and then those of the log-scale, and log_scale None.
    Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `laplace_nll`.
    """
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1, 2))
    fixed_params = check_fixed_param("log_scale", log_scale, target, heads == 1, optional=True)
    return linear_likelihood(
        "laplace", hidden, weight, bias, target, *fixed_params, mask=mask, sample_weight=sample_weight
    )
