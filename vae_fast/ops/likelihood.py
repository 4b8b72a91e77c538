"""The op `likelihood`: -log p(target | params) per sample, for every member of the family, one kernel each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common


def likelihood(member: str, target: Tensor, *params: Tensor) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    backend = _common.dispatch("likelihood", target, *params)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        # The kernels take the target as data; a target that learns is the reference's.
        first, *others = params
        return getattr(reference, f"{member}_nll")(first, target, *others)
    if backend is None:
        return torch.ops.vae_fast.likelihood(member, target, params)
    if _common.needs_grad(*params):
        return _Likelihood.apply(backend, member, target, *params)
    return forward(backend, member, target, params)


def forward(backend: Any, member: str, target: Tensor, params: Sequence[Tensor]) -> Tensor:
    dtype = _common.result_dtype(target, *params)
    nll = torch.empty(target.shape[0], dtype=dtype, device=target.device)
    expanded = tuple(p.expand(target.shape) for p in params)
    backend.likelihood_forward(member, expanded, target, None, None, nll=nll)
    return nll


def backward(
    backend: Any,
    grad_nll: Tensor,
    member: str,
    target: Tensor,
    params: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of params, None where `needs` says so."""
    shape = target.shape
    grads = tuple(_common.empty_gradient(backend, p, shape, n) for p, n in zip(params, needs, strict=True))
    expanded = tuple(p.expand(shape) for p in params)
    backend.likelihood_backward(member, expanded, target, None, None, grad_nll, grads=grads)
    return tuple(_common.reduce_gradient(g, p) for g, p in zip(grads, params, strict=True))


class _Likelihood(torch.autograd.Function):
    """The eager path."""

    @staticmethod
    def forward(ctx: Any, backend: Any, member: str, target: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(target, *params)
        ctx.backend, ctx.member = backend, member
        return forward(backend, member, target, params)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        target, *params = ctx.saved_tensors
        arguments = (grad_nll, ctx.member, target, params, ctx.needs_input_grad[3:])
        if _common.are_plain(grad_nll):
            grads = backward(ctx.backend, *arguments)
        else:
            grads = _backward_traced(*arguments)
        return None, None, None, *_common.once(grads, grad_nll, *params)


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _backward_op(
    backend: Any,
    grad_nll: Tensor,
    member: str,
    target: Tensor,
    params: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    return list(_common.dense(target, backward(backend, grad_nll, member, target, params, needs)))


def _backward_traced(*args: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.vae_fast.likelihood_backward(*args)
    return tuple(g if needed else None for g, needed in zip(grads, args[-1], strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.member, target, params = inputs
    ctx.save_for_backward(target, *params)


def _differentiate(ctx: Any, grad_nll: Tensor) -> Any:
    target, *params = ctx.saved_tensors
    grads = _backward_traced(grad_nll, ctx.member, target, params, ctx.needs_input_grad[2])
    return None, None, list(grads)


_common.define(
    "likelihood(str member, Tensor target, Tensor[] params) -> Tensor",
    forward,
    sources=lambda member, target, params: (target, *params),
    differentiate=_differentiate,
    setup=_setup,
)
_common.define(
    "likelihood_backward(Tensor grad_nll, str member, Tensor target, Tensor[] params, bool[] needs) -> Tensor[]",
    _backward_op,
    sources=lambda grad_nll, member, target, params, needs: (target, *params),
)
