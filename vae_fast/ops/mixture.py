"""The op `mixture`: -log p(target) per sample of a mixture of discretized logistics, one kernel each way.

There is much arithmetic to a parameter, and value and gradient need nearly the same. On the CPU forward therefore takes
the gradient for factors of 1 along with the value, and backward only multiplies: 18 instead of 25 microseconds for 64
pixels of 10 components (AVX2, one core, from beyond the caches), for as much memory as backward would take. A GPU has
arithmetic to spare but no bandwidth: there backward evaluates the components again. So it does on the CPU where the
gradient would be rounded twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common
from .op import Args, Gradients, Op


def mixture(params: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    backend = _common.dispatch("mixture", params, target, mask)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        return reference.discretized_logistic_mixture_nll(params, target, mask=mask)
    needs_grad = _common.needs_grad(params)
    forward_grads = needs_grad and _common.on_cpu(params) and params.dtype == torch.float32
    nll: Tensor = MIXTURE(backend, params, target, mask, forward_grads)
    return nll


def mixture_forward(
    backend: Any, params: Tensor, target: Tensor, mask: Tensor | None, forward_grads: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """nll; kept is the gradient of its sum, if `forward_grads`."""
    dtype = _common.result_dtype(params, target)
    nll = torch.empty(params.shape[0], dtype=dtype, device=params.device)
    flat, target, mask = _flatten(params, target, mask)
    if not forward_grads:
        backend.mixture_forward(flat, target, mask, nll=nll)
        return nll, ()
    unit_grad = _common.empty_like(backend, flat)
    backend.mixture_forward(flat, target, mask, nll=nll, grad_params=unit_grad)
    return nll, (unit_grad.view(params.shape),)


@torch.no_grad()
def mixture_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    params, target, mask, _ = args
    (grad_nll,) = grads
    if kept:
        (unit_grad,) = kept
        out = _common.empty_like(backend, unit_grad)
        return (torch.mul(unit_grad, _common.per_sample(grad_nll, unit_grad.ndim), out=out),)
    flat, target, mask = _flatten(params, target, mask)
    grad = _common.empty_like(backend, flat)
    backend.mixture_backward(flat, target, mask, grad_nll, grad_params=grad)
    return (grad.view(params.shape),)


def _flatten(params: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Views with one dim of pixels, wherever strides allow."""
    batch, size, *image = params.shape
    pixels = math.prod(image)
    if mask is not None:
        mask = mask.expand(batch, 1, *image).reshape(batch, pixels)
    return params.reshape(batch, size, pixels), target.reshape(batch, target.shape[1], pixels), mask


MIXTURE = Op(
    "mixture(Tensor params, Tensor target, Tensor? mask, bool forward_grads) -> (Tensor nll, Tensor[] kept)",
    mixture_forward,
    mixture_backward,
    differentiable=("params",),
)
