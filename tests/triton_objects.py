"""What compiling the Triton kernels ahead of time needs: targets, a driver without a GPU, tensors without memory."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Driver:
    """As much of a GPU driver as compiling asks for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.name)

    def get_current_stream(self, device: int) -> int:
        return 0


def tensors(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Tensors without memory: a compiler reads only shapes, strides and dtypes."""
    return [torch.empty(shape, dtype=dtype, device="meta") for _ in range(count)]


def floats(*shape: int) -> Tensor:
    return tensors(1, *shape)[0]
