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
from ..likelihoods import LIKELIHOODS
from . import _common
from .noise import binarize
from .op import Args, Gradients, Op


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
        return LIKELIHOODS[likelihood].nll(first, target, *others, mask=mask)
    nll: Tensor = LIKELIHOOD(backend, likelihood, target, mask, rng_state, *params)
    return nll


def likelihood_forward(
    backend: Any,
    likelihood: str,
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    *params: Tensor,
) -> tuple[Tensor, tuple[()]]:
    dtype = _common.result_dtype(target, *params)
    nll = _common.empty_samples(target, dtype)
    expanded, mask = _expand(params, mask, target)
    backend.likelihood_forward(likelihood, expanded, target, mask, rng_state, nll=nll)
    return nll, ()


def likelihood_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of params."""
    likelihood, target, mask, rng_state, *params = args
    shape = target.shape
    found = tuple([_common.empty_gradient(backend, p, shape, n) for p, n in zip(params, needs, strict=True)])
    expanded, mask = _expand(params, mask, target)
    backend.likelihood_backward(likelihood, expanded, target, mask, rng_state, grads[0], grads=found)
    return tuple([_common.reduce_gradient(g, p) for g, p in zip(found, params, strict=True)])


def _expand(
    params: Sequence[Tensor], mask: Tensor | None, target: Tensor
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """All in the target's shape, by strides of zero."""
    shape = target.shape
    return tuple([_common.expand(p, shape) for p in params]), mask if mask is None else _common.expand(
        mask, shape
    )


def _check(likelihood: str, target: Tensor, mask: Any, rng_state: Tensor | None, *params: Tensor) -> None:
    if rng_state is not None:
        check_counters("target", target.shape, None)


LIKELIHOOD = Op(
    "likelihood(str likelihood, Tensor target, Tensor? mask, Tensor? rng_state, Tensor[] params) -> Tensor",
    likelihood_forward,
    likelihood_backward,
    check=_check,
)
