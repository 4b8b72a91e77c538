"""Tensors of every layout that the kernels may meet, with random values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

F32, BF16, F16, U8, BOOL = torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool
INTEGERS = (torch.int16, torch.int32, torch.int64)

# Rows of one element, of less than a vector, of whole vectors, with tails, and long enough to be cut into segments.
SHAPES = [
    (1,),
    (9,),
    (3, 1),
    (5, 4),
    (4, 7),
    (3, 16),
    (2, 52),
    (6, 2, 3, 4),
    (2, 3, 4, 4),
    (2, 5, 3, 3),
    (2, 2304),
    (1, 4999),
]
LONG = (2, 4104)  # 8 elements a thread and still several blocks a row
LAYOUTS = (
    "dense",
    "packed",
    "packed_last",
    "channels_last",
    "transposed",
    "odd_address",
    "every_other",
    "padded",
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    if not dtype.is_floating_point:
        return torch.randint(0, 256 if dtype is U8 else 2, tuple(shape), generator=generator(seed)).to(dtype)
    return torch.randn(tuple(shape), generator=generator(seed)).to(dtype)


def like(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Tensor:
    """Memory of that layout, exactly as much as it needs: one byte beyond belongs to nobody."""
    shape = tuple(shape)
    dims = len(shape)
    if layout == "packed" and dims > 1:
        return torch.empty((shape[0], 2 * shape[1], *shape[2:]), dtype=dtype).chunk(2, 1)[1]
    if layout == "packed_last" and dims > 1:
        return torch.empty((*shape[:-1], 2 * shape[-1]), dtype=dtype).chunk(2, -1)[0]
    if layout == "channels_last" and dims > 2:
        return torch.empty((shape[0], *shape[2:], shape[1]), dtype=dtype).movedim(-1, 1)
    if layout == "transposed" and dims > 1:
        return torch.empty((*shape[1:], shape[0]), dtype=dtype).movedim(-1, 0)
    if layout == "odd_address":
        return torch.empty(prod(shape) + 1, dtype=dtype)[1:].view(shape)
    if layout == "every_other":
        return torch.empty((*shape, 2), dtype=dtype)[..., 1]
    if layout == "padded" and dims > 1:  # rows begin at multiples of 64 bytes
        columns = prod(shape[1:])
        return torch.empty((shape[0], -(-columns // 64) * 64), dtype=dtype)[:, :columns].unflatten(
            1, shape[1:]
        )
    return torch.empty(shape, dtype=dtype)


def tensor(
    shape: Sequence[int], dtype: torch.dtype, layout: str, seed: int, *, positive: bool = False
) -> Tensor:
    def made(*size: int) -> Tensor:
        x = values(size, dtype, seed)
        return x.exp() if positive else x

    shape = tuple(shape)
    if layout == "constant":  # a number for all
        return made().expand(shape)
    if layout == "per_feature":
        return made(*shape[1:]).expand(shape)
    if layout == "per_sample":
        return made(shape[0], *(1 for _ in shape[1:])).expand(shape)
    return like(shape, dtype, layout).copy_(made(*shape))


def poisoned(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Tensor:
    return like(shape, dtype, layout).fill_(float("nan"))
