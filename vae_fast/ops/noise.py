"""The ops `noise` and `binarize`: the standard normal noise and the bits that an rng_state stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend
from ..checks import check_counters
from . import _common


def noise(shape: Sequence[int], rng_state: Tensor, num_samples: int | None, dtype: torch.dtype) -> Tensor:
    """Noise of shape (batch, ...) or (num_samples, batch, ...). The arguments have been checked in `rng.py`."""
    backend = None if torch.compiler.is_compiling() else _common.dispatch("noise", rng_state)
    if backend is reference:
        return reference.noise(shape, rng_state, num_samples=num_samples, dtype=dtype)
    shape = (num_samples or 1, *shape)
    if backend is None:  # for the reference too: a compiler would take a minute over Philox in plain PyTorch
        eps: Tensor = torch.ops.vae_fast.noise(rng_state, shape, dtype)
    else:
        eps = fill(backend, rng_state, shape, dtype)
    return eps if num_samples is not None else eps[0]


def fill(backend: Any, rng_state: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64 and backend is not FakeBackend:
        backend = reference
    eps = _common.empty(backend, shape, dtype, rng_state.device)
    backend.noise_fill(eps, rng_state)
    return eps


_common.define(
    "noise(Tensor rng_state, SymInt[] shape, ScalarType dtype) -> Tensor",
    fill,
    sources=lambda *args: args[:1],
    check=lambda rng_state, shape, dtype: check_counters("shape", shape[1:], shape[0]),
)


def binarize(x: Tensor, rng_state: Tensor) -> Tensor:
    """The bits that kernels make as they read a target; plain PyTorch, as nothing in training waits for them."""
    x = x.detach()
    if torch.compiler.is_compiling():  # a compiler would take a minute over Philox in plain PyTorch
        bits: Tensor = torch.ops.vae_fast.binarize(x, rng_state)
        return bits
    return reference.binarize(x, rng_state)


def _bits(backend: Any, x: Tensor, rng_state: Tensor) -> Tensor:
    if backend is FakeBackend:
        return torch.empty(
            x.shape, dtype=x.dtype if x.dtype.is_floating_point else torch.float32, device=x.device
        )
    return reference.binarize(x, rng_state)


_common.define(
    "binarize(Tensor x, Tensor rng_state) -> Tensor",
    _bits,
    sources=lambda *args: args[:1],
    check=lambda x, rng_state: check_counters("x", x.shape, None),
)
