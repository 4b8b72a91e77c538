"""How tensors are described to a kernel, and which elements each program works on.

Everything here is arithmetic on shapes and strides. It depends on nothing else: not on the device, so that a sum has
the same bits on every GPU of a kind, and never in a way that noise could notice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton

from .launch import INTERPRETED, Spec, cached
from .tuning import EIGHT, Choice, choose

TILE = 1024  # elements of a program of four warps, eight a thread: a 128-bit access of 16-bit values, two of float32
LONG = 16384  # a longer sample is summed by several programs
FEW = 1 if INTERPRETED else 256  # fewer programs than about this leave a GPU idle
MANY = 2048  # so many keep it busy
GRID_Y = 65535

Strides = tuple[int, ...]


class Layout(NamedTuple):
    """How the elements of a sample lie in memory, for several tensors of one shape (batch, ...)."""

    n: int  # elements of a sample
    sizes: Strides  # of the merged dims, innermost first, without the outermost
    strides: tuple[Strides, ...]  # of each tensor: (batch, innermost, ..., outermost), (batch,) if constant
    vec: int  # power of two up to 16 that divides the innermost size and all strides but the innermost
    extent: int  # of a sample in memory, in elements
    order: Strides  # of the dims, outermost first, in which elements are counted
    swap: bool  # most tensors are channels-last (see tile.elements)


def describe(
    shape: Strides,
    *tensors: Strides | None,
    draws: Iterable[int] = (),
    order: Strides | None = None,
    free: bool = False,
) -> Layout:
    """Merges neighbouring dims where every tensor allows it. An absent tensor (None) gets strides ().

    Elements are counted row-major, or in the given `order` of dims. If `free`, nothing depends on the order, and it
    follows the first tensor's memory: tensors that are all channels-last (or permuted otherwise) read as dense ones.
    `draws` are the strides of leading dims, which count for `vec` only.
    """
    present = [s for s in tensors if s is not None]
    if order is None:
        order = tuple(range(1, len(shape)))
        if free:
            order = tuple(sorted(order, key=lambda d: present[0][d], reverse=True))
    dims: list[tuple[int, Strides]] = []  # innermost first
    for d in reversed(order):
        size, step = shape[d], tuple(s[d] for s in present)
        if size == 1:
            continue
        if dims and all(a == b * dims[-1][0] for a, b in zip(step, dims[-1][1], strict=True)):
            dims[-1] = (dims[-1][0] * size, dims[-1][1])
        else:
            dims.append((size, step))
    n = math.prod(shape[1:])
    vec = math.gcd(16, dims[0][0] if dims else 1, *draws)
    extent = n
    strides: list[Strides] = []
    for i, s in enumerate(present):
        batch, inner = s[0] if shape[0] > 1 else 0, [step[i] for _, step in dims]
        if any(inner):
            vec = math.gcd(vec, batch, *inner[1:])
            extent = max(extent, sum((size - 1) * step[i] for size, step in dims))
        strides.append((batch, *inner) if any(inner) else (batch,))
    found = iter(strides)
    return Layout(
        n,
        tuple(size for size, _ in dims[:-1]),
        tuple(() if s is None else next(found) for s in tensors),
        vec,
        extent,
        order,
        not free and _channels_last(dims),
    )


def _channels_last(dims: list[tuple[int, Strides]]) -> bool:
    if len(dims) != 2 or dims[0][0] % 4:
        return False
    votes = [outer < inner for inner, outer in zip(dims[0][1], dims[1][1], strict=True)]
    return 2 * sum(votes) > len(votes)


def per_element(loss: Spec | None, shape: Strides) -> bool:
    """Whether a loss, or the gradient by one, is of each element of what has this shape, and not of each sample."""
    return loss is not None and len(loss.shape) == len(shape) > 1


def lead(x: Spec | None, over: Spec) -> tuple[int, int, Strides | None]:
    """Draws, their stride and the other strides of a tensor (batch, ...) or (draws, batch, ...)."""
    if x is None:
        return 1, 0, None
    if len(x.shape) == len(over.shape):
        return 1, 0, x.strides
    return x.shape[0], x.strides[0], x.strides[1:]


def after_lead(x: Spec) -> Spec:
    """A tensor (draws, ...) without its draws."""
    return x._replace(shape=x.shape[1:], strides=x.strides[1:])


def lead_all(tensors: Iterable[Spec], over: Spec) -> tuple[Strides, list[Spec]]:
    """The draws' strides (0: without draws) of tensors (batch, ...) or (draws, batch, ...), and those after draws."""
    of_draw, rest = [], []
    for x in tensors:
        _, stride, strides = lead(x, over)
        of_draw.append(stride)
        rest.append(after_lead(x) if strides != x.strides else x)
    return tuple(of_draw), rest


class Plan(NamedTuple):
    programs: int  # along the first grid dim
    parts: int  # of a sample
    steps: int  # tiles of a program
    rows: int
    cols: int
    each: int = 8  # elements a thread
    whole: bool = False  # no tile ends past its sample

    @property
    def threads(self) -> int:
        return max(32, self.rows * self.cols // self.each)


def _width(n: int, tile: int) -> int:
    """Columns of a tile: the widest that wastes little of the last tile of a sample."""
    widths = [w for w in (4096, 2048, 1024, 512, 256, 128, 64, 32) if w < 2 * n and w <= max(1024, tile)]
    widths = widths or [max(4, triton.next_power_of_2(n))]
    padded = {w: triton.cdiv(n, w) * w for w in widths}
    return next(w for w in widths if padded[w] <= 1.125 * min(padded.values()))


def _height(rows: int, cols: int, parts: int, tile: int) -> int:
    """Rows of a tile: as many as it holds, fewer if that leaves too few programs."""
    height = min(max(1, tile // cols), triton.next_power_of_2(rows))
    while height > 1 and triton.cdiv(rows, height) * parts < FEW:
        height //= 2
    return height


def _tile(rows: int, n: int, choice: Choice) -> tuple[int, int]:
    """Elements of a program and of a thread: as chosen where that leaves enough programs."""
    each, tile = choice.each, TILE * choice.warps // 4
    while each > 8 and rows * n < MANY * (tile * each // 8):
        each //= 2
    return tile * each // 8, each


def _plan(
    tile: int, each: int, programs: int, parts: int, steps: int, rows: int, cols: int, whole: bool
) -> Plan:
    """A tile that is smaller than planned has eight elements a thread, and so more threads."""
    return Plan(programs, parts, steps, rows, cols, each if rows * cols >= tile else min(8, each), whole)


@cached
def elementwise_plan(rows: int, n: int, choice: Choice = EIGHT) -> Plan:
    """One tile a program: nothing is summed."""
    tile, each = _tile(rows, n, choice)
    cols = _width(n, tile)
    parts = triton.cdiv(n, cols)
    height = _height(rows, cols, parts, tile)
    return _plan(tile, each, triton.cdiv(rows, height) * parts, parts, 1, height, cols, n % cols == 0)


@cached
def row_sum_plan(rows: int, n: int, choice: Choice = EIGHT) -> Plan:
    """Sums along samples. A program walks along `rows` whole samples, or along one part of one long sample."""
    tile, each = _tile(rows, n, choice)
    cols = _width(n, tile)
    if n <= LONG:
        if n >= 4 * TILE and rows <= FEW:  # few samples: more threads on each
            cols = tile = 4 * TILE
            each = min(8, each)
        height = _height(rows, cols, 1, tile)
        return _plan(
            tile, each, triton.cdiv(rows, height), 1, triton.cdiv(n, cols), height, cols, n % cols == 0
        )
    span = min(LONG, max(4 * TILE, triton.next_power_of_2(triton.cdiv(rows * n, MANY))))
    parts = triton.cdiv(n, span)
    return _plan(tile, each, rows * parts, parts, span // tile, 1, tile, n % span == 0)


@cached
def column_sum_plan(rows: int, n: int, choice: Choice = EIGHT) -> Plan:
    """Sums across samples. A program walks down `steps` tiles of `rows` samples, and there are few programs."""
    cols = min(_width(n, TILE), 128)
    parts = triton.cdiv(n, cols)
    height = min(max(1, TILE // cols), triton.next_power_of_2(rows))
    tiles = triton.cdiv(rows, height)
    steps = triton.next_power_of_2(max(1, triton.cdiv(tiles * parts, MANY), min(tiles, 4)))
    return Plan(
        triton.cdiv(tiles, steps) * parts, parts, steps, height, cols, min(8, choice.each), n % cols == 0
    )


def draw_steps(draws: int, programs: int) -> int:
    """How many draws one program makes: all of them, unless few programs would be left."""
    return max(1, triton.cdiv(draws, GRID_Y), min(draws, draws * programs // MANY))


def draw_parts(draws: int | None, programs: int) -> tuple[int, int | None]:
    """Programs that share the draws, and how many each makes."""
    if draws is None:
        return 1, None
    steps = draw_steps(draws, programs)
    return triton.cdiv(draws, steps), steps


def choice_of(name: str, *tensors: Spec | None, part: str = "") -> Choice:
    """What `tuning` says for a kernel of these tensors."""
    return choose(name, max(t.dtype.itemsize for t in tensors if t is not None), part)


def exact(*tensors: Spec) -> bool:
    """Whether to compute to float32 accuracy (see formulas)."""
    return any(t.dtype is torch.float32 for t in tensors)


def pair(at: Layout, *tensors: Spec | None) -> bool:
    """Whether threads hold eight neighbouring elements (16-bit values in 128-bit accesses) rather than four."""
    return at.vec >= 8 and not at.swap and any(t is not None and t.dtype.itemsize == 2 for t in tensors)


def constants(at: Layout, plan: Plan) -> tuple[Any, ...]:
    """The last arguments of every kernel: PARTS, WHOLE, VEC, SWAP, OFFSETS_64, ROWS, COLS."""
    extent = at.extent + (plan.rows - 1) * max((s[0] for s in at.strides if s), default=0)
    return plan.parts, plan.whole, at.vec, at.swap, extent >= 2**31 - 2**16, plan.rows, plan.cols
