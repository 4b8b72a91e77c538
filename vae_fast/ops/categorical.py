"""The op `categorical`: -log p(target | softmax of logits over the last dim) per sample, one kernel each way.

The target is a class for every distribution, or (multinomial) a number for every class. Saved for backward are the
inputs and, of each distribution, the log-sum-exp and the sum of its counts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common

IGNORED = -100


def categorical(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    backend = _common.dispatch("categorical", logits, target, mask)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        function = reference.multinomial_nll if target.ndim == logits.ndim else reference.categorical_nll
        return function(logits, target, mask=mask)
    if backend is None:
        nll, _, _ = torch.ops.vae_fast.categorical(logits, target, mask)
        return nll
    if _common.needs_grad(logits):
        return _Categorical.apply(backend, logits, target, mask)
    return forward(backend, logits, target, mask)[0]


def forward(
    backend: Any, logits: Tensor, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """nll (batch,); of each distribution (batch, positions): log-sum-exp and sum of counts."""
    logits, target, mask = _flatten(logits, target, mask)
    batch, positions, _ = logits.shape
    dtype = _common.result_dtype(logits, target)
    each, lse, total = (torch.empty((batch, positions), dtype=dtype, device=logits.device) for _ in range(3))
    backend.categorical_forward(logits, target, nll=each, lse=lse, total=total)
    if mask is not None:
        each = each.masked_fill_(~mask, 0)
    # In float64, so that the order of the additions, which torch leaves to the number of threads, does not show.
    nll = each.view(batch) if positions == 1 else each.sum(1, dtype=torch.float64).to(dtype)
    return nll, lse, total


def backward(
    backend: Any,
    grad_nll: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    lse: Tensor,
    total: Tensor,
) -> Tensor:
    flat, target, mask = _flatten(logits, target, mask)
    grad = _common.empty_like(backend, flat)
    grad_each = grad_nll[:, None].expand(flat.shape[:2])
    backend.categorical_backward(flat, target, lse, total, grad_each, grad_logits=grad)
    if mask is not None:
        grad.masked_fill_(~mask[..., None], 0)
    return grad.view(logits.shape)


def _flatten(logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Views with one dim of positions, wherever strides allow. What a mask leaves out of classes is ignored."""
    batch, *middle, classes = logits.shape
    shape = (batch, math.prod(middle))
    if mask is not None:
        mask = mask.expand(logits.shape[:-1]).reshape(shape)
    if target.ndim == logits.ndim:
        return logits.reshape(*shape, classes), target.reshape(*shape, classes), mask
    target = target.reshape(shape)
    if mask is not None:
        target = torch.where(mask, target if target.dtype != torch.uint8 else target.to(torch.int16), IGNORED)
    return logits.reshape(*shape, classes), target, None


class _Categorical(_common.Function):
    """The eager path."""

    @staticmethod
    def forward(ctx: Any, backend: Any, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        nll, lse, total = forward(backend, logits, target, mask)
        ctx.save_for_backward(logits, target, mask, lse, total)
        ctx.backend = backend
        return nll

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        arguments = (grad_nll, *ctx.saved_tensors)
        if _common.are_real(grad_nll):
            grad = backward(ctx.backend, *arguments)
        else:
            grad = torch.ops.vae_fast.categorical_backward(*arguments)
        return None, *_common.forbid_double_backward((grad,), grad_nll, arguments[1]), None, None


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, lse, total = output
    ctx.mark_non_differentiable(lse, total)
    ctx.save_for_backward(*inputs, lse, total)


def _differentiate(ctx: Any, grad_nll: Tensor, *_: Any) -> Any:
    return torch.ops.vae_fast.categorical_backward(grad_nll, *ctx.saved_tensors), None, None


_common.define(
    "categorical(Tensor logits, Tensor target, Tensor? mask) -> (Tensor, Tensor, Tensor)",
    forward,
    sources=lambda logits, target, mask: (logits, target),
    differentiate=_differentiate,
    setup=_setup,
)
_common.define(
    "categorical_backward(Tensor grad_nll, Tensor logits, Tensor target, Tensor? mask, Tensor lse, Tensor total)"
    " -> Tensor",
    backward,
    sources=lambda grad_nll, logits, target, *_: (logits, target),
)
