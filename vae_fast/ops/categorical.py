"""The op `categorical`: -log p(target | softmax over the last dim) per sample or position, one kernel each way.

The target is a class for every distribution, or (multinomial) a number for every class. Saved for backward are the
inputs and, of each distribution, the log-sum-exp and the sum of its counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..likelihoods.categorical import IGNORED
from . import _common
from .dtensor import batch_dim, run
from .op import Args, Gradients, Op


def categorical(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    per_element: bool = False,
    draws: int | None = None,
) -> Tensor:
    """The negative log-likelihood. The arguments have been checked in `functional`."""
    if draws is not None:
        return _of_draws(draws, logits, target, mask, per_element)
    backend = _common.dispatch("categorical", logits, target, mask)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        function = reference.multinomial_nll if target.ndim == logits.ndim else reference.categorical_nll
        return function(logits, target, mask=mask, reduction="none" if per_element else "sample")
    nll: Tensor = CATEGORICAL(backend, logits, target, mask, per_element)
    return nll


def _of_draws(draws: int, logits: Tensor, target: Tensor, mask: Tensor | None, per_element: bool) -> Tensor:
    """The draws as the op's batch, and all positions of all samples as its positions: the target has stride 0."""
    if any(map(_common.is_dtensor, (logits, target, mask))):
        dims = (None, 1, 0, batch_dim(mask, target, logits.ndim - 2), None)
        nll: Tensor = run(_of_draws, (draws, logits, target, mask, per_element), dims, (1,))
        return nll
    shape, classes = logits.shape[1:-1], logits.shape[-1]
    positions = math.prod(shape)
    if mask is not None:
        mask = mask.expand(shape).reshape(positions)
    if target.ndim == len(shape):
        target = target.reshape(positions)
        if mask is not None:
            target, mask = _without(target, mask), None
    else:
        target = target.reshape(positions, classes)
    target = target.expand(draws, *target.shape)
    nll = categorical(logits.reshape(draws, positions, classes), target, mask, per_element=True)
    nll = nll.view(draws, *shape)
    if per_element or len(shape) == 1:
        return nll
    return nll.flatten(2).sum(2, dtype=torch.float64).to(nll.dtype)


def _without(target: Tensor, mask: Tensor) -> Tensor:
    """Classes, those that the mask leaves out ignored."""
    return torch.where(mask, target if target.dtype != torch.uint8 else target.to(torch.int16), IGNORED)


def categorical_forward(
    backend: Any, logits: Tensor, target: Tensor, mask: Tensor | None, per_element: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """nll; kept of each distribution (batch, positions): log-sum-exp and sum of counts."""
    shape = logits.shape[:-1]
    logits, target, mask = _flatten(logits, target, mask)
    batch, positions, _ = logits.shape
    dtype = _common.result_dtype(logits, target)
    each, lse, total = (torch.empty((batch, positions), dtype=dtype, device=logits.device) for _ in range(3))
    backend.categorical_forward(logits, target, nll=each, lse=lse, total=total)
    if mask is not None:
        each = each.masked_fill_(~mask, 0)
    if per_element:
        return each.view(shape), (lse, total)
    # In float64, so that the order of the additions, which torch leaves to the number of threads, does not show.
    nll = each.view(batch) if positions == 1 else each.sum(1, dtype=torch.float64).to(dtype)
    return nll, (lse, total)


def categorical_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    logits, target, mask, per_element = args
    lse, total = kept
    flat, target, mask = _flatten(logits, target, mask)
    grad = _common.empty_like(backend, flat)
    shape = flat.shape[:2]
    grad_each = grads[0].reshape(shape) if per_element else _common.per_sample(grads[0], 2).expand(shape)
    backend.categorical_backward(flat, target, lse, total, grad_each, grad_logits=grad)
    if mask is not None:
        grad.masked_fill_(~mask[..., None], 0)
    return (grad.view(logits.shape),)


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
        target = _without(target, mask)
    return logits.reshape(*shape, classes), target, None


CATEGORICAL = Op(
    "categorical(Tensor logits, Tensor target, Tensor? mask, bool per_element) -> (Tensor nll, Tensor[] kept)",
    categorical_forward,
    categorical_backward,
    differentiable=("logits",),
    batch_dims=lambda logits, target, mask, per_element: (
        (0, 0, batch_dim(mask, logits, logits.ndim - 1), None),
        (0,),
    ),
)
