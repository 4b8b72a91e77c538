"""rng_state and the noise it stands for: a pure function, the same on every backend, device, dtype and layout.

    words     = Philox4x32-10(key = (seed_lo, seed_hi), counter = (j >> 2, row, offset_lo, offset_hi))
    u1 = (w0 + 0.5) 2^-32,  u2 = w1 2^-32,  r = sqrt(-2 ln u1)
    eps[4g], eps[4g+1] = r cos(2 pi u2), r sin(2 pi u2)        (w2, w3 give eps[4g+2], eps[4g+3])

j is the element's row-major index inside its sample, row the sample's index: k batch + b with several draws k per
sample; with one state per sample, row = k. Four words, (seed, offset, first_row, rows), are the state of a part of a
batch of `rows` samples, from sample first_row on: row = k rows + first_row + b.

Bits of a grey x are made of other words, those with the top bit of the counter set:

    words     = Philox4x32-10(key = (seed_lo, seed_hi), counter = (j >> 2, row, offset_lo, offset_hi ^ 2^31))
    bit[j]    = 1 if (w[j & 3] >> 8) 2^-24 < x[j] else 0        (in float32; uint8 x is k / 255)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends.noise_group import set_noise_group
from .backends.reference import draw_rng_state
from .checks import (
    FLOATS,
    any_of,
    check_counters,
    check_device,
    check_num_samples,
    check_rng_state,
    check_target_type,
)
from .ops import noise as noise_op

__all__ = ["binarize", "draw_rng_state", "noise", "set_noise_group"]


def noise(
    shape: Sequence[int],
    rng_state: Tensor,
    *,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Exactly the noise that an op used.

    Args:
        shape: (batch, ...), the shape of mu.
        rng_state: int64 tensor (2,), (seed, offset); (4,), (seed, offset, first_row, rows), for a part of a larger
            batch; or (batch, 2), one state per sample. Keys of torch.func._random are such states in uint64; every
            function that takes an rng_state takes them.
        num_samples: the number of draws per sample, as it was given to the op.
        dtype: float32, bfloat16, float16 or float64.
        device: where to; by default rng_state's device.

    Returns:
        Standard normal tensor of `shape`, or (num_samples, *shape).

    Source: Philox4x32-10 (Salmon et al., SC 2011) and Box & Muller (1958).
    """
    if not isinstance(shape, Sequence):
        raise TypeError(f"expected shape to be a sequence of ints, but got {type(shape).__name__}")
    shape = tuple(shape)
    if not shape:
        raise ValueError("expected shape to be (batch, ...), but got ()")
    if any(n < 0 for n in shape):
        raise ValueError(f"expected shape to have sizes of at least 0, but got {shape}")
    if num_samples is not None:
        check_num_samples(num_samples)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2):
        raise TypeError(f"expected dtype to be {any_of(FLOATS)}, but got {dtype}")
    rng_state = check_rng_state(rng_state, shape[0], num_samples)
    check_counters("shape", shape, num_samples)
    if device is not None:
        rng_state = rng_state.to(device)
    return noise_op.noise(shape, rng_state, num_samples, dtype)


def binarize(x: Tensor, rng_state: Tensor) -> Tensor:
    """Exactly the 0 and 1 that a likelihood with binarize=True and this rng_state used: 1 with probability x.

    Args:
        x: (batch, ...), the target: float, uint8 (255ths), bool or integers. 0 and less give 0, 1 and more give 1, NaN
            stays NaN.
        rng_state: as in `noise`.

    Returns:
        0 and 1 in x's shape and dtype, float32 if that is no float. It carries no gradient.

    Source: Burda et al., "Importance weighted autoencoders", 2016, section 5.1, for dynamic binarization.
    """
    check_target_type("x", x)
    if x.ndim == 0:
        raise ValueError("expected x to have shape (batch, ...), but got ()")
    rng_state = check_rng_state(rng_state, x.shape[0])
    check_device("rng_state", rng_state, "x", x)
    check_counters("x", x.shape, None)
    return noise_op.binarize(x, rng_state)
