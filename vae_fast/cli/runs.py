"""The folders of runs: a free one for a new run, the newest for `--resume`, `generate` and `reconstruct`."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..training import checkpoint
from ..training.errors import CheckpointError, TrainingError

RUNS = Path("runs")


def newest(file: str, name: str | None = None) -> Path:
    """The folder in runs/ whose `file` was written last; with a name: of runs/name, runs/name-2, ..."""
    fits = re.compile(".*" if name is None else f"{re.escape(name)}(-[0-9]+)?", re.DOTALL).fullmatch
    files = [path for path in RUNS.glob(f"*/{file}") if fits(path.parent.name)]
    if not files:
        of = "" if name is None else f" of {name}"
        raise CheckpointError(f"{RUNS}/ holds no run{of} here: train one, or name the folder of one")
    return max(files, key=lambda path: path.stat().st_mtime_ns).parent


def check_free(folder: Path) -> None:
    """TrainingError where a new run would replace what is in the folder."""
    found = [name for name in checkpoint.FILES if (folder / name).exists()]
    if checkpoint.STATE in found:
        raise TrainingError(f"{folder} holds a run: --resume goes on with it, --overwrite replaces it")
    if found:
        raise TrainingError(f"{folder} holds {', '.join(found)}: --overwrite replaces what a run writes")


@contextmanager
def claimed(out: Path | None, name: str, *, is_new: bool) -> Iterator[Path]:
    """The folder `out`, or the first of runs/name, runs/name-2, ... that does not exist: made, and locked for other
    processes. A folder that was made, and that nothing was written to, is removed in the end."""
    folder, is_made = (_make_free(name), True) if out is None else (out, _make(out))
    try:
        with _lock(folder):
            if is_new:
                check_free(folder)
            checkpoint.remove_leftovers(folder)
            yield folder
    finally:
        if is_made:
            with suppress(OSError):
                folder.rmdir()  # which a folder that holds something refuses


def _make(folder: Path) -> bool:
    is_made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return is_made


def _make_free(name: str) -> Path:
    _make(RUNS)
    for n in itertools.count(1):
        folder = RUNS / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_write(folder, error) from None
    raise AssertionError  # the names do not end


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder. The system unlocks it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"{folder}: another process trains there; give --out another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{folder}: cannot be written ({error.strerror})")
