"""Targets of counts in CSR form: the bits of a dense target."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vae_fast import Csr
from vae_fast.backends.native import cuda
from vae_fast.likelihoods import ELEMENTWISE

from .emulated import close, launches_once, same, schedule
from .layouts import BF16, F32, U8, poisoned, tensor

__all__ = ["schedule"]
I32 = torch.int32
SHAPES = [(3, 5), (2, 37), (1, 4100), (9, 64), (3, 0), (2, 33)]
FORMATS = [(F32, torch.int64), (torch.uint16, I32), (U8, I32), (BF16, torch.int64), (torch.int64, I32), (F32, I32)]


def targets(shape: tuple[int, int], dtype: torch.dtype, index: torch.dtype) -> tuple[Tensor, Csr]:
    """The same dense and sparse, whose crow begins behind 0."""
    g = torch.Generator().manual_seed(sum(shape))
    x = torch.randint(1, 9, shape, generator=g) * (torch.rand(shape, generator=g) < 0.3)
    x[-1:] = 0 if len(x) > 1 else x[-1:]
    kept = (x != 0) | (torch.rand(shape, generator=g) < 0.1)  # zeros, too
    crow = torch.cat((torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0))) + 2
    col = torch.cat((torch.tensor([0, 1]), kept.nonzero()[:, 1]))
    values = torch.cat((torch.tensor([7, 7]), x[kept]))
    return x.to(F32), Csr(crow.to(index), col.to(index), values.to(dtype), shape[1])


@pytest.mark.parametrize("likelihood", sorted(cuda.of_counts))
def test_sparse_targets(likelihood: str) -> None:
    """Losses of samples and elements, a parameter of each feature, masks, draws."""
    specs = ELEMENTWISE[likelihood].parameters
    for (shape, form), draws in itertools.product(zip(SHAPES, FORMATS, strict=True), (None, 2)):
        x, csr = targets(shape, *form)
        lead = () if draws is None else (draws,)
        params = [tensor((*lead, *shape), F32, "dense", 2 + i, positive=p.is_log) for i, p in enumerate(specs)]
        if len(params) > 1:
            params[1] = tensor(shape[1:], F32, "dense", 9, positive=specs[1].is_log).expand(*lead, *shape)
        mask = tensor(shape, torch.bool, "dense", 5) if form[0] is F32 else None
        for size in (shape[:1], shape):
            results = []
            for target in (x, csr):
                nll = poisoned((*lead, *size), F32, "dense")
                if 0 in shape and size == shape:
                    continue
                cuda.likelihood_forward(likelihood, tuple(params), target, mask, None, nll=nll, draws=draws)
                grad = tensor((*lead, *size), F32, "dense", 4)
                grads = [poisoned((*lead, *shape), F32, "dense") for _ in params]
                if len(params) > 1:
                    grads[1] = poisoned(shape[1:], F32, "dense")
                call = (likelihood, tuple(params), target, mask, None, grad)
                cuda.likelihood_backward(*call, grads=tuple(grads), draws=draws)
                results.append((nll, *grads))
            if results:
                for got, want in zip(results[1], results[0], strict=True):
                    close(got, want.double(), 8)


def test_one_launch() -> None:
    x, csr = targets((2, 37), F32, I32)
    mean, nll, grad = tensor(x.shape, F32, "dense", 2, positive=True), poisoned((2,), F32, "dense"), torch.ones(2)
    launches_once(cuda.likelihood_forward, "poisson", (mean,), csr, None, None, nll=nll)
    launches_once(cuda.likelihood_backward, "poisson", (mean,), csr, None, None, grad, grads=(torch.empty(2, 37),))


def test_sparse_counts_of_classes() -> None:
    for shape, form in zip(SHAPES, FORMATS, strict=True):
        if shape[1] == 0:
            continue
        x, csr = targets(shape, *form)
        for draws in (1, 3):
            logits = tensor((draws, *shape), F32, "dense", 3)
            results = []
            for target in (x.expand(draws, *shape), csr):
                nll, lse, total = (poisoned((draws, shape[0]), F32, "dense") for _ in range(3))
                launches_once(cuda.categorical_forward, logits, target, nll=nll, lse=lse, total=total)
                grad = poisoned(logits.shape, F32, "dense")
                upstream = tensor((draws, shape[0]), F32, "dense", 6)
                launches_once(cuda.categorical_backward, logits, target, lse, total, upstream, grad_logits=grad)
                results.append((nll, lse, total, grad))
            for got, want in zip(*results, strict=True):
                close(got, want.double(), 8)


def test_columns_out_of_order_are_nan() -> None:
    n = 300
    for bad in ([60, 3, 100], [3, 3, 100], [3, 60, n], [3, 60, -1], [-1, 60, 100], [3, 100, 60]):
        col = torch.tensor([3, 60, 100]).repeat(3)
        col[3:6] = torch.tensor(bad)
        csr = Csr(torch.arange(0, 10, 3), col, torch.ones(9), n)
        mean = tensor((3, n), F32, "dense", 2, positive=True)
        nll = poisoned((3,), F32, "dense")
        cuda.likelihood_forward("poisson", (mean,), csr, None, None, nll=nll)
        assert nll.isnan().tolist() == [False, True, False], bad
        nll, lse, total = (poisoned((1, 3), F32, "dense") for _ in range(3))
        cuda.categorical_forward(mean[None], csr, nll=nll, lse=lse, total=total)
        assert nll.isnan().tolist() == [[False, True, False]], bad
    same((), ())
