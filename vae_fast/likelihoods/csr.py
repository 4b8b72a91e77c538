"""Counts of which only those that are not 0 are stored: torch's CSR form, as its three tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.compiler import is_compiling

if TYPE_CHECKING:
    from typing_extensions import TypeIs


@dataclass(frozen=True, eq=False)
class Csr:
    """Counts (batch, features): row r has values[crow[r]:crow[r + 1]], in the columns col[crow[r]:crow[r + 1]].

    A target of counts may be one in place of a torch.sparse_csr tensor, which a graph of torch.compile does not take.

    As torch's invariants for CSR have it, the columns of a row ascend, each but once; the nll of a row whose columns do
    not is NaN. A column that is not stored, and one that is stored as 0, counts 0. crow may begin behind 0: rows of a
    larger matrix share its col and values.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    features: int

    @classmethod
    def of(cls, target: Tensor) -> Csr:
        """That of a torch.sparse_csr tensor, without a copy."""
        values = target.values()
        if not target.requires_grad:
            values = values.detach()  # else a view of the sparse tensor, which Dynamo does not take
        return cls(target.crow_indices(), target.col_indices(), values, target.shape[1])

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, int]:
        return self.crow, self.col, self.values, self.features

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.crow.shape[0] - 1, self.features))

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        return self.values.requires_grad

    def numel(self) -> int:
        return self.shape.numel()

    def rows(self, rows: slice) -> Csr:
        """Some of the rows, on the same memory."""
        first, stop, _ = rows.indices(self.shape[0])
        return Csr(self.crow[first : stop + 1], self.col, self.values, self.features)

    def elements(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and value (float64) of what is stored; NaN where a column does not follow the one before."""
        crow, col, values = self.crow.long(), self.col.long(), self.values.to(torch.float64)
        if not is_compiling():  # a graph takes all of them to be there
            first, stop = int(crow[0]), int(crow[-1])
            crow, col, values = crow - first, col[first:stop], values[first:stop]
        rows = torch.searchsorted(crow, torch.arange(len(col), device=crow.device), right=True) - 1
        inside = (col >= 0) & (col < self.features)
        follows = (col[1:] > col[:-1]) | (rows[1:] != rows[:-1])
        follows = torch.cat((follows.new_ones(min(1, len(col))), follows))
        return rows, torch.where(inside, col, 0), torch.where(inside & follows, values, torch.nan)


def is_csr(target: Tensor | Csr) -> TypeIs[Csr]:
    """Whether it is sparse; type checkers need to know only that it is a dense tensor otherwise."""
    return isinstance(target, Csr) or target.layout is torch.sparse_csr


def as_csr(target: Tensor | Csr) -> Csr:
    crow, col, values, features = (target if isinstance(target, Csr) else Csr.of(target)).parts
    return Csr(crow.contiguous(), col.contiguous(), values.contiguous(), features)


def sum_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Of values (..., elements), in an order that is the same from run to run."""
    sums = values.new_zeros(count, *values.shape[:-1])
    return sums.index_put((rows,), values.movedim(-1, 0), accumulate=True).movedim(0, -1)
