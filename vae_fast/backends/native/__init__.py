"""The C++ and CUDA engines (csrc), as two backends: `cpu` and `cuda`."""

from .engine import cpu, cuda

__all__ = ["cpu", "cuda"]
