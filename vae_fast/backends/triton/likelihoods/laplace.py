"""A Laplace variable."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import times_exp


@triton.jit
def laplace_nll(params, x, EXACT: tl.constexpr):
    location, s = params
    return 0.6931471805599453 + s + times_exp(tl.abs(x - location), -s)


@triton.jit
def laplace_grads(params, x, g, EXACT: tl.constexpr):
    location, s = params
    far = x - location
    sign = tl.where(far > 0, 1.0, tl.where(far < 0, -1.0, far))  # 0 at 0, NaN of NaN
    return -g * times_exp(sign, -s), g * (1.0 - times_exp(tl.abs(far), -s))
