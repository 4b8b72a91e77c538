"""The op `latent`: a sample and its KL, one kernel forward and one backward.

Saved for backward are the inputs and rng_state; the noise is made again. Wherever `logvar` is None, `mu` holds both,
[mu | logvar] along `dim`, and the gradient is one packed tensor.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..checks import check_counters
from . import _common
from .noise import noise as draw
from .op import Args, Gradients, Op

Clamp = Sequence[float] | None
Pair = tuple[Tensor | None, Tensor | None]


def latent(
    mu: Tensor,
    logvar: Tensor | None,
    dim: int = 1,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    num_samples: int | None = None,
    want_z: bool = True,
    want_kl: bool = True,
) -> Pair:
    """(z, kl); what is not wanted is None. The arguments have been checked in `functional`."""
    prior_mu, prior_logvar = prior or (None, None)
    backend = _common.dispatch("latent", mu, logvar, prior_mu, prior_logvar, noise)
    args = (
        mu, logvar, dim, prior_mu, prior_logvar, rng_state, noise, clamp, num_samples, want_z, want_kl
    )  # fmt: skip
    pair: Pair = _expression(*args) if backend is reference else LATENT(backend, *args)
    return pair


@functools.lru_cache
def _rounded(clamp: tuple[float, float], dtype: torch.dtype) -> tuple[float, ...]:
    """The bounds in logvar's dtype, as torch.clamp takes them. Not by a tensor: fake ones have no numbers."""
    return tuple(_round(bound, dtype) for bound in clamp)


def _round(bound: float, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return bound
    try:
        (bits,) = struct.unpack("<I", struct.pack("<f", bound))
        if dtype == torch.bfloat16:  # the upper half, to the nearest, ties to even
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        (bound,) = struct.unpack("<f", struct.pack("<I", bits))
        return struct.unpack("<e", struct.pack("<e", bound))[0] if dtype == torch.float16 else bound
    except OverflowError:
        return math.copysign(math.inf, bound)


def _split(mu: Tensor, logvar: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    return mu.chunk(2, dim) if logvar is None else (mu, logvar)  # type: ignore[return-value]


def _expression(
    mu: Tensor,
    logvar: Tensor | None,
    dim: int,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Any,
    num_samples: int | None,
    want_z: bool,
    want_kl: bool,
) -> Pair:
    mu, logvar = _split(mu, logvar, dim)
    prior = None if prior_mu is None or prior_logvar is None else (prior_mu, prior_logvar)
    z = kl = None
    if want_z:
        if noise is None:
            assert rng_state is not None
            noise = draw(mu.shape, rng_state, num_samples, _common.result_dtype(mu, logvar))
        z = reference.reparameterize(mu, logvar, num_samples=num_samples, clamp=clamp, noise=noise)
    if want_kl:
        kl = reference.kl_divergence(mu, logvar, prior=prior, clamp=clamp)
    return z, kl


def latent_forward(
    backend: Any,
    mu: Tensor,
    logvar: Tensor | None,
    dim: int,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    num_samples: int | None,
    want_z: bool,
    want_kl: bool,
) -> tuple[Pair, tuple[()]]:
    mu, logvar = _split(mu, logvar, dim)
    clamp = clamp and _rounded(tuple(clamp), logvar.dtype)
    z = kl = None
    if want_z:
        z = _common.empty_like(backend, mu, num_samples)
    if want_kl:
        dtype = _common.result_dtype(mu, logvar, prior_mu, prior_logvar)
        kl = _common.empty_samples(mu, dtype)
    prior = _expand(prior_mu, prior_logvar, mu)
    backend.latent_forward(mu, logvar, prior, rng_state, noise, clamp, z=z, kl=kl)
    return (z, kl), ()


def latent_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of mu, logvar, prior_mu, prior_logvar."""
    grad_z, grad_kl = grads
    mu, logvar, dim, prior_mu, prior_logvar, rng_state, noise, clamp, *_ = args
    first, second, *needs_prior = needs
    grad_mu = grad_first = _common.empty_like(backend, mu) if first else None
    grad_logvar = _common.empty_like(backend, logvar) if second and logvar is not None else None
    grad_second = grad_logvar
    if logvar is None and grad_first is not None:  # the kernel writes both halves of one packed gradient
        grad_mu, grad_logvar = grad_first.chunk(2, dim)
    mu, logvar = _split(mu, logvar, dim)
    clamp = clamp and _rounded(tuple(clamp), logvar.dtype)
    prior = _expand(prior_mu, prior_logvar, mu)
    grad_prior: Pair | None = None
    if any(needs_prior):
        grad_prior = (
            _common.empty_gradient(backend, prior_mu, mu.shape, needs_prior[0]),
            _common.empty_gradient(backend, prior_logvar, mu.shape, needs_prior[1]),
        )
    backend.latent_backward(
        grad_z, grad_kl, mu, logvar, prior, rng_state, noise, clamp,
        grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=grad_prior,
    )  # fmt: skip
    if grad_prior is None:
        return grad_first, grad_second, None, None
    return (
        grad_first,
        grad_second,
        _common.reduce_gradient(grad_prior[0], prior_mu),
        _common.reduce_gradient(grad_prior[1], prior_logvar),
    )


def _expand(prior_mu: Tensor | None, prior_logvar: Tensor | None, mu: Tensor) -> tuple[Tensor, Tensor] | None:
    """The prior in mu's shape, by strides of zero."""
    if prior_mu is None or prior_logvar is None:
        return None
    return _common.expand(prior_mu, mu.shape), _common.expand(prior_logvar, mu.shape)


def _check(
    mu: Tensor, logvar: Any, dim: int, prior_mu: Any, prior_logvar: Any, rng_state: Any, noise: Any,
    clamp: Any, num_samples: int | None, *_: Any,
) -> None:  # fmt: skip
    if rng_state is not None:
        check_counters("mu", _split(mu, logvar, dim)[0].shape, num_samples)


LATENT = Op(
    "latent(Tensor mu, Tensor? logvar, int dim, Tensor? prior_mu, Tensor? prior_logvar, Tensor? rng_state, "
    "Tensor? noise, float[]? clamp, SymInt? num_samples, bool want_z, bool want_kl) -> (Tensor z, Tensor kl)",
    latent_forward,
    latent_backward,
    differentiable=("mu", "logvar", "prior_mu", "prior_logvar"),
    check=_check,
)
