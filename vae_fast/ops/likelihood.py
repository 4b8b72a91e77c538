"""The op `likelihood`: -log p(target | params) per sample or per element, for every likelihood, one kernel each way.

`mask` (bool) leaves out elements; `rng_state` has a Bernoulli's target binarized as it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..checks import check_counters
from ..likelihoods import LIKELIHOODS
from ..likelihoods.csr import Csr
from . import _common
from .dtensor import STATE, batch_dim
from .noise import binarize
from .op import Args, Gradients, Op


def likelihood(
    likelihood: str,
    target: Tensor,
    *params: Tensor,
    mask: Tensor | None = None,
    rng_state: Tensor | None = None,
    per_element: bool = False,
    draws: int | None = None,
) -> Tensor:
    """The negative log-likelihood. The arguments have been checked in `functional`.

    draws: of some of the params, before target's shape. A tensor of their number of dims says it again, and that is
    where forward and backward find it.
    """
    backend = _common.dispatch("likelihood", target, mask, *params)
    if backend is reference or (target.requires_grad and torch.is_grad_enabled()):
        # The kernels take the target as data; a target that learns is the reference's.
        first, *others = params
        if rng_state is not None:
            target = binarize(target, rng_state)
        reduction = "none" if per_element else "sample"
        return LIKELIHOODS[likelihood].nll(first, target, *others, mask=mask, reduction=reduction)
    params = unexpanded(backend, target, params, draws)
    nll: Tensor = LIKELIHOOD(backend, likelihood, target, mask, rng_state, per_element, *params)
    return nll


def unexpanded(
    backend: Any, target: Tensor | Csr, params: tuple[Tensor, ...], draws: int | None
) -> tuple[Tensor, ...]:
    """What the params were before they were broadcast, so that the kernel sums their gradients."""
    if backend is not None and torch.is_grad_enabled():
        bases = tuple([_common.unexpanded(p) if p._is_view() else p for p in params])
        if draws is None or any(p.ndim > target.ndim for p in bases):
            return bases
    return params


def likelihood_forward(
    backend: Any,
    likelihood: str,
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    per_element: bool,
    *params: Tensor,
) -> tuple[Tensor, tuple[()]]:
    dtype = _common.result_dtype(target, *params)
    expanded, mask, draws = expand(params, mask, target)
    nll = _common.empty_loss(backend, target, per_element, dtype, draws)
    backend.likelihood_forward(likelihood, expanded, target, mask, rng_state, nll=nll, draws=draws)
    return nll, ()


def likelihood_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of params."""
    likelihood, target, mask, rng_state, _, *params = args
    shape = target.shape
    expanded, mask, draws = expand(params, mask, target)
    found = tuple(
        [_common.empty_gradient(backend, p, shape, n, draws) for p, n in zip(params, needs, strict=True)]
    )
    backend.likelihood_backward(
        likelihood, expanded, target, mask, rng_state, grads[0], grads=found, draws=draws
    )
    return tuple([_common.reduce_gradient(g, p) for g, p in zip(found, params, strict=True)])


def expand(
    params: Sequence[Tensor], mask: Tensor | None, target: Tensor | Csr
) -> tuple[tuple[Tensor, ...], Tensor | None, int | None]:
    """All in the target's shape, by strides of zero, after the draws that some params have; the number of draws."""
    shape = target.shape
    ndim, draws, expanded = len(shape), None, []
    for p in params:
        if p.ndim > ndim:
            draws = p.shape[0]
            p = p.expand(draws, *shape)
        else:
            p = _common.expand(p, shape)
        expanded.append(p)
    return tuple(expanded), mask if mask is None else _common.expand(mask, shape), draws


def _check(likelihood: str, target: Tensor, mask: Any, rng_state: Tensor | None, *_: Any) -> None:
    if rng_state is not None:
        check_counters("target", target.shape, None)


def _batch_dims(
    likelihood: str, target: Tensor, mask: Tensor | None, rng_state: Any, per_element: bool, *params: Tensor
) -> tuple[Sequence[int | None], Sequence[int]]:
    has_draws = any(p.ndim > target.ndim for p in params)
    dims = [batch_dim(p, target) for p in params]
    return (None, 0, batch_dim(mask, target), STATE, None, *dims), (int(has_draws),)


LIKELIHOOD = Op(
    "likelihood(str likelihood, Tensor target, Tensor? mask, Tensor? rng_state, bool per_element, Tensor[] params) "
    "-> Tensor",
    likelihood_forward,
    likelihood_backward,
    check=_check,
    batch_dims=_batch_dims,
)
