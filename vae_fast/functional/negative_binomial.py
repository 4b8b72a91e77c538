"""-log p(x | z) of counts: single cells, words, events."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_mask, check_parameter, check_target, check_tensor, check_weight
from ..ops.likelihood import likelihood


def poisson_nll(
    mean: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-log p(target | mean) of independent Poisson variables, per sample.

        nll = sum mu - x log mu + log x!,   mu = mean + 1e-8

    The sum runs over all dims but the first. The 1e-8, as in scvi-tools, keeps a mean of 0 finite. Accurate where mu
    and x are large and nearly equal, and the textbook form cancels.

    Args:
        mean: (batch, ...), at least 0, float32, bfloat16, float16 or float64, any strides.
        target: x in mean's shape, counts: float, uint8 (the number itself, not 255ths), bool, int16, int32 or int64.
        mask: bool, broadcastable to target. False leaves the element out: it adds nothing and its gradient is 0, even
            where its target or parameter is NaN or infinite.
        weight: (batch,), a factor for each sample's nll.

    Returns:
        nll: (batch,), in nats, the constant log x! included; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools).
    """
    check_tensor("mean", mean)
    check_target(target, "mean", mean)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("poisson", target, mean, mask=mask)
    return nll if weight is None else nll * check_weight(weight, mean)


def negative_binomial_nll(
    mean: Tensor,
    target: Tensor,
    theta: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log p(target | mean, theta) of independent negative binomial variables, per sample.

        p(x) = Gamma(x + th) / (Gamma(th) x!) (th / (th + mu))^th (mu / (th + mu))^x
        mu = mean + 1e-8,  th = theta + 1e-8,  variance mu + mu^2 / th

    The 1e-8 are those of scvi-tools. Accurate for every theta: towards the Poisson limit (1e4 and above) the lgammas
    of the textbook form cancel in float32.

    Args:
        mean: (batch, ...), at least 0, float32, bfloat16, float16 or float64, any strides.
        target: x in mean's shape, counts; see `poisson_nll`.
        theta: the inverse dispersion, at least 0: a number, or a tensor that broadcasts to mean, such as one value
            per feature; it is never expanded in memory, and its gradient is summed in the kernel.
        mask, weight: as in `poisson_nll`.

    Returns:
        nll: (batch,), in nats, constants included; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools,
    log_nb_positive).
    """
    check_tensor("mean", mean)
    check_target(target, "mean", mean)
    theta = check_parameter("theta", theta, "mean", mean)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("negative_binomial", target, mean, theta, mask=mask)
    return nll if weight is None else nll * check_weight(weight, mean)


def zero_inflated_negative_binomial_nll(
    mean: Tensor,
    target: Tensor,
    theta: Tensor | float,
    dropout_logits: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log p(target) of a negative binomial whose counts drop out, that is become 0, with some probability.

        p(x) = sigmoid(dropout_logits) [x = 0] + sigmoid(-dropout_logits) NB(x; mean, theta)

    Args:
        mean, target, theta, mask, weight: as in `negative_binomial_nll`.
        dropout_logits: the logit of dropping out: a number, or a tensor that broadcasts to mean.

    Returns:
        nll: (batch,), in nats, constants included; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `negative_binomial_nll`.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools,
    log_zinb_positive).
    """
    check_tensor("mean", mean)
    check_target(target, "mean", mean)
    theta = check_parameter("theta", theta, "mean", mean)
    dropout_logits = check_parameter("dropout_logits", dropout_logits, "mean", mean)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("zero_inflated_negative_binomial", target, mean, theta, dropout_logits, mask=mask)
    return nll if weight is None else nll * check_weight(weight, mean)
