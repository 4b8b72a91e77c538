"""-log p(x | z) of images in 256 levels: a logistic distribution cut into levels, element by element."""

from __future__ import annotations

from torch import Tensor

from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_fixed_param, check_layer


def discretized_logistic_nll(
    mean: Tensor,
    target: Tensor,
    log_scale: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log P(target) of images in 256 levels under a logistic distribution cut into levels, per sample.

        t = 2 x - 1,  h = 1/255,  b = (t - mean + h) exp(-s),  a = (t - mean - h) exp(-s)
        nll = sum -log(sigmoid(b) - sigmoid(a)), the lowest level -log sigmoid(b), the highest -log(1 - sigmoid(a))

    The difference is exact in the tails, where peers put 1e-12 or the density in its place.

    Args:
        mean: (batch, ...) or draws as in `bernoulli_nll`, in the units of t: black is -1, white is 1.
        target: x in mean's shape, uint8 (255ths), or float in [0, 1]: multiples of 1/255.
        log_scale: s, the natural log of the scale, in the units of t: a number or a tensor that broadcasts to mean.
            Taken as -7 where it is less, as in PixelCNN++: the gradient is 1 at the bound, 0 below.
        mask, weight, reduction: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), or as `reduction` says, in nats; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `gaussian_nll`.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016; Salimans et al.,
    "PixelCNN++", 2017, section 2.1.
    """
    return elementwise_nll(
        "discretized_logistic", "mean", mean, target, mask, weight, reduction, log_scale=log_scale
    )


def linear_discretized_logistic_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`discretized_logistic_nll` of the mean hidden weight^T + bias.

    weight is (features, H), and log_scale a number or a tensor that broadcasts to target, with gradient; or weight is
    (2 features, H), the rows of the mean and then those of the log-scale, and log_scale None.
    Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `discretized_logistic_nll`.
    """
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1, 2))
    fixed_params = check_fixed_param("log_scale", log_scale, target, heads == 1)
    return linear_likelihood(
        "discretized_logistic",
        hidden,
        weight,
        bias,
        target,
        *fixed_params,
        mask=mask,
        sample_weight=sample_weight,
    )
