"""Reads arrays of samples from files: IDX, .npy, .npz, folders of images. What it cannot read is a DataError."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import DataError

Parts = tuple[np.ndarray, np.ndarray | None]  # train and, where the file has one, test

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
_TRAIN_KEYS, _TEST_KEYS = ("train", "x_train", "train_images"), ("test", "x_test", "test_images")


def read(path: Path) -> Parts:
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".npy":
        return _load_numpy(path), None
    if "idx" in path.name or path.suffix == ".gz":
        return read_idx(path), None
    raise DataError(f"{path}: is not IDX (its name holds idx), .npy, .npz or a folder")


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, as MNIST's: two zeros, the type, the number of sizes, the sizes, the values, all big-endian."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: truncated or damaged gzip ({error})") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_DTYPES:
        raise DataError(f"{path}: is not an IDX file")
    dtype, ndim = np.dtype(_IDX_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise DataError(f"{path}: truncated IDX file, it ends in its header")
    shape = tuple(np.frombuffer(raw, ">u4", ndim, 4).tolist())
    expected, found = math.prod(shape) * dtype.itemsize, len(raw) - start
    if found != expected:
        state = "truncated" if found < expected else "damaged"
        raise DataError(
            f"{path}: {state} IDX file, shape {shape} takes {expected} bytes and {found} are here"
        )
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _read_folder(path: Path) -> Parts:
    parts = [_find_idx(path, stem) for stem in ("train-images", "t10k-images")]
    if parts[0] is not None:
        return read_idx(parts[0]), None if parts[1] is None else read_idx(parts[1])
    pictures = sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGES and p.is_file())
    if not pictures:
        raise DataError(f"{path}: holds no images and no train-images-idx3-ubyte")
    return _read_pictures(pictures), None


def _find_idx(path: Path, stem: str) -> Path | None:
    return next(iter(sorted(path.glob(f"{stem}*idx*ubyte*"))), None)


def _read_pictures(paths: list[Path]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise DataError("a folder of images takes Pillow: pip install pillow") from None
    arrays, first = [], None
    for path in paths:
        try:
            with Image.open(path) as image:
                arrays.append(np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: is not a readable image ({error})") from None
        size = arrays[-1].shape[:2]
        first = first or size
        if size != first:
            raise DataError(f"{path}: is {size[1]}x{size[0]}, {paths[0].name} is {first[1]}x{first[0]}")
    if len({a.ndim for a in arrays}) == 2:  # grey among coloured ones
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    stack = np.stack(arrays)
    return stack if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)


def _load_numpy(path: Path) -> np.ndarray:
    with _numpy_errors(path):
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: is not a .npy file")
        return array


def _read_npz(path: Path) -> Parts:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is not a .npz file, or truncated")
    with _numpy_errors(path), np.load(path, allow_pickle=False) as archive:
        names = archive.files
        train = next((name for name in _TRAIN_KEYS if name in names), None)
        test = next((name for name in _TEST_KEYS if name in names), None)
        if train is None and len(names) == 1:
            train = names[0]
        if train is None:
            keys = ", ".join(names) or "nothing"
            raise DataError(f"{path}: holds {keys}; it takes one array, or train and test")
        return archive[train], None if test is None else archive[test]


@contextmanager
def _numpy_errors(path: Path) -> Iterator[None]:
    """Makes what numpy raises on a bad file a DataError."""
    try:
        yield
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: holds Python objects, it takes numbers") from None
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise DataError(f"{path}: truncated or damaged ({reason})") from None
