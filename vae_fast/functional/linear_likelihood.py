"""The decoder's last linear layer and the likelihood in one: checks, then the op."""

from __future__ import annotations

from torch import Tensor

from ..ops.linear_likelihood import linear_likelihood
from ._layer import check_class_layer, check_fixed_param, check_layer, check_per_sample


def linear_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`bernoulli_nll` of the logits that a linear layer makes: l = hidden weight^T + bias.

    The layer and the likelihood run over some rows at a time, forward and back, so that neither the logits nor their
    gradient ever exist as (batch, features): memory of one chunk instead. Gradients of weight and bias are summed in
    float32. Where the gradient of the result is the same for all samples by its strides (after nll.mean() or
    nll.sum()), everything is computed once, in the forward pass; where it differs, backward makes the chunks again.
    Under autocast the matrix products are in autocast's dtype, as in F.linear, and the likelihood in float32.

    Args:
        hidden: (batch, H), the layer's input: float32, bfloat16, float16 or float64.
        weight: (features, H), the layer's weight.
        bias: (features,) or None.
        target: x, (batch, features), or (batch, ...) with as many elements, in the order of weight's rows; dtypes as
            in `bernoulli_nll`.
        mask: bool, broadcastable to target: False leaves the element out.
        sample_weight: (batch,), a factor for every sample.

    Returns:
        nll: (batch,), in nats; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: as `bernoulli_nll`; chunks and gradients in forward as in Hsu et al., "Liger Kernel: Efficient Triton
    Kernels for LLM Training", 2024.
    """
    check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1,))
    return linear_likelihood(
        "bernoulli", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )


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
    fixed_params = check_fixed_param("logvar", logvar, target, heads == 1, optional=True)
    return linear_likelihood(
        "gaussian", hidden, weight, bias, target, *fixed_params, mask=mask, sample_weight=sample_weight
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


def linear_poisson_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`poisson_nll` of a mean whose logarithm is linear in hidden.

        mean = exp(o),  o = hidden weight^T + bias;   with a library, mean = library softmax(o), over all features

    library is (batch,), positive: the size of each sample, as in scvi-tools (there exp(library)); it may have a
    gradient. Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `poisson_nll`.
    """
    check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1,))
    check_per_sample("library", library, target)
    return linear_likelihood(
        "poisson", hidden, weight, bias, target, library=library, mask=mask, sample_weight=sample_weight
    )


def linear_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
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
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1, 2))
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


def linear_zero_inflated_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
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
    heads = check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(2, 3))
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

    hidden is (batch, ..., H), weight (classes, H), target (batch, ...) holds classes, mask broadcasts to target.
    Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `categorical_nll`.
    """
    check_class_layer(hidden, weight, bias, target, mask, sample_weight, counts=False)
    return linear_likelihood(
        "categorical", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )


def linear_multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`multinomial_nll` of the logits hidden weight^T + bias: a recommender's output layer.

    hidden is (batch, ..., H), weight (classes, H), target (batch, ..., classes) holds counts, mask broadcasts to
    (batch, ...). Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `multinomial_nll`.
    """
    check_class_layer(hidden, weight, bias, target, mask, sample_weight, counts=True)
    return linear_likelihood(
        "multinomial", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )
