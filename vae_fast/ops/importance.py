"""The op `importance`: draws and their log importance weights, one kernel forward and one backward.

Saved for backward are the inputs and rng_state; the noise is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.reference import importance as expression
from ..checks import check_counters
from . import _common
from .dtensor import STATE, batch_dim
from .latent import Clamp, expand_prior, rounded
from .noise import noise as draw
from .op import Args, Gradients, Op

Outputs = tuple[Tensor | None, Tensor]


def importance(
    mu: Tensor,
    logvar: Tensor,
    num_samples: int,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    first_draw: int = 0,
    path_derivative: bool = False,
    want_z: bool = True,
) -> Outputs:
    """(z, log weights), z None where it is not wanted. The arguments have been checked in `functional`."""
    prior_mu, prior_logvar = prior or (None, None)
    backend = _common.dispatch("importance", mu, logvar, prior_mu, prior_logvar, noise)
    if prior_mu is not None and prior_logvar is not None and backend is not None and torch.is_grad_enabled():
        prior_mu, prior_logvar = _common.unexpanded(prior_mu), _common.unexpanded(prior_logvar)
    args = (
        mu, logvar, prior_mu, prior_logvar, rng_state, noise, clamp, num_samples, first_draw, path_derivative, want_z,
    )  # fmt: skip
    outputs: Outputs = _expression(*args) if backend is reference else IMPORTANCE(backend, *args)
    return outputs


def _expression(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Any,
    num_samples: int,
    first_draw: int,
    path_derivative: bool,
    want_z: bool,
) -> Outputs:
    prior = None if prior_mu is None or prior_logvar is None else (prior_mu, prior_logvar)
    if noise is None:
        if rng_state is None:  # ONNX draws by its own op
            dtype = _common.result_dtype(mu, logvar)
            noise = torch.randn((num_samples, *mu.shape), dtype=dtype, device=mu.device)
        else:
            noise = expression.drawn(mu, logvar, rng_state, num_samples, first_draw, draw)
    return expression.log_weights(
        mu, logvar, num_samples=num_samples, prior=prior, clamp=clamp, noise=noise,
        path_derivative=path_derivative, return_z=want_z,
    )  # fmt: skip


def importance_forward(
    backend: Any,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    num_samples: int,
    first_draw: int,
    path_derivative: bool,
    want_z: bool,
) -> tuple[Outputs, tuple[()]]:
    clamp = clamp and rounded(tuple(clamp), logvar.dtype)
    z = _common.empty_like(backend, mu, num_samples) if want_z else None
    dtype = _common.result_dtype(mu, logvar, prior_mu, prior_logvar)
    weights = _common.empty_loss(backend, mu, False, dtype, num_samples)
    backend.importance_forward(
        mu, logvar, expand_prior(prior_mu, prior_logvar, mu), rng_state, noise, clamp,
        z=z, weights=weights, first_draw=first_draw,
    )  # fmt: skip
    return (z, weights), ()


def importance_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of mu, logvar, prior_mu, prior_logvar."""
    grad_z, grad_weights = grads
    mu, logvar, prior_mu, prior_logvar, rng_state, noise, clamp, _, first_draw, path_derivative, _ = args
    grad_mu = _common.empty_like(backend, mu) if needs[0] else None
    grad_logvar = _common.empty_like(backend, logvar) if needs[1] else None
    grad_prior = None
    if any(needs[2:]):
        grad_prior = (
            _common.empty_gradient(backend, prior_mu, mu.shape, needs[2]),
            _common.empty_gradient(backend, prior_logvar, mu.shape, needs[3]),
        )
    backend.importance_backward(
        grad_z, grad_weights, mu, logvar, expand_prior(prior_mu, prior_logvar, mu), rng_state, noise,
        clamp and rounded(tuple(clamp), logvar.dtype),
        grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=grad_prior,
        path_derivative=path_derivative, first_draw=first_draw,
    )  # fmt: skip
    if grad_prior is None:
        return grad_mu, grad_logvar, None, None
    return (
        grad_mu,
        grad_logvar,
        _common.reduce_gradient(grad_prior[0], prior_mu),
        _common.reduce_gradient(grad_prior[1], prior_logvar),
    )


def _check(mu: Tensor, *args: Any) -> None:
    rng_state, num_samples, first_draw = args[3], args[6], args[7]
    if rng_state is not None:
        check_counters("mu", mu.shape, first_draw + num_samples)


def _batch_dims(*args: Any) -> tuple[Sequence[int | None], Sequence[int]]:
    dims = [batch_dim(a, args[0]) if isinstance(a, Tensor) else None for a in args]
    dims[4] = STATE
    return dims, (1, 1)


IMPORTANCE = Op(
    "importance(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? rng_state, Tensor? noise, "
    "float[]? clamp, SymInt num_samples, SymInt first_draw, bool path_derivative, bool want_z) "
    "-> (Tensor z, Tensor weights)",
    importance_forward,
    importance_backward,
    differentiable=("mu", "logvar", "prior_mu", "prior_logvar"),
    check=_check,
    batch_dims=_batch_dims,
)
