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


def log_variance_beside_prior(dtype: torch.dtype) -> Axis:
    """Fewer, as two of them meet, and two locations."""
    far = both_signs(30, 80, 87.5, 88.75, 104, 150, 300, 1e4)
    return axis(dtype, [0.5, -3.0, 2.0], [0.0, 1e-8, 0.501953125, -88.0, -89.0], far, largest(dtype), BAD)


def clamped(dtype: torch.dtype) -> Axis:
    """log_variance with what lies on the bounds of CLAMPS and beside them."""
    bounds = [b for pair in CLAMPS for b in pair]
    beside = [b * (1 + s * torch.finfo(dtype).eps) for b in bounds for s in (-1, 0, 1)]
    return axis(dtype, [0.05, -3.0, 2.0], beside, [-1.0, 80.0, 1e4], largest(dtype), BAD)


CLAMPS = ((-0.1, 0.1), (-30.0, 20.0))


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
    huge = [1e6, 2.0**31, 1e30, *(largest(dtype)[:1] if dtype != torch.float64 else [])]
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
    return axis(dtype, [0.5, -1.5], [0.0, 1e-30, -1e-8, 5.9, 1e4], smallest(dtype)[1:], [INF, NAN])


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


# Rows of logits, counts and mixtures

CLASSES = (1, 2, 10, 60)


def rows_of_logits(dtype: torch.dtype, classes: int) -> list[tuple[list[float], int]]:
    """Logits that are all alike, that rise by steps, and one that differs from the others; and which one stands out.
    finfo.min and -inf are what people mask with."""
    low, high = torch.finfo(dtype).min, torch.finfo(dtype).max
    alike = [0.0, -0.0, 1e-30, 80.0, -100.0, 3e4, low, high, -INF, INF, NAN]
    rows = [([v] * classes, 0) for v in alike]
    rows += [([step * i for i in range(classes)], classes - 1) for step in (1e-4, 0.37, 3.0, 20.0, -1e3)]
    apart = [0.0, 1e-8, -17.0, 30.0, 88.5, -104.0, 3e4, low, high, low / 2, -INF, INF, NAN]
    for n, (v, rest) in enumerate(itertools.product(apart, [0.0, -3.0, low, -INF, high])):
        if math.isfinite(v - rest) and abs(v - rest) > high:
            continue  # the difference should be a number of the dtype
        rows.append(([v if i == n % classes else rest for i in range(classes)], n % classes))
    draw = random.Random(classes)
    for hidden in (low, -INF):  # a random half is masked
        for size in (1.0, 30.0):
            values = [draw.gauss(0, size) for _ in range(classes)]
            rows.append(([hidden if i % 2 else v for i, v in enumerate(values)], 0))
    return rows


def with_classes(dtype: torch.dtype, classes: int) -> list[tuple[list[float], int]]:
    """Rows of logits and a class: the one that stands out, another one, ignored, or none at all."""
    rows = rows_of_logits(dtype, classes)
    pairs = [(row, at) for row, at in rows] + [(row, (at + 1) % classes) for row, at in rows]
    return pairs + [
        (rows[n % len(rows)][0], k) for n, k in enumerate([-100, classes, -1, 2**31, -100, -(2**40)])
    ]


def with_counts(dtype: torch.dtype, classes: int) -> list[tuple[list[float], list[float]]]:
    """Rows of logits and counts of the classes."""
    rows, largest_count = rows_of_logits(dtype, classes), min(1e30, torch.finfo(dtype).max)
    each = [1.0, 0.5, 3000.0, largest_count, 1e-8, 0.0, -1.0, INF, NAN]
    pairs = []
    for n, (row, at) in enumerate(rows):
        one = [0.0] * classes
        one[at if n % 2 else (at + 1) % classes] = each[n % 6]
        pairs += [(row, one), (row, [float(i % 3) for i in range(classes)])]
    ordinary = [0.3 * i for i in range(classes)]
    return pairs + [(ordinary, [k if i % 2 == 0 else 2.0 for i in range(classes)]) for k in each]


def rows_of_mixtures(
    dtype: torch.dtype, channels: int, components: int, count: int = 160
) -> list[tuple[list[float], list[float]]]:
    """Levels of a pixel and its parameters: one to three of them at an edge, the others ordinary."""
    tiny, (high, low) = smallest(dtype), largest(dtype)
    of_logits = [0.0, 30.0, -100.0, 3e4, low, high, *tiny, -INF, INF, NAN]
    of_means, of_scales = level_mean(dtype).edges, log_scale(dtype).edges
    of_coefficients = [0.0, 1e-8, -0.5, 0.625, 9.0, -20.0, 100.0, low, high, *tiny, INF, NAN]
    kinds = [of_means, of_scales, of_coefficients][: 2 if channels == 1 else 3]
    choices = [of_logits] * components + [kind for kind in kinds * channels for _ in range(components)]
    ordinary = [0.0] * components + [
        (0.1, -2.5, 0.3)[k] for k in [*range(len(kinds))] * channels for _ in range(components)
    ]
    draw, levels = random.Random(channels * 100 + components), level(dtype)
    rows = []
    for n in range(count):
        params = [v + draw.gauss(0, 0.7) for v in ordinary]
        for i in draw.sample(range(len(params)), min(len(params), n % 4)):
            params[i] = choices[i][(n // 4) % len(choices[i])]
        if n % 16 == 0:  # all logits alike
            params[:components] = [of_logits[(n // 16) % len(of_logits)]] * components
        values = [draw.choice(LEVELS) for _ in range(channels)]
        if n % 10 == 0:
            values[0] = levels.edges[(n // 10) % len(levels.edges)]
        rows.append((values, params))
    return rows


# Rows of pairs of Gaussians


def log_variance_of_weights(dtype: torch.dtype) -> Axis:
    """Fewer, as they meet noise and a prior."""
    return axis(dtype, [0.5, -2.0], [0.0, 1e-8, 1.1, -0.9], both_signs(30), [-INF, NAN])


def mean_of_weights(dtype: torch.dtype) -> Axis:
    return axis(dtype, [0.3, -1.5], [0.0, 1e-30, 1e-8, 1e4], [INF, NAN])


def noise_of_weights(dtype: torch.dtype) -> Axis:
    return axis(dtype, [0.5, -1.25], [0.0, -1e-8, 5.9], [NAN])


def rows_of_gaussians(
    dtype: torch.dtype, sizes: Sequence[int], logits: int = 0, count: int = 30
) -> list[list[list[float]]]:
    """z, means and log-variances of these sizes, and logits: none to two of all numbers at an edge in turn."""
    of_means = [0.0, 1e-30, 1e-8, 30.0, -1e4, INF, NAN]
    of_logvars = [0.0, 1e-8, -30.0, 30.0, 80.0, -80.0, 300.0, INF, NAN]
    of_logits = [0.0, 30.0, -100.0, 3e4, -INF, NAN]
    kinds = [of_means, of_means, of_logvars, of_logits]
    draw = random.Random(sum(sizes))
    rows = []
    for n in range(count):
        row = [[draw.gauss(0, 1) for _ in range(size)] for size in (*sizes, *([logits] if logits else []))]
        for k in range(n % 3):
            i = (n // 3 + k) % len(row)
            row[i][draw.randrange(len(row[i]))] = kinds[i][n // 3 % len(kinds[i])]
        rows.append([rounded_each(values, dtype) for values in row])
    return rows


def rounded_each(values: Sequence[float], dtype: torch.dtype) -> list[float]:
    numbers: list[float] = torch.tensor(values, dtype=torch.float64).to(dtype).double().tolist()
    return numbers


# Rows of the outputs of a linear layer


def log_count(dtype: torch.dtype) -> Axis:
    """The logarithm of a mean or theta: exp(88.72) is the largest of float32, exp(709.78) of float64."""
    around = both_signs(1e-8, 3, 20, 80, 87.5)
    return axis(
        dtype,
        [0.5, -1.0, 2.0],
        [0.0],
        around,
        both_signs(88.5, 88.75, 89, 100, 104, 709, 710, 1e4),
        largest(dtype),
        BAD,
    )


def linear_count(dtype: torch.dtype) -> Axis:
    """Not the largest: the derivative by a mean of 1e-8 should be a number of the dtype."""
    every = count(dtype)
    return Axis(every.moderate, [v for v in every.edges if v != torch.finfo(dtype).max])


def library(dtype: torch.dtype) -> Axis:
    around = [1e-30, 1e-8, 1e6, 1e30]
    return axis(dtype, [30.0, 1.0, 1000.0], ZEROS, around, smallest(dtype)[1:], [-1.0, -1e30, NAN])


def rows_of_outputs(axes: Sequence[Axis], features: int, count: int = 250) -> list[list[tuple[float, ...]]]:
    """For each axis `features` values: none to three of all of them at an edge in turn, the others ordinary."""
    draw = random.Random(len(axes) * 10 + features)
    rows = []
    for n in range(count):
        row = [[draw.choice(a.moderate) for _ in range(features)] for a in axes]
        for k in range(n % 4):
            i = (n // 4 + k) % len(axes)
            row[i][draw.randrange(features)] = axes[i].edges[n // 4 % len(axes[i].edges)]
        rows.append([tuple(values) for values in row])
    return rows
