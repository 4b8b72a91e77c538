"""Tables whose gaps a model has filled. Every other cell stays as it is in the file, those of skipped columns too."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, tables
from .tables import Column


def save(out: Path, source: Path, rows: np.ndarray, x: np.ndarray, columns: Sequence[Column]) -> None:
    """The rows of these numbers of the table `source`, their gaps filled from x. `out`: by its suffix text, whose cells
    are those of a text file as they stand there, or Parquet, whose columns keep their types where these hold what is
    filled in. Raises CheckpointError, DataError."""
    frame, _ = tables.read(source)
    of_x = {column.name: i for i, column in enumerate(tables.order(columns))}
    filled = {}  # by column: where its gaps are, and what comes there, as text
    for column in columns:
        gaps = frame[column.name].isna().to_numpy(bool)[rows]
        if column.kind == tables.CONSTANT:
            filled[column] = gaps, [column.values[0]] * int(gaps.sum())
        else:
            filled[column] = gaps, tables.decoded(x[gaps, of_x[column.name]], column)
    if out.suffix.lower() == ".parquet" or source.suffix.lower() == ".parquet":
        taken = _filled_frame(frame, rows, filled)
        if out.suffix.lower() == ".parquet":
            checkpoint.replace_file(out, lambda new: taken.to_parquet(new, engine="pyarrow"))
            return
        is_counted = taken.index.equals(taken.reset_index(drop=True).index)
        text = taken.to_csv(sep=tables.separator(out), index=not is_counted, lineterminator="\n")
    else:
        text = _filled_text(source, frame, rows, filled, tables.separator(out))
    checkpoint.replace_bytes(out, text.encode())


def _filled_text(
    source: Path,
    frame: Any,
    rows: np.ndarray,
    filled: dict[Column, tuple[np.ndarray, list[str]]],
    separator: str,
) -> str:
    cells = tables.cells(source)
    header, cells = cells[0], cells[1:]
    first = cells.shape[1] - len(frame.columns)  # after a column that counts the rows
    for column, (gaps, texts) in filled.items():
        place = first + frame.columns.get_loc(column.name)
        if column.kind not in tables.NUMBERS:  # a category is written as the file does: true, not True
            values = tables.texts(frame[column.name])
            here = dict(zip(values[::-1], cells[::-1, place], strict=True))
            texts = [here.get(text, text) for text in texts]
        cells[rows[gaps], place] = texts
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=_line_end(source))
    writer.writerow(header)
    writer.writerows(cells[rows])
    return file.getvalue()


def _line_end(source: Path) -> str:
    with gzip.open(source) if source.suffix.lower() == ".gz" else source.open("rb") as file:
        return "\r\n" if file.readline().endswith(b"\r\n") else "\n"


def _filled_frame(frame: Any, rows: np.ndarray, filled: dict[Column, tuple[np.ndarray, list[str]]]) -> Any:
    import pandas as pd

    is_counted = frame.index.equals(pd.RangeIndex(len(frame)))
    taken = frame.iloc[rows].reset_index(drop=True) if is_counted else frame.iloc[rows].copy()
    for column, (gaps, texts) in filled.items():
        if not gaps.any():
            continue
        values: list[Any]
        if column.kind in tables.NUMBERS:
            values = [int(text) if column.is_whole else float(text) for text in texts]
        else:
            entries = frame[column.name].dropna().unique()
            here = {tables.text_of(entry): entry for entry in entries}
            values = [here.get(text, text) for text in texts]
        place = taken.columns.get_loc(column.name)
        entries = taken.iloc[:, place]
        try:
            taken.isetitem(place, _with(entries, gaps, values))
        except (TypeError, ValueError):  # a mean among whole numbers, a category that the table has not
            wider = "Float64" if column.kind in tables.NUMBERS else object
            taken.isetitem(place, _with(entries.astype(wider), gaps, values))
    return taken


def _with(entries: Any, gaps: np.ndarray, values: list[Any]) -> Any:
    changed = entries.copy()
    changed.iloc[np.flatnonzero(gaps)] = values
    return changed
