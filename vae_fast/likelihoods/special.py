"""What float64 needs beside torch's functions so that nothing cancels where counts and dispersions are large or alike.

Loader, "Fast and accurate computation of binomial probabilities", 2000.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SHIFT = 8  # Stirling's series hold from here on, to 1e-16
# B_2n / (2n (2n - 1)) of Bernoulli's numbers, n = 1, 2, ...
STIRLING = (
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188,
    -691 / 360360, 1 / 156, -3617 / 122400, 43867 / 244188, -174611 / 125400,
)  # fmt: skip


def log1p_minus(u: Tensor, one_plus_u: Tensor) -> Tensor:
    """log(1 + u) - u, of u and 1 + u as exact as each is known; around 0 the series of 2 artanh(v), v = u / (2 + u)."""
    near = (u > -0.5) & (u < 1.01)
    w = torch.where(near, u, 0.0)
    v = w / (2 + w)
    series = sum(2 * v ** (2 * j + 1) / (2 * j + 1) for j in range(18, 0, -1)) - w * v
    return torch.where(near, series, torch.log(one_plus_u) - u)


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a / b), where a / b itself may leave float64."""
    ratio = a / b
    extreme = (ratio < 1e-300) | (ratio > 1e300)
    return torch.where(extreme, torch.log(a) - torch.log(b), torch.log(torch.where(extreme, 1.0, ratio)))


def log1p_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(1 + a / b), of a >= 0 and b > 0."""
    ratio = a / b
    extreme = ratio > 1e300
    return torch.where(extreme, torch.log(a) - torch.log(b), torch.log1p(torch.where(extreme, 1.0, ratio)))


def deviance(x: Tensor, mean: Tensor) -> Tensor:
    """x log(x / mean) - (x - mean), which is never negative."""
    u = (x - mean) / mean
    near = x * log1p_minus(u, x / mean) + (x - mean) * u
    return torch.where(u.abs() < 0.25, near, x * log_ratio(x, mean) - (x - mean))


def stirling(y: Tensor) -> Tensor:
    """log Gamma(y) - (y - 1/2) log y + y - log(2 pi) / 2, for y > 0."""

    def series(y: Tensor) -> Tensor:
        return sum(c / y ** (2 * n + 1) for n, c in reversed(list(enumerate(STIRLING))))  # type: ignore[return-value]

    def step(y: Tensor) -> Tensor:  # from y + 1 to y
        far = (y + 0.5) * torch.log1p(1 / y) - 1
        return torch.where(y < 1, far, (y + 0.5) * log1p_minus(1 / y, 1 + 1 / y) + 0.5 / y)

    return _recur(y, step, series)


def stirling_slope(y: Tensor) -> Tensor:
    """Its derivative, digamma(y) - log y + 1 / (2 y)."""

    def series(y: Tensor) -> Tensor:
        return -sum((2 * n + 1) * c / y ** (2 * n + 2) for n, c in reversed(list(enumerate(STIRLING))))  # type: ignore[return-value]

    return _recur(y, lambda y: log1p_minus(1 / y, 1 + 1 / y) + 0.5 / (y * (y + 1)), series)


def _recur(y: Tensor, step: Callable[[Tensor], Tensor], series: Callable[[Tensor], Tensor]) -> Tensor:
    """series(y), from which y below SHIFT are SHIFT steps away."""
    small = y < SHIFT
    low = torch.where(small, y, 1.0)
    steps = sum(step(low + k) for k in reversed(range(SHIFT)))
    return series(torch.where(small, y + SHIFT, y)) + torch.where(small, steps, 0.0)


def log_factorial_minus(x: Tensor) -> Tensor:
    """log x! - x log x + x, for x > 0."""
    small = x < 1
    low, high = torch.where(small, x, 1.0), torch.where(small, 1.0, x)
    above = low + 1
    rounded_off = low - (above - 1)
    return torch.where(
        small,
        torch.lgamma(above) + rounded_off * torch.digamma(above) - low * torch.log(low) + low,
        0.5 * torch.log(high) + 0.5 * math.log(2 * math.pi) + stirling(high),
    )
