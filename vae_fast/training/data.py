"""Data sets: arrays of samples in their own dtype (uint8 stays uint8, meaning 255ths), in memory or read by chunks.

`load` takes "digits" (in scikit-learn), an IDX file (.gz too) or a folder of MNIST's four, .npy, .npz, a folder of
images or of sounds (.wav), a table (.csv, .tsv, .parquet), lines of text (.txt, or a folder of train.txt and test.txt),
or a sparse matrix: .h5ad, SciPy's .npz, .mtx (.gz too) or the folder of one.
Batches are gathered by index in one go: no workers, no copies of single samples. A matrix stays sparse: its batches are
torch.sparse_csr tensors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..rng import binarize
from . import matrices, memory, readers, tables, text, values
from . import sound as sounds
from .csr import ChunkedCsr, Csr, SparseSamples, UnsortedError, take
from .errors import DataError
from .images import StoredImages
from .parts import FolderParts, Parts, listed
from .stored import StoredArray
from .stream import HostSamples, RowReader, StoredRows, StreamedSamples
from .values import Facts

DIGITS = "digits"  # the set that needs no download
TEST_FRACTION, MOST_TEST = 5, 10_000  # a set without a test part gives a fifth, but no more than this
_FAR = 50.0  # the largest value that plain networks still learn well from: at 1000 the first loss is NaN
SPLIT_SEED = 0  # the split belongs to the data: the same whatever the run's seed


Samples = Tensor | SparseSamples | StreamedSamples | HostSamples
Rows = tuple[np.ndarray, np.ndarray]  # of the training and of the test part
Split = Callable[[int], Rows]


@dataclass(frozen=True)
class Dataset:
    name: str
    train: Samples  # (n, *shape): uint8 (255ths), bool or float32
    test: Samples
    notes: tuple[str, ...] = ()  # what was dropped, changed or not used; what flat samples could be
    train_labels: Tensor | None = None  # (n,): of the condition
    test_labels: Tensor | None = None
    conditions: tuple[str, ...] = ()  # the labels' names
    columns: tuple[tables.Column, ...] = ()  # of a table: float32, NaN where an entry is missing
    valid: Tensor | None = None  # where the source has a validation part beside its test part
    valid_labels: Tensor | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)  # by part: they train nothing
    rows: Rows | None = None  # of a set that was split: each part's in the file
    vocabulary: text.Vocabulary | None = None  # of lines of text: class numbers, text.PADDING after the end
    sound: sounds.Sound | None = None  # of which the samples are spectrograms

    @classmethod
    def of(
        cls,
        train: Tensor,
        test: Tensor,
        valid: Tensor | None = None,
        *,
        name: str = "data",
        train_labels: Tensor | None = None,
        test_labels: Tensor | None = None,
        valid_labels: Tensor | None = None,
    ) -> Dataset:
        """Of tensors (samples, ...), as `nn.VAE` takes them; labels are its condition. Raises DataError."""
        parts = {"train": (train, train_labels), "test": (test, test_labels), "valid": (valid, valid_labels)}
        for part, (x, labels) in parts.items():
            if x is None and part == "valid" and labels is None:
                continue
            if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
                raise DataError(
                    f"{name}: expected the {part} part to be a tensor (samples, ...), but got {_kind(x)}"
                )
            if (x.dtype, x.shape[1:]) != (train.dtype, train.shape[1:]):
                raise DataError(
                    f"{name}: expected {part} samples to be {_kind(train[0])} like train samples, "
                    f"but got {_kind(x[0])}"
                )
            if (labels is None) != (train_labels is None) or (labels is not None and len(labels) != len(x)):
                raise DataError(
                    f"{name}: expected labels for each of the {len(x):,} samples of the {part} part, or for no part"
                )
        return cls(name, train, test, (), train_labels, test_labels, valid=valid, valid_labels=valid_labels)

    def part(self, name: str) -> Samples:
        """Of the name train, test, valid or all. Raises DataError where there is no such part.

        All are in the order of the file, or train, test, valid where these are files of their own.
        """
        if name == "all":
            return self._all()
        part: Samples | None = getattr(self, name)
        if part is None:
            raise DataError(f"{self.name}: has no {name} part")
        return part

    def _all(self) -> Samples:
        if isinstance(self.train, SparseSamples):  # one matrix, whose rows the parts are
            return replace(self.train, numbers=np.arange(self.count("all")))
        if isinstance(self.train, StreamedSamples):
            if self.rows is None:
                raise DataError(f"{self.name}: the parts are read from files of their own: take one of them")
            return self.train.whole()
        kinds = {part.dtype for part in self.dense_parts}
        if len(kinds) > 1:
            raise DataError(f"{self.name}: the parts are of {listed(map(str, kinds))}: take one of them")
        parts = self.dense_parts
        x = torch.cat(parts)[torch.from_numpy(self.order).to(parts[0].device)]
        return replace(self.train, x=x) if isinstance(self.train, HostSamples) else x

    @property
    def order(self) -> np.ndarray:
        """For each of all samples, as they stand in the file, its place in the parts one after the other."""
        return np.arange(self.count("all")) if self.rows is None else np.argsort(np.concatenate(self.rows))

    def numbers(self, part: str) -> np.ndarray:
        """The numbers in the file of a part's samples, "all" too, of a set that was split."""
        assert self.rows is not None
        return np.arange(self.count("all")) if part == "all" else self.rows[part == "test"]

    def count(self, part: str) -> int:
        """The number of samples of "train", "test", "valid" or "all"."""
        return sum(map(len, self.parts.values())) if part == "all" else len(self.part(part))

    def shown(self, n: int, part: str = "test") -> slice:
        """The first n samples of the part; of class folders, which come one after the other, some of each."""
        step = max(1, self.count(part) // n) if self.labels else 1
        return slice(0, n * step, step)

    def labels_of_condition(self, part: str) -> Tensor | None:
        """(n,) of a part's samples, "all" too; None where there is no condition."""
        if self.train_labels is None:
            return None
        labels = {name: getattr(self, f"{name}_labels") for name in self.parts}
        if part != "all":
            return labels[part]
        return torch.cat(list(labels.values()))[torch.from_numpy(self.order).to(self.train_labels.device)]

    @property
    def parts(self) -> dict[str, Samples]:
        """Those that there are, by their names."""
        parts = {"train": self.train, "test": self.test, "valid": self.valid}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def is_sparse(self) -> bool:
        return isinstance(self.train, SparseSamples)

    @property
    def is_streamed(self) -> bool:
        source = self.train.csr if isinstance(self.train, SparseSamples) else self.train
        return isinstance(source, (ChunkedCsr, StreamedSamples))

    @property
    def dense_parts(self) -> list[Any]:
        """Train, test and, where there is one, valid; none where they are sparse. Tensors, or StreamedSamples, of
        which a slice is one."""
        return list(self.dense.values())

    @property
    def dense(self) -> dict[str, Any]:
        """`dense_parts` by their names."""
        dense = {name: p.x if isinstance(p, HostSamples) else p for name, p in self.parts.items()}
        return {name: p for name, p in dense.items() if isinstance(p, (Tensor, StreamedSamples))}

    @property
    def shape(self) -> tuple[int, ...]:
        """A sample's shape: (features,), (height, width) or (channels, height, width)."""
        return tuple(self.train.shape[1:])

    def reshaped(self, shape: tuple[int, ...]) -> Dataset:
        """Flat samples as images, images as flat ones or with a channel. Raises DataError.

        Flat uint8 of an eighth of the size are read as packed bits. Images are not read as ones of other sides: their
        rows would be cut.
        """
        if self.columns:
            raise DataError(f"{self.name}: the rows of a table cannot be read as {shape}")
        if self.vocabulary or self.sound:
            what = "lines of text" if self.vocabulary else f"spectrograms of {self.shape}"
            raise DataError(f"{self.name}: {what} cannot be read as {shape}")
        if self.is_sparse:
            raise DataError(f"{self.name}: sparse samples of {self.shape} cannot be read as {shape}")
        size, width = math.prod(shape), math.prod(self.shape)
        longer = [tuple(n for n in sizes if n > 1) for sizes in (self.shape, shape)]
        is_same_order = longer[0] == longer[1] or min(map(len, longer)) <= 1
        parts = self.dense
        is_flat_uint8 = len(self.shape) == 1 and all(part.dtype == torch.uint8 for part in parts.values())
        is_packed = is_flat_uint8 and size != width == math.ceil(size / 8)
        if not is_packed and not (size == width and is_same_order):
            raise DataError(f"{self.name}: samples have shape {self.shape}, which cannot be read as {shape}")
        notes = [n for n in self.notes if n != _hint(parts["train"])]
        if is_packed:
            parts = {name: _unpacked(self.name, part, size) for name, part in parts.items()}
            notes.append(f"{width} bytes a sample are read as {size} packed bits")
        shaped = {name: part.reshape(-1, *shape) for name, part in parts.items()}
        return self.with_parts(shaped, notes)

    def with_parts(self, parts: Mapping[str, Any], notes: Iterable[str]) -> Dataset:
        return replace(self, **parts, notes=tuple(notes))

    def binarized(self, seed: int) -> Dataset:
        """With every grey value drawn as 0 or 1, the same whenever the seed is. Raises DataError."""
        if self.is_streamed:
            raise DataError(
                f"{self.name}: --binarize static draws the whole set, which is streamed: give dynamic"
            )
        if not self.dense or self.columns or self.vocabulary or self.sound:
            raise DataError(f"{self.name}: expected images for --binarize static")
        lo, hi = self.limits()
        if not 0 <= lo <= hi <= 1:
            raise DataError(
                f"{self.name}: expected values from 0 to 1 (uint8: 255ths) for --binarize static, "
                f"but got values from {_shown(lo)} to {_shown(hi)}"
            )
        drawn = {
            name: part if part.dtype == torch.bool else binarize(part, torch.tensor([seed, number])).bool()
            for number, (name, part) in enumerate(self.dense.items())
        }
        return self.with_parts(drawn, (*self.notes, "grey values were drawn once as 0 or 1, by the seed"))

    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value, uint8 as 255ths."""
        ends = [values.limits(part) for part in self.dense_parts or [self.train]]
        return min(lo for lo, _ in ends), max(hi for _, hi in ends)

    def is_between_levels(self) -> bool:
        """Whether it has values that are no 255ths, by more than float16 rounds them."""
        return any(map(values.is_between_levels, self.dense_parts))

    def has_fractions(self) -> bool:
        return any(map(values.has_fractions, self.dense_parts or [self.train]))

    def test_part(self, part: slice) -> dict[str, Any]:
        """x and, where there is one, the condition of these test samples: a model's arguments."""
        return self.samples("test", part)

    def samples(self, name: str, part: slice) -> dict[str, Any]:
        """The same of the part "train", "test" or "valid"."""
        x, labels = getattr(self, name), getattr(self, f"{name}_labels")
        return {"x": x[part]} | ({} if labels is None else {"condition": labels[part]})

    def to(self, device: torch.device) -> Dataset:
        """On the device, where dense samples fit there; else batches are sent to it."""
        size = sum(part.nbytes for part in self.dense_parts if isinstance(part, Tensor))
        is_resident = memory.fits_on(device, size)

        def move(name: str, part: Any) -> Any:
            if isinstance(part, Tensor) and name in self.parts and not is_resident:
                return HostSamples(device, part)
            return part.to(device)

        names = ("train", "test", "valid", "train_labels", "test_labels", "valid_labels")
        parts = {name: move(name, part) for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **parts)


def _kind(x: Any) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def select(x: Samples, indices: Tensor) -> Tensor:
    """Samples by number, on their device. Those that do not lie there are found by numbers on the host: numbers that
    came back from the device would have waited for all that it does."""
    return x.index_select(0, indices.to(x.device) if isinstance(x, Tensor) else indices)


def resolve(source: str) -> str:
    """A source that means the same from every folder."""
    return source if source == DIGITS else str(Path(source).expanduser().resolve())


def name_of(source: str) -> str:
    return Path(source).name.split(".")[0] or "data"


def load(
    source: str,
    batch_key: str | None = None,
    stream: bool | None = None,
    columns: Sequence[str] = (),
    known: Sequence[tables.Column] = (),
    *,
    split_seed: int = SPLIT_SEED,
    max_length: int | None = None,
    vocabulary: text.Vocabulary | None = None,
    sample_rate: int | None = None,
    seconds: float | None = None,
    like: sounds.Sound | None = None,
) -> Dataset:
    """The data set `source` names, split in train and test. Raises DataError.

    Args:
        batch_key: the column of an .h5ad's obs that has the labels of the condition.
        stream: read the samples by chunks, ahead of training and in the background, instead of keeping them in memory.
            An epoch shuffles the chunks, and the samples of 64 chunks at a time. None: where loading would not fit.
        columns: "NAME:KIND" for each column of a table whose kind is not to be found out: see docs/training.md.
        known: the columns of a model that was trained on a table, as which this one is read.
        split_seed: which samples are held out, where the source has no test part.
        max_length: characters of a line of text that are read; by default 256.
        vocabulary: of a model that was trained on text, as which this one is read.
        sample_rate, seconds: of the clips of sounds; by default those of the files, 5 seconds at most.
        like: what the spectrograms of a model that was trained on sounds are, as which these are made.
    """
    path = Path(source).expanduser()
    matrix = None if source == DIGITS or not path.exists() else matrices.find(path)
    if batch_key is not None and (matrix is None or matrix.suffix.lower() != ".h5ad"):
        raise DataError(f"{source}: --batch-key is a column of an .h5ad's obs")
    is_table = source != DIGITS and tables.is_table(path)
    if (columns or known) and not is_table:
        expected = "no columns for what is no table" if columns else "a table, as the model was trained on"
        raise DataError(f"{source}: expected {expected}: {', '.join(tables.SUFFIXES)}")
    if source != DIGITS and not path.exists():
        raise DataError(f"{source}: no such file or folder (the embedded set is: {DIGITS})")
    is_other = source != DIGITS and matrix is None and not is_table
    split = partial(split_rows, source, seed=split_seed)
    try:
        lines, clips = (text.find(path), sounds.find(path)) if is_other else (None, None)
        trained_on = "expected, as the model was trained on,"
        if lines is None and (vocabulary or max_length is not None):
            what = trained_on if vocabulary else "--max-length is of"
            raise DataError(f"{source}: {what} lines of text: .txt")
        if clips is None and (like or sample_rate is not None or seconds is not None):
            what = trained_on if like else "--sample-rate and --seconds are of"
            raise DataError(f"{source}: {what} sounds: a folder of .wav")
        kept = {
            "digits": source == DIGITS,
            "tables": is_table,
            "lines of text": lines is not None,
            "sounds": clips is not None,
        }
        if stream and (kinds := [kind for kind, is_it in kept.items() if is_it]):
            raise DataError(f"{source}: {kinds[0]} are kept in memory: leave --stream out")
        if source == DIGITS:
            dataset = _digits(split)
        elif matrix is not None:
            dataset = _load_matrix(source, matrix, batch_key, stream, split)
        elif is_table:
            dataset = _load_table(source, path, columns, known, split)
        elif lines is not None:
            dataset = _load_text(source, text.read(lines), max_length, vocabulary, split)
        elif clips is not None:
            dataset = _load_sounds(source, clips, sample_rate, seconds, like, split)
        else:
            dataset = _of_parts(source, _stored_parts(path, stream) or readers.read(path), split)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        hint = ": --stream reads it by chunks" if stream is False and not is_table else ""
        raise DataError(f"{source}: does not fit in memory{hint}") from None
    if split_seed and dataset.rows is None:
        note = "the parts are the source's own: --split-seed changes nothing"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _stored_parts(path: Path, stream: bool | None) -> Parts | None:
    """The parts as they lie in their files, where they are streamed: as asked, or where they do not fit in memory."""
    if stream is False:
        return None
    try:
        parts = readers.read(path, is_stored=True)
    except DataError:
        if stream:
            raise
        return None  # it may be loaded; if not, that says why
    if not stream:
        arrays = (parts.train, parts.test, parts.valid)
        needed, free = sum(_bytes_to_load(a) for a in arrays if a is not None), memory.available()
        if needed <= free:
            return None
        note = f"streamed: to load it takes {needed / 1e6:,.0f} MB, of memory {free / 1e6:,.0f} MB are free"
        parts = parts._replace(notes=(*parts.notes, note))
    return parts


def _bytes_to_load(array: StoredArray | StoredImages) -> int:
    """The most that the file's array, the one that training reads, and a copy of it (a split, a check) take."""
    kept = array.dtype.itemsize if array.dtype in (np.uint8, np.bool_) else 4
    return array.nbytes + 2 * math.prod(array.shape) * kept


def _of_parts(source: str, parts: Parts, split: Split) -> Dataset:
    arrays = {"train": parts.train, "test": parts.test, "valid": parts.valid}
    checked = {name: _checked(source, array) for name, array in arrays.items() if array is not None}
    found, notes = {name: array for name, (array, _) in checked.items()}, checked["train"][1]
    labels, rows = parts.labels or {}, None
    if "test" not in found:
        rows = split(len(found["train"]))
        of_part = dict(zip(("train", "test"), rows, strict=True))
        found = {name: _take(found["train"], part) for name, part in of_part.items()}
        labels = {name: labels["train"][part] for name, part in of_part.items()} if labels else {}
    shape = found["train"].shape[1:]
    for name, array in found.items():
        if array.shape[1:] != shape:
            raise DataError(
                f"{source}: expected {name} samples to have shape {shape} like train samples, "
                f"but got {array.shape[1:]}"
            )
    samples: dict[str, Any] = {
        name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in found.items()
    }
    notes_of_all = (*parts.notes, *notes)
    return _explained(Dataset(name_of(source), **samples, notes=notes_of_all, labels=labels, rows=rows))


def _take(samples: Any, rows: np.ndarray) -> Any:
    return samples.of(rows) if isinstance(samples, StreamedSamples) else samples[rows]


def _load_text(
    source: str,
    found: text.Lines,
    max_length: int | None,
    vocabulary: text.Vocabulary | None,
    split: Split,
) -> Dataset:
    parts, rows = found.parts, None
    if "test" not in parts:
        lines = parts["train"]
        rows = split(len(lines))
        parts = {"train": [lines[i] for i in rows[0]], "test": [lines[i] for i in rows[1]]}
    vocabulary = vocabulary or text.describe(parts["train"], max_length)
    encoded: dict[str, Any] = {name: vocabulary.encode(part) for name, part in parts.items()}
    notes = (*found.notes, *text.notes_of(vocabulary, parts))
    return Dataset(name_of(source), **encoded, notes=notes, rows=rows, vocabulary=vocabulary)


def _load_sounds(
    source: str,
    files: FolderParts,
    rate: int | None,
    seconds: float | None,
    like: sounds.Sound | None,
    split: Split,
) -> Dataset:
    if like is not None:
        clips = sounds.read(files.paths, like.rate, like.samples, None)
    else:
        clips = sounds.read(files.paths, rate, None, seconds)
    parts, labels, rows = clips.parts, files.labels or {}, None
    if "test" not in parts:
        rows = split(len(parts["train"]))
        of_part = dict(zip(("train", "test"), rows, strict=True))
        parts = {name: parts["train"][torch.from_numpy(numbers)] for name, numbers in of_part.items()}
        labels = {name: labels["train"][numbers] for name, numbers in of_part.items()} if labels else {}
    like = like or sounds.describe(parts["train"], clips.rate)
    x: dict[str, Any] = {name: like.encode(part) for name, part in parts.items()}
    seen = f"spectrograms of {like.samples / like.rate:.3g} s at {like.rate:,} Hz"
    notes = (seen, *files.notes, *clips.notes)
    return Dataset(name_of(source), **x, notes=notes, labels=labels, rows=rows, sound=like)


def _load_table(
    source: str, path: Path, asked: Sequence[str], known: Sequence[tables.Column], split: Split
) -> Dataset:
    frame, notes = tables.read(path)
    rows = split(len(frame))
    columns, more = (tuple(known), ()) if known else tables.describe(path, frame, rows[0], asked)
    x = torch.from_numpy(tables.encode(path, frame, columns))
    train, test = (x[torch.from_numpy(part)] for part in rows)
    if missing := int(x.isnan().sum()):
        more += (f"{missing:,} entries are missing",)
    return Dataset(name_of(source), train, test, (*notes, *more), columns=columns, rows=rows)


def _load_matrix(
    source: str, path: Path, batch_key: str | None, stream: bool | None, split: Split
) -> Dataset:
    more: tuple[str, ...] = ()
    if stream is None:
        size, free = matrices.size(path), memory.available()
        stream = size > free
        if stream:
            more = (f"streamed: it takes {size / 1e6:,.0f} MB, of memory {free / 1e6:,.0f} MB are free",)
    found = matrices.read(path, batch_key, in_memory=not stream)
    n = len(found.x)
    if found.labels is not None and len(found.labels) != n:
        raise DataError(f"{source}: has {n} samples, and {len(found.labels)} values of {batch_key}")
    rows = split(n)
    parts: list[Samples]
    notes = found.notes + more
    if isinstance(found.x, Csr):
        csr, facts, changes = _checked_csr(source, found.x, stream)
        notes += changes
        kept = [ChunkedCsr(csr), take(ChunkedCsr(csr), rows[1])] if stream else [csr, csr]
        numbers = [rows[0], np.arange(len(rows[1])) if stream else rows[1]]
        parts = [SparseSamples(*part, facts) for part in zip(kept, numbers, strict=True)]
    else:
        array, changes_of_array = _checked(source, found.x)
        notes += tuple(changes_of_array)
        taken = [_take(array, part) for part in rows]
        parts = [torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in taken]
    labels: list[Tensor | None] = [None, None]
    if found.labels is not None:
        labels = [torch.from_numpy(found.labels[part]) for part in rows]
    return Dataset(name_of(source), parts[0], parts[1], notes, labels[0], labels[1], found.names, rows=rows)


def _checked_csr(source: str, csr: Csr, stream: bool) -> tuple[Csr, Facts, tuple[str, ...]]:
    if len(csr) == 0 or csr.features == 0:
        raise DataError(f"{source}: is empty, its shape is {(len(csr), csr.features)}")
    if csr.values.dtype.kind not in "buif":
        raise DataError(f"{source}: expected numbers, but got {csr.values.dtype}")
    try:
        return csr, csr.check(source), ()
    except UnsortedError:
        if stream:
            raise
        csr = matrices.sort(csr)
        return csr, csr.check(source), ("the columns of each row were sorted in memory",)


def check_support(dataset: Dataset, support: str, likelihood: str) -> None:
    """Raises DataError where the data are not what the likelihood is of, warns where they may not be."""
    if dataset.columns:  # each entry has been looked at
        return
    if dataset.is_sparse and support != "counts":
        raise DataError(
            f"{dataset.name}: expected a likelihood of counts, such as negative_binomial, for sparse samples, "
            f"but got {likelihood}"
        )
    lo, hi = dataset.limits()
    name, span = dataset.name, f"values from {_shown(lo)} to {_shown(hi)}"
    if support == "unit" and not 0 <= lo <= hi <= 1:
        ways = [scaling(lo, hi)]
        if lo >= 0 and 127 < hi <= 255 and not dataset.has_fractions():
            ways.append("save them as uint8: x.astype(numpy.uint8)")
        if max(-lo, hi) <= _FAR:
            ways.append("take --likelihood gaussian")
        raise DataError(
            f"{name}: expected values from 0 to 1 (uint8: 255ths) for the {likelihood} likelihood, "
            f"but got {span}; {', or '.join(ways)}"
        )
    if support == "counts" and lo < 0:
        raise DataError(
            f"{name}: expected counts, whole numbers of at least 0, for the {likelihood} likelihood, but got {span}"
        )
    warning = None
    if support == "counts" and dataset.has_fractions():
        warning = f"holds fractions, the {likelihood} likelihood is of counts: whole numbers"
    elif support == "real" and max(-lo, hi) > _FAR:
        warning = f"{span} are far from 0, the loss may become inf or NaN; {scaling(lo, hi)}"
    elif likelihood.startswith("discretized") and dataset.is_between_levels():
        warning = f"holds values between the 256 levels k/255, of which the {likelihood} likelihood is"
    if warning:
        warnings.warn(f"{name}: {warning}", stacklevel=3)


def scaling(lo: float, hi: float) -> str:
    """What brings all values to 0 to 1, as an expression of the array x."""
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return "leave the samples with infinite values out"
    if lo >= -0.01 and hi <= 1.01:
        return "clip them: x.clip(0, 1)"
    if 0 <= lo <= hi / 2:
        full = next((top for top in (255, 65535) if top / 2 < hi <= top), _rounded_up(hi))
        return f"scale them: x / {_shown(full)}"
    start = -_rounded_up(-lo)
    sign = "-" if start > 0 else "+"
    return f"scale them: (x {sign} {_shown(abs(start))}) / {_shown(_rounded_up(hi - start))}"


def _rounded_up(value: float) -> float:
    """To two digits, of 0 to 1."""
    if value == 0:
        return 1.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{math.ceil(value / step) * step:.2g}")


def _shown(value: float) -> str:
    """With all digits of a float32, so that 1.0000001 is not 1."""
    return str(np.float32(value)).removesuffix(".0")


def batches(
    n: int,
    batch_size: int,
    generator: torch.Generator | None,
    pools: Iterable[Tensor] | None = None,
    least: int = 1,
) -> Iterator[Tensor]:
    """The indices of an epoch's batches: shuffled by the generator (None: in order), each sample once.

    A batch larger than the set is filled up with further shuffles of it: the epoch is that one batch. With `pools`,
    groups of indices, they are shuffled within each. A last batch of fewer than `least` joins the one before it.
    """
    if pools is not None:
        return _cut(
            (pool[torch.randperm(len(pool), generator=generator)] for pool in pools), batch_size, least
        )
    if generator is None:
        order = torch.arange(n)
    else:
        rounds = math.ceil(batch_size / n)
        order = torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])
        order = order[: max(n, batch_size)]
    return _cut([order], batch_size, least)


def count_batches(n: int, batch_size: int, least: int = 1) -> int:
    """How many `batches` gives."""
    full, rest = divmod(max(n, batch_size), batch_size)
    return full + (rest > 0 and not (full and rest < least))


def _cut(orders: Iterable[Tensor], batch_size: int, least: int) -> Iterator[Tensor]:
    rest = torch.empty(0, dtype=torch.int64)
    for order in orders:
        rest = torch.cat([rest, order])
        while len(rest) >= 2 * batch_size:  # the last two stay: they may be joined
            yield rest[:batch_size]
            rest = rest[batch_size:]
    yield from [rest] if 0 < len(rest) - batch_size < least else rest.split(batch_size)


def _digits(split: Split) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(f"{DIGITS} come with scikit-learn: pip install scikit-learn") from None
    images = load_digits().images  # 8x8, sixteenths
    x = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8))
    rows = split(len(x))
    train, test = (x[torch.from_numpy(part)] for part in rows)
    return Dataset(DIGITS, train, test, rows=rows)


def split_rows(source: str, n: int, seed: int = SPLIT_SEED) -> Rows:
    """The numbers of the samples to train and to test with."""
    if n < 2:
        raise DataError(f"{source}: expected at least 2 samples (one to train, one to test), but got {n}")
    order = np.random.default_rng(seed).permutation(n)
    held_out = min(max(1, n // TEST_FRACTION), MOST_TEST)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _checked(source: str, array: Any) -> tuple[Any, list[str]]:
    """An array of samples in a dtype that the ops read, once it is found to be one, and what was changed. Of a
    StoredArray or StoredImages their StreamedSamples."""
    if array.ndim < 2:
        raise DataError(
            f"{source}: expected shape (samples, features) or (samples, ...), but got {array.shape}"
        )
    if math.prod(array.shape) == 0:
        raise DataError(f"{source}: is empty, its shape is {array.shape}")
    if array.dtype.kind not in "buif":
        raise DataError(f"{source}: expected numbers, but got {array.dtype}")
    notes = []
    is_channels_last = array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3)
    if is_channels_last:  # as images often are in numpy
        notes.append("the channels, last in the file, are read first")
    if isinstance(array, (StoredArray, StoredImages)):
        array, more = _streamed(source, array, is_channels_last)
        notes += more
        is_rounded = array.facts.is_rounded
    else:
        if is_channels_last:
            array = np.moveaxis(array, -1, 1)
        is_rounded = False
        if array.dtype not in (np.uint8, np.bool_):
            array, is_rounded = values.as_float32(source, array)
        array = np.ascontiguousarray(array)
    if is_rounded:
        notes.append(f"whole numbers above {values.EXACT:,} are rounded to float32")
    return array, notes


def _streamed(
    source: str, array: StoredArray | StoredImages, is_channels_last: bool
) -> tuple[StreamedSamples, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if isinstance(array, StoredImages):
        images, notes = array.rows()
        as_stored = reader = RowReader(images)
    else:
        as_stored = RowReader(StoredRows(array, array.dtype, array.shape))
        n, *sizes = array.shape
        shape = (n, sizes[-1], *sizes[:-1]) if is_channels_last else array.shape
        dtype = array.dtype if array.dtype in (np.uint8, np.bool_) else np.dtype(np.float32)
        reader = RowReader(StoredRows(array, dtype, shape, is_channels_last))
    facts = values.facts_of(source, as_stored.chunks())
    return StreamedSamples(torch.device("cpu"), reader, np.arange(reader.rows.shape[0]), facts), notes


def _unpacked(name: str, part: Any, size: int) -> Any:
    """numpy.packbits undone: `size` bits of each sample's bytes."""
    if isinstance(part, StreamedSamples):
        return part.unpacked(name, size)
    bits = np.unpackbits(part.cpu().numpy(), axis=1)
    if bits[:, size:].any():
        raise DataError(
            f"{name}: {part.shape[1]} bytes are not {size} packed bits, those after them are not 0"
        )
    return torch.from_numpy(np.ascontiguousarray(bits[:, :size]).view(np.bool_))


def _explained(dataset: Dataset) -> Dataset:
    """With uint8 of 0 and 1 alone as bits (as 255ths they would be nearly black), and with what uint8 and flat samples
    are taken for."""
    parts, notes = dataset.dense, dataset.notes
    top = max((values.top(part) for part in parts.values() if part.dtype == torch.uint8), default=None)
    if top is not None and top <= 1:
        parts = {name: part.bool() if part.dtype == torch.uint8 else part for name, part in parts.items()}
    elif top is not None and top < 128:
        notes += (
            f"uint8 values up to {top} are 255ths, or the numbers themselves where the likelihood is of counts",
        )
    if all(part.dtype == torch.bool for part in parts.values()):
        notes += ("the values are bits, 0 and 1",)
    return dataset.with_parts(parts, (*notes, *filter(None, [_hint(parts["train"])])))


def _hint(train: Tensor) -> str:
    """What flat samples are read as, and the option that reads them as what they also could be."""
    width = train.shape[1] if train.ndim == 2 else 0
    for channels, prefix in ((1, ""), (3, "3x")):
        side = math.isqrt(width // channels)
        if side > 3 and channels * side**2 == width:
            size = f"{prefix}{side}x{side}"
            return f"{width} values a sample are read as a signal; --shape {size} reads them as images"
    side = math.isqrt(8 * width)
    if train.dtype == torch.uint8 and side > 3 and side**2 == 8 * width:
        return f"{width} bytes a sample are read as numbers; --shape {side}x{side} reads them as packed bits"
    return ""
