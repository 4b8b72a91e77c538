"""Reads matrices that stay sparse: .h5ad, SciPy's .npz, Matrix Market files as 10x Genomics writes them."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import stored
from .csr import Csr
from .errors import DataError, reason
from .parts import listed
from .stored import NotStreamableError, StoredArray


@dataclass(frozen=True)
class Matrix:
    x: Csr | np.ndarray | StoredArray  # an array where the file has a dense one
    labels: np.ndarray | None = None  # of the samples: numbers of `names`
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find(path: Path) -> Path | None:
    """The file of a matrix that `path` is or, if a folder of 10x Genomics, holds. None: it is something else."""
    if path.is_dir():
        return next(
            (file for name in ("matrix.mtx", "matrix.mtx.gz") if (file := path / name).exists()), None
        )
    is_matrix = path.suffix.lower() == ".h5ad" or _is_mtx(path) or _is_scipy(path)
    return path if is_matrix else None


def read(path: Path, batch_key: str | None, in_memory: bool) -> Matrix:
    """Raises DataError. Not `in_memory`: what cannot be mapped is a file's array, which is read when it is sliced."""
    with _errors_of(path):
        if path.suffix.lower() == ".h5ad":
            return _read_h5ad(path, batch_key, in_memory)
        if _is_mtx(path):
            return _read_mtx(path)
        return _read_npz(path)


def sort(csr: Csr) -> Csr:
    """In memory, with the columns of every row in order and each once."""
    matrix = _scipy(f"{csr.features} columns that are not in order").sparse.csr_matrix(
        (np.array(csr.values), np.array(csr.indices), csr.indptr), shape=(len(csr), csr.features)
    )
    matrix.sum_duplicates()
    return _csr_of(matrix)


def _read_h5ad(path: Path, batch_key: str | None, in_memory: bool) -> Matrix:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: .h5ad takes h5py: pip install h5py") from None
    file = h5py.File(path, "r")
    x = file.get("X")
    if x is None:
        raise DataError(f"{path}: holds no X")
    labels, names = (None, ()) if batch_key is None else _column(path, file, batch_key)
    if not isinstance(x, h5py.Group):
        return Matrix(x[:] if in_memory else _stored(path, x), labels, names)
    kind = _text(x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "")))
    rows, features = x.attrs["shape"] if "shape" in x.attrs else x.attrs["h5sparse_shape"]
    notes: tuple[str, ...] = ()
    if kind.startswith("csr"):
        indices, values = (_array(path, x[name], in_memory) for name in ("indices", "data"))
        csr = Csr(x["indptr"][:], indices, values, int(features))
    elif kind.startswith("csc"):
        parts = (x["data"][:], x["indices"][:], x["indptr"][:])
        csr = _csr_of(_scipy(path).sparse.csc_matrix(parts, shape=(rows, features)).tocsr())
        notes = ("X, by columns in the file, was turned into rows in memory",)
    else:
        raise DataError(
            f"{path}: expected X to be a csr_matrix, a csc_matrix or an array, but got {kind or 'a group'}"
        )
    if len(csr) != rows:
        raise DataError(f"{path}: X has {len(csr)} rows, its shape says {rows}")
    return Matrix(csr, labels, names, notes)


def _array(path: Path, dataset: Any, in_memory: bool) -> Any:
    """The file's pages where it has the numbers as they are; else the array, or the dataset that reads parts."""
    offset = dataset.id.get_offset()  # None: in chunks, or compressed
    if offset is not None and len(dataset):
        return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    return dataset[:] if in_memory else dataset


def _stored(path: Path, dataset: Any) -> StoredArray:
    offset = dataset.id.get_offset()
    if offset is None or dataset.ndim < 2:
        raise NotStreamableError(f"{path}: X is dense, and in chunks or compressed")
    return StoredArray(path, offset, dataset.dtype, dataset.shape)


def size(path: Path) -> int:
    """The bytes that stay in memory or are mapped, of a file of which they can be streamed; else 0."""
    with _errors_of(path):
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                entries = [archive.getinfo(name) for name in ("indices.npy", "data.npy")]
            return sum(e.file_size for e in entries if e.compress_type == zipfile.ZIP_STORED)
        if path.suffix.lower() != ".h5ad":
            return 0
        import h5py

        with h5py.File(path, "r") as file:
            x = file["X"]
            arrays = [x["indices"], x["data"]] if isinstance(x, h5py.Group) else [x]
            return sum(array.nbytes for array in arrays)


def labels_of(path: Path, key: str) -> np.ndarray:
    """A column of an .h5ad's obs, as text. Raises DataError."""
    import h5py

    with h5py.File(path, "r") as file:
        codes, names = _column(path, file, key, "--labels")
    return np.array(names)[codes]


def feature_names(path: Path) -> list[str]:
    """What an .h5ad's var calls its features, the genes; none where it does not, or of another file."""
    if path.suffix.lower() != ".h5ad":
        return []
    import h5py

    with h5py.File(path, "r") as file:
        var = file.get("var")
        index = var.get(var.attrs.get("_index", "_index")) if isinstance(var, h5py.Group) else None
        return [] if not isinstance(index, h5py.Dataset) else list(map(_text, index[:]))


def _column(
    path: Path, file: Any, key: str, option: str = "--batch-key"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column of obs, as AnnData writes it: numbers of categories, or the values themselves."""
    obs = file.get("obs", {})
    names = [name for name in obs if not name.startswith("_")]
    if key not in names:
        raise DataError(
            f"{path}: expected {option} to be a column of obs ({listed(names, 9)}), but got {key}"
        )
    column = obs[key]
    if hasattr(column, "keys"):  # a group
        if "codes" not in column:
            raise DataError(f"{path}: expected obs/{key} to be a category, text or numbers")
        codes, categories = column["codes"][:], column["categories"][:]
    elif key in obs.get("__categories", {}):  # of AnnData before 0.8
        codes, categories = column[:], obs["__categories"][key][:]
    else:
        categories, codes = np.unique(column[:], return_inverse=True)
    if len(codes) == 0 or codes.min() < 0 or codes.max() >= len(categories):
        raise DataError(f"{path}: expected obs/{key} to have a value for every sample")
    return codes.astype(np.int64), tuple(map(_text, categories))


def _read_npz(path: Path) -> Matrix:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    with np.load(path, allow_pickle=False) as arrays:
        kind, shape = _text(arrays["format"].item()), arrays["shape"]
        if kind == "csr":
            indices, values = (_mapped(path, entries[name]) for name in ("indices", "data"))
            return Matrix(Csr(arrays["indptr"], indices, values, int(shape[1])))
    return Matrix(_csr_of(_scipy(path).sparse.load_npz(path).tocsr()))


def _mapped(path: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """An array of an .npz: the file's pages where it is not compressed, else in memory."""
    if entry.compress_type == zipfile.ZIP_STORED:
        array = stored.npz_member(path, entry)
        return array.mapped() if array.nbytes else np.empty(array.shape, array.dtype)
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[entry.filename]


def _read_mtx(path: Path) -> Matrix:
    """10x Genomics' files have features in rows and samples in columns; barcodes.tsv beside it has the samples."""
    matrix = _scipy(path).io.mmread(path)
    if isinstance(matrix, np.ndarray):
        return Matrix(matrix)
    barcodes = next(
        (f for n in ("barcodes.tsv", "barcodes.tsv.gz") if (f := path.with_name(n)).exists()), None
    )
    if barcodes is None:
        return Matrix(
            _csr_of(matrix.tocsr()), notes=("rows are samples: no barcodes.tsv beside it says otherwise",)
        )
    with gzip.open(barcodes) if barcodes.suffix == ".gz" else barcodes.open("rb") as lines:
        n = sum(1 for _ in lines)
    if n != matrix.shape[1]:
        raise DataError(f"{path}: has {matrix.shape[1]} columns, {barcodes.name} {n} lines")
    return Matrix(_csr_of(matrix.T.tocsr()))


def _csr_of(matrix: Any) -> Csr:
    return Csr(matrix.indptr, matrix.indices, matrix.data, matrix.shape[1])


def _is_mtx(path: Path) -> bool:
    return path.name.lower().endswith((".mtx", ".mtx.gz"))


def _is_scipy(path: Path) -> bool:
    """Whether it is an .npz of scipy.sparse.save_npz."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"format.npy", "shape.npy", "data.npy"} <= set(archive.namelist())


def _scipy(path: Path | str) -> Any:
    try:
        import scipy.io
        import scipy.sparse
    except ImportError:
        raise DataError(f"{path}: takes SciPy: pip install scipy") from None
    return scipy


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_OTHER = "not as its format has it"


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except OSError as error:
        if error.strerror:
            raise
        raise DataError(f"{path}: truncated or damaged ({reason(error, _OTHER)})") from None
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: truncated or damaged ({reason(error, _OTHER)})") from None
