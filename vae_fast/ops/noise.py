"""The ops `noise` and `binarize`: the standard normal noise and the bits that an rng_state stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend
from ..checks import check_counters
from ..tracing import in_onnx_export
from . import _common
from .dtensor import STATE
from .op import Op


def noise(shape: Sequence[int], rng_state: Tensor, num_samples: int | None, dtype: torch.dtype) -> Tensor:
    """Noise of shape (batch, ...) or (num_samples, batch, ...). The arguments have been checked in `rng.py`."""
    is_traced = torch.compiler.is_compiling() and not in_onnx_export()
    backend = None if is_traced else _common.dispatch("noise", rng_state)
    if backend is reference:
        return reference.noise(shape, rng_state, num_samples=num_samples, dtype=dtype)
    shape = (num_samples or 1, *shape)
    # The library op for the reference too: a compiler would take a minute over Philox in plain PyTorch.
    eps: Tensor = NOISE(backend, rng_state, shape, dtype)
    return eps if num_samples is not None else eps[0]


def noise_forward(
    backend: Any, rng_state: Tensor, shape: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, tuple[()]]:
    if dtype == torch.float64 and backend is not FakeBackend:
        backend = reference
    eps = _common.empty(backend, shape, dtype, rng_state.device)
    backend.noise_fill(eps, rng_state)
    return eps, ()


NOISE = Op(
    "noise(Tensor rng_state, SymInt[] shape, ScalarType dtype) -> Tensor",
    noise_forward,
    check=lambda rng_state, shape, dtype: check_counters("shape", shape[1:], shape[0]),
)


def binarize(x: Tensor, rng_state: Tensor) -> Tensor:
    """The bits that kernels make as they read a target; plain PyTorch, as nothing in training waits for them."""
    x = x.detach()
    # A compiler would take a minute over Philox in plain PyTorch.
    if torch.compiler.is_compiling() or _common.is_dtensor(x):
        bits: Tensor = BINARIZE(None, x, rng_state)
        return bits
    return reference.binarize(x, rng_state)


def binarize_forward(backend: Any, x: Tensor, rng_state: Tensor) -> tuple[Tensor, tuple[()]]:
    if backend is not FakeBackend:
        return reference.binarize(x, rng_state), ()
    return torch.empty(
        x.shape, dtype=x.dtype if x.dtype.is_floating_point else torch.float32, device=x.device
    ), ()


BINARIZE = Op(
    "binarize(Tensor x, Tensor rng_state) -> Tensor",
    binarize_forward,
    check=lambda x, rng_state: check_counters("x", x.shape, None),
    batch_dims=lambda x, rng_state: ((0, STATE), (0,)),
)
