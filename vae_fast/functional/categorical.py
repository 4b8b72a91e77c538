"""-log p(x | z) of a class at every position: tokens, labels."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_classes, check_logits, check_mask, check_per_sample, check_reduction
from ..likelihoods.numerics import weighted
from ..ops.categorical import categorical
from ..ops.linear_likelihood import linear_likelihood
from ._layer import check_class_layer


def categorical_nll(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | softmax(logits)) of a class at every position, per sample.

        nll = sum logsumexp(l) - l[x]

    The softmax is over the last dim, the sum over all positions of a sample. NaN and infinities propagate.

    Args:
        logits: l, (batch, ..., classes) or draws as in `bernoulli_nll`, (k, batch, ..., classes), float32, bfloat16,
            float16 or float64, any strides.
        target: x, (batch, ...), a class number in uint8, int16, int32 or int64. -100 is left out, as in
            torch.nn.functional.cross_entropy. Any other number that is not in [0, classes) makes the sample's nll and
            the gradient of its position NaN (and costs a GPU no synchronization).
        mask: bool, broadcastable to target. False leaves the position out: it adds nothing and its gradient is 0,
            whatever is there.
        weight: (batch,), a factor for each sample's nll.
        reduction: "sample" gives a loss for each sample, "none" one for each position, (batch, ...).

    Returns:
        nll: (batch,), or as `reduction` says, in nats; float32 (float64 if logits are).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016.
    """
    check_logits(logits)
    draws = check_classes(target, logits)
    if mask is not None:
        check_mask(mask, target)
    if weight is not None:
        check_per_sample("weight", weight, target, draws)
    per_element = reduction != "sample" and check_reduction(reduction)
    nll = categorical(logits, target, mask, per_element, draws)
    return nll if weight is None else weighted(nll, weight, target.ndim if per_element else 1)


def linear_categorical_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`categorical_nll` of the logits hidden weight^T + bias: a text decoder's output layer.

    hidden is (batch, ..., H) or draws, (k, batch, ..., H);
    weight (classes, H), target (batch, ...) holds classes, mask broadcasts to target.
    Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `categorical_nll`.
    """
    check_class_layer(hidden, weight, bias, target, mask, sample_weight, counts=False)
    return linear_likelihood(
        "categorical", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )
