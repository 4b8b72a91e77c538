"""Flop formulas for torch.utils.flop_counter, registered when a program imports it: it takes Triton along, 0.14 s that
`import vae_fast` does not pay."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from .op import FLOPS

COUNTER = "torch.utils.flop_counter"


class _Finder(MetaPathFinder):
    """Has the formulas registered when the counter is imported, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(counter: Any) -> None:
    for name, formula in FLOPS.items():
        counter.register_flop_formula(getattr(torch.ops.vae_fast, name))(formula)


def register() -> None:
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _Finder())
