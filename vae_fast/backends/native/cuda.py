"""The CUDA C++ engine (csrc/cuda): one launch an op on torch's current stream, no synchronisation, no hidden copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .members import COUNT8, COUNTS, DTYPES, LIKELIHOODS, mixture_sizes

try:
    from . import _cuda  # type: ignore[attr-defined]
except ImportError as error:
    _cuda = None
    _reason: str | None = (
        f"the extension vae_fast.backends.native._cuda is not built or does not load ({error}); "
        "reinstall vae_fast from source where nvcc is, with VAE_FAST_CUDA=1"
    )
else:
    _reason = None if torch.version.cuda else "this PyTorch was built without CUDA"

Prior = tuple[Tensor, Tensor] | None
Clamp = tuple[float, float] | None

_tickets: dict[tuple[int, int], Tensor] = {}


def unavailable_reason() -> str | None:
    """Why this backend cannot run here, or None if it can. Touches no GPU."""
    return _reason


def details() -> dict[str, Any]:
    """What was built."""
    return {} if _cuda is None else {"architectures": _cuda.architectures, "toolkit": _cuda.toolkit}


def _where(tensor: Tensor) -> tuple[int, int, _Scratch]:
    """The tensor's device, torch's current stream there, and where a launch gets scratch memory from."""
    device = tensor.device.index
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return device, stream, _Scratch(tensor.device, stream)


class _Scratch:
    """Memory for sums that several blocks share: float64 scratch, and 32-bit zeros. Most launches ask for none.

    Both live until the launch is queued at least; what comes later on the stream may have the scratch. The kernel
    leaves the zeros as zeros, so the eager launches of a stream share one buffer, one after the other; a captured
    launch gets its own, which the graph clears.
    """

    __slots__ = ("device", "memory", "stream")

    def __init__(self, device: torch.device, stream: int) -> None:
        self.device, self.stream = device, stream

    def __call__(self, partials: int, tickets: int) -> tuple[int, int]:
        scratch = torch.empty(partials, dtype=torch.float64, device=self.device)
        if torch.cuda.is_current_stream_capturing():
            zeros = torch.zeros(tickets, dtype=torch.int32, device=self.device)
        else:
            kept = _tickets.get((self.device.index, self.stream))
            if kept is None or kept.numel() < tickets:
                kept = torch.zeros(max(tickets, 4096), dtype=torch.int32, device=self.device)
                _tickets[self.device.index, self.stream] = kept
            zeros = kept
        self.memory = scratch, zeros
        return scratch.data_ptr(), zeros.data_ptr()


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
    _cuda.latent_forward(
        _where(mu),
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
    _cuda.latent_backward(
        _where(mu),
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
    _cuda.noise_fill(_where(eps), eps.shape[1:], eps.shape[0], state, per_sample, _view(eps))


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
    _cuda.likelihood_forward(
        _where(target),
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
    _cuda.likelihood_backward(
        _where(target),
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
    _cuda.categorical_forward(
        _where(logits),
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
    _cuda.categorical_backward(
        _where(logits),
        logits.shape,
        _view(logits),
        _view(target, counts=True),
        _view(lse),
        _view(total),
        _view(grad_nll),
        _view(grad_logits),
    )


def mixture_forward(
    params: Tensor,
    target: Tensor,
    mask: Tensor | None,
    *,
    nll: Tensor,
    grad_params: Tensor | None = None,
) -> None:
    _cuda.mixture_forward(
        _where(params),
        mixture_sizes(params, target),
        _view(params),
        _view(target),
        _view(mask),
        _view(nll),
        None,
    )
    if grad_params is not None:
        ones = nll.new_ones(()).expand(len(params))
        mixture_backward(params, target, mask, ones, grad_params=grad_params)


def mixture_backward(
    params: Tensor, target: Tensor, mask: Tensor | None, grad_nll: Tensor, *, grad_params: Tensor
) -> None:
    _cuda.mixture_backward(
        _where(params),
        mixture_sizes(params, target),
        _view(params),
        _view(target),
        _view(mask),
        _view(grad_nll),
        _view(grad_params),
    )
