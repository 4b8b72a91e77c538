"""The op `likelihood`: -log p(target | params) per sample, for every member of the family."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common


def likelihood(member: str, target: Tensor, *params: Tensor) -> Tensor:
    """The negative log-likelihood per sample. Arguments are checked in `functional`."""
    backend = _common.dispatch("likelihood", target, *params)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        first, *others = params
        return getattr(reference, f"{member}_nll")(first, target, *others)  # type: ignore[no-any-return]
    if backend is None:
        return torch.ops.vae_fast.likelihood(member, target, params)  # type: ignore[no-any-return]
    if _common.needs_grad(*params):
        return _Likelihood.apply(backend, member, target, *params)  # type: ignore[no-any-return]
    return _forward(backend, member, target, params)


def _forward(backend: ModuleType, member: str, target: Tensor, params: Sequence[Tensor]) -> Tensor:
    nll = torch.empty(
        target.shape[0], dtype=_common.result_dtype(target, *params), device=target.device
    )
    expanded = tuple(p.expand(target.shape) for p in params)
    backend.likelihood_forward(member, expanded, target, nll=nll)
    return nll


def _backward(
    backend: ModuleType,
    member: str,
    target: Tensor,
    params: Sequence[Tensor],
    grad_nll: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    shape = target.shape
    grads = tuple(_common.empty_gradient(p, shape, wanted) for p, wanted in zip(params, needs, strict=True))
    expanded = tuple(p.expand(shape) for p in params)
    backend.likelihood_backward(member, expanded, target, grad_nll, grads=grads)
    return [_common.reduce_gradient(g, p) for g, p in zip(grads, params, strict=True)]


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: ModuleType, member: str, target: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(target, *params)
        ctx.backend, ctx.member = backend, member
        return _forward(backend, member, target, params)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        target, *params = ctx.saved_tensors
        grads = _backward(ctx.backend, ctx.member, target, params, grad_nll, ctx.needs_input_grad[3:])
        return None, None, None, *_common.once(grads, grad_nll, *params)
