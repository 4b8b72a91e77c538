"""Expressions whose derivatives are written out, since those that autograd takes of them would cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Terms = Callable[..., Tensor]
Derivatives = Callable[..., tuple[Tensor, ...]]


def with_derivatives(terms: Terms, derivatives: Derivatives, x: Tensor, *params: Tensor) -> Tensor:
    """terms(x, *params), whose gradients by params are derivatives(x, *params).

    These are differentiable themselves. torch.func's transforms, forward-mode AD and a gradient by x take what autograd
    makes of `terms`.
    """
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    if transformed or x.requires_grad:
        return terms(x, *params)
    shape = torch.broadcast_shapes(x.shape, *(p.shape for p in params))
    return _ClosedForm.apply(terms, derivatives, x, *(p.expand(shape) for p in params))


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Terms, derivatives: Derivatives, x: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(x, *params)
        ctx.derivatives = derivatives
        return terms(x, *params)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        slopes = ctx.derivatives(*ctx.saved_tensors)
        return None, None, None, *(grad * slope for slope in slopes)
