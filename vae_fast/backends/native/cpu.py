"""The C++ CPU engine (csrc/cpu): AVX2 and AVX-512 kernels on torch's OpenMP threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch  # before _cpu: its OpenMP runtime is the one to share
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .members import COUNT8, COUNTS, DTYPES, LIKELIHOODS, mixture_sizes

try:
    from . import _cpu  # type: ignore[attr-defined]
except ImportError as error:
    _cpu = None
    _reason: str | None = (
        f"the extension vae_fast.backends.native._cpu is not built or does not load ({error}); "
        "install a C++17 compiler and reinstall vae_fast from source"
    )
else:
    _reason = None

Prior = tuple[Tensor, Tensor] | None
Clamp = tuple[float, float] | None


def unavailable_reason() -> str | None:
    """Why this backend cannot run here, or None if it can."""
    return _reason


def details() -> dict[str, Any]:
    """What was built and what is used."""
    if _cpu is None:
        return {}
    return {
        "isa": _cpu.isa(),
        "isas": _cpu.available_isas(),
        "openmp": _cpu.has_openmp(),
        "threads": torch.get_num_threads(),
        "cache_mb": _cpu.cache_limit() >> 20,
    }


def empty_strided(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """torch.empty_strided for large outputs: reuses the memory of freed ones, where malloc would give it back to the
    system and every step would pay for its pages again (z and gradient of 100 MB: a third more time). VAE_FAST_CACHE_MB
    bounds what is kept (1024).

    torch does not resize storages over memory of others: it raises "not resizable" for a larger `resize_`, an `out=`
    that has to grow, or `untyped_storage().resize_(0)`. FSDP, FSDP2 and activation offloading resize none of these;
    VAE_FAST_CACHE_MB=0 leaves all memory to torch.
    """
    if not _cpu.cache_limit():
        return torch.empty_strided(shape, strides, dtype=dtype)
    return from_dlpack(_cpu.empty_strided(shape, strides, DTYPES[dtype]))


def empty_cache() -> None:
    """Gives the memory that is kept for outputs back to the system."""
    if _cpu is not None:
        _cpu.empty_cache()


def _view(tensor: Tensor | None, counts: bool = False) -> tuple[int, int, tuple[int, ...]] | None:
    """`counts`: a uint8 tensor holds numbers, not 255ths."""
    if tensor is None:
        return None
    code = COUNT8 if counts and tensor.dtype is torch.uint8 else DTYPES[tensor.dtype]
    return tensor.data_ptr(), code, tensor.stride()


def _state(rng_state: Tensor | None) -> tuple[Tensor | None, int, bool]:
    """A dense rng_state (to be kept alive), its address, and whether it holds one state per sample."""
    if rng_state is None:
        return None, 0, False
    rng_state = rng_state.contiguous()
    return rng_state, rng_state.data_ptr(), rng_state.dim() == 2


def _draws(sampled: Tensor | None, mu: Tensor) -> int:
    return sampled.shape[0] if sampled is not None and sampled.dim() > mu.dim() else 1


def latent_forward(
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    z: Tensor | None,
    kl: Tensor | None,
) -> None:
    prior_mu, prior_logvar = prior or (None, None)
    _alive, state, per_sample = _state(rng_state)
    _cpu.latent_forward(
        torch.get_num_threads(),
        mu.shape,
        _draws(z, mu),
        _view(mu),
        _view(logvar),
        _view(prior_mu),
        _view(prior_logvar),
        state,
        per_sample,
        _view(noise),
        clamp,
        _view(z),
        _view(kl),
    )


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior: Prior,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_prior: tuple[Tensor | None, Tensor | None] | None,
) -> None:
    prior_mu, prior_logvar = prior or (None, None)
    grad_prior_mu, grad_prior_logvar = grad_prior or (None, None)
    _alive, state, per_sample = _state(rng_state)
    _cpu.latent_backward(
        torch.get_num_threads(),
        mu.shape,
        _draws(grad_z, mu),
        _view(grad_z),
        _view(grad_kl),
        _view(mu),
        _view(logvar),
        _view(prior_mu),
        _view(prior_logvar),
        state,
        per_sample,
        _view(noise),
        clamp,
        _view(grad_mu),
        _view(grad_logvar),
        _view(grad_prior_mu),
        _view(grad_prior_logvar),
    )


def noise_fill(eps: Tensor, rng_state: Tensor) -> None:
    _alive, state, per_sample = _state(rng_state)
    _cpu.noise_fill(torch.get_num_threads(), eps.shape[1:], eps.shape[0], state, per_sample, _view(eps))


def likelihood_forward(
    member: str,
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    *,
    nll: Tensor,
) -> None:
    _alive, state, per_sample = _state(rng_state)
    _cpu.likelihood_forward(
        torch.get_num_threads(),
        target.shape,
        LIKELIHOODS[member],
        tuple(_view(p) for p in params),
        _view(target, member in COUNTS),
        _view(mask),
        state,
        per_sample,
        _view(nll),
    )


def likelihood_backward(
    member: str,
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    grad_nll: Tensor,
    *,
    grads: tuple[Tensor | None, ...],
) -> None:
    _alive, state, per_sample = _state(rng_state)
    _cpu.likelihood_backward(
        torch.get_num_threads(),
        target.shape,
        LIKELIHOODS[member],
        tuple(_view(p) for p in params),
        _view(target, member in COUNTS),
        _view(mask),
        state,
        per_sample,
        _view(grad_nll),
        tuple(_view(g) for g in grads),
    )


def categorical_forward(logits: Tensor, target: Tensor, *, nll: Tensor, lse: Tensor, total: Tensor) -> None:
    _cpu.categorical_forward(
        torch.get_num_threads(),
        logits.shape,
        _view(logits),
        _view(target, counts=True),
        _view(nll),
        _view(lse),
        _view(total),
    )


def categorical_backward(
    logits: Tensor, target: Tensor, lse: Tensor, total: Tensor, grad_nll: Tensor, *, grad_logits: Tensor
) -> None:
    _cpu.categorical_backward(
        torch.get_num_threads(),
        logits.shape,
        _view(logits),
        _view(target, counts=True),
        _view(lse),
        _view(total),
        _view(grad_nll),
        _view(grad_logits),
    )


def mixture_forward(
    params: Tensor, target: Tensor, mask: Tensor | None, *, nll: Tensor, grad_params: Tensor | None = None
) -> None:
    """With `grad_params`, also the gradient of the sum of nll."""
    _cpu.mixture_forward(
        torch.get_num_threads(),
        mixture_sizes(params, target),
        _view(params),
        _view(target),
        _view(mask),
        _view(nll),
        _view(grad_params),
    )


def mixture_backward(
    params: Tensor, target: Tensor, mask: Tensor | None, grad_nll: Tensor, *, grad_params: Tensor
) -> None:
    _cpu.mixture_backward(
        torch.get_num_threads(),
        mixture_sizes(params, target),
        _view(params),
        _view(target),
        _view(mask),
        _view(grad_nll),
        _view(grad_params),
    )
