"""Checks of the public functions' arguments. Each error names the argument, what it got and what it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .backends.reference import draw_rng_state

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TARGETS = (*_DTYPES, torch.uint8, torch.bool)


def _of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}, it takes a tensor")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, it takes float32, bfloat16, float16 or float64")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, it takes a dense tensor")
    if tensor.ndim == 0:
        raise ValueError(f"{name} has shape (), it takes (batch, ...)")


def check_dim(moments: Tensor, dim: int) -> None:
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


def check_pair(mu: Tensor, logvar: Tensor) -> None:
    check_tensor("mu", mu)
    check_tensor("logvar", logvar)
    if mu.shape != logvar.shape:
        raise ValueError(f"logvar has shape {_of(logvar)}, mu has {_of(mu)}")
    check_device("logvar", logvar, "mu", mu)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, {other_name} is on {other.device}")


def check_target(target: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target is {type(target).__name__}, it takes a tensor")
    if target.dtype not in _TARGETS:
        raise TypeError(f"target has dtype {target.dtype}, it takes a float dtype, uint8 (255ths) or bool")
    if target.shape != other.shape:
        raise ValueError(f"target has shape {_of(target)}, {other_name} has {_of(other)}")
    check_device("target", target, other_name, other)


def check_broadcast(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
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
    check_device(name, tensor, other_name, other)


def check_prior(prior: tuple[Tensor, Tensor] | None, mu: Tensor) -> tuple[Tensor, Tensor] | None:
    if prior is None:
        return None
    if not isinstance(prior, (tuple, list)):
        raise TypeError(f"prior is {type(prior).__name__}, it takes a pair of tensors (mu_p, logvar_p)")
    if len(prior) != 2:
        raise TypeError(f"prior has {len(prior)} element(s), it takes a pair of tensors (mu_p, logvar_p)")
    prior_mu, prior_logvar = prior
    check_broadcast("prior mu", prior_mu, "mu", mu)
    check_broadcast("prior logvar", prior_logvar, "mu", mu)
    return prior_mu, prior_logvar


def check_clamp(clamp: tuple[float, float] | None) -> tuple[float, float] | None:
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


def check_noise(
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
        check_tensor("noise", noise)
        expected = shape if num_samples is None else (num_samples, *shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {_of(noise)}, z has {tuple(expected)}")
        if noise.requires_grad:
            raise ValueError("noise requires grad, it takes a constant (noise.detach(), say)")
        check_device("noise", noise, "mu", mu)
        return None
    if mu.numel() * (num_samples or 1) >= 2**32:
        check_counters("mu", shape, num_samples)
    if rng_state is not None:
        check_rng_state(rng_state, shape[0])
        check_device("rng_state", rng_state, "mu", mu)
        return rng_state
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is {type(generator).__name__}, it takes a torch.Generator")
        if generator.device != mu.device:
            raise ValueError(f"generator is on {generator.device}, mu is on {mu.device}")
    return draw_rng_state(mu.device, generator)


def check_rng_state(rng_state: Tensor, batch: int) -> None:
    if not isinstance(rng_state, Tensor):
        raise TypeError(f"rng_state is {type(rng_state).__name__}, it takes an int64 tensor")
    if rng_state.dtype != torch.int64:
        raise TypeError(f"rng_state has dtype {rng_state.dtype}, it takes torch.int64")
    if rng_state.shape != (2,) and rng_state.shape != (batch, 2):
        raise ValueError(
            f"rng_state has shape {tuple(rng_state.shape)}, it takes (2,) or (batch, 2) = ({batch}, 2)"
        )


def check_num_samples(num_samples: int) -> None:
    if not isinstance(num_samples, (int, torch.SymInt)) or isinstance(num_samples, bool):
        raise TypeError(f"num_samples is {type(num_samples).__name__}, it takes an int")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, it takes at least 1")


def check_counters(name: str, shape: Sequence[int], num_samples: int | None) -> None:
    """The noise counts elements of a sample and rows in 32 bits each (four elements a count)."""
    rows = shape[0] * (num_samples or 1)
    size = math.prod(shape[1:])
    if size >= 2**34:
        raise ValueError(f"{name} has {size} elements per sample, the noise takes fewer than 2**34")
    if rows >= 2**32:
        raise ValueError(f"{name} has {rows} samples (draws included), the noise takes fewer than 2**32")
