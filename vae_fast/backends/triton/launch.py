"""The host's side of a launch: tensors in, a compiled kernel with its grid and arguments out, once per kind of call.

A `Job` is prepared from what Triton specializes a kernel on (shapes, strides, dtypes, alignment) and kept, so that a
call costs a look-up and the launch itself: Triton's own dispatch takes several times as long, and small batches are
bound by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
_HIP = torch.version.hip is not None
_caches: list[Any] = []
F = TypeVar("F", bound=Callable[..., Any])
# Floating-point fusion is said explicitly: what a version of Triton does by default changes after 3.9.
OPTIONS = {"enable_fp_fusion": True}


def cached(function: F) -> F:
    """lru_cache, which `forget` can empty."""
    kept = functools.lru_cache(maxsize=4096)(function)
    _caches.append(kept)
    return kept  # type: ignore[return-value]


def forget() -> None:
    """Drops all prepared launches and what they were prepared from."""
    for cache in _caches:
        cache.cache_clear()


class Spec(NamedTuple):
    """What a launch depends on of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    aligned: bool
    small: bool  # Triton addresses less than 2 GB with 32 bits on AMD


Key = tuple[Any, ...] | None  # a Spec as a plain tuple, which is quicker to make
Argument = Tensor | int | None | tuple[Tensor | None, ...]


def key(x: Tensor | None) -> Key:
    if x is None:
        return None
    small = _HIP and x.untyped_storage().nbytes() < 2**31
    return (x.shape, x.stride(), x.dtype, x.data_ptr() % 16 == 0, small)


def specs(*keys: Key) -> list[Spec | None]:
    return [None if k is None else Spec(*k) for k in keys]


class Job:
    """A launch that lacks only the kernel's first arguments: its tensors, then numbers that differ from call to
    call. `rest` are the others."""

    def __init__(self, kernel: Any, grid: Sequence[int], threads: int, rest: Sequence[Any]) -> None:
        self.kernel = kernel
        self.grid = (*grid, 1, 1)[:3]
        self.threads = threads
        self.rest = tuple(rest)
        self.scratch: list[
            tuple[int, int] | None
        ] = []  # shapes of partial sums, None where the output is written
        self.order: tuple[int, ...] | None = None
        self.compiled: Any = None


def run(job: Job, on: Tensor, *arguments: Argument) -> None:
    """Launches on the device of `on` and its current stream."""
    if not on.is_cuda or on.get_device() == torch.cuda.current_device():
        start(job, arguments)
    else:
        with torch.cuda.device(on.device):
            start(job, arguments)


def start(job: Job, arguments: Sequence[Argument]) -> None:
    if job.compiled is None:
        job.compiled = job.kernel if INTERPRETED else launcher(job, arguments)
    job.compiled[job.grid](*arguments, *job.rest)


# Triton's versions whose compiled kernel was seen to take `compiled[grid](*arguments)`: all arguments of the kernel in
# their order, constants and None too, as JITFunction.run passes them (read in 3.6.0, 3.7.1, 3.8.0 and 3.9.0).
SEEN = ((3, 6), (3, 7), (3, 8), (3, 9))


def launcher(job: Job, arguments: Sequence[Argument]) -> Any:
    """`launcher(...)[grid](*arguments)` starts the kernel: the compiled one itself, a call of which costs a tenth of
    Triton's dispatch, or the dispatch where a compiled kernel is not known to take such a call."""
    compiled = compile_for(job, arguments)
    version = tuple(int(number) for number in triton.__version__.split(".")[:2])
    return (
        compiled if version in SEEN and hasattr(compiled, "__getitem__") else Dispatch(job.kernel, warps(job))
    )


class Dispatch:
    """Triton's public way to launch."""

    def __init__(self, kernel: Any, num_warps: int) -> None:
        self.kernel = kernel
        self.num_warps = num_warps

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return functools.partial(self.kernel[grid], num_warps=self.num_warps, **OPTIONS)


def compile_for(job: Job, arguments: Sequence[Argument]) -> Any:
    """Compiles for the current device, or finds it in Triton's cache."""
    return job.kernel.warmup(*arguments, *job.rest, grid=job.grid, num_warps=warps(job), **OPTIONS)


def warps(job: Job) -> int:
    size: int = triton.runtime.driver.active.get_current_target().warp_size
    return max(1, job.threads // size)
