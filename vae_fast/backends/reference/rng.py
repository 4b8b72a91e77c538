"""The noise of vae_fast, spelled out: Philox4x32-10 words in int64 arithmetic, then Box-Muller in float64.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise_group
from ..contract import Generators

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


def draw_rng_state(
    device: torch.device | str, generator: Generators = None, batch: int | None = None
) -> Tensor:
    """A fresh rng_state, 63 random bits each for seed and offset, drawn on the device without a sync.

    Args:
        device: where to; that of the generators.
        generator: what it is drawn from; by default torch's own generator of that device. A list or tuple of them
            gives each sample a state of its own: the same sample whatever else is in the batch.
        batch: the number of samples that it is for. Without a generator, and with several processes of
            torch.distributed, each then has its own rows of their common batch (`vae_fast.set_noise_group`).

    Returns:
        int64 (2,), (number of generators, 2), or (seed, offset, first_row, rows), (4,), of a rank's rows.
    """
    if isinstance(generator, (list, tuple)):
        return torch.stack([draw_rng_state(device, g) for g in generator])
    words = torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=device, generator=generator)  # type: ignore[arg-type]
    if batch is None or generator is not None or (place := noise_group.rank_and_size()) is None:
        return words
    rank, size = place
    noise_group.compare_first_batches(batch, size)
    return state_of_part(words, rank * batch, size * batch)


def state_of_part(rng_state: Tensor, first: int, batch: int) -> Tensor:
    """The state of a part of a batch of `batch` samples, from sample `first` on, from the batch's: (seed, offset), or
    (seed, offset, first_row, rows) where the batch is itself a part of a larger one."""
    if len(rng_state) == 4:
        return torch.cat((rng_state[:2], rng_state[2:3] + first, rng_state[3:]))
    # Filled on the device: a copy from the host would wait, and no CUDA graph could hold it.
    return torch.cat((rng_state, rng_state.new_full((1,), first), rng_state.new_full((1,), batch)))


def state_of_draws(rng_state: Tensor, first: int, batch: int) -> Tensor:
    """The state whose draw k is draw first + k of a state for the whole batch."""
    whole = rng_state if len(rng_state) == 4 else state_of_part(rng_state, 0, batch)
    return torch.cat((whole[:2], whole[2:3] + first * whole[3:], whole[3:]))


def state_of_level(rng_state: Tensor) -> Tensor:
    """That of a second level of latents, whose noise is independent of the first's: the offset's bit 62 is turned."""
    return torch.cat((rng_state[..., :1], rng_state[..., 1:2] ^ (1 << 62), rng_state[..., 2:]), -1)


def _words(rng_state: Tensor, draws: int, batch: int, size: int, stream: int = 0) -> tuple[Tensor, ...]:
    """The four words of every group of four elements: (draws, batch, groups) each.

    rng_state: (seed, offset); (seed, offset, first_row, rows) of a part of a larger batch, whose sample b of draw k has
    row k * rows + first_row + b; or (seed, offset) of each sample.
    """

    def count(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.int64, device=rng_state.device)

    if rng_state.dtype is torch.uint64:  # a key of torch.func._random
        rng_state = rng_state.view(torch.int64)
    group = count((size + 3) // 4)
    if rng_state.ndim == 1:  # one state: every sample of every draw has its own row
        first_row, rows = rng_state[2:] if len(rng_state) == 4 else (0, batch)
        row = (count(draws)[:, None] * rows + first_row + count(batch))[..., None] & _MASK
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
) -> Tensor:
    """Standard normal noise of `shape` (batch, ...), or (num_samples, batch, ...), as a function of rng_state."""
    shape = tuple(shape)
    if device is not None:
        rng_state = rng_state.to(device)
    draws, batch, size = num_samples or 1, shape[0], math.prod(shape[1:])
    words = _words(rng_state, draws, batch, size)

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


def binarize(x: Tensor, rng_state: Tensor) -> Tensor:
    """1 with probability x, else 0: u < x, where u is the upper 24 bits of element j's word j mod 4.

    The counter's top bit tells these words from those of the noise. uint8 counts 255ths; NaN stays NaN.
    """
    grey = x.detach().to(torch.float32)
    if x.dtype == torch.uint8:
        grey = grey / 255
    size = math.prod(x.shape[1:])
    words = torch.stack(_words(rng_state, 1, x.shape[0], size, stream=_BITS), -1)
    u = (words[0].flatten(1)[:, :size] >> 8).to(torch.float32) * 2.0**-24
    bits = torch.where(grey.isnan(), grey, (u.reshape(x.shape) < grey).to(grey.dtype))
    return bits.to(x.dtype) if x.dtype.is_floating_point else bits
