"""The parts of a data set (train, test, valid), and what the names of files, folders and arrays say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

Source = TypeVar("Source")


class Parts(NamedTuple):
    train: Any  # an array, or the StoredArray of one that is streamed
    test: Any = None  # None where the source has no such part
    notes: tuple[str, ...] = ()  # what was dropped, changed or not used: short sentences for the user
    valid: Any = None  # only beside a test part: alone it is the test part
    labels: Mapping[str, np.ndarray] | None = None  # of each part's samples, as text


_PART = re.compile(r"train(?:ing)?|t10k|test(?:ing)?|valid(?:ation)?|val")
_PART_OF = {"tr": "train", "t1": "test", "te": "test", "va": "valid"}
_HIDDEN = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}  # beside all names that begin with a dot


def part_of(name: str) -> tuple[str, str]:
    """("train", "test", "valid" or "", the rest of the name in lower case): ("train", "x") of X_train."""
    name = name.lower()
    found = _PART.search(name)
    if found is None:
        return "", name.strip("_-./ ")
    rest = name[: found.start()] + name[found.end() :]
    return _PART_OF[found[0][:2]], rest.strip("_-./ ")


def held_out_parts(parts: Mapping[str, Source]) -> dict[str, Source]:
    """The test and the valid part of what parts there are: a valid part alone is the test part."""
    found = {part: parts[part] for part in ("test", "valid") if part in parts}
    return {"test": found["valid"]} if list(found) == ["valid"] else found


class FolderParts(NamedTuple):
    paths: dict[str, list[Path]]  # of the parts: train, and test and valid where there are such folders
    labels: dict[str, np.ndarray] | None  # the names of the folders below, where there are several
    notes: tuple[str, ...]


def folder_parts(folder: Path, paths: Sequence[Path]) -> FolderParts:
    """The parts and the classes that the names of the folders tell of the files in them: train and test, or
    mnist_train and mnist_test. Without two such ones all files are of the train part."""
    named: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        of_parts = (part_of(name) for name in _folders(folder, path))
        named.setdefault(next((part for part in of_parts if part[0]), ("", "")), []).append(path)
    rests = [rest for part, rest in named if part == "train"]
    of_set = {part: files for (part, rest), files in named.items() if [rest] == rests}
    held_out = held_out_parts(of_set)
    found = {"train": of_set["train"], **held_out} if held_out else {"train": list(paths)}
    used = {(part, rests[0]) for part in of_set} if held_out else set()
    notes: tuple[str, ...] = ()
    if left_out := len(paths) - sum(map(len, found.values())):
        notes += (f"not used: files outside the folders of the parts ({left_out:,})",)
    if held_out and "test" not in of_set:
        notes += ("the validation part is the test part",)
    labels = {part: np.array([_class(folder, path, used) for path in files]) for part, files in found.items()}
    names = sorted({str(name) for part in labels.values() for name in part})
    if len(names) < 2:
        return FolderParts(found, None, notes)
    return FolderParts(
        found, labels, (*notes, f"labels: the names of {len(names):,} folders ({listed(names)})")
    )


def _class(folder: Path, path: Path, used: set[tuple[str, str]]) -> str:
    return "/".join(n for n in _folders(folder, path) if part_of(n) not in used) or "."


def _folders(folder: Path, path: Path) -> tuple[str, ...]:
    """The names of the folders between them."""
    return path.parent.relative_to(folder).parts


def visible_files(folder: Path) -> list[Path]:
    """All files below the folder, sorted, except what systems leave there: ._0.png, .DS_Store, __MACOSX/."""
    files: list[Path] = []
    seen: set[Path] = set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        place = Path(root).resolve()
        if place in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        files += [Path(root, name) for name in names if not _is_hidden(name)]
    return sorted(files)


def listed(names: Iterable[str], most: int = 3) -> str:
    """a, b, c and 4 more"""
    names = list(names)
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more:,} more"


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN
