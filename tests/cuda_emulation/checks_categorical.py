"""The categorical kernels: classes and counts, rows of every length, every layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backends.native import cuda

from .emulated import DTYPES, EMULATION, close, launches_once, same, schedule
from .layouts import BF16, F16, F32, INTEGERS, U8, generator, like, poisoned, values

__all__ = ["schedule"]
# (batch, positions, classes): a few threads a row, a warp, a block, several blocks; with and without tails
SIZES = [(1, 1, 1), (3, 5, 3), (2, 3, 4), (4, 1, 16), (1, 2, 53), (2, 1, 304), (1, 1, 4999), (2, 1, 4104)]


def strided(size: Sequence[int], dtype: torch.dtype, layout: str) -> Tensor:
    """Positions side by side: the classes are the channels of an image."""
    if layout == "positions_last":
        batch, positions, classes = size
        return torch.empty((batch, classes, positions), dtype=dtype).transpose(1, 2)
    return like(size, dtype, layout)


def categorical(
    size: Sequence[int], dtype: torch.dtype, target: torch.dtype, layout: str = "dense", *, counts: bool
) -> None:
    logits = strided(size, dtype, layout).copy_(2 * values(size, F32, 1))
    if counts:
        x = strided(size, target, layout).copy_((values(size, F32, 2).abs() * 3).floor())
        if layout == "dense" and size[2] > 2:  # impossible, and not seen
            logits[..., 1], x[..., 1] = -torch.inf, 0
    else:
        index = torch.randint(0, size[2], size[:2], generator=generator(2))
        if target is not U8 and size[1] > 1:
            index[:, 1] = -100
        x = like(size[:2], target, layout if layout != "positions_last" else "dense").copy_(index)
    outputs = [poisoned(size[:2], F32, "dense") for _ in range(3)]
    nll, lse, total = outputs
    launches_once(cuda.categorical_forward, logits, x, nll=nll, lse=lse, total=total)
    truth = [torch.empty(size[:2], dtype=torch.float64) for _ in range(3)]
    finite = logits.double().clamp(min=-1e30)
    exact = x.double() if counts else x
    reference.categorical_forward(finite, exact, nll=truth[0], lse=truth[1], total=truth[2])
    close(lse, truth[1])
    close(total, truth[2] * (lse.double() - truth[1]).exp())  # makes up for lse's rounding
    close(nll, truth[0])

    grad_nll = values(size[:1], F32, 3)[:, None].expand(size[:2])
    grad = strided(size, dtype, layout).fill_(float("nan"))
    launches_once(cuda.categorical_backward, logits, x, lse, total, grad_nll, grad_logits=grad)
    true_grad = torch.empty(size, dtype=torch.float64)
    reference.categorical_backward(
        finite, exact, truth[1], truth[2], grad_nll.double(), grad_logits=true_grad
    )
    close(grad, true_grad, 1 + truth[2].max().item())


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize(
    "layout", ["dense", "positions_last", "packed_last", "every_other", "odd_address", "padded"]
)
def test_layouts(layout: str, counts: bool) -> None:
    for i, (dtype, size) in enumerate(itertools.product(DTYPES, SIZES)):
        if layout == "dense" or i % 3 == 0:
            categorical(size, dtype, F32 if counts else torch.int64, layout, counts=counts)


@pytest.mark.parametrize("target", [U8, *INTEGERS])
def test_targets(target: torch.dtype) -> None:
    for dtype, size in itertools.product((F32, BF16), ((3, 5, 3), (2, 3, 16), (2, 1, 304))):
        if not (target is U8 and size[2] > 256):
            categorical(size, dtype, target, counts=False)
        categorical(size, dtype, target, counts=True)
        categorical(size, dtype, BF16, counts=True)


def test_a_position_a_thread() -> None:
    categorical((1, 8200, 5), F32, torch.int64, "positions_last", counts=False)
    categorical((2, 4100, 6), F16, F32, "positions_last", counts=True)


def test_nll_does_not_cancel() -> None:
    """Logits far from zero: to rounding of the nll itself, and of a sum of exponentials of 1 or more."""
    logits = torch.tensor([[[3000.0, 2990.0, 2950.5]], [[-5e3, -5e3, -5.2e3]], [[40.0, 22.0, 0.0]]])
    for x in (torch.tensor([[0], [1], [0]]), torch.tensor([[[7.0, 0, 0]], [[2, 1e4, 0]], [[3, 0, 0]]])):
        nll, lse, total = (poisoned((3, 1), F32, "dense") for _ in range(3))
        cuda.categorical_forward(logits, x, nll=nll, lse=lse, total=total)
        truth = [torch.empty(3, 1, dtype=torch.float64) for _ in range(3)]
        reference.categorical_forward(logits.double(), x, nll=truth[0], lse=truth[1], total=truth[2])
        assert ((nll - truth[0]).abs() <= 3e-7 * truth[0].abs() + 6e-8 * total).all()


def test_strange_rows_alone() -> None:
    """No such class: NaN. An ignored position: zeros, even where its logits are NaN. NaN stays in its row."""
    for size in ((1, 6, 7), (1, 6, 8), (1, 6, 2600)):
        logits, x = values(size, F32, 1), torch.tensor([[0, -100, size[2], -1, 2, 1]])
        logits[0, 1] = logits[0, 4, 0] = float("nan")
        nll, lse, total = (poisoned(size[:2], F32, "dense") for _ in range(3))
        grad = poisoned(size, F32, "dense")
        cuda.categorical_forward(logits, x, nll=nll, lse=lse, total=total)
        cuda.categorical_backward(logits, x, lse, total, torch.ones(size[:2]), grad_logits=grad)
        assert nll.isnan().tolist() == [[False, False, True, True, True, False]]
        assert nll[0, 1] == 0 and not grad[0, 1].any()
        assert grad.isnan().all(-1).tolist() == nll.isnan().tolist()
        assert torch.equal(grad.isnan().any(-1), nll.isnan())


def test_order_of_blocks_and_threads() -> None:
    for size in ((2, 1, 2501), (1, 3, 600), (9, 1, 12)):
        logits, x, results = values(size, F32, 1), values(size, F32, 2).abs(), []
        for seed in range(6):
            EMULATION.emulation_seed(seed)
            outputs = [poisoned(size[:2], F32, "dense") for _ in range(3)]
            cuda.categorical_forward(logits, x, nll=outputs[0], lse=outputs[1], total=outputs[2])
            results.append(outputs)
        for other in results[1:]:
            same(results[0], other)


def test_nothing() -> None:
    for size in ((0, 3, 4), (3, 0, 4)):
        logits, x = torch.empty(size), torch.empty(size[:2], dtype=torch.int64)
        nll, lse, total = (torch.empty(size[:2]) for _ in range(3))
        cuda.categorical_forward(logits, x, nll=nll, lse=lse, total=total)
        cuda.categorical_backward(logits, x, lse, total, nll, grad_logits=torch.empty(size))
    nll, lse, total = (poisoned((2, 3), F32, "dense") for _ in range(3))
    cuda.categorical_forward(torch.empty(2, 3, 0), torch.empty(2, 3, 0), nll=nll, lse=lse, total=total)
    assert not total.any() and not nll.any()  # no counts
