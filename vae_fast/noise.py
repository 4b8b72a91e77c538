"""rng_state and the noise it stands for: a pure function, the same on every backend, device, dtype and layout.

    words     = Philox4x32-10(key = (seed_lo, seed_hi), counter = (j >> 2, row, offset_lo, offset_hi))
    u1 = (w0 + 0.5) 2^-32,  u2 = w1 2^-32,  r = sqrt(-2 ln u1)
    eps[4g], eps[4g+1] = r cos(2 pi u2), r sin(2 pi u2)        (w2, w3 give eps[4g+2], eps[4g+3])

j is the element's row-major index inside its sample, row the sample's index: k batch + b with several draws k per
sample; with one state per sample, row = k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .backends.reference import draw_rng_state

__all__ = ["check_counters", "check_num_samples", "check_rng_state", "draw_rng_state", "noise"]


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
    size, rows = math.prod(shape[1:]), shape[0] * (num_samples or 1)
    if size >= 2**34:
        raise ValueError(f"{name} has {size} elements per sample, the noise takes fewer than 2**34")
    if rows >= 2**32:
        raise ValueError(f"{name} has {rows} samples (draws included), the noise takes fewer than 2**32")


def noise(
    shape: Sequence[int],
    rng_state: Tensor,
    *,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The very eps that an op used.

    Args:
        shape: (batch, ...), the shape of mu.
        rng_state: int64 tensor (2,), (seed, offset); or (batch, 2), one state per sample.
        num_samples: the number of draws per sample, as it was given to the op.
        dtype: float32, bfloat16, float16 or float64.
        device: where to; by default rng_state's device.

    Returns:
        Standard normal tensor of `shape`, or (num_samples, *shape).

    Source: Philox4x32-10 (Salmon et al., SC 2011) and Box & Muller (1958).
    """
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape is {type(shape).__name__}, it takes a sequence of ints")
    shape = tuple(shape)
    if not shape:
        raise ValueError("shape is (), it takes (batch, ...)")
    if any(n < 0 for n in shape):
        raise ValueError(f"shape is {shape}, it takes sizes of at least 0")
    if num_samples is not None:
        check_num_samples(num_samples)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2):
        raise TypeError(f"dtype is {dtype}, it takes float32, bfloat16, float16 or float64")
    check_rng_state(rng_state, shape[0])
    check_counters("shape", shape, num_samples)
    if device is not None:
        rng_state = rng_state.to(device)
    return ops.noise(shape, rng_state, num_samples, dtype)
