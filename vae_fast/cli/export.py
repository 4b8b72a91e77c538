"""`vae-fast export`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .. import nn
from ..training import checkpoint
from ..training.errors import CheckpointError, TrainingError
from . import runs

INSTALL = "pip install 'vae_fast[onnx]'"


def run_export(folder: Path | None, out: Path | None, formats: tuple[str, ...] | None) -> None:
    folder = folder or runs.newest(checkpoint.MODEL)
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
    if formats is None:
        formats = ("pt2", "onnx") if has_onnx else ("pt2",)
        if not has_onnx:
            print(f"vae-fast: without ONNX, which takes: {INSTALL}", file=sys.stderr)
    elif "onnx" in formats and not has_onnx:
        raise TrainingError(f"onnx or onnxscript is not installed; --format onnx takes: {INSTALL}")
    try:
        model = nn.VAE.from_pretrained(folder)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    try:
        for path in nn.export_model(model, out or folder, formats=formats):
            print(path)
    except ValueError as error:
        raise TrainingError(str(error)) from None
