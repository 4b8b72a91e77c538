"""What users call: argument checks, then the op."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .noise import check_counters, check_num_samples, check_rng_state, draw_rng_state

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TARGETS = (*_DTYPES, torch.uint8, torch.bool)


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    prior: tuple[Tensor, Tensor] | None = None,
    clamp: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_pair(mu, logvar)
    prior = _check_prior(prior, mu)
    clamp = _check_clamp(clamp)
    rng_state = _check_noise(mu, mu.shape, num_samples, generator, rng_state, noise)
    return ops.latent(  # type: ignore[return-value]
        mu, logvar, prior=prior, rng_state=rng_state, noise=noise, clamp=clamp, num_samples=num_samples
    )


def reparameterize_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    num_samples: int | None = None,
    prior: tuple[Tensor, Tensor] | None = None,
    clamp: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_tensor("moments", moments)
    _check_dim(moments, dim)
    if moments.shape[dim] % 2:
        raise ValueError(f"moments has shape {_of(moments)}, it takes an even size along dim {dim}")
    mu = moments.narrow(dim, 0, moments.shape[dim] // 2)
    prior = _check_prior(prior, mu)
    clamp = _check_clamp(clamp)
    rng_state = _check_noise(mu, mu.shape, num_samples, generator, rng_state, noise)
    return ops.latent(  # type: ignore[return-value]
        moments,
        None,
        dim,
        prior=prior,
        rng_state=rng_state,
        noise=noise,
        clamp=clamp,
        num_samples=num_samples,
    )


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    clamp: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    _check_pair(mu, logvar)
    clamp = _check_clamp(clamp)
    rng_state = _check_noise(mu, mu.shape, num_samples, generator, rng_state, noise)
    z, _ = ops.latent(
        mu, logvar, rng_state=rng_state, noise=noise, clamp=clamp, num_samples=num_samples, want_kl=False
    )
    return z  # type: ignore[return-value]


def kl_divergence(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: tuple[Tensor, Tensor] | None = None,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    _check_pair(mu, logvar)
    _, kl = ops.latent(mu, logvar, prior=_check_prior(prior, mu), clamp=_check_clamp(clamp), want_z=False)
    return kl  # type: ignore[return-value]


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    _check_tensor("logits", logits)
    _check_target(target, "logits", logits)
    return ops.likelihood("bernoulli", target, logits)


def gaussian_nll(mean: Tensor, target: Tensor, logvar: Tensor | float | None = None) -> Tensor:
    _check_tensor("mean", mean)
    _check_target(target, "mean", mean)
    if isinstance(logvar, Tensor):
        _check_broadcast("logvar", logvar, "mean", mean)
    elif logvar is None or isinstance(logvar, (int, float)):
        logvar = torch.full((), logvar or 0.0, dtype=torch.float32, device=mean.device)
    else:
        raise TypeError(f"logvar is {type(logvar).__name__}, it takes a tensor, a number or None")
    return ops.likelihood("gaussian", target, mean, logvar)


def _of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}, it takes a tensor")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, it takes float32, bfloat16, float16 or float64")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, it takes a dense tensor")
    if tensor.ndim == 0:
        raise ValueError(f"{name} has shape (), it takes (batch, ...)")


def _check_dim(moments: Tensor, dim: int) -> None:
    ndim = moments.ndim
    if ndim == 1:
        raise ValueError(
            f"moments has shape {_of(moments)}, it takes (batch, ...) with mu and logvar along dim"
        )
    if not isinstance(dim, int):
        raise TypeError(f"dim is {type(dim).__name__}, it takes an int")
    if not -ndim < dim < ndim or dim == 0:
        takes = "1 or -1" if ndim == 2 else f"1 to {ndim - 1} or -{ndim - 1} to -1"
        raise ValueError(f"dim is {dim}, moments of shape {_of(moments)} takes {takes}")


def _check_pair(mu: Tensor, logvar: Tensor) -> None:
    _check_tensor("mu", mu)
    _check_tensor("logvar", logvar)
    if mu.shape != logvar.shape:
        raise ValueError(f"logvar has shape {_of(logvar)}, mu has {_of(mu)}")
    _check_device("logvar", logvar, "mu", mu)


def _check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, {other_name} is on {other.device}")


def _check_target(target: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}, it takes a tensor")
    if target.dtype not in _TARGETS:
        raise TypeError(f"target has dtype {target.dtype}, it takes a float dtype, uint8 (255ths) or bool")
    if target.shape != other.shape:
        raise ValueError(f"target has shape {_of(target)}, {other_name} has {_of(other)}")
    _check_device("target", target, other_name, other)


def _check_broadcast(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}, it takes a tensor")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, it takes float32, bfloat16, float16 or float64")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, it takes a dense tensor")
    shape, full = tensor.shape, other.shape
    if shape != full and (
        len(shape) > len(full)
        or any(n != m and n != 1 for n, m in zip(shape[::-1], full[::-1], strict=False))
    ):
        raise ValueError(
            f"{name} has shape {_of(tensor)}, which does not broadcast to {other_name}'s {_of(other)}"
        )
    _check_device(name, tensor, other_name, other)


def _check_prior(prior: tuple[Tensor, Tensor] | None, mu: Tensor) -> tuple[Tensor, Tensor] | None:
    if prior is None:
        return None
    if not isinstance(prior, (tuple, list)):
        raise TypeError(f"prior is {type(prior).__name__}, it takes a pair of tensors (mu_p, logvar_p)")
    if len(prior) != 2:
        raise TypeError(f"prior has {len(prior)} element(s), it takes a pair of tensors (mu_p, logvar_p)")
    prior_mu, prior_logvar = prior
    _check_broadcast("prior mu", prior_mu, "mu", mu)
    _check_broadcast("prior logvar", prior_logvar, "mu", mu)
    return prior_mu, prior_logvar


def _check_clamp(clamp: tuple[float, float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    try:
        lo, hi = clamp
        lo, hi = float(lo), float(hi)
    except (TypeError, ValueError):
        raise TypeError(f"clamp is {clamp!r}, it takes a pair of numbers (lo, hi)") from None
    if not lo <= hi:
        raise ValueError(f"clamp is ({lo}, {hi}), it takes lo <= hi")
    return lo, hi


def _check_noise(
    mu: Tensor,
    shape: torch.Size,
    num_samples: int | None,
    generator: torch.Generator | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
) -> Tensor | None:
    """Checks what the noise comes from, and returns the rng_state to use (None if the noise is given)."""
    if num_samples is not None:
        check_num_samples(num_samples)
    if (noise is not None) + (rng_state is not None) + (generator is not None) > 1:
        raise ValueError("the noise comes from at most one of noise, rng_state and generator")
    if noise is not None:
        _check_tensor("noise", noise)
        expected = shape if num_samples is None else (num_samples, *shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {_of(noise)}, z has {tuple(expected)}")
        if noise.requires_grad:
            raise ValueError("noise requires grad, it takes a constant (noise.detach(), say)")
        _check_device("noise", noise, "mu", mu)
        return None
    check_counters("mu", shape, num_samples)
    if rng_state is not None:
        check_rng_state(rng_state, shape[0])
        _check_device("rng_state", rng_state, "mu", mu)
        return rng_state
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is {type(generator).__name__}, it takes a torch.Generator")
        if generator.device != mu.device:
            raise ValueError(f"generator is on {generator.device}, mu is on {mu.device}")
    return draw_rng_state(mu.device, generator)
