#!/usr/bin/env python3
"""Makes the coefficients of every polynomial in csrc and in the Triton backend, and compares them with the sources.

    scripts/fit_polynomials.py            every comment and its coefficients, as they stand in the sources
    scripts/fit_polynomials.py --check    what differs in the sources; exit status 1 if anything does

A fit minimises the largest weighted error over equally spaced points of its range, or Chebyshev's (Remez, "Sur la
détermination des polynômes d'approximation de degré donné", 1934, on a grid), then rounds the coefficients to float32.
float64 is enough: it moves a coefficient by an eighth, at most, of what would round it to another float32.

The largest error stated is that of the rounded coefficients in exact arithmetic: FITS below is the only list of ranges,
forms and degrees, and the comment `fit_polynomials.py NAME: ...` above the coefficients is checked against it.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf

ROOT = Path(__file__).resolve().parents[1]
POINTS, CHEBYSHEV_POINTS = 3001, 601
TINY = mpf("1e-15")  # in place of 0, where the functions below are limits
mp.dps = 60  # of which a function that cancels loses 40 at TINY

Function = Callable[[mpf], mpf]
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Fit:
    """`function` is the formula; its largest error, times `weight` and described by `unit`, is least over the range."""

    formula: str
    range: str
    function: Function
    low: mpf
    high: mpf
    degree: int
    unit: str = "absolute"
    weight: Function | None = None  # 1, and 1 / function where the unit is "relative"
    variable: Function = lambda x: x  # the polynomial's own, of a point of [low, high]
    chebyshev: bool = False


def exp_rest(r: mpf) -> mpf:
    return (mp.expm1(r) - r) / r**2


def log1p_over(f: mpf) -> mpf:
    return mp.log1p(f) / f


def log1p_rest(f: mpf) -> mpf:
    return (mp.log1p(f) - f + f**2 / 2) / f**3


def log_factorial_over(x: mpf) -> mpf:
    return mp.loggamma(1 + x) / x


def stirling(w: mpf) -> mpf:
    y = 1 / w
    return y * (mp.loggamma(y) - (y - 0.5) * mp.log(y) + y - mp.log(2 * mp.pi) / 2)


def digamma_tail(w: mpf) -> mpf:
    return -(mp.digamma(1 / w) + mp.log(w) + w / 2) / w**2


def sine_rest(v: mpf) -> mpf:
    return (mp.sin(mp.sqrt(v)) - mp.sqrt(v)) / mp.sqrt(v) ** 3


def tanh_rest(v: mpf) -> mpf:
    return (mp.tanh(mp.sqrt(v)) - mp.sqrt(v)) / mp.sqrt(v) ** 3


def atanh_rest(v: mpf) -> mpf:
    return 2 * (mp.atanh(mp.sqrt(v)) - mp.sqrt(v)) / mp.sqrt(v) ** 3


def log_sinh(v: mpf) -> mpf:
    half = mp.sqrt(v) / 2
    return mp.log(mp.sinh(half) / half) / v


def coth(v: mpf) -> mpf:
    l = mp.sqrt(v)  # noqa: E741
    return (mp.coth(l / 2) / 2 - 1 / l) / l


def of_square(x: mpf) -> mpf:
    return x * x


LN2, ROOT2 = mp.log(2), mp.sqrt(2)
EDGE = LN2 / 2 * mpf("1.002")  # a rounded k leaves r a little beyond ln(2)/2
SCALE = mp.sqrt(2 * LN2)
ZERO, ONE = mpf(0), mpf(1)

FITS = {
    "exp_wide": Fit(
        "(exp(r) - 1 - r)/r²", "|r| <= 1.002·ln 2", exp_rest, -2 * EDGE, 2 * EDGE, 6, "relative"
    ),
    "exp_near": Fit("(exp(r) - 1 - r)/r²", "|r| <= 0.501·ln 2", exp_rest, -EDGE, EDGE, 4, "relative"),
    "expm1": Fit(
        "(exp(r) - 1 - r)/r²", "|r| <= 0.501·ln 2", exp_rest, -EDGE, EDGE, 4, "relative to expm1",
        weight=lambda r: r**2 / mp.expm1(r),
    ),
    "exponential_16": Fit(
        "(exp(x) - 1 - x)/(2x²)", "|x| <= 1/4", lambda x: exp_rest(x) / 2, -ONE / 4, ONE / 4, 3, "relative"
    ),
    "log1p": Fit("log(1 + e)/e", "0 <= e <= 1", log1p_over, ZERO, ONE, 9, "relative"),
    "log1p_8": Fit("log(1 + e)/e", "0 <= e <= 1", log1p_over, ZERO, ONE, 8, "relative"),
    "log1p_minus": Fit(
        "(log(1 + f) - f + f²/2)/f³", "1/√2 <= 1 + f <= √2", log1p_rest, 1 / ROOT2 - 1, ROOT2 - 1, 7, "times |f|",
        weight=abs,
    ),
    "log_excess": Fit(
        "(2·atanh(w) - 2w)/w³ of w²", "w <= 1/3", atanh_rest, ZERO, ONE / 9, 4, "relative"
    ),
    "log_ratio": Fit("(2·atanh(w) - 2w)/w³ of w²", "w <= 1/5", atanh_rest, ZERO, ONE / 25, 2, "relative"),
    "box_muller_log": Fit(
        "-2·log(1 + f)/f", "-1/2 <= f <= 0", lambda f: -2 * log1p_over(f), -ONE / 2, ZERO, 7
    ),
    "sine": Fit(
        "(sin(t) - t)/t³ of t²", "t <= π/4", sine_rest, ZERO, (mp.pi / 4) ** 2, 2, "times t²", weight=abs
    ),
    "cosine": Fit("cos(t) of t²", "t <= π/4", lambda v: mp.cos(mp.sqrt(v)), ZERO, (mp.pi / 4) ** 2, 3),
    "cosine_scaled": Fit(
        "√(2·ln 2)·cos(x) of x²", "x <= π/2", lambda v: SCALE * mp.cos(mp.sqrt(v)), ZERO, (mp.pi / 2) ** 2, 4
    ),
    "sine_scaled": Fit(
        "-√(2·ln 2)·sin(x)/x of x²", "x <= π/2", lambda v: -SCALE * mp.sin(mp.sqrt(v)) / mp.sqrt(v),
        ZERO, mp.pi / 2, 4, "times x", weight=mp.sqrt, variable=of_square,
    ),
    "stirling": Fit("y·(Stirling's error of y) of w = 1/y", "0 <= w <= 1", stirling, ZERO, ONE, 6),
    "stirling_wide": Fit(
        "y·(Stirling's error of y) of w = 1/y", "0 <= w <= 3/2", stirling, ZERO, 3 * ONE / 2, 7
    ),
    "stirling_square": Fit(
        "y·(Stirling's error of y) of 1/y²", "y >= 1", lambda v: stirling(mp.sqrt(v)), ZERO, ONE, 6, "relative",
    ),
    "log_factorial": Fit(
        "log Γ(1 + x)/x", "0 <= x <= 1", log_factorial_over, ZERO, ONE, 8, chebyshev=True
    ),
    "digamma_tail": Fit(
        "(log(y) - 1/(2y) - digamma(y))·y² of w = 1/y", "0 <= w <= 1", digamma_tail, ZERO, ONE, 6
    ),
    "digamma_square": Fit(
        "(log(y) - 1/(2y) - digamma(y))·y² of 1/y²", "y >= 1", lambda v: digamma_tail(mp.sqrt(v)),
        ZERO, ONE, 6, "relative",
    ),
    "tanh": Fit(
        "(tanh(x) - x)/x³ of x²", "|x| <= 5/8", tanh_rest, ZERO, mpf(5) / 8, 4, "relative to tanh",
        weight=lambda v: mp.sqrt(v) ** 3 / mp.tanh(mp.sqrt(v)), variable=of_square,
    ),
    "log_sinh": Fit("log(sinh(l/2)/(l/2))/l² of l²", "|l| <= 2", log_sinh, ZERO, mpf(4), 3),
    "log_sinh_4": Fit("log(sinh(l/2)/(l/2))/l² of l²", "|l| <= 2", log_sinh, ZERO, mpf(4), 4, "relative"),
    "log_sinh_2": Fit("log(sinh(d/2)/(d/2))/d² of d²", "|d| <= 1", log_sinh, ZERO, ONE, 2),
    "coth": Fit("(coth(l/2)/2 - 1/l)/l of l²", "|l| <= 2", coth, ZERO, mpf(4), 4),
    "coth_2": Fit("(coth(d/2)/2 - 1/d)/d of d²", "|d| <= 1", coth, ZERO, ONE, 2),
}  # fmt: skip


def minimax(x: Array, y: Array, weight: Array, degree: int) -> Array:
    """The coefficients of the polynomial whose largest weighted distance from y is least: Remez's exchange."""
    n = degree + 1
    nodes = np.cos(np.pi * (np.arange(n + 1) + 0.5) / (n + 1))
    extrema = np.round((1 - nodes) / 2 * (len(x) - 1)).astype(int)
    basis = np.stack([x**p for p in range(n)], axis=1)
    for _ in range(50):
        signs = (-1.0) ** np.arange(n + 1)
        weighted = basis[extrema] * weight[extrema, None]
        c = np.linalg.solve(np.column_stack([weighted, signs]), y[extrema] * weight[extrema])[:n]
        error = (y - basis @ c) * weight
        arcs = np.split(np.arange(len(x)), np.flatnonzero(np.diff(error > 0)) + 1)
        found = np.array([arc[np.argmax(abs(error[arc]))] for arc in arcs])
        while len(found) > n + 1:
            found = found[1:] if abs(error[found[0]]) < abs(error[found[-1]]) else found[:-1]
        if len(found) <= n:
            raise ArithmeticError("the error alternates too seldom: not a minimax problem")
        if (found == extrema).all():
            break
        extrema = found
    return c


@cache
def fit(name: str) -> tuple[list[float], float]:
    """The float32 coefficients, the lowest first, and their largest error."""
    f = FITS[name]
    n = (CHEBYSHEV_POINTS if f.chebyshev else POINTS) - 1
    share = [(1 - mp.cos(mp.pi * i / n)) / 2 if f.chebyshev else mpf(i) / n for i in range(n + 1)]
    points = [f.low + (f.high - f.low) * s for s in share]
    points = [f.variable(x) or TINY for x in points]
    x, y, weight = np.array(points, float), np.array([f.function(x) for x in points], float), np.ones(n + 1)
    if f.weight is not None:
        weight = np.array([abs(f.weight(x)) for x in points], float)
    elif f.unit == "relative":
        weight = 1 / np.abs(y)
    rounded = minimax(x, y, weight, f.degree).astype(np.float32)
    error = (y - np.polynomial.polynomial.polyval(x, rounded.astype(float))) * weight
    return rounded.tolist(), float(abs(error).max())


def comment(name: str) -> str:
    f, (_, error) = FITS[name], fit(name)
    unit = 10 ** (math.floor(math.log10(error)) - 1)
    return f"fit_polynomials.py {name}: {f.formula}, {f.range}; {math.ceil(error / unit) * unit:.1e} {f.unit}"


def differences() -> Iterator[str]:
    """What is wrong in the sources. In C++ the coefficients follow the comment in order; Triton's Horner statements
    come highest powers first."""
    missing = set(FITS)
    for path in sorted([*ROOT.glob("csrc/**/*"), *ROOT.glob("vae_fast/backends/triton/**/*.py")]):
        if path.suffix not in (".h", ".cpp", ".cu", ".py"):
            continue
        text, where = path.read_text(), path.relative_to(ROOT)
        marks = list(re.finditer(r"(?://|#) (fit_polynomials\.py (\w+): .*)", text))
        calls = len(re.findall(r"\bpolynomial\([^;]*?\d\.\d", text))  # of numbers, not of a definition's own
        if path.suffix != ".py" and calls != len(marks):
            yield f"{where}: {calls} polynomials, {len(marks)} comments that name their fit"
        for mark in marks:
            line, name = mark.groups()
            if name not in FITS:
                yield f"{where}: no fit is named {name}"
                continue
            missing.discard(name)
            expected = fit(name)[0]
            found: list[float] = []
            code = re.sub("(//|#).*", "", text[mark.end() :])
            for statement in re.split(r"^ *(?:\w+ = |return )", code, flags=re.MULTILINE):
                if len(found) >= len(expected):
                    break
                numbers = re.findall(r"(?<![\w.])(-? ?\d+\.\d+(?:e[-+]?\d+)?)", statement)
                coefficients = [float(np.float32(n.replace(" ", ""))) for n in numbers]
                found = [*coefficients, *found] if path.suffix == ".py" else [*found, *coefficients]
            if found[: len(expected)] != expected:
                yield f"{where}: {name} has {found}, fitted {expected}"
            if line != comment(name):
                yield f"{where}: the comment of {name} should be\n  {comment(name)}"
    yield from (f"no source names the fit {name}" for name in sorted(missing))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the sources")
    if parser.parse_args().check:
        wrong = list(differences())
        sys.exit("\n".join(wrong) if wrong else 0)
    for name in FITS:
        print(f"{comment(name)}\n  {', '.join(map(repr, fit(name)[0]))}")


if __name__ == "__main__":
    main()
