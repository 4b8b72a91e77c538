"""-log p(x | z) of counts of classes: words, items."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_counts, check_csr, check_logits, check_mask, check_per_sample, check_reduction
from ..likelihoods.csr import Csr
from ..likelihoods.numerics import weighted
from ..ops.categorical import categorical
from ..ops.csr import csr_categorical
from ..ops.linear_likelihood import linear_likelihood
from ._layer import check_class_layer


def multinomial_nll(
    logits: Tensor,
    target: Tensor | Csr,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | softmax(logits)) of counts for every class, per sample, without the multinomial coefficient.

        nll = -sum x log_softmax(l) = sum n logsumexp(l) - sum x l,   n = sum of x over classes

    The coefficient log(n! / (x1! x2! ...)) does not depend on the logits and is left out, as in Mult-VAE. The softmax
    is over the last dim, the sum over all positions of a sample.

    Args:
        logits: l, (batch, ..., classes) or draws as in `bernoulli_nll`, (k, batch, ..., classes), float32, bfloat16,
            float16 or float64, any strides.
        target: x in logits' shape, counts: float, uint8 (the number itself), bool, int16, int32 or int64.
        mask: bool, broadcastable to logits' shape without classes. False leaves the position out: it adds nothing
            and its gradient is 0, whatever is there.
        weight: (batch,), a factor for each sample's nll.
        reduction: "sample" gives a loss for each sample, "none" one for each position, (batch, ...).

    Returns:
        nll: (batch,), or as `reduction` says, in nats; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Liang et al., "Variational autoencoders for collaborative filtering", 2018.
    """
    check_logits(logits)
    dense = None if check_csr(target) else target
    draws = check_counts(target, logits, dense is None)
    if mask is not None:
        check_mask(mask, target, "the positions of target", target.shape[:-1])
    if weight is not None:
        check_per_sample("weight", weight, target, draws)
    per_element = reduction != "sample" and check_reduction(reduction)
    if dense is None:
        nll = csr_categorical(logits, target, mask)
    else:
        nll = categorical(logits, dense, mask, per_element, draws)
    return nll if weight is None else weighted(nll, weight, target.ndim - 1 if per_element else 1)


def linear_multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`multinomial_nll` of the logits hidden weight^T + bias: a recommender's output layer.

    hidden is (batch, ..., H) or draws, (k, batch, ..., H);
    weight (classes, H), target (batch, ..., classes) holds counts, mask broadcasts to
    (batch, ...). Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `multinomial_nll`.
    """
    check_class_layer(hidden, weight, bias, target, mask, sample_weight, counts=True)
    return linear_likelihood(
        "multinomial", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )
