"""Samples that stay sparse: rows in compressed form (CSR), in memory, mapped from a file, or read ahead by chunks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .stream import CHUNK_ROWS, PoolReader, shuffle_pools
from .values import Facts

# PyTorch says at the first such tensor that it may change what it offers of them.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
_KEPT = ("uint8", "uint16", "int32", "float32")  # dtypes of values that stay


class Csr:
    """Rows of numbers in compressed form. `indices` and `values` are arrays, or all that gives one when it is sliced:
    a file's, which may be larger than memory."""

    def __init__(self, indptr: Any, indices: Any, values: Any, features: int) -> None:
        self.indptr = np.asarray(indptr, np.int64)
        self.indices, self.values, self.features = indices, values, features
        kept = (
            values.dtype
            if values.dtype.name in _KEPT
            else np.dtype("f4" if values.dtype.kind == "f" else "i4")
        )
        self.dtype: np.dtype[Any] = np.dtype("u1") if values.dtype.kind == "b" else kept

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def check(self, source: str) -> Facts:
        """One pass over all chunks. Raises DataError where this is no CSR matrix of finite numbers."""
        if len(self.indices) != len(self.values) or len(self.values) < self.indptr[-1] or self.indptr[0] != 0:
            raise DataError(f"{source}: indptr, indices and data do not fit together")
        if (np.diff(self.indptr) < 0).any():
            raise DataError(f"{source}: indptr is not in order")
        lo, hi, has_fractions = 0.0, 0.0, False
        for start in range(0, len(self), CHUNK_ROWS):
            ptr = self.indptr[start : start + CHUNK_ROWS + 1]
            col, values = self.indices[ptr[0] : ptr[-1]], self.values[ptr[0] : ptr[-1]]
            if not len(col):
                continue
            if col.min() < 0 or col.max() >= self.features:
                raise DataError(f"{source}: column {col.max()} is not below {self.features}")
            is_next = col[1:] > col[:-1]
            ends = ptr[1:-1] - ptr[0]
            is_next[ends[(ends > 0) & (ends < len(col))] - 1] = True
            if not is_next.all():
                raise UnsortedError(
                    f"{source}: the columns of a row are not in order: X.sum_duplicates() sorts them"
                )
            lo, hi = min(lo, float(values.min())), max(hi, float(values.max()))
            if not np.isfinite([lo, hi]).all():
                raise DataError(f"{source}: holds NaN or infinite values")
            if values.dtype.kind == "f" and not has_fractions:
                has_fractions = bool((values != np.rint(values)).any())
        most = np.iinfo(np.int32).max if self.dtype.kind in "iu" else np.finfo(np.float32).max
        if hi > most:
            raise DataError(f"{source}: holds values beyond {self.dtype}")
        return Facts(lo, hi, has_fractions)

    def rows(self, rows: np.ndarray) -> Tensor:
        """Rows by number, as one torch.sparse_csr tensor."""
        places = [(self, start, end) for start, end in self._ends(rows)]
        return self._tensor(places)

    def _ends(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        return zip(self.indptr[rows].tolist(), self.indptr[rows + 1].tolist(), strict=True)

    def _tensor(self, places: Sequence[tuple[Csr, int, int]]) -> Tensor:
        nothing = np.empty(0, np.int32)
        col = np.concatenate(
            [nothing, *(csr.indices[a:b] for csr, a, b in places)], dtype=np.int32, casting="unsafe"
        )
        values = np.concatenate(
            [nothing, *(csr.values[a:b] for csr, a, b in places)], dtype=self.dtype, casting="unsafe"
        )
        crow = np.cumsum([0, *(b - a for _, a, b in places)], dtype=np.int32)
        crow_t, col_t, values_t = map(torch.from_numpy, (crow, col, values))
        shape = (len(places), self.features)
        return torch.sparse_csr_tensor(crow_t, col_t, values_t, shape, check_invariants=False)


class UnsortedError(DataError):
    """The columns of a row are not in ascending order."""


class ChunkedCsr(Csr):
    """A Csr of a file, of which the pools that an epoch is at are in memory. Other rows are read when asked for."""

    def __init__(self, csr: Csr) -> None:
        super().__init__(csr.indptr, csr.indices, csr.values, csr.features)
        self.reader = PoolReader(self._read)

    def rows(self, rows: np.ndarray) -> Tensor:
        chunk_of = rows // CHUNK_ROWS
        parts = self.reader.parts(chunk_of)
        if parts is None:
            chunks = np.unique(chunk_of)
            return self._tensor(_places(self._read(chunks), chunks, rows))
        return self._tensor(
            [
                place
                for pool, start, end in parts
                for place in _places(self.reader.pool(pool), self.reader.chunks(pool), rows[start:end])
            ]
        )

    def _read(self, chunks: np.ndarray, slot: int = 0) -> Csr:
        """The rows of chunks in ascending order."""
        ptrs = [self.indptr[start : start + CHUNK_ROWS + 1] for start in (chunks * CHUNK_ROWS).tolist()]
        indptr = np.concatenate([[0], *map(np.diff, ptrs)]).cumsum()
        parts = [slice(int(ptr[0]), int(ptr[-1])) for ptr in ptrs]
        indices = np.concatenate([self.indices[part] for part in parts] or [np.empty(0, np.int32)])
        values = np.concatenate([self.values[part] for part in parts] or [np.empty(0, self.dtype)])
        return Csr(indptr, indices, values, self.features)


def _places(pool: Csr, chunks: np.ndarray, rows: np.ndarray) -> list[tuple[Csr, int, int]]:
    local = np.searchsorted(chunks, rows // CHUNK_ROWS) * CHUNK_ROWS + rows % CHUNK_ROWS
    return [(pool, start, end) for start, end in pool._ends(local)]


@dataclass(frozen=True)
class SparseSamples:
    """Some rows of a Csr, with what training asks a tensor of samples for. Parts of it are torch.sparse_csr tensors."""

    csr: Csr
    numbers: np.ndarray  # of the rows
    facts: Facts
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.csr.features

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        return self.csr.rows(self.numbers[indices.cpu().numpy()]).to(self.device)

    def __getitem__(self, part: slice) -> Tensor:
        return self.csr.rows(self.numbers[part]).to(self.device)

    def to(self, device: torch.device) -> SparseSamples:
        """The rows stay where they are: batches go to the device."""
        return replace(self, device=device)

    def pools(self, generator: torch.Generator | None) -> Iterator[Tensor] | None:
        """The samples in groups that are in memory together, shuffled; None where all are."""
        if not isinstance(self.csr, ChunkedCsr):
            return None
        return shuffle_pools(self.numbers, CHUNK_ROWS, generator, self.csr.reader)


def take(csr: Csr, numbers: np.ndarray) -> Csr:
    """These rows in memory, read chunk by chunk where they are in ascending order."""
    counts = np.diff(csr.indptr)[numbers]
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], csr.dtype)
    for start in range(0, len(numbers), CHUNK_ROWS):
        rows = csr.rows(numbers[start : start + CHUNK_ROWS])
        place = slice(indptr[start], indptr[min(start + CHUNK_ROWS, len(numbers))])
        indices[place], values[place] = rows.col_indices().numpy(), rows.values().numpy()
    return Csr(indptr, indices, values, csr.features)
