"""Tables of mixed columns: CSV and Parquet, read by pandas (the extra `tables`), and rows written back as CSV.

Each column has a kind: the likelihood of its entries, "constant" (one value, written back as it is) or "skip". In x the
columns stand by kind, in a file in the table's own order. NaN is a missing entry.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .parts import listed

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
WRITTEN = (".csv", ".tsv", ".parquet")
SKIP, CONSTANT = "skip", "constant"
# The groups of x, in this order, with their likelihoods' options.
_OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {"variance": "feature"},
    "laplace": {"scale": "feature"},
    "bernoulli": {},
    "categorical": {},
    "poisson": {},
    "negative_binomial": {},
    "zero_inflated_negative_binomial": {},
}
KINDS = (*_OPTIONS, SKIP)  # what a user may ask for
_STANDARDIZED, _CHOICES = ("gaussian", "laplace"), ("bernoulli", "categorical")
NUMBERS = tuple(kind for kind in _OPTIONS if kind not in _CHOICES)
_WORDS = {
    "gaussian": "numbers",
    "laplace": "numbers (laplace)",
    "bernoulli": "of two values",
    "categorical": "categories",
    CONSTANT: "of one value",
}
_FEW = 20  # categories that are taken as such however few the rows
_MOST = 1000  # categories, unless the user asks for more
_TYPOS = 0.1  # of a column's entries that are no numbers: more of them make it one of categories


@dataclass(frozen=True)
class Column:
    name: str
    kind: str
    values: tuple[str, ...] = ()  # what the numbers 0, 1, ... of a choice stand for; a constant's value
    mean: float = 0.0  # of the training part; x is (entry - mean) / deviation
    deviation: float = 1.0
    is_whole: bool = False  # all entries are whole numbers, and so are those that are written

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Column:
        """The column that `to_dict` describes. Raises TypeError, ValueError."""
        column = cls(**{**values, "values": tuple(values.get("values", ()))})
        if column.kind not in (*_OPTIONS, CONSTANT):
            raise ValueError(f"expected kind to be one of {', '.join(_OPTIONS)}, but got {column.kind!r}")
        return column

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "values": list(self.values)}


def is_table(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def order(columns: Sequence[Column]) -> list[Column]:
    """The columns of x."""
    return sorted((column for column in columns if column.kind != CONSTANT), key=_place)


def groups(columns: Sequence[Column]) -> list[tuple[str, int, dict[str, Any]]]:
    """The groups of `nn.MixedColumns` for x."""
    found = []
    for (kind, classes), members in groupby(order(columns), key=_group):
        options = {"classes": classes} if kind == "categorical" else _OPTIONS[kind]
        found.append((kind, len(list(members)), dict(options)))
    return found


def read(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The table as a pandas.DataFrame without its index, and notes. Raises DataError."""
    try:
        import pandas as pd
    except ImportError:
        raise DataError(f"{path}: tables take pandas: pip install 'vae_fast[tables]'") from None
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep=separator(path), low_memory=False, encoding="utf-8-sig")
    except ImportError:
        raise DataError(f"{path}: .parquet takes pyarrow: pip install 'vae_fast[tables]'") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8: save it as that") from None
    except OSError as error:
        if error.strerror:
            raise
        raise _damaged(path, error) from None
    except (ValueError, EOFError) as error:  # pandas' and pyarrow's own are ValueErrors
        raise _damaged(path, error) from None
    frame.columns = frame.columns.map(str)
    is_text = path.suffix.lower() != ".parquet"
    if is_text and not frame.index.equals(pd.RangeIndex(len(frame))):
        raise DataError(f"{path}: row 1: has more entries than the header has columns")
    if is_text and len(frame.columns) == 1 and ";" in frame.columns[0]:
        raise DataError(f"{path}: expected a comma between the entries, but got ';'")
    if twice := frame.columns[frame.columns.duplicated()].tolist():
        raise DataError(f"{path}: has two columns {twice[0]}")
    return _without_numbering(frame) if is_text and len(frame.columns) else (frame, ())


def cells(path: Path) -> np.ndarray:
    """A text file that `read` has read as the texts of its cells, (1 + rows, columns) of str, the header first."""
    import pandas as pd

    options: dict[str, Any] = {"header": None, "dtype": str, "na_filter": False, "encoding": "utf-8-sig"}
    found: np.ndarray = pd.read_csv(path, sep=separator(path), **options).fillna("").to_numpy(object)
    return found


def separator(path: Path) -> str:
    return "\t" if ".tsv" in path.name.lower() else ","


def labels_of(path: Path, name: str) -> np.ndarray:
    """A column, as text. Raises DataError."""
    frame, _ = read(path)
    if name not in frame.columns:
        raise DataError(
            f"{path}: expected --labels to be a column ({listed(frame.columns, 9)}), but got {name}"
        )
    return np.array(frame[name].map(text_of), dtype=str)


def describe(
    path: Path, frame: Any, train: np.ndarray, asked: Sequence[str] = ()
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """What each column is, and notes: one of two values or bool is bernoulli, of other numbers gaussian, of text
    categorical. Means and deviations are those of the rows `train`. Raises DataError.

    Args:
        asked: "NAME:KIND" where the user says so.
    """
    kinds = _kinds(path, frame, asked)
    notes, columns = [], []
    for name in frame.columns:
        entries, kind = frame[name], kinds.get(name)
        if kind == SKIP:
            continue
        if not entries.notna().any():
            notes.append(f"column {name} is empty, and not used")
            continue
        columns.append(_describe(path, name, entries, kind, train))
    if not order(columns):
        raise DataError(f"{path}: has no column whose entries differ")
    for kind in (*_OPTIONS, CONSTANT):
        if names := [column.name for column in columns if column.kind == kind]:
            notes.append(f"{_WORDS.get(kind, f'counts ({kind})')}: {listed(names, most=9)}")
    return tuple(columns), tuple(notes)


def encode(path: Path, frame: Any, columns: Sequence[Column]) -> np.ndarray:
    """x, (rows, columns of x) of float32. Raises DataError for what a column's description does not have."""
    if absent := [c.name for c in order(columns) if c.name not in frame.columns]:
        raise DataError(f"{path}: has no column {absent[0]}")
    x = np.empty((len(frame), len(order(columns))), np.float32)
    for i, column in enumerate(order(columns)):
        entries = frame[column.name]
        if column.kind in _CHOICES:
            numbers = {value: float(number) for number, value in enumerate(column.values)}
            x[:, i] = texts(entries).map(numbers).to_numpy(np.float32, na_value=np.nan)
            known = f"one of {listed(column.values, most=9)}"
            _refuse(path, column.name, entries, entries.notna().to_numpy() & np.isnan(x[:, i]), known)
            continue
        values = _numbers(path, column.name, entries)
        if column.kind not in _STANDARDIZED:
            is_count = np.isnan(values) | ((values >= 0) & (values == np.round(values)))
            _refuse(path, column.name, entries, ~is_count, f"a whole number of at least 0 for {column.kind}")
        x[:, i] = (values - column.mean) / column.deviation
        _refuse(path, column.name, entries, np.isinf(x[:, i]), "a number within float32")
    return x


def to_csv(
    x: np.ndarray,
    columns: Sequence[Column],
    separator: str = ",",
    before: Mapping[str, Iterable[Any]] | None = None,
) -> bytes:
    """x as the table was: its names, categories and units. Of a probability the more probable value. `before`: other
    columns, which come first."""
    before = before or {}
    of_x = {column.name: i for i, column in enumerate(order(columns))}
    texts = [
        [column.values[0]] * len(x) if column.kind == CONSTANT else decoded(x[:, of_x[column.name]], column)
        for column in columns
    ]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerow([*before, *(column.name for column in columns)])
    writer.writerows(zip(*before.values(), *texts, strict=True))
    return file.getvalue().encode()


def decoded(x: np.ndarray, column: Column) -> list[str]:
    """Entries of a column of x as text."""
    if column.kind in _CHOICES:
        return [column.values[int(number)] for number in np.rint(x)]
    values = x.astype(np.float64) * column.deviation + column.mean
    if column.is_whole:
        return [str(round(value)) for value in values.tolist()]
    return [f"{value:.7g}" for value in values]  # float32 has no more digits


def _group(column: Column) -> tuple[str, int]:
    return column.kind, len(column.values) if column.kind == "categorical" else 0


def _place(column: Column) -> tuple[int, int]:
    kind, classes = _group(column)
    return tuple(_OPTIONS).index(kind), classes


def _kinds(path: Path, frame: Any, asked: Sequence[str]) -> dict[str, str]:
    kinds = {}
    for text in asked:
        name, _, kind = text.rpartition(":")
        if name not in frame.columns:
            raise DataError(
                f"{path}: expected --columns {text} to be NAME:KIND of a column ({listed(frame.columns, 9)})"
            )
        if kind not in KINDS:
            raise DataError(
                f"{path}: column {name}: expected its kind to be one of {', '.join(KINDS)}, but got {kind}"
            )
        kinds[name] = kind
    return kinds


def _describe(path: Path, name: str, entries: Any, kind: str | None, train: np.ndarray) -> Column:
    import pandas as pd

    try:
        distinct = list(entries.dropna().unique())
    except TypeError:
        raise _not_used(path, name, "its entries are lists") from None
    if kind is None and len(distinct) == 1:
        return Column(name, CONSTANT, (text_of(distinct[0]),))
    if kind is None and (pd.api.types.is_datetime64_any_dtype(entries) or entries.dtype.kind in "mc"):
        raise _not_used(path, name, f"{entries.dtype} is neither a number nor a category")
    if kind is None and len(distinct) == 2:
        kind = "bernoulli"
    if kind is None:
        kind = "gaussian" if _are_numbers(path, name, entries) else "categorical"
        if kind == "categorical" and len(distinct) > min(_MOST, max(_FEW, len(entries) / 2)):
            raise _not_used(path, name, f"{len(distinct):,} different texts in {len(entries):,} rows")
    if kind in _CHOICES:
        values = tuple(text_of(value) for value in _sorted(distinct))
        if len(values) < 2 or (kind == "bernoulli" and len(values) > 2):
            wanted = "two values" if kind == "bernoulli" else "several values"
            raise DataError(f"{path}: column {name}: expected {wanted} for {kind}, but got {len(values)}")
        return Column(name, kind, values)
    numbers = _numbers(path, name, entries)
    is_whole = bool((numbers == np.round(numbers))[~np.isnan(numbers)].all())
    if kind not in _STANDARDIZED:
        return Column(name, kind)
    of_train = numbers[train][~np.isnan(numbers[train])]
    if not len(of_train):
        raise _not_used(path, name, "has no entry in the training part")
    return Column(name, kind, (), float(of_train.mean()), float(of_train.std()) or 1.0, is_whole)


def _are_numbers(path: Path, name: str, entries: Any) -> bool:
    """Raises DataError where a few entries of a column of numbers are none."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(entries):
        return True
    parsed = pd.to_numeric(entries.astype(object), errors="coerce")
    wrong = (entries.notna() & parsed.isna()).to_numpy(bool)
    if wrong.sum() > _TYPOS * int(entries.notna().sum()):
        return False
    expected = f"a number as in the other rows (or --columns '{name}:categorical')"
    _refuse(path, name, entries, wrong, expected)
    return True


def _numbers(path: Path, name: str, entries: Any) -> np.ndarray:
    """float64, NaN where an entry is missing."""
    import pandas as pd

    is_numeric = pd.api.types.is_numeric_dtype(entries)
    parsed = entries if is_numeric else pd.to_numeric(entries.astype(object), errors="coerce")
    values: np.ndarray = parsed.astype("float64").to_numpy(np.float64, na_value=np.nan)
    wrong = np.isinf(values) | (np.isnan(values) & entries.notna().to_numpy(bool))
    _refuse(path, name, entries, wrong, "a finite number")
    return values


def _refuse(path: Path, name: str, entries: Any, wrong: np.ndarray, expected: str) -> None:
    """DataError where an entry is wrong. Row 1 is the first after the header."""
    if wrong.any():
        row = int(wrong.argmax())
        entry = text_of(entries.iloc[row])
        raise DataError(f"{path}: column {name}, row {row + 1}: expected {expected}, but got {entry}")


def texts(entries: Any) -> Any:
    """A column's entries as text; those that are missing stay so."""
    return entries.astype(object).map(text_of, na_action="ignore")


def text_of(value: Any) -> str:
    """As a CSV has it. Whole floats are so: pandas makes floats of whole numbers where some are missing."""
    if isinstance(value, (float, np.floating)) and math.isfinite(value) and value == round(value):
        return str(int(value))
    return str(value)


def _sorted(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=str)


def _without_numbering(frame: Any) -> tuple[Any, tuple[str, ...]]:
    """pandas and R write a column without a name that counts the rows."""
    first = frame.columns[0]
    if first.startswith("Unnamed: ") and frame[first].dtype.kind == "i" and len(frame):
        steps = frame[first].to_numpy() - np.arange(len(frame))
        if steps[0] in (0, 1) and (steps == steps[0]).all():
            return frame.drop(columns=first), ("the first column, without a name, counts the rows: not used",)
    return frame, ()


def _not_used(path: Path, name: str, reason: str) -> DataError:
    return DataError(f"{path}: column {name}: {reason}; --columns '{name}:{SKIP}' leaves it out")


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0].removeprefix("Error tokenizing data. C error: ")
    return DataError(f"{path}: cannot be read as a table ({reason or type(error).__name__})")
