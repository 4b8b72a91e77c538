"""A decoder's last linear layer and the likelihood of its outputs, in plain PyTorch.

The layer's outputs are the likelihood's parameters one after the other, each in the shape of a target without batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .categorical import categorical_nll, multinomial_nll
from .counts import negative_binomial_nll, poisson_nll, zero_inflated_negative_binomial_nll
from .latent import upcast
from .likelihood import (
    bernoulli_nll,
    continuous_bernoulli_nll,
    discretized_logistic_nll,
    gaussian_nll,
    laplace_nll,
)

Given = Tensor | float | None


def parameters(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> list[Tensor]:
    """The layer's outputs: one tensor in target's shape for every parameter."""
    heads = F.linear(hidden, weight, bias).split(math.prod(target.shape[1:]), -1)
    return [head.view(target.shape) for head in heads]


def kept(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """The outputs in the dtype of the arithmetic, 0 where the mask leaves them out: their exp may overflow."""
    (outputs,) = upcast(outputs)
    return outputs if mask is None else torch.where(mask, outputs, 0.0)


def mean_of(outputs: Tensor, library: Tensor | None, mask: Tensor | None) -> Tensor:
    """exp of the outputs, or the library's size times their softmax over all features."""
    if library is None:
        return torch.exp(kept(outputs, mask))
    (outputs,) = upcast(outputs)
    share = torch.softmax(outputs.flatten(1), -1).view_as(outputs)
    sizes = library.view(-1, *(1,) * (outputs.ndim - 1))
    if mask is not None:  # a sample that is left out altogether may have any size
        sizes = torch.where(mask.expand_as(outputs).flatten(1).any(1).view_as(sizes), sizes, 0.0)
    return sizes * share


def theta_of(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """exp of the outputs, bounded to what the dtype holds: the negative binomial is Poisson's long before."""
    outputs = kept(outputs, mask)
    largest = math.log(torch.finfo(outputs.dtype).max) - 0.01
    return torch.exp(torch.where(outputs > largest, largest, outputs))


def linear_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    (logits,) = parameters(hidden, weight, bias, target)
    return bernoulli_nll(logits, target, mask=mask, weight=sample_weight)


def linear_continuous_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    (logits,) = parameters(hidden, weight, bias, target)
    return continuous_bernoulli_nll(logits, target, mask=mask, weight=sample_weight)


def linear_gaussian_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    logvar: Given = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    mean, *own = parameters(hidden, weight, bias, target)
    return gaussian_nll(mean, target, own[0] if own else logvar, mask=mask, weight=sample_weight)


def linear_laplace_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Given = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    location, *own = parameters(hidden, weight, bias, target)
    return laplace_nll(location, target, own[0] if own else log_scale, mask=mask, weight=sample_weight)


def linear_discretized_logistic_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_scale: Given = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    mean, *own = parameters(hidden, weight, bias, target)
    scale = own[0] if own else log_scale
    return discretized_logistic_nll(
        mean,
        target,
        scale or 0.0 if not isinstance(scale, Tensor) else scale,
        mask=mask,
        weight=sample_weight,
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
    (rate,) = parameters(hidden, weight, bias, target)
    return poisson_nll(mean_of(rate, library, mask), target, mask=mask, weight=sample_weight)


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
    rate, *own = parameters(hidden, weight, bias, target)
    theta = theta_of(own[0], mask) if theta is None else theta
    return negative_binomial_nll(mean_of(rate, library, mask), target, theta, mask=mask, weight=sample_weight)


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
    rate, *own, dropout_logits = parameters(hidden, weight, bias, target)
    theta = theta_of(own[0], mask) if theta is None else theta
    return zero_inflated_negative_binomial_nll(
        mean_of(rate, library, mask), target, theta, dropout_logits, mask=mask, weight=sample_weight
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
    return categorical_nll(F.linear(hidden, weight, bias), target, mask=mask, weight=sample_weight)


def linear_multinomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return multinomial_nll(F.linear(hidden, weight, bias), target, mask=mask, weight=sample_weight)
