"""IDX, the format of MNIST's files, and the folders in which they come."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .parts import Parts, held_out_parts, listed, part_of
from .stored import NotStreamableError, StoredArray

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_file(path: Path, is_stored: bool = False) -> Parts:
    """A file, and with one of a train part the other parts beside it: t10k-images... with train-images..."""
    beside: dict[str, Path] = {}
    part, rest = part_of(_plain_name(path))
    if part == "train":
        others = [p for p in sorted(path.parent.iterdir(), reverse=True) if p.is_file()]
        beside = {part_of(_plain_name(p))[0]: p for p in others if part_of(_plain_name(p))[1] == rest}
    held_out = held_out_parts(beside)
    notes = tuple(f"the {name} part is {p.name} beside it" for name, p in held_out.items())
    return _read_parts(path, held_out, notes, is_stored)


def read_folder(folder: Path, files: list[Path], is_stored: bool = False) -> Parts | None:
    """MNIST's four files and their like, under the names and in the folders that Kaggle and torchvision give them.

    None if there are none.
    """
    sets: dict[tuple[Path, str], dict[str, list[Path]]] = {}  # the files of each part: a copy may be packed
    for path in files:
        if re.search(r"idx\d-[a-z0-9]+$", _plain_name(path)) and not _holds_labels(path):
            part, rest = part_of(_plain_name(path))
            sets.setdefault((_home(path), rest), {}).setdefault(part, []).append(path)
    if not sets:
        return None
    depth = min(len(home.parts) for home, _ in sets)
    nearest = [parts for (home, _), parts in sets.items() if len(home.parts) == depth]
    trains = [(parts.get("train") or next(iter(parts.values())))[0] for parts in nearest]
    if len(trains) > 1:
        names = listed((str(path.relative_to(folder)) for path in trains), most=9)
        raise DataError(f"{folder}: expected one set, but got {len(trains)}: give one of its files, {names}")
    parts = nearest[0]
    unused = [path.name for path in files if all(path not in copies for copies in parts.values())]
    firsts = {part: copies[0] for part, copies in parts.items()} if "train" in parts else {}
    notes = (f"not trained on: {listed(unused)}",) if unused else ()
    return _read_parts(trains[0], held_out_parts(firsts), notes, is_stored)


def _read_parts(train: Path, held_out: dict[str, Path], notes: tuple[str, ...], is_stored: bool) -> Parts:
    if _holds_labels(train):
        images = train.name.replace("label", "image").replace("idx1", "idx3")
        here = f", {images}" if train.with_name(images).is_file() else ""
        raise DataError(f"{train}: expected images, but got labels: give the file of the images{here}")
    if "emnist" in train.name.lower():
        notes += ("EMNIST's files hold the images transposed: so they stay",)
    load: Any = stored if is_stored else read
    return Parts(load(train), notes=notes, **{part: load(path) for part, path in held_out.items()})


def read(path: Path) -> np.ndarray:
    """Two zeros, the type, the number of sizes, the sizes, the values, all big-endian."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: truncated or damaged gzip ({error})") from None
    dtype, shape, start = _header(path, raw)
    _check_size(path, shape, math.prod(shape) * dtype.itemsize, len(raw) - start)
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def stored(path: Path) -> StoredArray:
    """The array as it lies in the file."""
    with path.open("rb") as file:
        head = file.read(4 + 4 * 255)
    if head[:2] == b"\x1f\x8b":
        raise NotStreamableError(f"{path}: is compressed: gunzip it to stream it")
    dtype, shape, start = _header(path, head)
    _check_size(path, shape, math.prod(shape) * dtype.itemsize, path.stat().st_size - start)
    return StoredArray(path, start, dtype, shape)


def _header(path: Path, raw: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """dtype, shape, and where the values begin."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise DataError(f"{path}: is not an IDX file")
    dtype, ndim = np.dtype(_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise DataError(f"{path}: truncated IDX file, it ends in its header")
    return dtype, tuple(np.frombuffer(raw, ">u4", ndim, 4).tolist()), start


def _check_size(path: Path, shape: tuple[int, ...], expected: int, found: int) -> None:
    if found != expected:
        state = "truncated" if found < expected else "damaged"
        raise DataError(
            f"{path}: {state} IDX file, expected {expected} bytes for shape {shape}, but got {found}"
        )


def _plain_name(path: Path) -> str:
    """train-images-idx3-ubyte, of train-images.idx3-ubyte.gz too."""
    return path.name.lower().removesuffix(".gz").replace(".idx", "-idx")


def _home(path: Path) -> Path:
    """The folder of the set: Kaggle has another one around each file, of the file's name."""
    return path.parents[1] if _plain_name(path.parent) == _plain_name(path) else path.parent


def _holds_labels(path: Path) -> bool:
    return "label" in path.name.lower()
