"""-log p(x | z) of independent continuous Bernoulli variables: numbers in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_layer


def continuous_bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | logits) of independent continuous Bernoulli variables on [0, 1], per sample.

        nll = sum max(l, 0) - x l + log(1 + exp(-|l|)) - log C,   C = l / tanh(l / 2), and 2 at l = 0

    Accurate around l = 0 (probability 1/2), where C is 0/0. p is a density: nll may be negative. Arguments, returns
    and errors as in `bernoulli_nll`.

    Source: Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", 2019.
    """
    return elementwise_nll("continuous_bernoulli", "logits", logits, target, mask, weight, reduction)


def linear_continuous_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`continuous_bernoulli_nll` of the logits hidden weight^T + bias.

    Arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `continuous_bernoulli_nll`.
    """
    check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1,))
    return linear_likelihood(
        "continuous_bernoulli", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )
