"""What traces a call, beyond torch.compiler.is_compiling()."""

from __future__ import annotations

import sys

from torch.compiler import is_dynamo_compiling


def in_onnx_export() -> bool:
    """Whether torch.onnx.export does. It has imported torch.onnx then, which `import vae_fast` does not (0.09 s)."""
    if is_dynamo_compiling():
        return False
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()
