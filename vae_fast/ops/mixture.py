"""The op `mixture`: -log p(target) per sample of a mixture of discretized logistics, one kernel each way.

There is much arithmetic to a parameter, and value and gradient need nearly the same. On the CPU forward therefore takes
the gradient for factors of 1 along with the value, and backward only multiplies: 18 instead of 25 microseconds for 64
pixels of 10 components (AVX2, one core, from beyond the caches), for as much memory as backward would take. A GPU has
arithmetic to spare but no bandwidth: there backward evaluates the components again. So it does on the CPU where the
gradient would be rounded twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common


def mixture(params: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    backend = _common.dispatch("mixture", params, target, mask)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        return reference.discretized_logistic_mixture_nll(params, target, mask=mask)
    needs_grad = _common.needs_grad(params)
    forward_grads = needs_grad and params.device.type == "cpu" and params.dtype == torch.float32
    if backend is None:
        nll, _ = torch.ops.vae_fast.mixture(params, target, mask, forward_grads)
        return nll
    if needs_grad:
        return _Mixture.apply(backend, params, target, mask, forward_grads)
    return forward(backend, params, target, mask, False)[0]


def forward(
    backend: Any, params: Tensor, target: Tensor, mask: Tensor | None, forward_grads: bool
) -> tuple[Tensor, Tensor | None]:
    """nll and, if `forward_grads`, the gradient of its sum."""
    dtype = _common.result_dtype(params, target)
    nll = torch.empty(params.shape[0], dtype=dtype, device=params.device)
    flat, target, mask = _flatten(params, target, mask)
    if not forward_grads:
        backend.mixture_forward(flat, target, mask, nll=nll)
        return nll, None
    unit_grad = _common.empty_like(backend, flat)
    backend.mixture_forward(flat, target, mask, nll=nll, grad_params=unit_grad)
    return nll, unit_grad.view(params.shape)


def backward(backend: Any, grad_nll: Tensor, params: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    flat, target, mask = _flatten(params, target, mask)
    grad = _common.empty_like(backend, flat)
    backend.mixture_backward(flat, target, mask, grad_nll, grad_params=grad)
    return grad.view(params.shape)


def _flatten(params: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Views with one dim of pixels, wherever strides allow."""
    batch, size, *image = params.shape
    pixels = math.prod(image)
    if mask is not None:
        mask = mask.expand(batch, 1, *image).reshape(batch, pixels)
    return params.reshape(batch, size, pixels), target.reshape(batch, target.shape[1], pixels), mask


class _Mixture(_common.Function):
    """The eager path."""

    @staticmethod
    def forward(
        ctx: Any, backend: Any, params: Tensor, target: Tensor, mask: Tensor | None, forward_grads: bool
    ) -> Tensor:
        nll, unit_grad = forward(backend, params, target, mask, forward_grads)
        ctx.save_for_backward(params, target, mask, unit_grad)
        ctx.backend = backend
        return nll

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        params, target, mask, unit_grad = ctx.saved_tensors
        if not _common.are_real(grad_nll):
            grad = _backward_traced(grad_nll, params, target, mask, unit_grad)
        elif unit_grad is None:
            grad = backward(ctx.backend, grad_nll, params, target, mask)
        else:
            out = _common.empty_like(ctx.backend, unit_grad)
            with torch.no_grad():
                grad = torch.mul(unit_grad, _common.per_sample(grad_nll, unit_grad.ndim), out=out)
        return None, *_common.forbid_double_backward((grad,), grad_nll, params), None, None, None


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _forward_op(backend: Any, params: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _common.none_to_empty(params, forward(backend, params, *args))


def _backward_traced(
    grad_nll: Tensor, params: Tensor, target: Tensor, mask: Tensor | None, unit_grad: Tensor | None
) -> Tensor:
    if unit_grad is not None:
        return unit_grad * _common.per_sample(grad_nll, unit_grad.ndim)
    return torch.ops.vae_fast.mixture_backward(grad_nll, params, target, mask)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, target, mask, forward_grads = inputs
    ctx.save_for_backward(params, target, mask, output[1] if forward_grads else None)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_nll: Tensor | None, grad_unit: Any) -> Any:
    grad = None if grad_nll is None else _backward_traced(grad_nll, *ctx.saved_tensors)
    return grad, None, None, None


_common.define(
    "mixture(Tensor params, Tensor target, Tensor? mask, bool forward_grads) -> (Tensor, Tensor)",
    _forward_op,
    sources=lambda params, target, mask, forward_grads: (params, target),
    differentiate=_differentiate,
    setup=_setup,
)
_common.define(
    "mixture_backward(Tensor grad_nll, Tensor params, Tensor target, Tensor? mask) -> Tensor",
    backward,
    sources=lambda grad_nll, params, target, mask: (params, target),
)
