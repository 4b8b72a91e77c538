"""The emulated CUDA engine for the checks_*.py beside this: they are run by test_cuda_emulation.py, in a process under
the sanitizers.

Everything is held against the definition in float64, and against the CPU engine, which runs the same csrc/formulas:
where both have fused multiply-add, and no hardware approximation takes part, what is not a sum must have the same bits.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_fast.backends.native import cpu, cuda
from vae_fast.backends.native.engine import Scratch

from .layouts import BF16, F16, F32

PATH = os.environ["VAE_FAST_CUDA_EMULATION"]
STREAM = 0x5EED
DTYPES = (F32, BF16, F16)
HAS_CPU = (
    cpu.unavailable_reason() is None
    and cpu.details()["isa"] != "baseline"
    and "fma" in os.environ["VAE_FAST_CUDA_FLAGS"]
)
STATE = torch.tensor([2**63 - 5, -(2**40) - 3])


class Poisoned(Scratch):
    """With partial sums of NaN, so that one that no block writes shows."""

    def __call__(self, partials: int, tickets: int) -> tuple[int, int]:
        addresses = super().__call__(partials, tickets)
        self.memory[:partials] = float("nan")
        return addresses


def load() -> ctypes.CDLL:
    spec = importlib.util.spec_from_file_location("vae_fast.backends.native._cuda", PATH)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    cuda.use(module)
    cuda.where = lambda t: (0, STREAM, Poisoned(t.device))  # type: ignore[method-assign]
    library = ctypes.CDLL(PATH)
    for name in ("emulation_launches", "emulation_blocks", "emulation_stream"):
        getattr(library, name).restype = ctypes.c_uint64
    library.emulation_seed.argtypes = [ctypes.c_uint64]
    library.emulation_lines.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    return library


EMULATION = load()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def schedule(request: pytest.FixtureRequest) -> None:
    """Another order of blocks and threads for each check, the same in every run."""
    EMULATION.emulation_seed(zlib.crc32(request.node.name.encode()))


def close(got: Tensor, truth: Tensor, scale: Tensor | float = 1.0) -> None:
    """To rounding: in the dtype of the result, and a few units of float32 arithmetic on terms as large as `scale`."""
    assert not got.isnan().any(), "an element was not written"
    unit = torch.finfo(got.dtype).eps if got.dtype is not F32 else 0.0
    allowed = unit * truth.abs() + 2e-6 * (1 + truth.abs()) * scale
    assert ((got.double() - truth).abs() <= allowed).all(), ((got.double() - truth).abs() - allowed).max()


def same(got: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> None:
    for a, b in zip(got, other, strict=True):
        assert a is None or torch.equal(a, b)  # type: ignore[arg-type]


def double(x: Any) -> Any:
    return (
        x.double()
        if isinstance(x, Tensor) and x.is_floating_point()
        else tuple(map(double, x))
        if isinstance(x, tuple)
        else x
    )


def launches_once(call: Any, *args: Any, **kwargs: Any) -> None:
    before = EMULATION.emulation_launches()
    call(*args, **kwargs)
    assert EMULATION.emulation_launches() == before + 1
