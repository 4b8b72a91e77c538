"""-log p(x | z) of counts: a negative binomial with dropout."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_per_sample
from ..likelihoods.csr import Csr
from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_fixed_param, check_layer


def zero_inflated_negative_binomial_nll(
    mean: Tensor,
    target: Tensor | Csr,
    theta: Tensor | float,
    dropout_logits: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target) of a negative binomial whose counts drop out, that is become 0, with some probability.

        p(x) = sigmoid(dropout_logits) [x = 0] + sigmoid(-dropout_logits) NB(x; mean, theta)

    Args:
        mean, target, theta, mask, weight, reduction: as in `negative_binomial_nll`.
        dropout_logits: the logit of dropping out: a number, or a tensor that broadcasts to mean.

    Returns:
        nll: (batch,), or as `reduction` says, in nats, constants included; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `negative_binomial_nll`.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools,
    log_zinb_positive).
    """
    return elementwise_nll(
        "zero_inflated_negative_binomial",
        "mean",
        mean,
        target,
        mask,
        weight,
        reduction,
        theta=theta,
        dropout_logits=dropout_logits,
        of_counts=True,
    )


def linear_zero_inflated_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    theta: Tensor | float | None = None,
    *,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`zero_inflated_negative_binomial_nll` of a mean whose logarithm is linear in hidden, as in scvi-tools.

    weight is (2 features, H), the rows of the mean and then those of the dropout logits, and theta as in
    `linear_negative_binomial_nll`; or (3 features, H), the mean, log theta and the dropout logits, and theta None.
    The mean and `library` as in `linear_poisson_nll`. Other arguments, memory and errors as `linear_bernoulli_nll`;
    formula and source as `zero_inflated_negative_binomial_nll`.
    """
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(2, 3), of_counts=True)
    fixed_params = check_fixed_param("theta", theta, target, heads == 2)
    check_per_sample("library", library, target)
    return linear_likelihood(
        "zero_inflated_negative_binomial",
        hidden,
        weight,
        bias,
        target,
        *fixed_params,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
    )
