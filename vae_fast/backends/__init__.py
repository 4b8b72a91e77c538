"""Which code computes an op: the registry of backends.

A backend has the kernels of `contract.py`. Auto takes the first of AUTO that works on the tensors' device;
`backend(name)` or VAE_FAST_BACKEND forces one, for the whole process (autograd's threads too).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from . import reference

# The order in which auto looks for a backend, by device type; every other device is served by the reference.
AUTO: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
# Where each is: an attribute of this package, which its submodules are, too.
_HOMES = {"cpu": "native.cpu", "cuda": "native.cuda", "triton": "triton", "reference": "reference"}
_DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

_forced: str | None = None
_resolved: dict[tuple[str, str], Any] = {}  # (op, device type) -> backend, for the current choice
_reasons: dict[str, str | None] = {}
_warned: set[str] = set()


def unavailable_reason(name: str) -> str | None:
    """Why the backend cannot be used in this process, or None if it can. Never imports triton, touches no GPU."""
    if name not in _reasons:
        if name == "triton":  # imported when it is used
            _reasons[name] = None if importlib.util.find_spec("triton") else "triton is not installed"
        else:
            _reasons[name] = _import_reason(name)
    return _reasons[name]


def _import_reason(name: str) -> str | None:
    if name == "reference":
        return None
    try:
        reason: str | None = _find(name).unavailable_reason()
    except ImportError as error:
        return str(error)
    return reason


def _find(name: str) -> Any:
    package, _, attribute = _HOMES[name].partition(".")
    module = importlib.import_module(f"{__name__}.{package}")
    return getattr(module, attribute) if attribute else module


def choose(device_type: str) -> str:
    """The backend's name for a device type. Plain lookups, so that torch.compile can trace it."""
    if _forced is not None:
        return _forced
    for name in AUTO.get(device_type, ()):
        if _reasons[name] is None:
            return name
    return "reference"


def resolve(op: str, first: Tensor, *others: Tensor | None) -> Any:
    """The backend that computes `op` on these tensors. The first one gives the device; float64 is the reference's."""
    for t in (first, *others):
        if t is not None and t.dtype is torch.float64:
            return reference
    return serving(op, first.device.type)


def serving(op: str, device_type: str) -> Any:
    """The backend that computes `op` on a device, for dtypes that kernels take."""
    try:
        return _resolved[op, device_type]
    except KeyError:
        found = _resolved[op, device_type] = _load(op, device_type)
        return found


def _load(op: str, device_type: str) -> Any:
    name = choose(device_type)
    if _forced is not None:
        _require(name)
        if not (device_type in _DEVICES.get(name, (device_type,)) or (name == "triton" and _INTERPRET)):
            hint = (
                "; with TRITON_INTERPRET=1 in the environment it takes cpu tensors"
                if name == "triton"
                else ""
            )
            raise RuntimeError(f"backend {name!r} does not take {device_type} tensors{hint}")
    if name == "triton" and (reason := _import_reason(name)) is not None:
        _reasons[name] = reason
        return _load(op, device_type)
    wanted = AUTO.get(device_type, ("reference",))
    if _forced is None and name == "reference" != wanted[0] and device_type not in _warned:
        _warned.add(device_type)
        why = "; ".join(f"{n}: {_reasons[n]}" for n in wanted if n != "reference")
        # The user's line is six calls up: serving, dispatch, the op, the function.
        warnings.warn(
            f"vae_fast uses the slow reference backend for {device_type} tensors ({why})", stacklevel=6
        )
    return _find(name)


def _require(name: str) -> None:
    if name not in _HOMES:
        what = "VAE_FAST_BACKEND" if name == os.environ.get("VAE_FAST_BACKEND") else "backend"
        raise ValueError(f"expected {what} to be one of {', '.join(_HOMES)} or auto, but got {name!r}")
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

    gpu = torch.cuda.is_available()
    entries: dict[str, dict[str, Any]] = {}
    for name in _HOMES:
        reason = unavailable_reason(name)
        if (
            reason is None
            and name in ("cuda", "triton")
            and not gpu
            and not (name == "triton" and _INTERPRET)
        ):
            reason = "torch finds no CUDA device"
        entries[name] = {"available": reason is None, "reason": reason}
        if reason is None and name != "reference":
            entries[name] |= _find(name).details()
    devices = ["cpu", "cuda"] if gpu else ["cpu"]
    return Info(
        version=__version__,
        torch=torch.__version__,
        backends=entries,
        forced=_forced,
        used={device: choose(device) for device in devices},
    )


for _name in _HOMES:
    unavailable_reason(_name)
_environment = os.environ.get("VAE_FAST_BACKEND", "")
_force(None if _environment in ("", "auto") else _environment)  # a wrong name is told when an op is called
