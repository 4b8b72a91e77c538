"""Labels of a data set's samples, for what is done with a trained model: they do not train it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from . import data, idx, matrices, readers, tables
from .data import Dataset
from .errors import DataError
from .parts import part_of

NO_LABELS = (
    "has no labels of its {part} part that are known, one for each sample: give --labels, a file with them"
)


def find(
    dataset: Dataset, source: str, part: str = "test", file: Path | str | None = None
) -> np.ndarray | None:
    """A label, as text, for each sample of the part, "train", "test", "valid" or "all"; None where none are known.
    Raises DataError.

    Args:
        source: what `dataset` was loaded from: digits have labels, MNIST's files have them beside, .npz may hold them.
        file: .npy, .npz, IDX or text with one on a line; of the part's samples, or of all that were split in parts. For
            an .h5ad also a column of its obs, for a table one of its columns.
    """
    n, total = dataset.count(part), dataset.count("all")
    if file is not None:
        column = None if source == data.DIGITS or Path(file).is_file() else _column(Path(source), str(file))
        if column is not None:
            return _part(dataset, column, part)
        labels = read(Path(file))
        if len(labels) == total != n:
            return _part(dataset, labels, part)
        if len(labels) != n:
            those = f"{n} labels, those of the {part} part, or " if n != total else ""
            raise DataError(
                f"{file}: expected {those}{total} labels, those of all samples, but got {len(labels)}"
            )
        return labels
    if part == "all":
        parts = [found for each in dataset.parts if (found := find(dataset, source, each)) is not None]
        return np.concatenate(parts)[dataset.order] if len(parts) == len(dataset.parts) else None
    if dataset.conditions:
        numbers = dataset.labels_of_condition(part)
        return None if numbers is None else np.array(dataset.conditions)[numbers.cpu().numpy()]
    if dataset.labels:
        return dataset.labels.get(part)
    labels_or_none = _beside(dataset, source, part)
    return labels_or_none if labels_or_none is not None and labels_or_none.shape == (n,) else None


def _column(source: Path, name: str) -> np.ndarray | None:
    """The column that a table or the obs of an .h5ad has by this name; None of other sources."""
    if tables.is_table(source):
        return tables.labels_of(source, name)
    matrix = matrices.find(source)
    if matrix is None or matrix.suffix.lower() != ".h5ad":
        return None
    return matrices.labels_of(matrix, name)


def are_of_test_alone(dataset: Dataset, file: Path | str | None) -> bool:
    return file is not None and Path(file).is_file() and len(read(Path(file))) == len(dataset.test)


def _part(dataset: Dataset, labels: np.ndarray, part: str) -> np.ndarray:
    """Of the labels of all samples, as they stand in the file, those of the part."""
    if part == "all":
        return labels
    if dataset.rows is not None:
        return labels[dataset.rows[part == "test"]] if len(labels) == dataset.count("all") else labels
    stops = np.cumsum([len(samples) for samples in dataset.parts.values()])
    return dict(zip(dataset.parts, np.split(labels, stops[:-1]), strict=True))[part]


def _beside(dataset: Dataset, source: str, part: str) -> np.ndarray | None:
    """The labels that come with the source."""
    if source == data.DIGITS:
        from sklearn.datasets import load_digits

        return _part(dataset, load_digits().target.astype(str), part)
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return _in_npz(dataset, path, part)
    files = [path, *path.parent.iterdir()] if path.is_file() else [*path.rglob("*")] if path.is_dir() else []
    files = sorted(file for file in files if re.search("label.*idx1", file.name.lower()) and file.is_file())
    if dataset.rows is not None:  # of one file, with the labels of the same name
        own = part_of(path.name)[0] if path.is_file() else None
        total = dataset.count("all")
        for file in files:
            if own in (None, part_of(file.name)[0]) and len(found := _text(idx.read(file))) == total:
                return _part(dataset, found, part)
        return None
    of_part = [file for file in files if part_of(file.name)[0] == part]
    return _text(idx.read(of_part[0])) if of_part else None


def _in_npz(dataset: Dataset, path: Path, part: str) -> np.ndarray | None:
    """y_train and y_test, or those of the samples that are split; or y of all samples."""
    with readers.numpy_errors(path), np.load(path, allow_pickle=False) as archive:
        found = readers.labels_of(archive.files)
        name = found.get(part if dataset.rows is None else "train")
        if name is not None:
            labels = _text(archive[name])
            return labels if dataset.rows is None else _part(dataset, labels, part)
        whole = next(
            (n for n in archive.files if part_of(n) in {("", word) for word in readers.LABELS}), None
        )
        return None if whole is None else _part(dataset, _text(archive[whole]), part)


def read(file: Path) -> np.ndarray:
    """The labels in a file, as text. Raises DataError."""
    name = file.name.lower()
    try:
        if name.endswith((".npy", ".npz")):
            with readers.numpy_errors(file):
                loaded = np.load(file, allow_pickle=False)
                array = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
        elif "idx" in name:
            array = idx.read(file)
        else:
            array = np.array(file.read_text(encoding="utf-8").split("\n"))
            array = array[:-1] if len(array) and not array[-1] else array
    except UnicodeDecodeError:
        raise DataError(f"{file}: is no text, .npy, .npz or IDX") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise DataError(f"{file}: expected one label for each sample, but got shape {array.shape}")
    return _text(array)


def _text(array: np.ndarray) -> np.ndarray:
    """Labels as text: whole numbers without a point, a column of them as a row."""
    array = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if array.dtype.kind == "f" and (array == array.round()).all():
        array = array.astype(np.int64)
    return np.char.strip(array.astype(str))
