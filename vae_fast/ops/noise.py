"""The op `noise`: the standard normal noise that an rng_state stands for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import reference
from . import _common


def noise(shape: Sequence[int], rng_state: Tensor, num_samples: int | None, dtype: torch.dtype) -> Tensor:
    """Noise of shape (batch, ...) or (num_samples, batch, ...). Arguments are checked in `noise.py`."""
    backend = _common.dispatch("noise", rng_state)
    if backend is reference or dtype is torch.float64:
        return reference.noise(shape, rng_state, num_samples=num_samples, dtype=dtype)
    if backend is None:
        return torch.ops.vae_fast.noise(shape, rng_state, num_samples, dtype)  # type: ignore[no-any-return]
    eps = torch.empty((num_samples or 1, *shape), dtype=dtype, device=rng_state.device)
    backend.noise_fill(eps, rng_state)
    return eps if num_samples is not None else eps[0]
