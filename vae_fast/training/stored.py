"""Arrays as they lie in files: .npy, members of an .npz that are not compressed, IDX. Rows are read when asked for."""

from __future__ import annotations

import math
import os
import weakref
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import DataError


class NotStreamableError(DataError):
    """The rows of the array do not lie one after another in a file. The message says what would help."""


class StoredArray:
    """An array of rows in C order, from `offset` on in a file."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape
        self._file = os.open(path, os.O_RDONLY)  # of the whole run, whatever becomes of the name
        weakref.finalize(self, os.close, self._file)
        found = os.fstat(self._file).st_size - offset
        if found < self.nbytes:
            raise DataError(
                f"{path}: truncated, expected {self.nbytes} bytes for shape {shape}, but got {found}"
            )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int, out: np.ndarray) -> None:
        """The rows from `start` on, as many as `out` has: of this array's dtype, in C order."""
        memory: Any = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        place, done = self.offset + start * (self.nbytes // len(self)), 0
        while done < len(memory):
            count = os.preadv(self._file, [memory[done:]], place + done)
            if count == 0:
                raise DataError(f"{self.path}: has become shorter while it was read")
            done += count

    def mapped(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def npy(path: Path) -> StoredArray:
    with path.open("rb") as file:
        return StoredArray(path, *_read_header(path, file, 0))


def npz_member(path: Path, entry: zipfile.ZipInfo) -> StoredArray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise NotStreamableError(f"{path}: is compressed: numpy.savez writes what can be streamed")
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # of the lengths of name and extra field in the local header
        lengths = np.frombuffer(file.read(4), "<u2")
        start = entry.header_offset + 30 + int(lengths.sum())
        file.seek(start)
        return StoredArray(path, *_read_header(path, file, start))


def _read_header(path: Path, file: IO[bytes], start: int) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """Where the values of the .npy that begins at `start` are, and what they are."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = reader(file)
    if dtype.hasobject:
        raise DataError(f"{path}: expected numbers, but got Python objects")
    if is_fortran and len(shape) > 1:
        raise NotStreamableError(
            f"{path}: is in Fortran's order: numpy.ascontiguousarray makes what can be streamed of it"
        )
    return file.tell(), dtype, shape
