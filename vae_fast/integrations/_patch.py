"""The switch behind every `patch()`: replaces functions of a library whose code it knows, and gives them back."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType, TracebackType
from typing import Any

_NONE = object()  # the owner has no attribute of that name

Known = Mapping[str, Mapping[str, str | None]]


class Patch:
    """What `patch()` returns: a context manager, and a switch.

    `with patch(): ...` restores at its end what was there before it, another patch with other options included.
    `undo()` gives the library its own objects back; once more does nothing.
    """

    def __init__(self, switch: Switch, before: Mapping[str, Any] | None) -> None:
        self._switch, self._before = switch, before

    def undo(self) -> None:
        """Restores the library's own objects."""
        self._switch.set(None)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._switch.current is not None:
            self._switch.set(self._before)


class Switch:
    """The replaceable functions of a library.

    Args:
        library: its name for import.
        package: its name for pip.
        known: version -> (path -> fingerprint) of what is replaced and of what the replacements rely on. A path is
            module:attribute or module:Class.attribute; None: the class has no attribute of its own of that name.
    """

    def __init__(self, library: str, package: str, known: Known) -> None:
        self.library, self.package, self.known = library, package, known
        self.current: Mapping[str, Any] | None = None
        self._originals: dict[str, Any] = {}

    def patch(self, replacements: Callable[[], Mapping[str, Any]]) -> Patch:
        """Replaces what the paths name, after a look at the code of all that is known. Nothing is half replaced.

        Args:
            replacements: makes them, path -> replacement, once the code is known.

        Raises:
            ImportError: the library is not installed.
            RuntimeError: its code is not one that is known here.
        """
        import_library(self.library, self.package)
        if self.current is None:
            self._originals = self._checked()
        before = self.current
        self.set(replacements())
        return Patch(self, before)

    def set(self, replacements: Mapping[str, Any] | None) -> None:
        if self.current is not None:
            for path in self.current:
                self._put(path, self._originals[path])
        for path, replacement in (replacements or {}).items():
            self._put(path, replacement)
        self.current = replacements

    def original(self, path: str) -> Any:
        """The library's own object, while it is replaced."""
        return self._originals[path]

    def _put(self, path: str, value: Any) -> None:
        owner, name = self.find(path)
        if value is _NONE:
            delattr(owner, name)
        else:
            setattr(owner, name, value)

    def _checked(self) -> dict[str, Any]:
        """path -> the library's own object."""
        originals = {}
        for path in dict.fromkeys(path for paths in self.known.values() for path in paths):
            seen: str | None = "missing"
            with contextlib.suppress(AttributeError, ModuleNotFoundError):
                owner, name = self.find(path)
                found = vars(owner).get(name, _NONE)
                seen = fingerprint(found)
            if seen not in {paths[path] for paths in self.known.values() if path in paths}:
                raise RuntimeError(
                    f"{self.package} {self.version()}: the code of {path} is not what vae_fast replaces, "
                    f"expected one of versions {', '.join(self.known)}. Nothing was replaced."
                )
            originals[path] = found
        return originals

    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "(unknown version)"

    def find(self, path: str) -> tuple[Any, str]:
        """The owner and the attribute's name."""
        module, _, names = path.partition(":")
        *outer, name = names.split(".")
        owner: Any = importlib.import_module(module)
        for part in outer:
            owner = getattr(owner, part)
        return owner, name


def import_library(name: str, package: str) -> Any:
    """The library; an ImportError says what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"vae_fast.integrations needs {package} for this: pip install {package}", name=name
        ) from error


def fingerprint(found: Any) -> str | None:
    """Of a function's source text, or of a class's bases and functions: the same in every version of Python. None:
    there is no such attribute."""
    if found is _NONE:
        return None
    if isinstance(found, type):
        own = [
            (n, fingerprint(f)) for n, f in sorted(vars(found).items()) if _code(f) and "__annotate" not in n
        ]
        text = str(([base.__name__ for base in found.__bases__], own))
    else:
        code = _code(found)
        try:
            source = textwrap.dedent(inspect.getsource(code)) if code is not None else repr(found)
        except OSError:
            return "no source"
        text = "\n".join(line.rstrip() for line in source.splitlines() if line.strip())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(found: Any) -> CodeType | None:
    """Not that of what a wrapper wraps, which inspect would show."""
    return getattr(getattr(found, "__func__", found), "__code__", None)
