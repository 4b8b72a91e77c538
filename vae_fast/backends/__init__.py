"""Which code computes an op: the registry of backends.

A backend is a module with the functions listed in `reference/kernels.py`. Auto takes the first of AUTO that works on
the tensors' device; `backend(name)` or VAE_FAST_BACKEND forces one, for the whole process (autograd's threads too).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor

from . import reference

# The order in which auto looks for a backend, by device type; every other device is served by the reference.
AUTO: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_MODULES = {"cpu": "native.cpu", "cuda": "native.cuda", "triton": "triton", "reference": "reference"}
NAMES = tuple(_MODULES)
_DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

_forced: str | None = None
_resolved: dict[tuple[str, str], ModuleType] = {}  # (op, device type) -> module, for the current choice
_reasons: dict[str, str | None] = {}
_warned: set[str] = set()


def unavailable_reason(name: str) -> str | None:
    """Why the backend cannot be used in this process, or None if it can. Never imports triton, touches no GPU."""
    if name not in _reasons:
        _reasons[name] = _find_reason(name)
    return _reasons[name]


def _find_reason(name: str) -> str | None:
    if name == "reference":
        return None
    if name == "triton":  # imported only when it is used
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    try:
        reason: str | None = _module(name).unavailable_reason()
    except ImportError as error:
        return str(error)
    return reason


def _module(name: str) -> ModuleType:
    return reference if name == "reference" else importlib.import_module(f"{__name__}.{_MODULES[name]}")


def choose(device_type: str) -> str:
    """The backend's name for a device type. Plain lookups, so that torch.compile can trace it."""
    if _forced is not None:
        return _forced
    for name in AUTO.get(device_type, ()):
        if _reasons[name] is None:
            return name
    return "reference"


def resolve(op: str, *tensors: Tensor | None) -> ModuleType:
    """The backend that computes `op` on these tensors. The first tensor gives the device."""
    for t in tensors:
        if t is not None and t.dtype is torch.float64:
            return reference
    assert tensors[0] is not None
    key = (op, tensors[0].device.type)
    try:
        return _resolved[key]
    except KeyError:
        module = _resolved[key] = _load(*key)
        return module


def is_reference(*tensors: Tensor | None) -> bool:
    """Whether the plain PyTorch expression serves these tensors: `resolve` as torch.compile can trace it."""
    for t in tensors:
        if t is not None and t.dtype is torch.float64:
            return True
    assert tensors[0] is not None
    return choose(tensors[0].device.type) == "reference"


def _load(op: str, device_type: str) -> ModuleType:
    name = choose(device_type)
    if _forced is None:
        wanted = AUTO.get(device_type, ("reference",))[0]
        if name == "reference" and name != wanted and device_type not in _warned:
            _warned.add(device_type)
            why = "; ".join(f"{n}: {_reasons[n]}" for n in AUTO[device_type] if _reasons[n])
            warnings.warn(
                f"vae_fast uses the slow reference backend for {device_type} tensors ({why})", stacklevel=2
            )
    else:
        _require(name)
        if device_type not in (*_DEVICES.get(name, (device_type,)), *(("cpu",) if name == "triton" and _INTERPRET else ())):
            hint = "; it takes CPU tensors only with TRITON_INTERPRET=1 in the environment" if name == "triton" else ""
            raise RuntimeError(f"backend {name!r} does not take {device_type} tensors{hint}")
    return _module(name)


def _require(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend is {name!r}, it takes one of {', '.join(NAMES)} or auto")
    reason = unavailable_reason(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    _resolved.clear()


class backend(contextlib.ContextDecorator):
    """Forces a backend while the context is open: "cpu", "cuda", "triton", "reference", or "auto".

    The choice holds for the whole process. Raises RuntimeError, with the reason, if the backend is missing.

        with vae_fast.backend("reference"):
            z, kl = vae_fast.reparameterize_kl(mu, logvar)
    """

    def __init__(self, name: str) -> None:
        if name != "auto":
            _require(name)
        self._name = None if name == "auto" else name
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(_forced)
        _force(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _force(self._before.pop())


class Info(dict[str, Any]):
    """What `info()` returns: a dict that prints as a short table."""

    def __repr__(self) -> str:
        lines = [f"vae_fast {self['version']}, torch {self['torch']}", "backends:"]
        for name, entry in self["backends"].items():
            state = "available" if entry["available"] else f"not available: {entry['reason']}"
            lines.append(f"  {name:10} {state}")
            details = {k: v for k, v in entry.items() if k not in ("available", "reason")}
            lines += [f"  {'':10}   {k}: {v}" for k, v in details.items()]
        lines.append("used" + (f" (forced to {self['forced']})" if self["forced"] else "") + ":")
        lines += [f"  {device:10} {name}" for device, name in self["used"].items()]
        return "\n".join(lines)


def info() -> Info:
    """What is built, what is used on each device, and why a backend is missing."""
    from .. import __version__

    entries: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        reason = unavailable_reason(name)
        entry: dict[str, Any] = {"available": reason is None, "reason": reason}
        if reason is None and name != "reference" and not (name == "triton" and not _triton_usable()):
            entry |= _module(name).details()
        entries[name] = entry
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return Info(
        version=__version__,
        torch=torch.__version__,
        backends=entries,
        forced=_forced,
        used={device: choose(device) for device in devices},
    )


def _triton_usable() -> bool:
    return _INTERPRET or torch.cuda.is_available()


for _name in NAMES:
    unavailable_reason(_name)
_force({"": None, "auto": None}.get(_env := os.environ.get("VAE_FAST_BACKEND", ""), _env))
