"""The switch behind every `patch()`, with a library that is made up here."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vae_fast.integrations._patch import Patch, Switch, fingerprint

SOURCE = """
class Thing:
    def double(self, x):
        return 2 * x

    @staticmethod
    def triple(x):
        return 3 * x

def quadruple(x):
    return 4 * x
"""
PATHS = ("made_up.part:Thing.double", "made_up.part:Thing.triple", "made_up.part:quadruple")


def write(folder: Path, source: str) -> types.ModuleType:
    package = folder / "made_up"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "part.py").write_text(source)
    for name in ("made_up", "made_up.part"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    import linecache

    linecache.clearcache()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        return importlib.import_module("made_up.part")
    finally:
        sys.dont_write_bytecode = before


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(tmp_path)
    yield write(tmp_path, SOURCE)
    for name in ("made_up", "made_up.part"):
        sys.modules.pop(name, None)


def raw(module: Any) -> dict[str, Any]:
    return {
        **{n: vars(module.Thing).get(n) for n in ("double", "triple", "half")},
        "quadruple": module.quadruple,
    }


@pytest.fixture
def switch(library: Any) -> Switch:
    own = raw(library)
    known = {p: fingerprint(own[p.rpartition(".")[2] if "Thing" in p else "quadruple"]) for p in PATHS}
    return Switch("made_up", "made-up", {"1.0": {**known, "made_up.part:Thing.half": None}})


def on(switch: Switch, factor: int = 10) -> Patch:
    replacements = {
        PATHS[0]: lambda self, x: factor * x,
        PATHS[1]: staticmethod(lambda x: factor * x + 1),
        PATHS[2]: lambda x: factor * x + 2,
        "made_up.part:Thing.half": lambda self, x: x / 2,
    }
    return switch.patch(lambda: replacements)


def results(module: Any) -> tuple[int, int, int]:
    return module.Thing().double(1), module.Thing.triple(1), module.quadruple(1)


def test_replaces_and_restores(library: Any, switch: Switch) -> None:
    before = raw(library)
    patch = on(switch)
    assert results(library) == (10, 11, 12) and library.Thing().half(1) == 0.5
    patch.undo()
    assert all(a is b for a, b in zip(raw(library).values(), before.values(), strict=True))
    assert "half" not in vars(library.Thing)
    patch.undo()
    assert results(library) == (2, 3, 4)


def test_twice_and_nested(library: Any, switch: Switch) -> None:
    before = raw(library)
    on(switch)
    again = on(switch)
    again.undo()  # as in a notebook whose cell ran twice
    assert all(a is b for a, b in zip(raw(library).values(), before.values(), strict=True))
    with on(switch) as outer:
        with on(switch, 20):
            assert results(library) == (20, 21, 22)
        assert results(library) == (10, 11, 12)
        with on(switch, 30):
            outer.undo()
        assert results(library) == (2, 3, 4)
    assert all(a is b for a, b in zip(raw(library).values(), before.values(), strict=True))
    with pytest.raises(ZeroDivisionError), on(switch):
        1 / 0  # noqa: B018
    assert results(library) == (2, 3, 4)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("2 * x", "2 * x + 0", PATHS[0]),
        ("@staticmethod\n", "@staticmethod\n    # another line\n", PATHS[1]),
        ("def quadruple", "def four_times", PATHS[2]),
        ("class Thing", "class Things", PATHS[0]),
        ("def double", "half = None\n    def double", "made_up.part:Thing.half"),
    ],
)
def test_upstream_moved(library: Any, switch: Switch, tmp_path: Path, old: str, new: str, path: str) -> None:
    """Refused by name, and nothing is replaced, not even what comes before."""
    moved = write(tmp_path, SOURCE.replace(old, new))
    before = dict(vars(moved)), dict(vars(getattr(moved, "Thing", moved)))
    with pytest.raises(RuntimeError) as caught:
        on(switch)
    message = str(caught.value)
    assert path in message and "made-up" in message and "expected one of versions 1.0" in message
    assert (dict(vars(moved)), dict(vars(getattr(moved, "Thing", moved)))) == before
    assert switch.current is None


def test_someone_elses_wrapper_is_seen(library: Any, switch: Switch) -> None:
    """functools.wraps shows the source of what it wraps; another patch must not pass for the library's own code."""
    import functools

    own = library.quadruple
    library.quadruple = functools.wraps(own)(lambda x: own(x) + 1)
    with pytest.raises(RuntimeError, match="part:quadruple is not what"):
        on(switch)


def test_every_version_that_is_known(library: Any, switch: Switch, tmp_path: Path) -> None:
    other = write(tmp_path, SOURCE.replace("2 * x", "x + x"))
    two = {"2.0": {PATHS[0]: fingerprint(vars(other.Thing)["double"])}}
    both = Switch("made_up", "made-up", {**switch.known, **two})
    with on(both):
        assert results(other) == (10, 11, 12)


def test_missing_library() -> None:
    missing = Switch("not_there_at_all", "not-there", {"1": {"not_there_at_all:f": "0"}})
    with pytest.raises(ImportError, match="pip install not-there"):
        missing.patch(dict)


def test_integrations_are_attributes() -> None:
    import vae_fast

    assert {"diffusers", "pyro", "pythae", "scvi"} <= set(dir(vae_fast.integrations))
    with pytest.raises(AttributeError, match="nonsense"):
        vae_fast.integrations.nonsense  # noqa: B018
