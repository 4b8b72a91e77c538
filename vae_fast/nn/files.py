"""Files that are whole whenever they are there: written beside the old one, then put in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make a new file beside `path`, and puts it in its place in one step. OSError if it cannot."""
    new = new_name(path)
    try:
        write(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which a full disk does not say
        raise
    if os.name == "posix":  # the rename itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace_bytes(path: Path, content: bytes) -> None:
    replace_file(path, lambda new: _write(new, content))


def new_name(path: Path) -> Path:
    """Where the new file is until it is whole."""
    return path.with_name(f".{path.name}.new")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
