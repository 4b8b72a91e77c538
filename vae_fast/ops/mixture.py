"""The op `mixture`: -log p(target) per sample of a mixture of discretized logistics, one kernel each way."""

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
    if backend is None:
        return torch.ops.vae_fast.mixture(params, target, mask)
    if _common.needs_grad(params):
        return _Mixture.apply(backend, params, target, mask)
    return forward(backend, params, target, mask)


def forward(backend: Any, params: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    dtype = _common.result_dtype(params, target)
    nll = torch.empty(params.shape[0], dtype=dtype, device=params.device)
    backend.mixture_forward(*_flatten(params, target, mask), nll=nll)
    return nll


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


class _Mixture(torch.autograd.Function):
    """The eager path."""

    @staticmethod
    def forward(ctx: Any, backend: Any, params: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(params, target, mask)
        ctx.backend = backend
        return forward(backend, params, target, mask)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        arguments = (grad_nll, *ctx.saved_tensors)
        if _common.are_plain(grad_nll):
            grad = backward(ctx.backend, *arguments)
        else:
            grad = torch.ops.vae_fast.mixture_backward(*arguments)
        return None, *_common.once((grad,), grad_nll, arguments[1]), None, None


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_nll: Tensor) -> Any:
    return torch.ops.vae_fast.mixture_backward(grad_nll, *ctx.saved_tensors), None, None


_common.define(
    "mixture(Tensor params, Tensor target, Tensor? mask) -> Tensor",
    forward,
    sources=lambda params, target, mask: (params, target),
    differentiate=_differentiate,
    setup=_setup,
)
_common.define(
    "mixture_backward(Tensor grad_nll, Tensor params, Tensor target, Tensor? mask) -> Tensor",
    backward,
    sources=lambda grad_nll, params, target, mask: (params, target),
)
