"""The op `mixture`: -log p(target) per sample or pixel of a mixture of discretized logistics, one kernel each way.

There is much arithmetic to a parameter, and value and gradient need nearly the same. On the CPU forward therefore takes
the gradient for factors of 1 along with the value, and backward only multiplies: 18 instead of 25 microseconds for 64
pixels of 10 components (AVX2, one core, from beyond the caches), for as much memory as backward would take. A GPU has
arithmetic to spare but no bandwidth: there backward evaluates the components again. So it does on the CPU where the
gradient would be rounded twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend
from . import _common
from .dtensor import batch_dim
from .op import Args, Gradients, Op


def mixture(params: Tensor, target: Tensor, mask: Tensor | None = None, per_element: bool = False) -> Tensor:
    """The negative log-likelihood. The arguments have been checked in `functional`."""
    backend = _common.dispatch("mixture", params, target, mask)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        reduction = "none" if per_element else "sample"
        return reference.discretized_logistic_mixture_nll(params, target, mask=mask, reduction=reduction)
    needs_grad = _common.needs_grad(params)
    forward_grads = needs_grad and _common.on_cpu(params) and params.dtype == torch.float32
    nll: Tensor = MIXTURE(backend, params, target, mask, per_element, forward_grads)
    return nll


def mixture_forward(
    backend: Any,
    params: Tensor,
    target: Tensor,
    mask: Tensor | None,
    per_element: bool,
    forward_grads: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """nll; kept is the gradient of its sum, if `forward_grads`."""
    dtype = _common.result_dtype(params, target)
    flat, flat_target, mask = _flatten(params, target, mask)
    unit_grad = _common.empty_like(backend, flat) if forward_grads else None
    if params.ndim == target.ndim:
        nll = _common.empty_loss(backend, flat[:, 0], per_element, dtype)
        backend.mixture_forward(flat, flat_target, mask, nll=nll, grad_params=unit_grad)
    else:
        lead, pixels = flat.shape[:2], flat.shape[3:]
        nll = torch.empty((*lead, *pixels) if per_element else lead, dtype=dtype, device=flat.device)
        for params_of, nll_of, grad_of in _draws(backend, flat, nll, unit_grad):
            backend.mixture_forward(params_of, flat_target, mask, nll=nll_of, grad_params=grad_of)
    if per_element:
        nll = nll.view(*flat.shape[:-2], *target.shape[2:])
    return nll, () if unit_grad is None else (unit_grad.view(params.shape),)


@torch.no_grad()
def mixture_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    params, target, mask, per_element, _ = args
    (grad_nll,) = grads
    if kept:
        (unit_grad,) = kept
        out = _common.empty_like(backend, unit_grad)
        channels = unit_grad.ndim - target.ndim + 1  # which a loss does not have
        factor = grad_nll.unsqueeze(channels) if per_element else _common.per_sample(grad_nll, unit_grad.ndim)
        return (torch.mul(unit_grad, factor, out=out),)
    flat, flat_target, mask = _flatten(params, target, mask)
    if per_element:
        grad_nll = grad_nll.reshape(flat[..., 0, :].shape)
    grad = _common.empty_like(backend, flat)
    if params.ndim == target.ndim:
        backend.mixture_backward(flat, flat_target, mask, grad_nll, grad_params=grad)
    else:
        for params_of, grad_nll_of, grad_of in _draws(backend, flat, grad_nll, grad):
            backend.mixture_backward(params_of, flat_target, mask, grad_nll_of, grad_params=grad_of)
    return (grad.view(params.shape),)


def _draws(backend: Any, *tensors: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """The tensors of each draw: a launch has much arithmetic, and one of them all would save nothing. A fake kernel has
    nothing to do, and may not know how many there are."""
    if backend is FakeBackend:
        return ()
    return zip(*(repeat(None) if t is None else t for t in tensors), strict=False)


def _flatten(params: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Views with one dim of pixels, wherever strides allow."""
    batch, channels, *image = target.shape
    pixels = math.prod(image)
    if mask is not None:
        mask = mask.expand(batch, 1, *image).reshape(batch, pixels)
    lead = params.shape[: 1 - target.ndim]
    return (
        params.reshape(*lead, params.shape[len(lead)], pixels),
        target.reshape(batch, channels, pixels),
        mask,
    )


MIXTURE = Op(
    "mixture(Tensor params, Tensor target, Tensor? mask, bool per_element, bool forward_grads) "
    "-> (Tensor nll, Tensor[] kept)",
    mixture_forward,
    mixture_backward,
    differentiable=("params",),
    batch_dims=lambda params, target, mask, *flags: (
        (params.ndim - target.ndim, 0, batch_dim(mask, target), *(None for _ in flags)),
        (params.ndim - target.ndim,),
    ),
)
