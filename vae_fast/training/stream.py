"""Samples of which a batch is in memory, and on the device, at a time: read from files ahead of training, or kept on
the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .stored import StoredArray
from .values import Facts

CHUNK_ROWS = 256  # neighbours in the file that are read at once ...
CHUNK_BYTES = 1 << 20  # ... fewer, where dense ones take more than this
POOL_CHUNKS = (
    64  # chunks from all over the file whose rows are shuffled together, while the next pool is read
)

Pool = TypeVar("Pool")


class PoolReader(Generic[Pool]):
    """Reads pools of chunks in the background: the one that is asked for and the next. The data of a pool last until
    another one is asked for.

    Args:
        read: (the chunks of a pool in ascending order, its slot: 0 or 1) -> the pool. Called in one thread.
    """

    def __init__(self, read: Callable[[np.ndarray, int], Pool]) -> None:
        self._read_pool = read
        self._thread = ThreadPoolExecutor(1, "vae-fast-reader")
        self.plan([], 0)

    def plan(self, pools: Sequence[np.ndarray], chunks: int) -> None:
        """The pools that will be asked for, in their order. `chunks` is the number of all chunks."""
        for future in getattr(self, "_reads", {}).values():
            future.cancel()
        self._reads: dict[int, Future[Pool]] = {}
        self._pools, self._current = pools, 0
        self._pool_of = np.full(chunks, -1)
        for number, pool in enumerate(pools):
            self._pool_of[pool] = number

    def parts(self, chunk_of: np.ndarray) -> list[tuple[int, int, int]] | None:
        """(pool, start, end) of the parts of a batch, given the chunks of its rows. None: it is not as planned."""
        if not self._pools or not len(chunk_of):
            return None
        pools = self._pool_of[chunk_of]
        if not 0 <= pools[0] - self._current <= 1 or (np.diff(pools) < 0).any():
            return None
        starts = [0, *(np.flatnonzero(np.diff(pools)) + 1).tolist(), len(pools)]
        return [(int(pools[a]), a, b) for a, b in pairwise(starts)]

    def chunks(self, number: int) -> np.ndarray:
        return self._pools[number]

    def pool(self, number: int) -> Pool:
        """Waits until it is read."""
        self._current, wanted = number, range(number, min(number + 2, len(self._pools)))
        for old in self._reads.keys() - set(wanted):
            self._reads.pop(old).cancel()
        for n in wanted:
            if n not in self._reads:
                self._reads[n] = self._thread.submit(self._read_pool, self._pools[n], n % 2)
        return self._reads[number].result()


def shuffle_pools(
    numbers: np.ndarray, chunk_rows: int, generator: torch.Generator | None, reader: PoolReader[Any]
) -> Iterator[Tensor]:
    """Plans an epoch over the rows `numbers`, which ascend: their chunks shuffled, in pools. Yields the samples of
    each pool in the order of the file, while a `randperm` of each may be drawn from the generator."""
    count = -(-(int(numbers[-1]) + 1) // chunk_rows)
    starts = np.searchsorted(numbers, np.arange(count + 1) * chunk_rows)
    chunks = torch.from_numpy(np.flatnonzero(np.diff(starts)))
    if generator is not None:
        chunks = chunks[torch.randperm(len(chunks), generator=generator)]
    pools = [np.sort(pool.numpy()) for pool in chunks.split(POOL_CHUNKS)]
    reader.plan(pools, count)
    return (torch.cat([torch.arange(starts[c], starts[c + 1]) for c in pool]) for pool in pools)


class Rows(Protocol):
    """Dense samples that can be read as neighbours."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *sample)"""

    @property
    def gap(self) -> int:
        """As many rows that are not wanted are sooner read than skipped."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As training has them: uint8, bool or float32."""

    def read(self, start: int, out: np.ndarray) -> None:
        """The rows from `start` on, as many as `out` has."""


@dataclass(frozen=True)
class StoredRows:
    """The rows of an array in a file, as training reads them."""

    array: StoredArray
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_channels_last: bool = False  # in the file
    is_packed: bool = False  # a bit a value in the file
    gap: int = CHUNK_ROWS

    def read(self, start: int, out: np.ndarray) -> None:
        is_as_it_is = self.array.dtype in (self.dtype, np.uint8)  # uint8 as bits, too: they are 0 and 1
        if is_as_it_is and not self.is_channels_last and not self.is_packed:
            return self.array.read(start, out)
        raw = np.empty((len(out), *self.array.shape[1:]), self.array.dtype)
        self.array.read(start, raw)
        if self.is_packed:
            raw = np.unpackbits(raw, axis=1, count=math.prod(self.shape[1:]))
        if self.is_channels_last:
            raw = np.moveaxis(raw, -1, 1)
        np.copyto(out.reshape(raw.shape), raw, casting="unsafe")
        return None


@dataclass(frozen=True)
class _Batches:
    """What training asks a tensor of samples for, where the samples are not on the device: batches are sent to it
    while it computes."""

    device: torch.device

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        return self._send(self.gather(indices.cpu()))

    def __getitem__(self, part: slice) -> Tensor:
        return self._send(self.gather(torch.arange(len(self))[part]))

    def __len__(self) -> int:
        raise NotImplementedError

    def gather(self, indices: Tensor) -> Tensor:
        raise NotImplementedError

    def to(self, device: torch.device) -> Self:
        """The samples stay where they are."""
        return replace(self, device=torch.device(device))

    def pools(self, generator: torch.Generator | None) -> Iterator[Tensor] | None:
        """The samples in groups that are in memory together, shuffled; None where all are."""
        return None

    def _batch(self, n: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a batch. A GPU copies from pinned memory alone while the host goes on; torch keeps the memory
        from being handed out again before that copy is done."""
        return torch.empty((n, *shape), dtype=dtype, pin_memory=self.device.type == "cuda")

    def _send(self, batch: Tensor) -> Tensor:
        return batch.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class HostSamples(_Batches):
    """Dense samples in the host's memory that do not fit in the device's."""

    x: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    def gather(self, indices: Tensor) -> Tensor:
        out = self._batch(len(indices), self.x.shape[1:], self.x.dtype)
        return torch.index_select(self.x, 0, indices, out=out)


class RowReader:
    """Rows by number: those of the pools that an epoch is at from memory, other ones from the file."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        size = math.prod(rows.shape[1:]) * rows.dtype.itemsize
        self.chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, size)))
        self.reader = PoolReader(self._read_pool)
        self._buffers: dict[int, np.ndarray] = {}

    def gather(self, numbers: np.ndarray, out: Tensor) -> Tensor:
        chunk_of = numbers // self.chunk_rows
        parts = self.reader.parts(chunk_of)
        if parts is None:
            return self._gather_from_file(numbers, chunk_of, out)
        for pool, start, end in parts:
            place = np.searchsorted(self.reader.chunks(pool), chunk_of[start:end])
            rows = torch.from_numpy(place * self.chunk_rows + numbers[start:end] % self.chunk_rows)
            torch.index_select(self.reader.pool(pool), 0, rows, out=out[start:end])
        return out

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows in order. Each chunk lasts until the next."""
        n, buffer = self.rows.shape[0], self._empty(self.chunk_rows)
        for start in range(0, n, self.chunk_rows):
            chunk = buffer[: n - start]
            self.rows.read(start, chunk)
            yield chunk

    def _read_pool(self, chunks: np.ndarray, slot: int) -> Tensor:
        if slot not in self._buffers:
            self._buffers[slot] = self._empty(min(POOL_CHUNKS * self.chunk_rows, self.rows.shape[0]))
        buffer, size = self._buffers[slot], self.chunk_rows
        for place, chunk in enumerate(chunks.tolist()):
            n = min(size, self.rows.shape[0] - chunk * size)
            self.rows.read(chunk * size, buffer[place * size : place * size + n])
        return torch.from_numpy(buffer)

    def _gather_from_file(self, numbers: np.ndarray, chunk_of: np.ndarray, out: Tensor) -> Tensor:
        """Reads what lies between the first and the last row of a chunk that are wanted, but for large gaps."""
        order = np.argsort(numbers, kind="stable")
        is_end = (np.diff(chunk_of[order]) > 0) | (np.diff(numbers[order]) > 1 + self.rows.gap)
        ends = np.flatnonzero(is_end) + 1
        found, buffer = out.numpy(), self._empty(min(self.chunk_rows, self.rows.shape[0]))
        for places in np.split(order, ends) if len(order) else ():
            wanted = numbers[places]
            rows = buffer[: wanted[-1] - wanted[0] + 1]
            self.rows.read(int(wanted[0]), rows)
            found[places] = rows[wanted - wanted[0]]
        return out

    def _empty(self, n: int) -> np.ndarray:
        return np.empty((n, *self.rows.shape[1:]), self.rows.dtype)


@dataclass(frozen=True)
class StreamedSamples(_Batches):
    """Some rows of a file, with what training asks a tensor of samples for. A slice of them is a tensor."""

    reader: RowReader
    numbers: np.ndarray  # of the rows, ascending
    facts: Facts  # of the whole data set

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.reader.rows.shape[1:]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.reader.rows.dtype)).dtype

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def gather(self, indices: Tensor) -> Tensor:
        out = self._batch(len(indices), self.shape[1:], self.dtype)
        return self.reader.gather(self.numbers[indices.numpy()], out)

    def of(self, numbers: np.ndarray) -> StreamedSamples:
        """These rows of the file, in ascending order."""
        return replace(self, numbers=numbers, reader=RowReader(self.reader.rows))

    def whole(self) -> StreamedSamples:
        return self.of(np.arange(self.reader.rows.shape[0]))

    def pools(self, generator: torch.Generator | None) -> Iterator[Tensor] | None:
        return shuffle_pools(self.numbers, self.reader.chunk_rows, generator, self.reader.reader)

    def reshape(self, *shape: int) -> StreamedSamples:
        """(-1, *the new shape of a sample)."""
        return self._as(shape=(self.reader.rows.shape[0], *shape[1:]))

    def bool(self) -> StreamedSamples:
        return self._as(dtype=np.dtype(np.bool_))

    def unpacked(self, name: str, size: int) -> StreamedSamples:
        """numpy.packbits undone: `size` bits of each sample's bytes."""
        [width] = self.shape[1:]
        left = size % 8
        if left and any((chunk[:, -1] & (255 >> left)).any() for chunk in self.reader.chunks()):
            raise DataError(f"{name}: {width} bytes are not {size} packed bits, those after them are not 0")
        n = self.reader.rows.shape[0]
        return self._as(shape=(n, size), dtype=np.dtype(np.bool_), is_packed=True)

    def _as(self, **changes: Any) -> StreamedSamples:
        return replace(self, reader=RowReader(replace(self.reader.rows, **changes)))  # type: ignore[type-var]
