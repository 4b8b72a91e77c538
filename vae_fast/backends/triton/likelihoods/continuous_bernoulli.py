"""The Bernoulli density on [0, 1]."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formulas import divide, exp, log
from .bernoulli import linear


@triton.jit
def continuous_bernoulli_nll(params, x, EXACT: tl.constexpr):
    (el,) = params
    # (1/2 - x) l + log(sinh(l/2) / (l/2)) around 0, where the other form has 0/0
    a = tl.abs(el)
    z = a * a
    # fit_polynomials.py log_sinh_4: log(sinh(l/2)/(l/2))/l² of l², |l| <= 2; 3.6e-08 relative
    near = 5.509677066584118e-06 + z * (-1.0205832978726903e-07 + z * 1.703650998052808e-09)
    near = z * (0.0416666679084301 + z * (-0.0003472213284112513 + z * near))
    far = linear(el, x) - log(divide(a, 1.0 - exp(-a, EXACT)))
    return tl.where(a < 2.0, (0.5 - x) * el + near, far)


@triton.jit
def continuous_bernoulli_grads(params, x, g, EXACT: tl.constexpr):
    (el,) = params
    # m(l) - x with m(l) = 1 / (1 - exp(-l)) - 1/l, of which m(-l) = 1 - m(l)
    a = tl.abs(el)
    z = a * a
    # fit_polynomials.py coth: (coth(l/2)/2 - 1/l)/l of l², |l| <= 2; 4.2e-09 absolute
    near = 3.304820347693749e-05 + z * (-8.118528853628959e-07 + z * 1.637590330005878e-08)
    near = el * (0.0833333358168602 + z * (-0.001388878794386983 + z * near))
    t = exp(-a, EXACT)
    less = divide(1.0, tl.minimum(a, 8.507059173023462e37)) - divide(t, 1.0 - t)  # 2^126
    far = tl.where(el > 0, (1.0 - x) - less, less - x)
    return (g * tl.where(a < 2.0, (0.5 - x) + near, far),)
