"""Names of options in messages: flags where the command has them, keys where a file of options has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from ..training.config import Recipe
from ..training.errors import TrainingError

_FIELDS = frozenset(field.name for field in fields(Recipe))
_NAMES = r"[a-z_]+(?:(?:, | times )[a-z_]+)*"
# Where a message names options. What else it says (a path, a value, a part of a sentence) may have the same words.
_PLACES = re.compile(
    rf"((?:^|: )expected (?:no )?)({_NAMES})(?= to | for |, the draws )"
    rf"|( does not take |\(it takes )({_NAMES})(?=[:,)]| \(|$)"
    rf"|( for )({_NAMES})(?=, but got )"
    r"|( (?:with|but got) )([a-z_]+)(=)"
)

# Of other commands, the options that the functions behind them name in their errors.
OTHERS = {"steer": {"strength"}, "traverse": {"dims", "span"}}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def as_written(
    message: str, in_file: Collection[str] = (), file: Path | None = None, names: Collection[str] = _FIELDS
) -> str:
    """The message, in which these options, by default the recipe's fields, are called as the user wrote them: those
    `in_file` by their keys, after the file's name, all others by the command's flags."""
    found: set[str] = set()

    def name_as_written(word: re.Match[str]) -> str:
        name = word[0]
        if name not in names:
            return name
        found.add(name)
        return name if name in in_file else flag(name)

    def replace(match: re.Match[str]) -> str:
        before, words, equals = [*filter(None, match.groups()), ""][:3]
        written = re.sub("[a-z_]+", name_as_written, words)
        return f"{before}{written}{' ' if equals and written.startswith('--') else equals}"

    text = _PLACES.sub(replace, message)
    return f"{file}: {text}" if found & set(in_file) else text


@contextmanager
def naming(in_file: Collection[str] = (), file: Path | None = None) -> Iterator[None]:
    """Errors in the `with` block name options `as_written`."""
    try:
        yield
    except TrainingError as error:
        raise type(error)(as_written(str(error), in_file, file)) from None
