"""The reference behind the functions that every backend has, so that float64 can stand where a kernel stands.

The public functions use the differentiable expressions directly; these serve the library ops (opcheck, a backward
pass that runs after the backend was switched), and they say in a few lines what a kernel must do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import latent, likelihood
from .noise import noise

Clamp = tuple[float, float] | None
Pair = tuple[Tensor | None, Tensor | None]


def latent_forward(
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    z: Tensor | None,
    kl: Tensor | None,
) -> None:
    with torch.no_grad():
        if z is not None:
            k = _draws(z, mu)
            z.copy_(latent.reparameterize(mu, logvar, num_samples=k, clamp=clamp, rng_state=rng_state, noise=noise))
        if kl is not None:
            kl.copy_(latent.kl_divergence(mu, logvar, prior=prior, clamp=clamp))


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    *,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_prior: Pair | None,
) -> None:
    def loss(m: Tensor, lv: Tensor, *p: Tensor) -> Tensor:
        total = m.new_zeros(())
        if grad_z is not None:
            k = _draws(grad_z, mu)
            z = latent.reparameterize(m, lv, num_samples=k, clamp=clamp, rng_state=rng_state, noise=noise)
            total = total + (grad_z * z).sum()
        if grad_kl is not None:
            total = total + (grad_kl * latent.kl_divergence(m, lv, prior=p or None, clamp=clamp)).sum()
        return total

    _fill_gradients(loss, (mu, logvar, *(prior or ())), (grad_mu, grad_logvar, *(grad_prior or ())))


def likelihood_forward(member: str, params: Sequence[Tensor], target: Tensor, *, nll: Tensor) -> None:
    with torch.no_grad():
        nll.copy_(_likelihood(member, params, target))


def likelihood_backward(
    member: str,
    params: Sequence[Tensor],
    target: Tensor,
    grad_nll: Tensor,
    *,
    grads: Sequence[Tensor | None],
) -> None:
    _fill_gradients(lambda *p: (grad_nll * _likelihood(member, p, target)).sum(), params, grads)


def noise_fill(eps: Tensor, rng_state: Tensor) -> None:
    eps.copy_(noise(eps.shape[1:], rng_state, num_samples=eps.shape[0], dtype=eps.dtype))


def _draws(z: Tensor, mu: Tensor) -> int | None:
    return z.shape[0] if z.ndim > mu.ndim else None


def _likelihood(member: str, params: Sequence[Tensor], target: Tensor) -> Tensor:
    first, *others = params
    function: Callable[..., Tensor] = getattr(likelihood, f"{member}_nll")
    return function(first, target, *others)


def _fill_gradients(
    loss: Callable[..., Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> None:
    """Gradients of loss(*inputs), in the dtype of the arithmetic and summed to the shape of each output."""
    with torch.enable_grad():
        inputs = [t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_() for t in inputs]
        found = torch.autograd.grad(loss(*inputs), inputs, allow_unused=True, materialize_grads=True)
    for out, grad in zip(grads, found, strict=False):
        if out is not None:
            out.copy_(grad.sum_to_size(out.shape))
