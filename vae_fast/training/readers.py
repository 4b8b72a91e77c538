"""Reads arrays of samples from files: IDX, .npy, .npz, folders of images. What it cannot read is a DataError."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import idx, images, stored
from .errors import DataError, reason
from .parts import Parts, held_out_parts, listed, part_of, visible_files
from .stored import StoredArray

# What remains of an array's name without its part: x_train, test_images, data, y_test, ...
_SAMPLES = {"x", "data", "set", "image", "images", "img", "imgs", "inputs", "features", "samples"}
LABELS = {"y", "label", "labels", "target", "targets", "class", "classes"}


def read(path: Path, is_stored: bool = False) -> Parts:
    """The parts: arrays or, if `is_stored`, what reads pieces of them from their files. Raises NotStreamableError where
    that cannot be."""
    if path.is_dir():
        return _read_folder(path, is_stored)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path, is_stored)
    if suffix == ".npy":
        return Parts(_stored_numpy(path) if is_stored else _load_numpy(path))
    if "idx" in path.name.lower() or suffix == ".gz":
        return idx.read_file(path, is_stored)
    raise DataError(
        f"{path}: is not IDX (its name holds idx), .npy, .npz, .h5ad, .mtx, .csv, .tsv, .parquet, .txt or a folder"
    )


def _read_folder(folder: Path, is_stored: bool) -> Parts:
    files = visible_files(folder)
    parts = idx.read_folder(folder, files, is_stored) or images.read_folder(folder, files, is_stored)
    if parts is None:
        found = f" ({listed(path.name for path in files)})" if files else ""
        raise DataError(f"{folder}: holds no images and no train-images-idx3-ubyte{found}")
    return parts


def _load_numpy(path: Path) -> np.ndarray:
    with numpy_errors(path):
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: is not a .npy file")
        return array


def _stored_numpy(path: Path) -> StoredArray:
    with numpy_errors(path):
        return stored.npy(path)


def _read_npz(path: Path, is_stored: bool) -> Parts:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is not a .npz file, or truncated")
    with numpy_errors(path), np.load(path, allow_pickle=False) as archive:
        names = archive.files
        train, held_out = _choose(names)
        if train is None:
            raise DataError(
                f"{path}: expected one array, or train and test, but got {', '.join(names) or 'nothing'}"
            )
        chosen = held_out_parts(held_out)
        notes: tuple[str, ...] = ()
        if not chosen and part_of(train)[0] in ("test", "valid"):
            notes += (f"{train} is the only part, and is split",)
        if list(held_out) == ["valid"]:
            notes += (f"{held_out['valid']} is the test part",)
        unused = [name for name in names if name not in (train, *chosen.values())]
        if unused:
            notes += (f"not trained on: {listed(unused, most=9)}",)
        load: Any = archive.__getitem__
        if is_stored:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.zip.infolist()}
            load = lambda name: stored.npz_member(path, entries[name])  # noqa: E731
        return Parts(load(train), notes=notes, **{part: load(name) for part, name in chosen.items()})


def labels_of(names: list[str]) -> dict[str, str]:
    """The arrays of an .npz with the labels of the parts that `_read_npz` makes of it: those named after the same part
    as the samples ("test": y_val where x_val is the test part), or else the only one beside the only samples."""
    train, held_out = _choose(names)
    if train is None:
        return {}
    samples = {"train": train, **held_out_parts(held_out)}
    labels = {part_of(name)[0]: name for name in names if part_of(name)[1] in LABELS}
    found = {part: labels[own] for part, name in samples.items() if (own := part_of(name)[0]) in labels}
    return found or ({"train": next(iter(labels.values()))} if len(samples) == len(labels) == 1 else {})


def _choose(names: list[str]) -> tuple[str | None, dict[str, str]]:
    """The names of the arrays with the train part and the held-out ones; None where they do not tell."""
    parts: dict[str, list[str]] = {"train": [], "test": [], "valid": [], "": []}
    for name in names:
        part, rest = part_of(name)
        if rest in _SAMPLES or (part and not rest):
            parts[part].append(name)
    train = parts["train"] or parts[""]
    held_out = {part: parts[part] for part in ("test", "valid") if parts[part]}
    if not train:  # a single array is one of samples, whatever its name and its part
        train, held_out = [n for n in names if len(names) == 1 or part_of(n)[1] not in LABELS], {}
    if len(train) != 1 or any(len(found) > 1 for found in held_out.values()):
        return None, {}
    return train[0], {part: found[0] for part, found in held_out.items()}


@contextmanager
def numpy_errors(path: Path) -> Iterator[None]:
    """Makes what numpy raises on a bad file a DataError."""
    try:
        yield
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: expected numbers, but got Python objects") from None
        raise DataError(f"{path}: truncated or damaged ({reason(error, 'not as NumPy writes it')})") from None
