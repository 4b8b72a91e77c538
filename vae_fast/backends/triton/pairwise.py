"""The op `pairwise`: log N(z_i; mu_j, exp logvar_j) of every row and column, reduced over the columns.

A program has a tile of rows and walks along the columns, dim by dim. What it keeps of each dim (a maximum and a sum
forward, a gradient backward) are tiles (rows, dims), of which one dim at a time is read and changed by a mask:
registers have no index. Backward is a launch for the rows and one for the columns, whose programs walk along some of
the rows each; their parts are added in a fixed order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import OwnColumn
from .launch import Job, Key, cached, key, run, specs
from .layout import FEW

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # not -inf, from which a term of -inf minus it would be NaN
_HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2 * math.pi))
_ROWS, _COLS, _DIMS = 16, 64, 64  # of a tile at most


@triton.jit
def _log_weights(
    log_weights, row, col, columns, first, other, own, next_one, WEIGHTED: tl.constexpr, STRATIFIED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """-inf for columns that are not there."""
    w = tl.zeros((ROWS, COLS), tl.float32)
    if STRATIFIED:
        place = (first + row) % columns
        w += other
        w = tl.where(col == (place + 1) % columns, next_one, w)
        w = tl.where(col == place, own, w)  # last: of a single column it is both
    elif WEIGHTED:
        w += tl.load(log_weights + col, mask=col < columns, other=0)
    return tl.where(col < columns, w, float("-inf"))


@triton.jit
def _term(
    z, mu, logvar, row, col, d, rows, columns, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, N: tl.constexpr
):
    """t = (z - mu) exp(-logvar / 2), that factor, and the term"""
    zd = tl.load(z + row * z_s + d * z_d, mask=(row < rows) & (d < N), other=0).to(tl.float32)
    there = (col < columns) & (d < N)
    m = tl.load(mu + col * mu_s + d * mu_d, mask=there, other=0).to(tl.float32)
    v = tl.load(logvar + col * logvar_s + d * logvar_d, mask=there, other=0).to(tl.float32)
    root = tl.exp(-0.5 * v)
    t = (zd - m) * root
    return t, root, -0.5 * t * t - (0.5 * v + _HALF_LOG_2PI)


@triton.jit
def _take(tile, at):
    """The column of a tile that the mask `at` (1, columns) names, as (rows, 1)."""
    return tl.sum(tl.where(at, tile, 0.0), axis=1)[:, None]


@triton.jit
def _add(m, s, x):
    """A maximum and the sum of exp(x - it), (rows, 1) each, and the terms x (rows, columns)."""
    top = tl.maximum(m, tl.max(x, axis=1)[:, None])
    return top, s * tl.exp(m - top) + tl.sum(tl.exp(x - top), axis=1)[:, None]


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def _forward(
    z, mu, logvar, log_weights, joint, dims, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, dims_s, dims_d,
    rows, columns, first, other, own, next_one, WEIGHTED: tl.constexpr, STRATIFIED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DIMS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    begin = tl.program_id(1) * DIMS
    dim = begin + tl.arange(0, DIMS)[None, :]
    m = tl.full((ROWS, 1), _LOWEST, tl.float32)
    s = tl.zeros((ROWS, 1), tl.float32)
    m_of = tl.full((ROWS, DIMS), _LOWEST, tl.float32)
    s_of = tl.zeros((ROWS, DIMS), tl.float32)
    start = 0
    while start < columns:  # a range takes no runtime number in the interpreter
        col = (start + tl.arange(0, COLS)).to(tl.int64)[None, :]
        w = _log_weights(
            log_weights, row, col, columns, first, other, own, next_one, WEIGHTED, STRATIFIED, ROWS, COLS
        )  # fmt: skip
        total = w
        for d in range(N):
            _, _, term = _term(
                z, mu, logvar, row, col, d, rows, columns, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, N
            )  # fmt: skip
            total += term
            if dims is not None:
                at = dim == d
                top, sum_of = _add(_take(m_of, at), _take(s_of, at), term + w)
                m_of = tl.where(at, top, m_of)
                s_of = tl.where(at, sum_of, s_of)
        m, s = _add(m, s, tl.where(col < columns, total, float("-inf")))
        start += COLS
    if tl.program_id(1) == 0:
        tl.store(joint + row, m + tl.log(s), mask=row < rows)
    if dims is not None:
        there = (row < rows) & (dim < N)
        tl.store(dims + row * dims_s + dim * dims_d, m_of + tl.log(s_of), mask=there)


@triton.jit
def _shares(
    z, mu, logvar, joint, grad_joint, grad_joint_s, w, row, col, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d,
    rows, columns, N: tl.constexpr,
):  # fmt: skip
    """The joint's gradient by each pair's term."""
    total = w
    for d in range(N):
        _, _, term = _term(
            z, mu, logvar, row, col, d, rows, columns, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, N
        )  # fmt: skip
        total += term
    there = (row < rows) & (col < columns)
    g = tl.load(grad_joint + row * grad_joint_s, mask=row < rows, other=0)
    return tl.where(there, g * tl.exp(total - tl.load(joint + row, mask=row < rows, other=0)), 0.0)


@triton.jit
def _share_of(
    dims, grad_dims, term, w, row, d, rows, columns, col, dims_s, dims_d, grad_s, grad_d, N: tl.constexpr
):
    """The gradient of a dim's sum by each pair's term."""
    there = (row < rows) & (d < N)
    g = tl.load(grad_dims + row * grad_s + d * grad_d, mask=there, other=0)
    lse = tl.load(dims + row * dims_s + d * dims_d, mask=there, other=0)
    return tl.where(there & (col < columns), g * tl.exp((term - lse) + w), 0.0)


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def _backward_rows(
    z, mu, logvar, log_weights, joint, dims, grad_joint, grad_dims, grad_z,
    z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, dims_s, dims_d, grad_dims_s, grad_dims_d, grad_z_s, grad_z_d,
    grad_joint_s,
    rows, columns, first, other, own, next_one, WEIGHTED: tl.constexpr, STRATIFIED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DIMS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    begin = tl.program_id(1) * DIMS
    dim = begin + tl.arange(0, DIMS)[None, :]
    grad = tl.zeros((ROWS, DIMS), tl.float32)
    start = 0
    while start < columns:  # a range takes no runtime number in the interpreter
        col = (start + tl.arange(0, COLS)).to(tl.int64)[None, :]
        w = _log_weights(
            log_weights, row, col, columns, first, other, own, next_one, WEIGHTED, STRATIFIED, ROWS, COLS
        )  # fmt: skip
        joint_share = tl.zeros((ROWS, COLS), tl.float32)
        if grad_joint is not None:
            joint_share = _shares(
                z, mu, logvar, joint, grad_joint, grad_joint_s, w, row, col,
                z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, rows, columns, N,
            )  # fmt: skip
        for i in range(DIMS):
            d = begin + i
            t, root, term = _term(
                z, mu, logvar, row, col, d, rows, columns, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, N
            )  # fmt: skip
            share = joint_share
            if grad_dims is not None:
                share += _share_of(
                    dims, grad_dims, term, w, row, d, rows, columns, col, dims_s, dims_d, grad_dims_s, grad_dims_d, N
                )  # fmt: skip
            by_mean = tl.where(col < columns, share * t * root, 0.0)
            grad -= tl.where(dim == d, tl.sum(by_mean, axis=1)[:, None], 0.0)
        start += COLS
    there = (row < rows) & (dim < N)
    tl.store(grad_z + row * grad_z_s + dim * grad_z_d, grad.to(grad_z.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows", "columns", "first", "rows_per_part"])
def _backward_columns(
    z, mu, logvar, log_weights, joint, dims, grad_joint, grad_dims, by_mu, by_logvar, by_weight,
    z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, dims_s, dims_d, grad_dims_s, grad_dims_d, grad_joint_s,
    rows, columns, rows_per_part, first, other, own, next_one, WEIGHTED: tl.constexpr, STRATIFIED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DIMS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """by_mu, by_logvar (parts, dims, columns), by_weight (parts, columns), dense: each part's own."""
    col = (tl.program_id(0) * COLS + tl.arange(0, COLS)).to(tl.int64)[None, :]
    begin = tl.program_id(1) * DIMS
    part = tl.program_id(2)
    dim = begin + tl.arange(0, DIMS)[:, None]
    of_mu = tl.zeros((DIMS, COLS), tl.float32)
    of_logvar = tl.zeros((DIMS, COLS), tl.float32)
    of_weight = tl.zeros((1, COLS), tl.float32)
    start = part * rows_per_part
    while start < min(rows, (part + 1) * rows_per_part):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        w = _log_weights(
            log_weights, row, col, columns, first, other, own, next_one, WEIGHTED, STRATIFIED, ROWS, COLS
        )  # fmt: skip
        joint_share = tl.zeros((ROWS, COLS), tl.float32)
        if grad_joint is not None:
            joint_share = _shares(
                z, mu, logvar, joint, grad_joint, grad_joint_s, w, row, col,
                z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, rows, columns, N,
            )  # fmt: skip
            if begin == 0:
                of_weight += tl.sum(joint_share, axis=0)[None, :]
        for i in range(DIMS):
            d = begin + i
            t, root, term = _term(
                z, mu, logvar, row, col, d, rows, columns, z_s, z_d, mu_s, mu_d, logvar_s, logvar_d, N
            )  # fmt: skip
            share = joint_share
            if grad_dims is not None:
                of_dim = _share_of(
                    dims, grad_dims, term, w, row, d, rows, columns, col, dims_s, dims_d, grad_dims_s, grad_dims_d, N
                )  # fmt: skip
                share += of_dim
                of_weight += tl.sum(of_dim, axis=0)[None, :]
            t = tl.where(row < rows, t, 0.0)
            slope = share * t
            at = dim == d
            of_mu += tl.where(at, tl.sum(slope * root, axis=0)[None, :], 0.0)
            of_logvar += tl.where(at, tl.sum(0.5 * slope * t - 0.5 * share, axis=0)[None, :], 0.0)
        start += ROWS
    there = (dim < N) & (col < columns)
    here = (part * N + dim).to(tl.int64) * columns + col
    tl.store(by_mu + here, of_mu, mask=there)
    tl.store(by_logvar + here, of_logvar, mask=there)
    if by_weight is not None:
        at_weight = (part * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * columns + col
        tl.store(by_weight + at_weight, of_weight, mask=col < columns)


def _strides(*keys: Key) -> list[int]:
    """Of each matrix, zeros in place of one that is absent."""
    return [step for spec in specs(*keys) for step in ((0, 0) if spec is None else spec.strides)]


def _step(vector: Tensor | None) -> int:
    return 0 if vector is None else vector.stride(0)


def _numbers(own: OwnColumn | None, columns: int) -> tuple[Any, ...]:
    """first, the three weights, and whether they are those to take."""
    weights = own.log_weights(columns) if own is not None else None
    return (own.first if own is not None else 0, *(weights or (0.0, 0.0, 0.0))), weights is not None


def _dims(n: int) -> int:
    return min(_DIMS, triton.next_power_of_2(max(1, n)))


@cached
def _forward_job(device: torch.device, own: OwnColumn | None, weighted: bool, *keys: Key) -> Job:
    z, mu, *_ = specs(*keys)
    assert z is not None and mu is not None
    (rows, n), columns = z.shape, mu.shape[0]
    numbers, stratified = _numbers(own, columns)
    grid = (triton.cdiv(rows, _ROWS), max(1, triton.cdiv(n, _dims(n))))
    rest = (*_strides(*keys), rows, columns, *numbers, weighted, stratified, _ROWS, _COLS, _dims(n), n)
    return Job(_forward, grid, 128, rest)


@cached
def _rows_job(device: torch.device, own: OwnColumn | None, weighted: bool, step: int, *keys: Key) -> Job:
    z, mu, *_ = specs(*keys)
    assert z is not None and mu is not None
    (rows, n), columns = z.shape, mu.shape[0]
    numbers, stratified = _numbers(own, columns)
    grid = (triton.cdiv(rows, _ROWS), max(1, triton.cdiv(n, _dims(n))))
    rest = (
        *_strides(*keys),
        step,
        rows,
        columns,
        *numbers,
        weighted,
        stratified,
        _ROWS,
        _COLS // 2,
        _dims(n),
        n,
    )  # registers
    return Job(_backward_rows, grid, 128, rest)


@cached
def _columns_job(device: torch.device, own: OwnColumn | None, weighted: bool, step: int, *keys: Key) -> Job:
    """Its scratch: of by_mu and by_logvar, then of by_weight."""
    z, mu, *_ = specs(*keys)
    assert z is not None and mu is not None
    (rows, n), columns = z.shape, mu.shape[0]
    numbers, stratified = _numbers(own, columns)
    blocks, chunks = triton.cdiv(columns, _COLS), max(1, triton.cdiv(n, _dims(n)))
    parts = max(1, min(triton.cdiv(FEW, blocks * chunks), triton.cdiv(rows, 4 * _ROWS)))
    per_part = triton.cdiv(triton.cdiv(rows, parts), _ROWS) * _ROWS
    parts = max(1, triton.cdiv(rows, max(1, per_part)))
    rest = (
        *_strides(*keys),
        step,
        rows,
        columns,
        per_part,
        *numbers,
        weighted,
        stratified,
        _ROWS,
        _COLS,
        _dims(n),
        n,
    )
    job = Job(_backward_columns, (blocks, chunks, parts), 128, rest)
    job.scratch = [(parts, n * columns), (parts * chunks, columns)]
    return job


def pairwise_forward(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    own: OwnColumn | None,
    *,
    joint: Tensor,
    dims: Tensor | None,
) -> None:
    """Fills joint (rows,), which is dense, and dims (rows, dims)."""
    if z.shape[0] == 0:
        return
    job = _forward_job(z.device, own, log_weights is not None, key(z), key(mu), key(logvar), key(dims))
    run(job, z, z, mu, logvar, log_weights, joint, dims)


def pairwise_backward(
    grad_joint: Tensor | None,
    grad_dims: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    own: OwnColumn | None,
    joint: Tensor,
    dims: Tensor | None,
    *,
    grad_z: Tensor | None,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_log_weights: Tensor | None,
) -> None:
    """Fills the gradients, of any strides."""
    common = (z.device, own, log_weights is not None, _step(grad_joint))
    keys = (key(z), key(mu), key(logvar), key(dims), key(grad_dims))
    inputs = (z, mu, logvar, log_weights, joint, dims, grad_joint, grad_dims)
    if grad_z is not None and z.numel():
        job = _rows_job(*common, *keys, key(grad_z))
        run(job, z, *inputs, grad_z)
    if not any(g is not None and g.numel() for g in (grad_mu, grad_logvar, grad_log_weights)):
        return
    job = _columns_job(*common, *keys)
    (parts, size), weights = job.scratch  # type: ignore[misc]
    assert weights is not None
    by_mu, by_logvar = (torch.empty((parts, size), dtype=torch.float32, device=z.device) for _ in range(2))
    by_weight = (
        torch.empty(weights, dtype=torch.float32, device=z.device) if grad_log_weights is not None else None
    )
    run(job, z, *inputs, by_mu, by_logvar, by_weight)
    for grad, partial in ((grad_mu, by_mu), (grad_logvar, by_logvar)):
        if grad is not None:
            grad.copy_(partial.sum(0).view(mu.shape[1], mu.shape[0]).T)
    if grad_log_weights is not None and by_weight is not None:
        grad_log_weights.copy_(by_weight.sum(0))
