"""`vae-fast doctor`. Imports nothing beyond torch: it is there for those who miss a package."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata

import torch

import vae_fast

_VARIABLES = ("VAE_FAST_BACKEND", "VAE_FAST_CPU_ISA", "TRITON_INTERPRET", "OMP_NUM_THREADS")


def run_doctor() -> int:
    """Prints the diagnosis; 1 where nothing can be computed as the environment asks."""
    print(f"vae_fast {vae_fast.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        print(f"cuda:{i} {torch.cuda.get_device_name(i)}")
    status = _print_backends()
    for variable in _VARIABLES:
        if variable in os.environ:
            print(f"{variable}={os.environ[variable]}")
    packages = {name: _version(name) for name in ("triton", *_extra("train"))}
    print("packages: " + ", ".join(f"{name} {version or '(none)'}" for name, version in packages.items()))
    if not all(packages[name] for name in _extra("train")):
        print("  for the other commands: pip install 'vae_fast[train]'")
    return status


def _print_backends() -> int:
    try:
        info = vae_fast.info()
    except ValueError as error:  # what VAE_FAST_CPU_ISA asks for
        print(f"no backend: {error}")
        return 1
    backends, forced = info["backends"], info["forced"]
    for name, entry in backends.items():
        details = ", ".join(f"{k} {_text(v)}" for k, v in entry.items() if k not in ("available", "reason"))
        state = f"available  {details}" if entry["available"] else f"missing: {entry['reason']}"
        print(f"{name:10} {state}".rstrip())
    if forced and not backends.get(forced, {}).get("available"):
        print(
            f"nothing is computed: {forced!r} is forced, which is {'missing' if forced in backends else 'none'}"
        )
        return 1
    for device, name in info["used"].items():
        print(f"{device} tensors are served by: {name}{' (forced)' if forced else ''}")
        if name == "reference" and not forced:
            print(f"  the plain PyTorch twin: right, but slow. {_advice(device)}")
    return 0


def _advice(device: str) -> str:
    if device == "cpu":
        return "Install a C++17 compiler and reinstall vae_fast."
    return "Install triton."


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _extra(name: str) -> list[str]:
    """The packages of an extra of vae_fast's; none where it runs from its source alone."""
    try:
        required = metadata.requires("vae_fast") or []
    except metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line)[0] for line in required if re.search(rf"extra == .{name}\b", line)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
