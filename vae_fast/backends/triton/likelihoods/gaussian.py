"""A normal variable, of any variance or of 1."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import scaled_square


@triton.jit
def gaussian_nll(params, x, EXACT: tl.constexpr):
    mean, lv = params
    square, _ = scaled_square(mean - x, lv)
    return 0.5 * lv + 0.9189385332046727 + square  # log(2 pi) / 2


@triton.jit
def gaussian_grads(params, x, g, EXACT: tl.constexpr):
    mean, lv = params
    square, slope = scaled_square(mean - x, lv)
    return g * slope, g * (0.5 - square)


@triton.jit
def unit_gaussian_nll(params, x, EXACT: tl.constexpr):
    (mean,) = params
    d = mean - x
    return tl.fma(0.5 * d, d, 0.9189385332046727)  # log(2 pi) / 2


@triton.jit
def unit_gaussian_grads(params, x, g, EXACT: tl.constexpr):
    (mean,) = params
    return (g * (mean - x),)
