"""The pairwise kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backends.contract import OwnColumn
from vae_fast.backends.native import cuda
from vae_fast.backends.reference.pairwise import pairwise as truth_of

from .emulated import DTYPES, EMULATION, close, same, schedule
from .layouts import F32, like, poisoned, tensor, values

__all__ = ["schedule"]


def pairwise(
    rows: int, columns: int, dims: int, own: OwnColumn | None = None, weighted: bool = False,
    dtype: torch.dtype = F32, layout: str = "dense", wanted: str = "both",
) -> list[Tensor]:  # fmt: skip
    """`wanted`: of joint and dims, which have a gradient."""
    z, mu, logvar = (tensor((n, dims), dtype, layout, i) for i, n in enumerate((rows, columns, columns)))
    weights = values((columns,), F32, 4) if weighted else None
    joint = poisoned((rows,), F32, "dense")
    sums = None if wanted == "joint" else poisoned((rows, dims), F32, "dense")
    cuda.pairwise_forward(z, mu, logvar, weights, own, joint=joint, dims=sums)
    wide = tuple(t.double() for t in (z, mu, logvar))
    truth = truth_of(*wide, weights, own)
    size = 8 + truth[0].nan_to_num(0, 0, 0).abs().max().item() if rows else 1.0
    for got, want in zip((joint, sums), truth, strict=True):
        if got is not None and columns:
            close(got, want, size)
        elif got is not None:  # the sum over nothing
            assert (got == -torch.inf).all()
    grad_joint = values((1,), F32, 5).expand(rows) if wanted != "dims" else None
    grad_dims = (
        like((rows, dims), F32, layout).copy_(values((rows, dims), F32, 6)) if sums is not None else None
    )
    grads = [like(t.shape, dtype, layout).fill_(float("nan")) for t in (z, mu, logvar)]
    by_weight = poisoned((columns,), F32, "dense") if weighted else None
    exact = [
        torch.empty(t.shape, dtype=torch.float64)
        for t in (*grads, joint[:0] if by_weight is None else by_weight)
    ]
    for call, inputs, outs in (
        (cuda.pairwise_backward, (z, mu, logvar), [*grads, by_weight]),
        (reference.pairwise_backward, wide, [*exact[:3], exact[3] if weighted else None]),
    ):
        call(
            grad_joint, grad_dims, *inputs, weights, own, joint, sums,
            grad_z=outs[0], grad_mu=outs[1], grad_logvar=outs[2], grad_log_weights=outs[3],
        )  # fmt: skip
    for got, want in zip([*grads, by_weight], exact, strict=True):
        if got is not None and got.numel():
            close(got, want, 8 * size + want.abs().max().item())
    return [t for t in (joint, sums, *grads, by_weight) if t is not None]


def test_values_and_gradients() -> None:
    for dims in (1, 3):
        pairwise(9, 9, dims, OwnColumn(0, 500))
        pairwise(5, 12, dims, OwnColumn(3))
        pairwise(140, 3, dims, weighted=True)
    pairwise(2, 3, 40, OwnColumn(0, 500))  # more dims than lanes


@pytest.mark.parametrize("layout", ["transposed", "odd_address", "every_other"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    pairwise(7, 5, 6, weighted=True, dtype=dtype, layout=layout)


def test_one_output_alone_and_empties() -> None:
    for wanted in ("joint", "dims"):
        pairwise(6, 5, 3, weighted=True, wanted=wanted)
    for rows, columns, dims in ((0, 3, 2), (3, 0, 2), (3, 2, 0)):
        pairwise(rows, columns, dims)


def test_order_of_blocks_and_threads() -> None:
    """Parts of the rows are added in their own order."""
    results = []
    for seed in range(4):
        EMULATION.emulation_seed(seed)
        results.append(pairwise(140, 3, 5, weighted=True))
    for other in results[1:]:
        same(results[0], other)
