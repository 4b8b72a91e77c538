"""What the classes share: broadcasting as in torch.distributions, without expanding what kernels broadcast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..likelihoods.numerics import arithmetic_dtype
from ..ops._common import unexpanded

_COUNTS = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64)


def log_prob(
    nll: Callable[..., Tensor], value: Tensor, first: Tensor, *others: Tensor, counts: bool = False
) -> Tensor:
    """-nll(first, value, *others) of each element, in the shape to which all of them broadcast."""
    if not (value.is_floating_point() or (counts and value.dtype in _COUNTS)):
        value = value.to(
            first.dtype
        )  # a uint8 of the likelihoods may be 255ths, but a distribution's is a number
    shape = torch.broadcast_shapes(value.shape, first.shape, *[other.shape for other in others])
    full = shape or (1,)
    return nll(first.expand(full), value.expand(full), *others, reduction="none").neg_().view(shape)


def compact(parameter: Tensor) -> Tensor:
    """The parameter without the dims along which `broadcast_all` expanded it, where that is known."""
    if is_compiling():
        return parameter
    if parameter.requires_grad:
        return unexpanded(parameter)
    index = [slice(0, 1) if stride == 0 else slice(None) for stride in parameter.stride()]
    return parameter[tuple(index)]


def wide(parameter: Tensor) -> Tensor:
    """The parameter without expanded dims, in the dtype of the arithmetic: what is computed of it before the kernel
    reads it is not rounded to 16 bits."""
    parameter = compact(parameter)
    return parameter.to(arithmetic_dtype(parameter))
