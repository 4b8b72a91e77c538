"""Of every function of csrc/math: how C++ calls it and what it would give in exact arithmetic, for test_math.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

Array = np.ndarray[Any, np.dtype[Any]]


class Case(NamedTuple):
    expression: str  # in C++, of x and y
    true: Callable[..., Any]  # of float64 arrays, or of mpf
    exact: bool = False  # whether `true` takes mpf
    scale: Callable[..., Any] | None = None  # what the bound's ulp is of, if not of the true value
    prepare: Callable[..., tuple[Array, ...]] | None = None  # other inputs than the random ones


def mp_case(expression: str, true: Callable[..., Any], **options: Any) -> Case:
    return Case(expression, true, exact=True, **options)


def stirling(y: mpf) -> mpf:
    return mp.loggamma(y) - (y - 0.5) * mp.log(y) + y - mp.log(2 * mp.pi) / 2


def digamma_minus_log(y: mpf) -> mpf:
    return mp.digamma(y) - mp.log(y)


def digamma_difference(x: mpf, y: mpf) -> mpf:
    return digamma_minus_log(max(x, y)) - digamma_minus_log(min(x, y))


def digamma_terms(x: Array, y: Array) -> Array:
    """The sum of the absolute terms that the difference of two series is made of."""
    terms: Array = abs(x - y) / (2 * x * y) + (1 / x**2 + 1 / y**2) / 12
    return terms


def near_or_far(x: Array, series: list[float], far: Array) -> Array:
    """x² times a power series around 0, where `far` cancels."""
    near: Array = x * x * np.polynomial.polynomial.polyval(x, series)
    return np.where(abs(x) < 0.02, near, far)


def half_expm1_minus(x: Array) -> Array:
    series = [2 ** (k - 1) / math.factorial(k) for k in range(2, 10)]
    return near_or_far(x, series, np.expm1(2 * x) / 2 - x)


def log1p_minus(t: Array) -> Array:
    return near_or_far(t, [-((-1) ** k) / k for k in range(2, 10)], np.log1p(t) - t)


def deviance(t: Array) -> Array:
    far = np.where(t > -1, (1 + t) * np.log1p(t) - t, 1)
    return near_or_far(t, [(-1) ** k / (k * (k - 1)) for k in range(2, 10)], far)


def only_near_pairs(x: Array, y: Array) -> tuple[Array, ...]:
    """Numbers whose ratio is between 3/4 and 4/3."""
    return x, x * (1 + (y / np.float32(1e30) - np.float32(0.43)) * np.float32(0.58)).astype(np.float32)


def near_pairs(x: Array, y: Array) -> tuple[Array, ...]:
    """Every other pair of these."""
    _, near = only_near_pairs(x, y)
    return x, np.where(np.arange(len(x)) % 2, near, y)


def atanh_cubic(x: Array, y: Array) -> Array:
    """log(x / y) less 2w, w = (x - y) / (x + y), where they nearly cancel."""
    w = (x - y) / (x + y)
    return sum(2 * w ** (2 * k + 1) / (2 * k + 1) for k in range(1, 16))


def exact_sum(t: Array) -> tuple[Array, ...]:
    """t of which 1 + t is exact, unless it is so small that this does not matter."""
    return (np.where(abs(t) < 0.25, t, (np.float32(1) + t) - np.float32(1)),)


def close(a: Array, b: Array) -> tuple[Array, ...]:
    """Every other b close to its a."""
    distance = np.geomspace(1e-7, 1, len(a) // 2).astype(np.float32)
    return a, np.concatenate([a[::2] * (1 + distance), b[1::2]])


def words(x: Array) -> Array:
    return x.astype(np.float32).view(np.uint32)


def normal(part: Callable[[Array], Array], x: Array, y: Array) -> Array:
    radius = np.sqrt(-2 * np.log((words(x) + 0.5) * 2.0**-32))
    result: Array = radius * part(2 * np.pi * (words(y) * 2.0**-32))
    return result


DIFFERENCE = "digamma_minus_log_difference{}(maximum(x, y), minimum(x, y), absolute(y - x))"
LOG1P = "log1p(x, splat<F>(1.0f) + x)"
NORMAL = "box_muller<F>(bit_cast<u32_of<F>>(x), bit_cast<u32_of<F>>(y))"
CASES = {
    "to_float": Case("to_float<F>(bit_cast<i32_of<F>>(x))", lambda x: words(x).view(np.int32).astype(float)),
    "fma": Case("fma(x, y, x)", lambda x, y: x * y + x, scale=lambda x, y: abs(x * y) + abs(x)),
    "sqrt": Case("sqrt(x)", np.sqrt),
    "divide": Case("divide(x, y)", np.divide),
    "maximum": Case("maximum(x, y)", np.maximum),
    "minimum": Case("minimum(x, y)", np.minimum),
    "clamp": Case("clamp(x, -1.5f, 2.0f)", lambda x: np.clip(x, -1.5, 2)),
    "reduce_1": Case("reduce<1>(x).p", lambda x: np.expm1(x)),
    "reduce_2": Case("reduce<2>(x).p", lambda x: np.expm1(x)),
    "power": Case("power(reduce<1>(x * splat<F>(kLn2)))", lambda x: 2.0**x, prepare=lambda x: (np.rint(x),)),
    "bounded": Case("bounded(x)", lambda x: np.clip(x, -105, 90)),
    "exp": Case("exp(x)", np.exp),
    "exp_nonpositive": Case("exp_nonpositive(x)", np.exp),
    "expm1_nonpositive": Case("expm1_nonpositive(x)", np.expm1),
    "exp_factors": Case("exp_factors(x).times(y)", lambda x, y: y * np.exp(x)),
    "exp_factors_below": Case("exp_factors_below(x).times(y)", lambda x, y: y * np.exp(x)),
    "exponential": Case("exponential(x).first * exponential(x).second", np.exp),
    "half_expm1": Case("exponential(x).half_expm1", lambda x: np.expm1(2 * x) / 2),
    "half_expm1_minus": Case("exponential(x).half_expm1_minus", half_expm1_minus),
    "absolute": Case("absolute(x)", np.abs),
    "times_exp": Case("times_exp(x, y)", lambda x, y: x * np.exp(y)),
    "scaled_square": Case(
        "scaled_square(x, y).half * scaled_square(x, y).root", lambda x, y: x / 2 * np.exp(-y / 2) ** 2 * x
    ),
    "scaled_square_slope": Case("scaled_square(x, y).slope", lambda x, y: x * np.exp(-y)),
    "log1p_unit": Case("log1p_unit(x)", np.log1p),
    "normal_first": Case(f"{NORMAL}.first", lambda x, y: normal(np.cos, x, y)),
    "normal_second": Case(f"{NORMAL}.second", lambda x, y: normal(np.sin, x, y)),
    "uniform": Case("uniform<F>(bit_cast<u32_of<F>>(x))", lambda x: (words(x) >> 8) * 2.0**-24),
    "split": Case("fma(split(x).f, power_of(split(x).k), power_of(split(x).k))", lambda x: x),
    "log1p_minus_near": Case("log1p_minus_near(x)", log1p_minus),
    "log": Case("log(x)", np.log),
    "log1p": Case(f"{LOG1P}.value", np.log1p, prepare=exact_sum),
    "log1p_minus": Case(f"{LOG1P}.minus", log1p_minus, prepare=exact_sum),
    "log1p_deviance": Case(f"{LOG1P}.deviance", deviance, prepare=exact_sum),
    "log_ratio": Case("log_ratio(x, y, x - y).value()", lambda x, y: np.log(x / y), prepare=near_pairs),
    "log_ratio_cubic": Case("log_ratio(x, y, x - y).cubic", atanh_cubic, prepare=only_near_pairs),
    "softplus_tail": Case("softplus_tail(x)", lambda x: np.log1p(np.exp(-abs(x)))),
    "softplus": Case("softplus(x)", lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))),
    "sigmoid": Case("sigmoid(x).value", lambda x: 1 / (1 + np.exp(-x))),
    "sigmoid_complement": Case("sigmoid(x).complement", lambda x: 1 / (1 + np.exp(x))),
    "shifted": Case("shifted(x).inverse", lambda x: 1 / np.where(x < 1, x + 1, x)),
    "stirling_of_inverse": mp_case("stirling_of_inverse(x)", lambda x: stirling(1 / x)),
    "stirling_wide": mp_case("stirling_wide(x)", lambda x: stirling(1 / x)),
    "stirling_series": mp_case("stirling_series(x)", stirling),
    "stirling": mp_case("stirling(x)", stirling),
    "stirling_small": mp_case("stirling(x)", stirling),
    "log_factorial_minus": mp_case(
        "log_factorial_minus(x)", lambda x: mp.loggamma(x + 1) - x * mp.log(x) + x
    ),
    "digamma_tail": mp_case("digamma_tail(x)", lambda x: -(digamma_minus_log(1 / x) + x / 2) / x**2),
    "digamma_difference": mp_case(
        DIFFERENCE.format(""), digamma_difference, prepare=close, scale=digamma_terms
    ),
    "digamma_difference_careful": mp_case(
        DIFFERENCE.format("<true>"), digamma_difference, prepare=close, scale=digamma_terms
    ),
    "digamma_difference_small": mp_case(
        DIFFERENCE.format(""), digamma_difference, prepare=close, scale=lambda x, y: 1 / np.minimum(x, y)
    ),
}
