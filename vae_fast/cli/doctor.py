"""`vae-fast doctor`."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch
from rich.console import Console

import vae_fast

_PACKAGES = ("triton", "accelerate", "safetensors", "huggingface_hub", "scikit-learn", "matplotlib")
_VARIABLES = ("VAE_FAST_BACKEND", "VAE_FAST_CPU_ISA", "TRITON_INTERPRET", "OMP_NUM_THREADS")


def run_doctor() -> None:
    info = vae_fast.info()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"vae_fast {info['version']}, torch {info['torch']}, Python {platform.python_version()}")
    console.print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        console.print(f"cuda:{i} {torch.cuda.get_device_name(i)}")
    for name, entry in info["backends"].items():
        details = ", ".join(f"{k} {_text(v)}" for k, v in entry.items() if k not in ("available", "reason"))
        state = f"available  {details}" if entry["available"] else f"missing: {entry['reason']}"
        console.print(f"{name:10} {state}".rstrip(), markup=False)
    for device, name in info["used"].items():
        forced = " (forced)" if info["forced"] else ""
        console.print(f"{device} tensors are served by: {name}{forced}")
        if name == "reference" and not info["forced"]:
            console.print(f"  the plain PyTorch twin: right, but slow. {_advice(device)}")
    for variable in _VARIABLES:
        if variable in os.environ:
            console.print(f"{variable}={os.environ[variable]}", markup=False)
    console.print("packages: " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))


def _advice(device: str) -> str:
    if device == "cpu":
        return "Install a C++17 compiler and reinstall vae_fast."
    return "Install triton."


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(none)"
