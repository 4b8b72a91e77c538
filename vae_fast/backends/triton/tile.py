"""What a kernel needs to know where its elements are, and the second stage of every sum.

A tile is (ROWS, COLS): ROWS samples, COLS consecutive elements of each in row-major order. Strides come as a tuple
(batch, innermost, ..., outermost) over the dims that are left after neighbours were merged, or (batch,) for a tensor
with one value a sample. Every stride but the innermost is a multiple of VEC; writing `s // VEC * VEC` tells the
compiler so, and that is what makes loads and stores 128 bits wide.

Tiles travel as a tuple `at` = (first, local, cols, inside, there, mask): the tile's first sample (a scalar, int64), the
samples' distances from it (ROWS, 1), element numbers (1, COLS), which samples exist (ROWS, 1), which elements exist of
a sample that does (1, COLS), and which elements exist (ROWS, COLS). The first sample's address is scalar arithmetic,
what is added for an element has 32 bits. A sample that does not exist stands for the last one, so that loads need no
mask for it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def samples(number, rows, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr):
    """first, local and inside of the tile with this number."""
    first = number.to(tl.int64) * ROWS
    left = tl.minimum(rows - first, ROWS).to(tl.int32)
    local = tl.arange(0, ROWS)[:, None]
    inside = local < left
    local = tl.minimum(local, left - 1)
    if OFFSETS_64:
        local = local.to(tl.int64)
    return first, local, inside


@triton.jit
def elements(
    start, n, sizes, WHOLE: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """The numbers of COLS elements from `start`, and which of them exist: all if WHOLE.

    SWAP is for channels-last tensors where noise wants row-major groups of four: a group still has four neighbours in
    row-major order (pixels of one channel), but the next group is the same pixels of the next channel, so that a warp
    reads neighbouring memory.
    """
    place = start + tl.arange(0, COLS)[None, :]
    if WHOLE:  # no comparison, and loads without a mask
        there = tl.full((1, COLS), 1, tl.int1)
    else:
        there = place < n // VEC * VEC
    if SWAP:
        return swapped_group(place // 4, n, sizes) * 4 + place % 4, there
    else:
        return place, there


@triton.jit
def swapped_group(group, n, sizes):
    outer = n // sizes[0]
    return (group % outer) * (sizes[0] // 4) + group // outer


@triton.jit
def origin(tensor, strides, at, VEC: tl.constexpr):
    """The address of a tile's first sample."""
    if len(strides) == 1:
        return tensor + at[0] * strides[0]
    else:
        return tensor + at[0] * (strides[0] // VEC * VEC)


@triton.jit
def locate(at, sizes, strides, VEC: tl.constexpr):
    """A tile's distances from its origin; (ROWS, 1) for a tensor with one value a sample."""
    if len(strides) == 1:
        return at[1] * strides[0]
    else:
        offset = at[1] * (strides[0] // VEC * VEC)
        rest = at[2]
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
def read(pointers, at):
    """Values as float32, 0 past the end of a sample; (ROWS, 1) where a sample has one value."""
    if pointers.shape[1] == 1:
        x = tl.load(pointers)
    else:
        x = tl.load(pointers, mask=tl.broadcast_to(at[4], at[5].shape), other=0)
    return x.to(tl.float32)


@triton.jit
def load(tensor, strides, at, sizes, VEC: tl.constexpr):
    return read(origin(tensor, strides, at, VEC) + locate(at, sizes, strides, VEC), at)


@triton.jit
def load_each(tensor, stride, at):
    """One value a sample (ROWS, 1)."""
    return tl.load(of_samples(tensor, stride, at[0], at[1]))


@triton.jit
def load_upstream(grad, strides, at, sizes, EACH: tl.constexpr, VEC: tl.constexpr):
    """The gradient of a loss: of each element, or one a sample."""
    if EACH:
        return load(grad, strides, at, sizes, VEC)
    else:
        return load_each(grad, strides[0], at)


@triton.jit
def of_samples(tensor, stride, first, local):
    """Where samples have their one value, with a stride that no Layout knows: their distance has 64 bits."""
    return tensor + first * stride + local.to(tl.int64) * stride


@triton.jit
def write(pointers, value, at):
    if pointers.shape[1] == 1:  # a sample of one element, whose tile is still COLS wide
        pointers += tl.zeros(at[5].shape, tl.int32)
    if value.shape[1] == 1:
        value += tl.zeros(at[5].shape, tl.float32)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=at[5])


@triton.jit
def store(tensor, strides, value, at, sizes, VEC: tl.constexpr):
    write(origin(tensor, strides, at, VEC) + locate(at, sizes, strides, VEC), value, at)


@triton.jit
def step_of(draw, stride, VEC: tl.constexpr):
    """Memory offset of a draw."""
    return draw * (stride // VEC * VEC)


@triton.jit
def combine(partial, out, out_s, sizes, count, width, STEPS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """out[j] = sum over r < count of partial[r, j], j < width, always in the same order."""
    cols = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)[None, :]
    total = tl.zeros((R, C), tl.float32)
    for step in range(STEPS):
        r = step * R + tl.arange(0, R)[:, None].to(tl.int64)
        total += tl.load(partial + r * width + cols, mask=(r < count) & (cols < width), other=0)
    none = tl.zeros((1, 1), tl.int32)
    at = (tl.cast(0, tl.int64), none, cols, none == 0, cols < width, cols < width)
    store(out, out_s, tl.sum(total, axis=0)[None, :], at, sizes, 1)
