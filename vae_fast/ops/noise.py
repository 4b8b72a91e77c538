"""The op `noise`: the standard normal noise that an rng_state stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from . import _common


def noise(shape: Sequence[int], rng_state: Tensor, num_samples: int | None, dtype: torch.dtype) -> Tensor:
    """Noise of shape (batch, ...) or (num_samples, batch, ...). The arguments have been checked in `noise.py`."""
    backend = _common.dispatch("noise", rng_state)
    if backend is reference or dtype == torch.float64:
        return reference.noise(shape, rng_state, num_samples=num_samples, dtype=dtype)
    draws = num_samples or 1
    if backend is None:
        eps: Tensor = torch.ops.vae_fast.noise(rng_state, (draws, *shape), dtype)
    else:
        eps = fill(backend, rng_state, (draws, *shape), dtype)
    return eps if num_samples is not None else eps[0]


def fill(backend: Any, rng_state: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    eps = torch.empty(shape, dtype=dtype, device=rng_state.device)
    backend.noise_fill(eps, rng_state)
    return eps


_common.define("noise(Tensor rng_state, SymInt[] shape, ScalarType dtype) -> Tensor", fill, sources=(0,))
