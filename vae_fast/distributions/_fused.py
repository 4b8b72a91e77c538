"""What the classes share: broadcasting as in torch.distributions, without expanding what kernels broadcast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..likelihoods.numerics import arithmetic_dtype
from ..ops._common import is_plain, unexpanded

_Method = TypeVar("_Method", bound=Callable[..., Tensor])
_COUNTS = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64)


def log_prob(
    nll: Callable[..., Tensor],
    value: Tensor,
    first: Tensor,
    *others: Tensor,
    event_dims: int = 0,
    counts: bool = False,
) -> Tensor:
    """-nll(first, value, *others) of each element, in the shape to which all of them broadcast; summed over the last
    event_dims of it."""
    # A likelihood's uint8 may be 255ths; a distribution's is a number.
    if not (value.is_floating_point() or (counts and value.dtype in _COUNTS)):
        value = value.to(first.dtype)
    shape = torch.broadcast_shapes(value.shape, first.shape, *[other.shape for other in others])
    dims = len(shape) - event_dims
    in_kernel = event_dims > 0 and dims <= 1  # it sums over all dims but the first
    full = (1, *shape) if in_kernel and dims == 0 else shape or (1,)
    reduction = "sample" if in_kernel else "none"
    loss = nll(first.expand(full), value.expand(full), *others, reduction=reduction)
    negative: Tensor = _Negative.apply(loss) if is_plain() else loss.neg()
    if in_kernel:
        return negative.view(shape[:dims])
    return negative.view(shape).sum(tuple(range(dims, len(shape)))) if event_dims else negative.view(shape)


def sums_events(method: _Method) -> _Method:
    """Marks a log_prob that takes event_dims; one that overrides it is not marked."""
    method.sums_events = True  # type: ignore[attr-defined]
    return method


class _Negative(torch.autograd.Function):
    """-x in place. The gradient of a sum, which is expanded, stays so: kernels read it by strides of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.neg_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _without_expanded(grad).neg().expand(grad.shape)


def compact(parameter: Tensor) -> Tensor:
    """The parameter without the dims along which `broadcast_all` expanded it, where that is known."""
    if not is_plain():
        return parameter
    if parameter.requires_grad:
        return unexpanded(parameter)
    return _without_expanded(parameter)


def _without_expanded(tensor: Tensor) -> Tensor:
    return tensor[tuple([slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()])]


def wide(parameter: Tensor) -> Tensor:
    """The parameter without expanded dims, in the dtype of the arithmetic: what is computed of it before the kernel
    reads it is not rounded to 16 bits."""
    parameter = compact(parameter)
    return parameter.to(arithmetic_dtype(parameter))
