"""A run's options as a TOML file, under the names of the command's options with underscores."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .config import Recipe
from .errors import TrainingError

EXTRA: dict[str, Any] = {"backend": str, "cpu": bool}  # of the command, not of the recipe


def read(path: Path) -> dict[str, Any]:
    """The options of a file, each of its type. Raises TrainingError, in one line with the file and the key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # of TOML and of UTF-8
        raise TrainingError(f"{path}: is not TOML ({error})") from None
    types = {**get_type_hints(Recipe), **EXTRA}
    for name in values:
        if name in ("config", "out", "overwrite", "resume"):
            raise TrainingError(f"{path}: {name} is of one call: give --{name} in the command")
        if name not in types:
            near = difflib.get_close_matches(name.replace("-", "_"), types, 1)
            hint = f", is {near[0]} meant?" if near else ""
            raise TrainingError(f"{path}: {name} is no option of vae-fast train{hint}")
    return {name: _converted(path, name, value, types[name]) for name, value in values.items()}


def text(recipe: Recipe, extra: Mapping[str, Any]) -> str:
    """What repeats a run: every option that is not at a default of None, and the `extra` ones."""
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe)} | dict(extra)
    lines = [f"{name} = {_written(value)}\n" for name, value in values.items() if value is not None]
    return "# vae-fast train --config FILE repeats this run\n" + "".join(lines)


def _written(value: Any) -> str:
    """JSON's strings and bools are TOML's, too, except for one character, and Python's numbers are."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _converted(path: Path, name: str, value: Any, kind: Any) -> Any:
    for one in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        found, is_one = _as(one, value)
        if is_one:
            return found
    raise TrainingError(f"{path}: expected {name} to be {_described(kind)}, but got {_shown(value)}")


def _as(kind: Any, value: Any) -> tuple[Any, bool]:
    """The value as this type has it, and whether it is one of it."""
    if get_origin(kind) is tuple:
        of, *rest = get_args(kind)
        if not isinstance(value, list) or (rest != [...] and len(value) != 1 + len(rest)):
            return None, False
        items = [_as(of, item) for item in value]
        return tuple(item for item, _ in items), all(is_one for _, is_one in items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), True
    return value, type(value) is kind


def _described(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_described(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        of, *rest = get_args(kind)
        count = "" if rest == [...] else f"{1 + len(rest)} "
        return f"an array of {count}{_NAMES[of].partition(' ')[2]}s"
    return _NAMES[kind]


_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "a boolean (true or false)"}


def _shown(value: Any) -> str:
    try:
        return _written(value)
    except TypeError:  # a table, a date
        return str(value)
