"""-log p(x | z) of counts: mixtures of two negative binomials."""

from __future__ import annotations

from torch import Tensor

from ..likelihoods.csr import Csr
from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_fixed_param, check_layer


def negative_binomial_mixture_nll(
    mean_1: Tensor,
    target: Tensor | Csr,
    mean_2: Tensor | float,
    theta: Tensor | float,
    mixture_logits: Tensor | float,
    theta_2: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target) of independent mixtures of two negative binomial variables, per sample.

        p(x) = sigmoid(l) NB(x; mean_1, theta) + sigmoid(-l) NB(x; mean_2, theta_2),   l = mixture_logits

    NB as in `negative_binomial_nll`. In totalVI component 1 is a protein's background and component 2 its foreground.

    Args:
        mean_1: (batch, ...) or draws as in `bernoulli_nll`, at least 0, float32, bfloat16, float16 or float64, any
            strides.
        target: x in mean_1's shape, counts; see `poisson_nll`.
        mean_2, mixture_logits: numbers, or tensors that broadcast to mean_1.
        theta: the inverse dispersion, at least 0: a number, or a tensor that broadcasts to mean_1, such as one value
            per feature; it is never expanded in memory, and its gradient is summed in the kernel.
        theta_2: that of component 2, likewise. None: theta.
        mask, weight, reduction: as in `poisson_nll`.

    Returns:
        nll: (batch,), or as `reduction` says, in nats, constants included; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `negative_binomial_nll`.

    Source: Gayoso et al., "Joint probabilistic modeling of single-cell multi-omic data with totalVI", 2021 (scvi-tools,
    log_mixture_nb).
    """
    return elementwise_nll(
        "negative_binomial_mixture",
        "mean_1",
        mean_1,
        target,
        mask,
        weight,
        reduction,
        mean_2=mean_2,
        theta=theta,
        mixture_logits=mixture_logits,
        theta_2=theta if theta_2 is None else theta_2,
        of_counts=True,
    )


def linear_negative_binomial_mixture_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    theta: Tensor | float | None = None,
    theta_2: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`negative_binomial_mixture_nll` of means whose logarithms, and of mixture logits that are linear in hidden.

    weight is (3 features, H), the rows of mean_1, of mean_2 and then those of the mixture logits, with theta as in
    `linear_negative_binomial_nll` and theta_2 likewise (None: theta); or (5 features, H), mean_1, mean_2, log theta,
    the mixture logits and log theta_2, and neither is given. Other arguments, memory and errors as
    `linear_bernoulli_nll`; formula and source as `negative_binomial_mixture_nll`.
    """
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(3, 5), of_counts=True)
    theta_2 = theta if theta_2 is None else theta_2
    fixed_params = (
        *check_fixed_param("theta", theta, target, heads == 3),
        *check_fixed_param("theta_2", theta_2, target, heads == 3),
    )
    return linear_likelihood(
        "negative_binomial_mixture",
        hidden,
        weight,
        bias,
        target,
        *fixed_params,
        mask=mask,
        sample_weight=sample_weight,
    )
