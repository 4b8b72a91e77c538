"""The op `latent`: sample and KL, for mu and logvar apart or packed in one tensor.

Saved for backward: the inputs and rng_state; the noise is made again. An output that is not wanted is None (an empty
tensor in the library ops, whose schemas know no optional results).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common

Prior = tuple[Tensor, Tensor] | None
Clamp = tuple[float, float] | None
Pair = tuple[Tensor | None, Tensor | None]


def latent(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: Prior = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    clamp: Clamp = None,
    num_samples: int | None = None,
    want_z: bool = True,
    want_kl: bool = True,
) -> Pair:
    """(z, kl), of which one may be unwanted and None. Arguments are checked in `functional`."""
    prior_mu, prior_logvar = prior or (None, None)
    tensors = (mu, logvar, prior_mu, prior_logvar)
    options = (clamp, num_samples, want_z, want_kl)
    backend = _common.dispatch("latent", *tensors, rng_state, noise)
    if backend is reference:
        return _expression(mu, logvar, prior, rng_state, noise, *options)
    if backend is not None:
        if _common.needs_grad(*tensors):
            return _Latent.apply(backend, None, options, prior_mu, prior_logvar, rng_state, noise, mu, logvar)  # type: ignore[no-any-return]
        return _forward(backend, mu, logvar, prior_mu, prior_logvar, rng_state, noise, *options)
    z, kl = torch.ops.vae_fast.latent(
        mu, logvar, prior_mu, prior_logvar, rng_state, noise, clamp, num_samples, want_z, want_kl
    )
    return z if want_z else None, kl if want_kl else None


def latent_packed(
    moments: Tensor,
    dim: int,
    *,
    prior: Prior = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    clamp: Clamp = None,
    num_samples: int | None = None,
) -> Pair:
    """`latent` of moments = [mu | logvar] along dim; its gradient is one packed tensor."""
    prior_mu, prior_logvar = prior or (None, None)
    tensors = (moments, prior_mu, prior_logvar)
    options = (clamp, num_samples, True, True)
    backend = _common.dispatch("latent", *tensors, rng_state, noise)
    if backend is reference:
        mu, logvar = moments.chunk(2, dim)
        return _expression(mu, logvar, prior, rng_state, noise, *options)
    if backend is not None:
        if _common.needs_grad(*tensors):
            return _Latent.apply(backend, dim, options, prior_mu, prior_logvar, rng_state, noise, moments)  # type: ignore[no-any-return]
        mu, logvar = moments.chunk(2, dim)
        return _forward(backend, mu, logvar, prior_mu, prior_logvar, rng_state, noise, *options)
    return torch.ops.vae_fast.latent_packed(  # type: ignore[no-any-return]
        moments, dim, prior_mu, prior_logvar, rng_state, noise, clamp, num_samples
    )


def _expression(
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    num_samples: int | None,
    want_z: bool,
    want_kl: bool,
) -> Pair:
    z = kl = None
    if want_z:
        z = reference.reparameterize(
            mu, logvar, num_samples=num_samples, clamp=clamp, rng_state=rng_state, noise=noise
        )
    if want_kl:
        kl = reference.kl_divergence(mu, logvar, prior=prior, clamp=clamp)
    return z, kl


# What a kernel call needs around it: outputs, and a prior expanded without memory.


def _outputs(
    mu: Tensor, logvar: Tensor, prior: Pair, num_samples: int | None, want_z: bool, want_kl: bool
) -> Pair:
    z = kl = None
    if want_z:
        z = torch.empty_like(mu)
        if num_samples is not None:  # keep the layout of mu (channels-last, say) inside each draw
            z = torch.empty_strided(
                (num_samples, *mu.shape), (mu.numel(), *z.stride()), dtype=mu.dtype, device=mu.device
            )
    if want_kl:
        kl = torch.empty(mu.shape[0], dtype=_common.result_dtype(mu, logvar, *prior), device=mu.device)
    return z, kl


def _expand(prior_mu: Tensor | None, prior_logvar: Tensor | None, shape: torch.Size) -> Prior:
    if prior_mu is None or prior_logvar is None:
        return None
    return prior_mu.expand(shape), prior_logvar.expand(shape)


def _forward(
    backend: ModuleType,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    num_samples: int | None,
    want_z: bool,
    want_kl: bool,
) -> Pair:
    z, kl = _outputs(mu, logvar, (prior_mu, prior_logvar), num_samples, want_z, want_kl)
    prior = _expand(prior_mu, prior_logvar, mu.shape)
    backend.latent_forward(mu, logvar, prior, rng_state, noise, clamp, z=z, kl=kl)
    return z, kl


def _backward(
    backend: ModuleType,
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    needs_prior: Sequence[bool],
) -> Pair:
    """Fills grad_mu and grad_logvar; returns the gradients of the prior."""
    shape = mu.shape
    if prior_mu is None or prior_logvar is None or not any(needs_prior):
        prior = _expand(prior_mu, prior_logvar, shape)
        backend.latent_backward(
            grad_z, grad_kl, mu, logvar, prior, rng_state, noise, clamp,
            grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=None,
        )  # fmt: skip
        return None, None
    grads = (
        _common.empty_gradient(prior_mu, shape, needs_prior[0]),
        _common.empty_gradient(prior_logvar, shape, needs_prior[1]),
    )
    backend.latent_backward(
        grad_z, grad_kl, mu, logvar, _expand(prior_mu, prior_logvar, shape), rng_state, noise, clamp,
        grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=grads,
    )  # fmt: skip
    return _common.reduce_gradient(grads[0], prior_mu), _common.reduce_gradient(grads[1], prior_logvar)


class _Latent(torch.autograd.Function):
    """The eager path. `params` is (mu, logvar), or (moments,) with the packing dim."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: ModuleType,
        dim: int | None,
        options: tuple[Clamp, int | None, bool, bool],
        prior_mu: Tensor | None,
        prior_logvar: Tensor | None,
        rng_state: Tensor | None,
        noise: Tensor | None,
        *params: Tensor,
    ) -> Pair:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(prior_mu, prior_logvar, rng_state, noise, *params)
        ctx.backend, ctx.dim, ctx.clamp = backend, dim, options[0]
        mu, logvar = params if dim is None else params[0].chunk(2, dim)
        return _forward(backend, mu, logvar, prior_mu, prior_logvar, rng_state, noise, *options)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        prior_mu, prior_logvar, rng_state, noise, *params = ctx.saved_tensors
        _, _, _, *needs_prior, _, _, needs_first = ctx.needs_input_grad[:8]
        if ctx.dim is None:
            mu, logvar = params
            grads = [
                torch.empty_like(p) if needs else None
                for p, needs in zip(params, ctx.needs_input_grad[7:], strict=True)
            ]
            grad_mu, grad_logvar = grads
        else:
            mu, logvar = params[0].chunk(2, ctx.dim)
            grads = [torch.empty_like(params[0]) if needs_first else None]
            grad_mu, grad_logvar = (None, None) if grads[0] is None else grads[0].chunk(2, ctx.dim)
        grads_prior = _backward(
            ctx.backend, grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, rng_state, noise, ctx.clamp,
            grad_mu, grad_logvar, needs_prior,
        )  # fmt: skip
        sources = (grad_z, grad_kl, prior_mu, prior_logvar, *params)
        grad_prior_mu, grad_prior_logvar, *grads = _common.once((*grads_prior, *grads), *sources)
        return None, None, None, grad_prior_mu, grad_prior_logvar, None, None, *grads
