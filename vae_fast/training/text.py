"""Lines of text as samples: the numbers of their characters, an end, and padding that no likelihood counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .parts import held_out_parts, listed, part_of, visible_files

SUFFIXES = (".txt", ".text")
LONGEST = 256  # characters of a line, unless the user asks for more
PADDING = -100  # as torch's cross_entropy ignores
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a character that training had not is written as


@dataclass(frozen=True)
class Vocabulary:
    """The classes are the characters, the end of a line, and one for every other character.

    Attributes:
        characters: of the training part, sorted.
        length: of a line in characters, at most; x has one place more, for the end.
    """

    characters: str
    length: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Vocabulary:
        """What `to_dict` describes. Raises KeyError, TypeError, ValueError."""
        characters, length = values["characters"], values["length"]
        if not isinstance(characters, str) or not isinstance(length, int) or length < 1:
            raise ValueError("expected a vocabulary's characters and length")
        return cls(characters, length)

    def to_dict(self) -> dict[str, Any]:
        return {"characters": self.characters, "length": self.length}

    @property
    def end(self) -> int:
        return len(self.characters)

    @property
    def classes(self) -> int:
        return len(self.characters) + 2

    def encode(self, lines: Sequence[str]) -> Tensor:
        """(lines, length + 1): of a longer line its beginning, without an end."""
        dtype = np.int16 if self.classes < 2**15 else np.int32
        x = np.full((len(lines), self.length + 1), PADDING, dtype)
        numbers = {character: number for number, character in enumerate(self.characters)}
        for row, line in zip(x, lines, strict=True):
            found = [numbers.get(character, self.end + 1) for character in line[: self.length]]
            row[: len(found)] = found
            if len(line) <= self.length:
                row[len(found)] = self.end
        return torch.from_numpy(x)

    def decode(self, x: Tensor) -> list[str]:
        """The lines, each to its end."""
        symbols = [*self.characters, "", UNKNOWN]
        lines = []
        for row in x.tolist():
            stop = next((i for i, n in enumerate(row) if n == self.end or n < 0), len(row))
            lines.append("".join(symbols[n] for n in row[:stop]))
        return lines


class Lines(NamedTuple):
    parts: dict[str, list[str]]  # train, and test and valid where there are such files
    notes: tuple[str, ...]


def find(path: Path) -> Mapping[str, Path] | None:
    """The files of the parts: a file of text, or a folder's train.txt, with test.txt and valid.txt where they are
    there. None if it is something else. Raises DataError."""
    if path.is_file():
        is_text = path.suffix.lower() in SUFFIXES or (not path.suffix and "idx" not in path.name.lower())
        return {"train": path} if is_text else None  # /usr/share/dict/words has no suffix
    files = visible_files(path)
    texts = [file for file in files if file.suffix.lower() in SUFFIXES]
    if len(texts) < len(files) or not texts:
        return None
    named = {part_of(file.stem)[0]: file for file in reversed(texts)}
    if len(texts) == 1:
        return {"train": texts[0]}
    if "train" not in named or len(named) < len(texts):
        names = listed(str(file.relative_to(path)) for file in texts)
        raise DataError(f"{path}: expected train.txt, and test.txt or valid.txt, but got {names}")
    return {"train": named["train"], **held_out_parts(named)}


def read(files: Mapping[str, Path]) -> Lines:
    """The lines of each part's file. Raises DataError."""
    parts: dict[str, list[str]] = {}
    notes = []
    for part, path in files.items():
        lines = _lines(path)
        parts[part] = [line for line in lines if line.strip()]
        if empty := len(lines) - len(parts[part]):
            notes.append(f"{empty:,} empty lines of {path.name} are left out")
        if not parts[part]:
            raise DataError(f"{path}: is empty: expected a sample on each line")
    return Lines(parts, tuple(notes))


def describe(train: Sequence[str], longest: int | None) -> Vocabulary:
    """The vocabulary of the training part's lines, `longest` or else 256 characters of each at most."""
    length = min(max(map(len, train)), LONGEST if longest is None else longest)
    return Vocabulary("".join(sorted({c for line in train for c in line[:length]})), length)


def notes_of(vocabulary: Vocabulary, parts: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What of the lines the vocabulary does not hold."""
    notes = []
    lines = [line for part in parts.values() for line in part]
    if cut := sum(len(line) > vocabulary.length for line in lines):
        notes.append(f"{cut:,} of {len(lines):,} lines are cut to {vocabulary.length} characters")
    for name, part in parts.items():
        known = set(vocabulary.characters)
        if new := {c for line in part for c in line[: vocabulary.length]} - known:
            named = listed(map(repr, sorted(new)), most=9)
            notes.append(f"characters of the {name} part that training had not: {named}")
    return tuple(notes)


def bits(nats: float, x: Tensor) -> float:
    """Nats a line as bits a character, each line's end one of them."""
    return nats * len(x) / int((x >= 0).sum()) / math.log(2)


def _lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        raise DataError(f"{path}, line {line}: is not UTF-8 (byte 0x{byte:02x}): save it as that") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if "\0" in text:
        line = next(i for i, line in enumerate(lines, 1) if "\0" in line)
        raise DataError(f"{path}, line {line}: holds a character of zero: is no text")
    return lines[:-1] if not lines[-1] else lines
