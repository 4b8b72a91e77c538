"""The noise of vae_fast, spelled out: Philox4x32-10 words in int64 arithmetic, then Box-Muller in float64.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import Generators, Rows

_MASK = 0xFFFFFFFF
_BITS = 0x80000000
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _mulhilo(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32x32 bit product. Sixteen bits at a time, so int64 never overflows."""
    low = x * (multiplier & 0xFFFF)
    mid = x * (multiplier >> 16) + (low >> 16)
    return mid >> 16, ((mid & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10. Counter (4 words) and key (2 words) are int64 tensors in [0, 2^32); they broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhilo(_MULTIPLIERS[0], c0)
        hi1, lo1 = _mulhilo(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def draw_rng_state(device: torch.device | str, generator: Generators = None) -> Tensor:
    """A fresh rng_state, 63 random bits each for seed and offset, drawn on the device without a sync.

    Args:
        device: where to; that of the generators.
        generator: what it is drawn from; by default torch's own generator of that device. A list or tuple of them
            gives each sample a state of its own: the same sample whatever else is in the batch.

    Returns:
        int64 (2,), or (number of generators, 2).
    """
    if isinstance(generator, (list, tuple)):
        return torch.stack([draw_rng_state(device, g) for g in generator])
    return torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=device, generator=generator)  # type: ignore[arg-type]


def _words(
    rng_state: Tensor, draws: int, batch: int, size: int, rows: Rows | None, stream: int = 0
) -> tuple[Tensor, ...]:
    """The four words of every group of four elements: (draws, batch, groups) each."""

    def count(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.int64, device=rng_state.device)

    if rng_state.dtype is torch.uint64:  # a key of torch.func._random
        rng_state = rng_state.view(torch.int64)
    group = count((size + 3) // 4)
    if rng_state.ndim == 1:  # one state: every sample of every draw has its own row
        row_offset, rows_per_draw = rows or (0, batch)
        row = (count(draws)[:, None] * rows_per_draw + row_offset + count(batch))[..., None]
        seed, offset = rng_state[0], rng_state[1]
    else:  # one state per sample: the row is the draw
        row = count(draws).view(draws, 1, 1)
        seed, offset = rng_state[:, 0, None], rng_state[:, 1, None]
    counter = (group, row, offset & _MASK, (offset >> 32) & _MASK ^ stream)
    return philox(counter, (seed & _MASK, (seed >> 32) & _MASK))


def noise(
    shape: Sequence[int],
    rng_state: Tensor,
    *,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Standard normal noise of `shape` (batch, ...), or (num_samples, batch, ...), as a function of rng_state and of
    where the batch's rows lie in the noise."""
    shape = tuple(shape)
    if device is not None:
        rng_state = rng_state.to(device)
    draws, batch, size = num_samples or 1, shape[0], math.prod(shape[1:])
    words = _words(rng_state, draws, batch, size, rows)

    w0, w1, w2, w3 = (w.to(torch.float64) for w in words)
    pairs = []
    for a, b in ((w0, w1), (w2, w3)):
        radius = (-2 * torch.log((a + 0.5) * 2.0**-32)).sqrt()
        angle = (2 * math.pi * 2.0**-32) * b
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    eps = torch.stack(pairs, -1).flatten(2)[..., :size].contiguous()
    # Rounded to the dtype of the arithmetic first, as every backend computes in float32 for 16-bit dtypes.
    eps = eps.to(torch.float64 if dtype == torch.float64 else torch.float32).to(dtype)
    return eps.reshape(shape if num_samples is None else (draws, *shape))


def binarize(x: Tensor, rng_state: Tensor, *, rows: Rows | None = None) -> Tensor:
    """1 with probability x, else 0: u < x, where u is the upper 24 bits of element j's word j mod 4.

    The counter's top bit tells these words from those of the noise. uint8 counts 255ths; NaN stays NaN.
    """
    grey = x.detach().to(torch.float32)
    if x.dtype == torch.uint8:
        grey = grey / 255
    size = math.prod(x.shape[1:])
    words = torch.stack(_words(rng_state, 1, x.shape[0], size, rows, stream=_BITS), -1)
    u = (words[0].flatten(1)[:, :size] >> 8).to(torch.float32) * 2.0**-24
    bits = torch.where(grey.isnan(), grey, (u.reshape(x.shape) < grey).to(grey.dtype))
    return bits.to(x.dtype) if x.dtype.is_floating_point else bits
