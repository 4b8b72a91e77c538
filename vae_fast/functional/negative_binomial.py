"""-log p(x | z) of counts: independent negative binomial variables."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_per_sample
from ..likelihoods.csr import Csr
from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_fixed_param, check_layer


def negative_binomial_nll(
    mean: Tensor,
    target: Tensor | Csr,
    theta: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | mean, theta) of independent negative binomial variables, per sample.

        p(x) = Gamma(x + th) / (Gamma(th) x!) (th / (th + mu))^th (mu / (th + mu))^x
        mu = mean + 1e-8,  th = theta + 1e-8,  variance mu + mu^2 / th

    The 1e-8 are those of scvi-tools. Accurate for every theta: towards the Poisson limit (1e4 and above) the lgammas
    of the textbook form cancel in float32.

    Args:
        mean: (batch, ...) or draws as in `bernoulli_nll`, at least 0, float32, bfloat16, float16 or float64, any
            strides.
        target: x in mean's shape, counts; see `poisson_nll`.
        theta: the inverse dispersion, at least 0: a number, or a tensor that broadcasts to mean, such as one value
            per feature; it is never expanded in memory, and its gradient is summed in the kernel.
        mask, weight, reduction: as in `poisson_nll`.

    Returns:
        nll: (batch,), or as `reduction` says, in nats, constants included; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools,
    log_nb_positive).
    """
    return elementwise_nll(
        "negative_binomial", "mean", mean, target, mask, weight, reduction, theta=theta, of_counts=True
    )


def linear_negative_binomial_nll(
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
    """`negative_binomial_nll` of a mean whose logarithm is linear in hidden, as in scvi-tools.

    weight is (features, H), and theta a number or a tensor that broadcasts to target ((features,): one per gene), with
    gradient; or weight is (2 features, H), the rows of the mean and then those of log theta, and theta None.
    The mean and `library` as in `linear_poisson_nll`. Other arguments, memory and errors as `linear_bernoulli_nll`;
    formula and source as `negative_binomial_nll`.
    """
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1, 2), of_counts=True)
    fixed_params = check_fixed_param("theta", theta, target, heads == 1)
    check_per_sample("library", library, target)
    return linear_likelihood(
        "negative_binomial",
        hidden,
        weight,
        bias,
        target,
        *fixed_params,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
    )
