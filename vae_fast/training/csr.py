"""Samples that stay sparse: rows in compressed form (CSR), in memory, mapped from a file, or read ahead by chunks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

CHUNK_ROWS = 256  # neighbours in the file that are read at once
POOL_CHUNKS = (
    64  # chunks from all over the file whose rows are shuffled together, while the next pool is read
)
# PyTorch says at the first such tensor that it may change what it offers of them.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
_KEPT = ("uint8", "uint16", "int32", "float32")  # dtypes of values that stay


class Facts(NamedTuple):
    """What the values are, those that are left out (0) included."""

    lo: float
    hi: float
    has_fractions: bool


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
    """A Csr of a file whose chunks are kept only while an epoch is at them. `plan` says in which order."""

    def __init__(self, csr: Csr) -> None:
        super().__init__(csr.indptr, csr.indices, csr.values, csr.features)
        self._chunks: dict[int, Future[Csr]] = {}
        self._pools: list[list[int]] = []
        self._pool_of: dict[int, int] = {}
        self._reader = ThreadPoolExecutor(1, "vae-fast-reader")

    def plan(self, pools: list[list[int]]) -> None:
        """The next rows to be asked for are of these chunks, pool after pool."""
        self._pools, self._chunks = pools, {}
        self._pool_of = {chunk: i for i, pool in enumerate(pools) for chunk in pool}

    def rows(self, rows: np.ndarray) -> Tensor:
        chunk_of = (rows // CHUNK_ROWS).tolist()
        self._read_ahead(set(chunk_of))
        starts = (rows % CHUNK_ROWS).tolist()
        places = []
        for number, row in zip(chunk_of, starts, strict=True):
            chunk = self._chunks[number].result()
            places.append((chunk, int(chunk.indptr[row]), int(chunk.indptr[row + 1])))
        return self._tensor(places)

    def _read_ahead(self, needed: set[int]) -> None:
        pools = [self._pool_of[chunk] for chunk in needed if chunk in self._pool_of]
        kept = set(needed)
        if pools:
            for pool in self._pools[min(pools) : max(pools) + 2]:
                kept.update(pool)
        for chunk in self._chunks.keys() - kept:
            del self._chunks[chunk]
        for chunk in sorted(
            kept - self._chunks.keys(), key=lambda c: (c not in needed, self._pool_of.get(c, 0), c)
        ):
            self._chunks[chunk] = self._reader.submit(self._read, chunk)

    def _read(self, chunk: int) -> Csr:
        ptr = self.indptr[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS + 1]
        part = slice(int(ptr[0]), int(ptr[-1]))
        return Csr(ptr - ptr[0], np.asarray(self.indices[part]), np.asarray(self.values[part]), self.features)


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

    def pools(self, generator: torch.Generator | None) -> list[Tensor] | None:
        """The samples in groups that are in memory together, shuffled; None where all are."""
        if not isinstance(self.csr, ChunkedCsr):
            return None
        chunk_of = torch.from_numpy(self.numbers // CHUNK_ROWS)
        chunks = torch.unique(chunk_of)
        if generator is not None:
            chunks = chunks[torch.randperm(len(chunks), generator=generator)]
        pools = chunks.split(POOL_CHUNKS)
        self.csr.plan([pool.tolist() for pool in pools])
        return [torch.isin(chunk_of, pool).nonzero()[:, 0] for pool in pools]


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
