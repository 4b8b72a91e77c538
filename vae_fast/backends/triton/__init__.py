"""The Triton backend: one fused kernel forward and one backward per op, for NVIDIA and AMD GPUs.

Triton is imported when the first function is used. With TRITON_INTERPRET=1 in the environment the kernels run in
Triton's interpreter, on CPU tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from ..contract import KERNELS

_HOME = {name: name.partition("_")[0] for name in KERNELS}  # the module of each kernel is named after its op
__all__ = ["details", "unavailable_reason", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = function  # the next look-up finds it without coming here
    return function


def unavailable_reason() -> str | None:
    """Why Triton kernels cannot run here, or None. Imports nothing and touches no GPU."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def details() -> dict[str, str]:
    """What `vae_fast.info()` shows."""
    import triton

    if os.environ.get("TRITON_INTERPRET") == "1":
        return {"version": triton.__version__, "runs": "in the interpreter, on CPU tensors"}
    target = triton.runtime.driver.active.get_current_target()
    return {"version": triton.__version__, "target": f"{target.backend} {target.arch}"}
