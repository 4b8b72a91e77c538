"""The parts of a data set (train, test), and what the names of files, folders and arrays say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Parts(NamedTuple):
    train: np.ndarray
    test: np.ndarray | None = None  # None where the source has no such part
    notes: tuple[str, ...] = ()  # what was dropped, changed or not used: short sentences for the user


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
