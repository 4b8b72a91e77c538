"""The op `likelihood`: -log p(target | params) per sample, for every likelihood, one kernel each way.

`mask` (bool) leaves out elements; `rng_state` has a Bernoulli's target binarized as it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..checks import check_counters
from . import _common
from .noise import binarize


def likelihood(
    likelihood: str,
    target: Tensor,
    *params: Tensor,
    mask: Tensor | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    backend = _common.dispatch("likelihood", target, mask, *params)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        # The kernels take the target as data; a target that learns is the reference's.
        first, *others = params
        if rng_state is not None:
            target = binarize(target, rng_state)
        return getattr(reference, f"{likelihood}_nll")(first, target, *others, mask=mask)
    if backend is None:
        return torch.ops.vae_fast.likelihood(likelihood, target, params, mask, rng_state)
    if _common.needs_grad(*params):
        return _Likelihood.apply(backend, likelihood, target, mask, rng_state, *params)
    return forward(backend, likelihood, target, params, mask, rng_state)


def forward(
    backend: Any,
    likelihood: str,
    target: Tensor,
    params: Sequence[Tensor],
    mask: Tensor | None,
    rng_state: Tensor | None,
) -> Tensor:
    dtype = _common.result_dtype(target, *params)
    nll = torch.empty(target.shape[0], dtype=dtype, device=target.device)
    expanded, mask = _expand(params, mask, target)
    backend.likelihood_forward(likelihood, expanded, target, mask, rng_state, nll=nll)
    return nll


def backward(
    backend: Any,
    grad_nll: Tensor,
    likelihood: str,
    target: Tensor,
    params: Sequence[Tensor],
    mask: Tensor | None,
    rng_state: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of params, None where `needs` says so."""
    shape = target.shape
    grads = tuple(_common.empty_gradient(backend, p, shape, n) for p, n in zip(params, needs, strict=True))
    expanded, mask = _expand(params, mask, target)
    backend.likelihood_backward(likelihood, expanded, target, mask, rng_state, grad_nll, grads=grads)
    return tuple(_common.reduce_gradient(g, p) for g, p in zip(grads, params, strict=True))


def _expand(
    params: Sequence[Tensor], mask: Tensor | None, target: Tensor
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """All in the target's shape, by strides of zero."""
    shape = target.shape
    return tuple(p.expand(shape) for p in params), None if mask is None else mask.expand(shape)


class _Likelihood(_common.Function):
    """The eager path."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Any,
        likelihood: str,
        target: Tensor,
        mask: Tensor | None,
        rng_state: Tensor | None,
        *params: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(target, mask, rng_state, *params)
        ctx.backend, ctx.likelihood = backend, likelihood
        return forward(backend, likelihood, target, params, mask, rng_state)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        target, mask, rng_state, *params = ctx.saved_tensors
        arguments = (grad_nll, ctx.likelihood, target, params, mask, rng_state, ctx.needs_input_grad[5:])
        if _common.are_real(grad_nll):
            grads = backward(ctx.backend, *arguments)
        else:
            grads = _backward_traced(*arguments)
        return None, None, None, None, None, *_common.forbid_double_backward(grads, grad_nll, *params)


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _backward_op(backend: Any, grad_nll: Tensor, likelihood: str, target: Tensor, *rest: Any) -> list[Tensor]:
    return list(_common.none_to_empty(target, backward(backend, grad_nll, likelihood, target, *rest)))


def _backward_traced(*args: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.vae_fast.likelihood_backward(*args)
    return tuple(g if needed else None for g, needed in zip(grads, args[-1], strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.likelihood, target, params, mask, rng_state = inputs
    ctx.save_for_backward(target, mask, rng_state, *params)


def _differentiate(ctx: Any, grad_nll: Tensor) -> Any:
    target, mask, rng_state, *params = ctx.saved_tensors
    needs = ctx.needs_input_grad[2]
    grads = _backward_traced(grad_nll, ctx.likelihood, target, params, mask, rng_state, needs)
    return None, None, list(grads), None, None


def _check(likelihood: str, target: Tensor, params: Any, mask: Any, rng_state: Tensor | None) -> None:
    if rng_state is not None:
        check_counters("target", target.shape, None)


_common.define(
    "likelihood(str likelihood, Tensor target, Tensor[] params, Tensor? mask, Tensor? rng_state) -> Tensor",
    forward,
    sources=lambda likelihood, target, params, *_: (target, *params),
    differentiate=_differentiate,
    setup=_setup,
    check=_check,
)
_common.define(
    "likelihood_backward(Tensor grad_nll, str likelihood, Tensor target, Tensor[] params, Tensor? mask, "
    "Tensor? rng_state, bool[] needs) -> Tensor[]",
    _backward_op,
    sources=lambda grad_nll, likelihood, target, params, *_: (target, *params),
)
