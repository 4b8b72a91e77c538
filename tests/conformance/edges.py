"""The edges of every kind of input, in the numbers that a dtype holds, and how they are combined.

An axis has edges and some ordinary values (`moderate`). `cover` takes the full product of the axes where that is small;
else every pair of values of every two axes, the other axes at ordinary values in turn, and a fixed random sample of the
product. Values that a dtype rounds to the same number count once.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch

INF, NAN = math.inf, math.nan
Element = tuple[float, ...]


class Axis(NamedTuple):
    moderate: list[float]
    edges: list[float]

    @property
    def all(self) -> list[float]:
        return [*self.moderate, *self.edges]


def rounded(values: Sequence[float], dtype: torch.dtype) -> list[float]:
    """The distinct numbers that dtype makes of them; -0. is not 0."""
    numbers = torch.tensor(values, dtype=torch.float64).to(dtype).double().tolist()
    return list({struct.pack("d", v): v for v in numbers}.values())


def axis(dtype: torch.dtype, moderate: Sequence[float], *edges: Sequence[float]) -> Axis:
    first = rounded(moderate, dtype)
    both = rounded([*moderate, *itertools.chain(*edges)], dtype)
    return Axis(first, both[len(first) :])


def both_signs(*values: float) -> list[float]:
    return [s * v for v in values for s in (1, -1)]


def smallest(dtype: torch.dtype) -> list[float]:
    """The smallest subnormal and normal numbers."""
    info = torch.finfo(dtype)
    return [info.smallest_normal * info.eps, info.smallest_normal]


def largest(dtype: torch.dtype) -> list[float]:
    """`finfo.min` among them, what people mask logits with."""
    info = torch.finfo(dtype)
    return [info.max, info.min]


ZEROS, BAD = [0.0, -0.0], [INF, -INF, NAN]
LEVELS = [k / 255 for k in (0, 1, 2, 64, 128, 200, 253, 254, 255)]


def logit(dtype: torch.dtype) -> Axis:
    moderate = [0.3, -1.0, 2.0, -5.0]
    around = both_signs(1e-30, 1e-8, 1e-4, 0.01, 0.1, 0.5, 1, 1.9990234, 2, 5, 9, 17, 30)
    far = both_signs(80, 87, 88.5, 89, 100, 103.5, 104, 300, 1e4, 1e30)
    return axis(dtype, moderate, ZEROS, around, far, both_signs(*smallest(dtype)), largest(dtype), BAD)


def unit(dtype: torch.dtype) -> Axis:
    """A target of [0, 1]."""
    below_1 = 1 - torch.finfo(dtype).eps / 2
    return axis(
        dtype, [0.0, 1.0, 0.3], [-0.0, 0.5, 0.75, 1e-9, 1e-8, below_1, *smallest(dtype)], [-0.5, 2.0], BAD
    )


def probability(dtype: torch.dtype) -> Axis:
    info = torch.finfo(dtype)
    near_1 = [1 - info.eps / 2, 1 - 1e-3, 1 - 1e-6, 1 - 1e-12]
    beyond = [-0.5, 1.5, -1e-9, 1 + info.eps, *largest(dtype), *(-s for s in smallest(dtype))]
    small = [1e-3, 1e-6, 1e-9, 1e-12, 1e-13, 1e-30, 3.7e-44, 4e-44, 1e-100]
    return axis(dtype, [0.3, 0.9, 0.5], [0.0, -0.0, 1.0], near_1, small, smallest(dtype), beyond, BAD)


def real(dtype: torch.dtype) -> Axis:
    """A target on the real line. Not the largest: its distance to a mean should be a number of the dtype."""
    return axis(
        dtype, [0.3, 1.0, -2.0], ZEROS, [1e-30, 1e-15, 1e-8, 1e4, -1e10, 1e19, 1e30], smallest(dtype), BAD
    )


def location(dtype: torch.dtype) -> Axis:
    return Axis(real(dtype).moderate, [*real(dtype).edges, *largest(dtype)])


def log_variance(dtype: torch.dtype) -> Axis:
    around = both_signs(1e-8, 0.3, 1, 5, 30, 80)
    far = both_signs(87.25, 87.5, 88.5, 88.75, 100, 103, 104, 150, 178, 300, 700, 1e4)
    return axis(
        dtype, [0.5, -3.0, 2.0], ZEROS, around, far, both_signs(*smallest(dtype)), largest(dtype), BAD
    )


def log_scale(dtype: torch.dtype) -> Axis:
    bound = [-7.0, -7.03125, -6.96875]
    return Axis(*(log_variance(dtype).moderate, [*log_variance(dtype).edges, *rounded(bound, dtype)]))


def level(dtype: torch.dtype) -> Axis:
    """One of 256 levels, in 255ths, or beyond."""
    return axis(dtype, [0.0, 128 / 255, 1.0], LEVELS, [-0.0, -0.5, 1.5], smallest(dtype), BAD)


def level_mean(dtype: torch.dtype) -> Axis:
    near = [1.0, -1.0, 0.00390625, 0.9, -1.5]
    return axis(
        dtype, [0.25, -0.5], ZEROS, near, both_signs(50, 1e4, 1e19), smallest(dtype), largest(dtype), BAD
    )


def count(dtype: torch.dtype) -> Axis:
    around = [1e-9, 1e-8, 1.1e-8, 1e-4, 0.5, 30.0, 255.0, 4000.0]
    huge = [1e6, 2.0**31, 1e30, torch.finfo(dtype).max]
    beyond = [-1e-9, -1.1e-8, -0.5, -1.0, -1e30]
    return axis(dtype, [0.0, 1.0, 3.0], [-0.0], around, huge, smallest(dtype), beyond, BAD)


# A little above and below -1e-8, where a mean or theta leaves the domain; at it the rounding of 1e-8 decides.
EDGE_OF_DOMAIN = [-9e-9, -1.1e-8]


def mean_of_counts(dtype: torch.dtype) -> Axis:
    around = [1e-30, 1e-9, 1e-8, 1e-4, 0.01, 1.0, 31.0, 255.0, 3900.0]
    huge = [1e6, 1e10, 1e30, 1e35, torch.finfo(dtype).max]
    beyond = [*EDGE_OF_DOMAIN, -0.5, -1e30]
    return axis(dtype, [0.5, 2.0, 6.5], ZEROS, around, huge, smallest(dtype), beyond, BAD)


def theta(dtype: torch.dtype) -> Axis:
    around = [1e-30, 1e-9, 1e-8, 1e-4, 0.01, 1.0, 1e3, 1e4]
    huge = [1e6, 1e8, 1e10, 1e15, 1e30, torch.finfo(dtype).max]
    beyond = [*EDGE_OF_DOMAIN, -0.5, -1e30]
    return axis(dtype, [1.5, 0.3, 20.0], ZEROS, around, huge, smallest(dtype), beyond, BAD)


def dropout(dtype: torch.dtype) -> Axis:
    around = both_signs(1e-8, 0.01, 3, 10, 20, 50, 80, 88.5, 104, 1e4)
    return axis(dtype, [0.7, -2.0, 1.0], ZEROS, around, smallest(dtype), largest(dtype), BAD)


def noise(dtype: torch.dtype) -> Axis:
    return axis(dtype, [0.5, -1.5], [0.0, 1e-30, -1e-8, 5.9, *smallest(dtype)], [1e4, INF, NAN])


def cover(axes: Sequence[Axis], most: int = 2500) -> list[Element]:
    """The full product of at most `most` elements, or every pair of values and a sample of the rest."""
    if math.prod(len(a.all) for a in axes) <= most:
        return list(itertools.product(*(a.all for a in axes)))
    turn = itertools.count()
    elements = []
    for i, j in itertools.combinations(range(len(axes)), 2):
        for values in itertools.product(axes[i].all, axes[j].all):
            n = next(turn)
            element = [a.moderate[(n // (k + 1)) % len(a.moderate)] for k, a in enumerate(axes)]
            element[i], element[j] = values
            elements.append(tuple(element))
    draw = random.Random(0)
    while len(elements) < most:
        elements.append(tuple(draw.choice(a.all) for a in axes))
    return list({struct.pack(f"{len(e)}d", *e): e for e in elements}.values())
