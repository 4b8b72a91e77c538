"""The op `mixture_kl`: KL(N(mu, exp logvar) || mixture of Gaussians) by Monte Carlo, on the kernels of `latent`,
`noise` and `pairwise`.

Draws are made some at a time, by the noise contract, and made again by backward: noise and z of CHUNK elements are
there at once (4 MB each), and one number a draw and sample is kept. Noise with a state per sample is drawn at once,
because the number of a draw is its row there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend
from ..backends.reference import pairwise as reference_pairwise
from ..backends.reference.rng import state_of_draws
from ..checks import check_counters
from . import _common
from .dtensor import STATE
from .noise import noise as draw
from .op import Args, Gradients, Op
from .pairwise import dense_weights

CHUNK = 1 << 20  # elements
LOG_2PI = reference_pairwise.LOG_2PI


def mixture_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    log_weights: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    num_samples: int,
) -> Tensor:
    """The mean over the draws, (batch,). The arguments have been checked in `functional`."""
    backend = _common.dispatch("pairwise", mu, logvar, prior_mu, prior_logvar, log_weights, noise)
    if backend is reference:
        if noise is None:
            dtype = _common.result_dtype(mu, logvar, prior_mu, prior_logvar)
            if rng_state is None:  # ONNX draws by its own op
                noise = torch.randn((num_samples, *mu.shape), dtype=dtype, device=mu.device)
            else:
                noise = draw(mu.shape, rng_state, num_samples, dtype)
        # log softmax of log softmax is itself
        return reference_pairwise.mixture_kl(
            mu, logvar, prior_mu, prior_logvar, log_weights, num_samples=num_samples, noise=noise
        )
    kl: Tensor = MIXTURE_KL(
        backend, mu, logvar, prior_mu, prior_logvar, log_weights, rng_state, noise, num_samples
    )
    return kl


def _chunks(
    backend: Any, mu: Tensor, rng_state: Tensor | None, noise: Tensor | None, num_samples: int
) -> Iterator[tuple[slice, Tensor]]:
    """(which draws, their noise (draws, batch, dims))"""
    step = max(1, CHUNK // max(1, mu.numel()))
    if noise is None and rng_state is not None and rng_state.ndim == 2:
        step = num_samples
    for start in range(0, num_samples, step):
        stop = min(start + step, num_samples)
        if noise is not None:
            yield slice(start, stop), noise[start:stop]
            continue
        assert rng_state is not None
        eps = torch.empty((stop - start, *mu.shape), dtype=_common.result_dtype(mu), device=mu.device)
        state = state_of_draws(rng_state, start, mu.shape[0]) if start else rng_state
        backend.noise_fill(eps, state)
        yield slice(start, stop), eps


def _sample(backend: Any, mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z in the dtype of the arithmetic, (draws batch, dims)"""
    z = torch.empty(eps.shape, dtype=_common.result_dtype(mu), device=mu.device)
    backend.latent_forward(mu, logvar, None, None, eps, None, z=z, kl=None)
    return z.flatten(0, 1)


def mixture_kl_forward(
    backend: Any,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    log_weights: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    num_samples: int,
) -> tuple[Tensor, tuple[Tensor]]:
    """kl; kept: log p(z) of every draw (draws, batch)."""
    batch, dims = mu.shape
    dtype = _common.result_dtype(mu, logvar, prior_mu, prior_logvar)
    joint = torch.empty((num_samples, batch), dtype=dtype, device=mu.device)
    if backend is FakeBackend:
        return torch.empty(batch, dtype=dtype, device=mu.device), (joint,)
    weights = log_weights if backend is reference else dense_weights(log_weights)
    squares = torch.zeros(batch, dtype=torch.float64, device=mu.device)
    for part, eps in _chunks(backend, mu, rng_state, noise, num_samples):
        z = _sample(backend, mu, logvar, eps)
        backend.pairwise_forward(
            z, prior_mu, prior_logvar, weights, None, joint=joint[part].view(-1), dims=None
        )
        squares += eps.double().square().sum((0, 2))
    log_q = -0.5 * (squares / num_samples + logvar.double().sum(1) + dims * LOG_2PI)
    return (log_q - joint.mean(0, dtype=torch.float64)).to(dtype), (joint,)


@torch.no_grad()
def mixture_kl_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of mu, logvar, prior_mu, prior_logvar, log_weights."""
    (grad_kl,), (joint,) = grads, kept
    mu, logvar, prior_mu, prior_logvar, log_weights, rng_state, noise, num_samples = args
    inputs = (mu, logvar, prior_mu, prior_logvar, log_weights)
    outs = [
        _common.empty_like(backend, t) if needed and t is not None else None
        for t, needed in zip(inputs, needs, strict=True)
    ]
    if backend is FakeBackend:
        return outs
    weights = log_weights if backend is reference else dense_weights(log_weights)
    sums = [None if t is None else torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in outs]
    by_draw = grad_kl / -num_samples
    for part, eps in _chunks(backend, mu, rng_state, noise, num_samples):
        z = _sample(backend, mu, logvar, eps)
        grad_z = torch.empty_like(z) if needs[0] or needs[1] else None
        grad_prior = _fresh(outs[2:], joint.dtype)
        backend.pairwise_backward(
            by_draw.repeat(part.stop - part.start), None, z, prior_mu, prior_logvar, weights, None,
            joint[part].reshape(-1), None, grad_z=grad_z, grad_mu=grad_prior[0], grad_logvar=grad_prior[1],
            grad_log_weights=grad_prior[2],
        )  # fmt: skip
        grad_q: list[Tensor | None] = [None, None]
        if grad_z is not None:
            grad_q = _fresh(outs[:2], joint.dtype)
            backend.latent_backward(
                grad_z.view(eps.shape), None, mu, logvar, None, None, eps, None,
                grad_mu=grad_q[0], grad_logvar=grad_q[1], grad_prior=None,
            )  # fmt: skip
        for total, grad in zip(sums, (*grad_q, *grad_prior), strict=True):
            if total is not None and grad is not None:
                total += grad
    if sums[1] is not None:
        sums[1] -= 0.5 * grad_kl[:, None]
    for out, total in zip(outs, sums, strict=True):
        if out is not None and total is not None:
            out.copy_(total)
    return outs


def _fresh(like: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else torch.empty(t.shape, dtype=dtype, device=t.device) for t in like]


def _check(mu: Tensor, *rest: Any) -> None:
    *_, rng_state, _, num_samples = rest
    if rng_state is not None:
        check_counters("mu", mu.shape, num_samples)


MIXTURE_KL = Op(
    "mixture_kl(Tensor mu, Tensor logvar, Tensor prior_mu, Tensor prior_logvar, Tensor? log_weights, "
    "Tensor? rng_state, Tensor? noise, SymInt num_samples) -> (Tensor kl, Tensor[] kept)",
    mixture_kl_forward,
    mixture_kl_backward,
    differentiable=("mu", "logvar", "prior_mu", "prior_logvar", "log_weights"),
    check=_check,
    batch_dims=lambda *args: ((0, 0, None, None, None, STATE, 1, None), (0,)),
)
