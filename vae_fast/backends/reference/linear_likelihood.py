"""A decoder's last linear layer and the likelihood of its outputs, in plain PyTorch.

The layer's outputs are the likelihood's parameters one after the other, each in the shape of a target without batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...likelihoods import LIKELIHOODS
from ...likelihoods.numerics import upcast
from ...likelihoods.spec import Parameter, Spec, largest_log

Value = Tensor | float | None


def linear_nll(
    spec: Spec,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *fixed: Value,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The likelihood's nll where a linear layer makes its parameters, except the fixed ones."""
    if spec.op == "categorical":
        return spec.nll(F.linear(hidden, weight, bias), target, mask=mask, weight=sample_weight)
    outputs = parameters(hidden, weight, bias, target)
    made, values = iter(outputs), iter(fixed)
    params: list[Value] = []
    for i, parameter in enumerate(spec.parameters):
        value = next(values, None) if parameter.may_be_fixed else None
        if parameter.may_be_fixed and len(outputs) < len(spec.parameters):
            params.append(parameter.default if value is None else value)
        elif i == 0 and library is not None:
            params.append(library_share(next(made), library, mask))
        else:
            params.append(linked(parameter, next(made), mask))
    first, *others = params
    return spec.nll(first, target, *others, mask=mask, weight=sample_weight)


def parameters(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> list[Tensor]:
    """The layer's outputs: one tensor in target's shape for every parameter."""
    heads = F.linear(hidden, weight, bias).split(math.prod(target.shape[1:]), -1)
    return [head.view(target.shape) for head in heads]


def linked(parameter: Parameter, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """The parameter that the layer's outputs stand for. What the mask leaves out is 0 first: its exp may overflow."""
    if not parameter.is_log:
        return outputs
    (outputs,) = upcast(outputs)
    if mask is not None:
        outputs = torch.where(mask, outputs, 0.0)
    if parameter.is_bounded:
        largest = largest_log(outputs.dtype)
        outputs = torch.where(outputs > largest, largest, outputs)
    return torch.exp(outputs)


def library_share(outputs: Tensor, library: Tensor, mask: Tensor | None) -> Tensor:
    """The library's size times the softmax of the outputs over all features."""
    (outputs,) = upcast(outputs)
    share = torch.softmax(outputs.flatten(1), -1).view_as(outputs)
    sizes = library.view(-1, *(1,) * (outputs.ndim - 1))
    if mask is not None:  # a sample that is left out altogether may have any size
        sizes = torch.where(mask.expand_as(outputs).flatten(1).any(1).view_as(sizes), sizes, 0.0)
    return sizes * share


def linear_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        LIKELIHOODS["bernoulli"], hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
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
    return linear_nll(
        LIKELIHOODS["continuous_bernoulli"],
        hidden,
        weight,
        bias,
        target,
        mask=mask,
        sample_weight=sample_weight,
    )


def linear_gaussian_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    logvar: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        LIKELIHOODS["gaussian"], hidden, weight, bias, target, logvar, mask=mask, sample_weight=sample_weight
    )


def linear_laplace_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        LIKELIHOODS["laplace"],
        hidden,
        weight,
        bias,
        target,
        log_scale,
        mask=mask,
        sample_weight=sample_weight,
    )


def linear_discretized_logistic_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        LIKELIHOODS["discretized_logistic"],
        hidden,
        weight,
        bias,
        target,
        log_scale,
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
    return linear_nll(
        LIKELIHOODS["poisson"],
        hidden,
        weight,
        bias,
        target,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
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
    return linear_nll(
        LIKELIHOODS["negative_binomial"],
        hidden,
        weight,
        bias,
        target,
        theta,
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
    return linear_nll(
        LIKELIHOODS["zero_inflated_negative_binomial"],
        hidden,
        weight,
        bias,
        target,
        theta,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
    )


def linear_negative_binomial_mixture_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    theta: Value = None,
    theta_2: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    theta_2 = theta if theta_2 is None else theta_2
    return linear_nll(
        LIKELIHOODS["negative_binomial_mixture"], hidden, weight, bias, target, theta, theta_2,
        mask=mask, sample_weight=sample_weight,
    )  # fmt: skip


def linear_categorical_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        LIKELIHOODS["categorical"], hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
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
    return linear_nll(
        LIKELIHOODS["multinomial"], hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )
