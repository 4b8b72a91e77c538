"""A decoder's last linear layer and the likelihood of its outputs, in plain PyTorch.

The layer's outputs are the likelihood's parameters one after the other, each in the shape of a target without batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .csr import Csr
from .numerics import upcast
from .spec import Parameter, Spec, largest_log

Value = Tensor | float | None


def linear_nll(
    spec: Spec,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
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
            params.append(library_share(next(made), library, mask, target.ndim))
        else:
            params.append(linked(parameter, next(made), mask))
    first, *others = params
    return spec.nll(first, target, *others, mask=mask, weight=sample_weight)


def parameters(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | Csr) -> list[Tensor]:
    """The layer's outputs: one tensor in target's shape, after hidden's draws, for every parameter."""
    heads = F.linear(hidden, weight, bias).split(math.prod(target.shape[1:]), -1)
    return [head.view(*hidden.shape[:-2], *target.shape) for head in heads]


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


def library_share(outputs: Tensor, library: Tensor, mask: Tensor | None, ndim: int) -> Tensor:
    """The library's size times the softmax of the outputs over all features, that is over all but the first of the last
    `ndim` dims."""
    (outputs,) = upcast(outputs)
    share = torch.softmax(outputs.flatten(1 - ndim), -1).view_as(outputs)
    sizes = library.view(-1, *(1,) * (ndim - 1))
    if mask is not None:  # a sample that is left out altogether may have any size
        kept = mask.expand(outputs.shape[-ndim:]).flatten(1).any(1)
        sizes = torch.where(kept.view_as(sizes), sizes, 0.0)
    return sizes * share
