"""Sizes, the order of threads, and the launch itself."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vae_fast import reference
from vae_fast.backends.native import cuda

from .checks_latent import latent
from .emulated import EMULATION, STATE, close, same, schedule
from .layouts import F32, U8, poisoned, values

__all__ = ["schedule"]


@pytest.mark.parametrize(("shape", "orders"), [((3, 4501), 4), ((3, 600), 24), ((70, 12), 8)])
def test_sums_do_not_depend_on_the_order_of_blocks_and_threads(shape: tuple[int, int], orders: int) -> None:
    mean, logvar, x = (values(shape, F32, i) for i in range(3))
    results = []
    for seed in range(orders):
        EMULATION.emulation_seed(seed)
        nll, grads = (
            poisoned(shape[:1], F32, "dense"),
            (poisoned(shape[1:], F32, "dense"), poisoned((), F32, "dense")),
        )
        cuda.likelihood_forward("gaussian", (mean, logvar), x, None, None, nll=nll)
        cuda.likelihood_backward("gaussian", (mean, logvar), x, None, None, torch.ones(shape[0]), grads=grads)
        results.append((nll, *grads))
    for other in results[1:]:
        same(results[0], other)


def test_many_short_rows() -> None:
    before = EMULATION.emulation_blocks()
    rows = 2100
    x, logits, nll = (
        values((rows, 16), F32, 1).sigmoid(),
        values((rows, 16), F32, 2),
        poisoned((rows,), F32, "dense"),
    )
    cuda.likelihood_forward("bernoulli", (logits,), x, None, None, nll=nll)
    assert EMULATION.emulation_blocks() - before == -(-rows // (64 * 4))  # 4 threads a row, 4 rows a thread
    truth = torch.empty(rows, dtype=torch.float64)
    reference.likelihood_forward("bernoulli", (logits.double(),), x.double(), None, None, nll=truth)
    close(nll, truth, 16)


@pytest.mark.parametrize("rows", [1 << 12, 1 << 18, 1 << 24])
def test_warps_read_whole_lines(rows: int) -> None:
    """An access of a warp is 512 bytes, 4 lines at best; rows that are no multiple of a line straddle some."""
    for columns in (32, 64, 256, 1024):
        for size in (4, 8):
            assert EMULATION.emulation_lines(rows, columns, size) == 4, (columns, size)
    for columns in (8, 16, 24, 40, 48, 80, 96, 112, 200, 784):
        for size in (4, 8):
            assert EMULATION.emulation_lines(rows, columns, size) <= 12, (columns, size)


def test_offsets_beyond_32_bits() -> None:
    stride = (1 << 32) + 8  # bytes; only the pages that are touched exist
    memory = torch.frombuffer(mmap.mmap(-1, 2 * stride + 64, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=U8)
    for start, columns in ((0, 16), (3, 13)):
        target = memory[start:].as_strided((3, columns), (stride, 1))
        target.copy_(values((3, columns), U8, 1))
        logits, nll = values((3, columns), F32, 2), poisoned((3,), F32, "dense")
        cuda.likelihood_forward("bernoulli", (logits,), target, None, None, nll=nll)
        truth = torch.empty(3, dtype=torch.float64)
        reference.likelihood_forward(
            "bernoulli", (logits.double(),), target.double() / 255, None, None, nll=truth
        )
        close(nll, truth, columns)


def test_runs_on_the_stream_and_device_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "where", lambda t: (1, 0x77, None))
    cuda.noise_fill(torch.empty(1, 2, 3), STATE)
    assert EMULATION.emulation_stream() == 0x77
    assert EMULATION.emulation_launch_device() == 1
    assert EMULATION.emulation_device() == 0, "the caller's device must be current again"
    monkeypatch.setattr(cuda, "where", lambda t: (7, 0, None))
    with pytest.raises(RuntimeError, match="cudaSetDevice: invalid device"):
        cuda.noise_fill(torch.empty(1, 2, 3), STATE)
    assert EMULATION.emulation_device() == 0


def test_no_memory_outlives_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that blocks share take memory and leave none behind: kept memory would lie in the private pool of the CUDA
    graph that happens to be recorded, whose check raises."""
    taken: list[weakref.ref[torch.Tensor]] = []

    def remembered(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            taken.append(weakref.ref(out := allocate(*args, **kwargs)))
            return out

        return wrapper

    mean, x = values((3, 4501), F32, 1), values((3, 4501), F32, 2)
    nll, grads, ones = torch.empty(3), (torch.empty(4501), torch.empty(())), torch.ones(3)
    for name in ("empty", "zeros"):
        monkeypatch.setattr(torch, name, remembered(getattr(torch, name)))
    cuda.likelihood_forward("gaussian", (mean, mean), x, None, None, nll=nll)
    forward = len(taken)
    cuda.likelihood_backward("gaussian", (mean, mean), x, None, None, ones, grads=grads)
    assert 0 < forward < len(taken), "both sums are shared"
    assert all(tensor() is None for tensor in taken)


def test_a_failed_launch_says_why() -> None:
    EMULATION.emulation_fail_next(209)
    with pytest.raises(
        RuntimeError, match=r"latent_forward: no kernel image.*built for emulated.*TORCH_CUDA_ARCH_LIST"
    ):
        latent((3, 4), (F32, F32), "dense")


def test_nothing_to_add_up_is_zero() -> None:
    for shape in ((0, 5), (3, 0), (0, 0)):
        empty = torch.empty(shape)
        nll, z, kl = (poisoned(s, F32, "dense") for s in (shape[:1], shape, shape[:1]))
        cuda.likelihood_forward("gaussian", (empty, empty), empty, None, None, nll=nll)
        cuda.latent_forward(empty, empty, None, STATE, None, None, z=z, kl=kl)
        cuda.noise_fill(poisoned((2, *shape), F32, "dense"), STATE)
        per_feature, constant = poisoned(shape[1:], F32, "dense"), poisoned((), F32, "dense")
        upstream = torch.ones(shape[:1])
        cuda.likelihood_backward(
            "gaussian", (empty, empty), empty, None, None, upstream, grads=(per_feature, constant)
        )
        sums = poisoned(shape[1:], F32, "dense"), poisoned((), F32, "dense")
        cuda.latent_backward(
            empty, upstream, empty, empty, (empty, empty), STATE, None, None,
            grad_mu=torch.empty(shape), grad_logvar=torch.empty(shape), grad_prior=sums,
        )  # fmt: skip
        for result in (nll, kl, per_feature, constant, *sums):
            assert not result.any(), shape
