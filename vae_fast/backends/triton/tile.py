"""What a kernel needs to know where its elements are, and the second stage of every sum.

A tile is (ROWS, COLS): ROWS samples, COLS consecutive elements of each in row-major order. Strides come as a tuple
(batch, innermost, ..., outermost) over the dims that are left after neighbours were merged, or (batch,) for a tensor
with one value a sample. Every stride but the innermost is a multiple of VEC; writing `s // VEC * VEC` tells the
compiler so, and that is what makes loads and stores 128 bits wide.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(row, cols, sizes, strides, VEC: tl.constexpr):
    """Memory offset of the elements `cols` of the samples `row`; (ROWS, 1) for a tensor with one value a sample."""
    if len(strides) == 1:
        return row * strides[0]
    else:
        offset = row * (strides[0] // VEC * VEC)
        rest = cols
        for d in tl.static_range(len(sizes)):
            if d == 0:
                size = sizes[0] // VEC * VEC
                offset += (rest % size) * strides[1]
            else:
                size = sizes[d]
                offset += (rest % size) * (strides[d + 1] // VEC * VEC)
            rest = rest // size
        if len(sizes) == 0:
            return offset + rest * strides[1]
        else:
            return offset + rest * (strides[len(sizes) + 1] // VEC * VEC)


@triton.jit
def read(pointers, inside, mask):
    """Values as float32 where the tile is live; (ROWS, 1) where a sample has one value."""
    if pointers.shape[1] == 1:
        x = tl.load(pointers, mask=inside, other=0)
    else:
        x = tl.load(pointers, mask=mask, other=0)
    return x.to(tl.float32)


@triton.jit
def load(tensor, strides, row, cols, inside, mask, sizes, VEC: tl.constexpr):
    return read(tensor + locate(row, cols, sizes, strides, VEC), inside, mask)


@triton.jit
def write(pointers, value, mask):
    if pointers.shape[1] == 1:  # a sample of one element, whose tile is still COLS wide
        pointers += tl.zeros(mask.shape, tl.int32)
    if value.shape[1] == 1:
        value += tl.zeros(mask.shape, tl.float32)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def store(tensor, strides, value, row, cols, mask, sizes, VEC: tl.constexpr):
    write(tensor + locate(row, cols, sizes, strides, VEC), value, mask)


@triton.jit
def split64(x):
    """The two uint32 halves of an int64, low first."""
    return x.to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def combine(partial, out, out_s, sizes, count, width, STEPS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """out[j] = sum over r < count of partial[r, j], j < width, always in the same order."""
    cols = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)[None, :]
    total = tl.zeros((R, C), tl.float32)
    for step in range(STEPS):
        r = step * R + tl.arange(0, R)[:, None].to(tl.int64)
        total += tl.load(partial + r * width + cols, mask=(r < count) & (cols < width), other=0)
    total = tl.sum(total, axis=0)[None, :]
    row = tl.zeros((1, 1), tl.int64)
    store(out, out_s, total, row, cols, cols < width, sizes, 1)
