"""What the likelihoods of counts share: their domain and how their terms become a sample's.

In float64, and without the lgammas of the textbook, which cancel. EPS, as in scvi-tools, keeps a mean or dispersion of
0 finite. A negative mean, dispersion or count gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .closed_form import with_derivatives
from .csr import Csr, as_csr, is_csr
from .numerics import arithmetic_dtype, read, total, weighted

EPS = 1e-8
NOTHING = float.fromhex("0x1.5798eep-27")  # a count closer to 0 than this is none: 1e-8 in float32

Derivatives = Callable[..., tuple[Tensor, ...]]


def count_nll(
    terms: Callable[..., Tensor],
    derivatives: Derivatives,
    target: Tensor | Csr,
    *params: Tensor | float,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    if is_csr(target):
        target = as_csr(target)

        def nlls(x: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
            return (with_derivatives(terms, derivatives, x, *params),)

        (each,) = of_stored(nlls, target, *params, mask=mask)
        dtype = arithmetic_dtype(target.values, *params)
    else:
        values = read(target, *params, mask=mask, dtype=torch.float64, counts=True)
        each = with_derivatives(terms, derivatives, *values)
        dtype = arithmetic_dtype(target, *params)
    nll = total(each, mask, None, reduction, target.ndim)
    return weighted(nll.to(dtype), weight, 1 if reduction == "sample" else target.ndim)


def of_stored(
    function: Callable[..., tuple[Tensor, ...]],
    target: Csr,
    *params: Tensor | float,
    mask: Tensor | None,
) -> tuple[Tensor, ...]:
    """function(x, *params) of every element: what it is for zeros, and in the places that are stored for these."""
    rows, col, counts = target.elements()
    zeros = counts.new_zeros(()).expand(target.shape)
    values = torch.broadcast_tensors(*read(zeros, *params, mask=mask, dtype=torch.float64, counts=True))
    found = [v.clone() for v in function(*values)]
    if mask is not None:
        counts = torch.where(mask.expand(target.shape)[rows, col], counts, 1.0)
    of_counts = function(counts, *(v[..., rows, col] for v in values[1:]))
    for every, stored in zip(found, of_counts, strict=True):
        every[..., rows, col] = stored
    return tuple(found)


def domain(x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Whether x counts nothing; what an infinite x or mean adds to what grows with both; x, with 1 where it counts
    nothing, mean and theta with EPS, at most the largest number, and NaN where they are negative."""
    none = x.abs() < NOTHING
    values = [torch.where(none, 1.0, x), *(p + EPS for p in params)]
    growth, of_mean = (torch.where(v.isposinf(), torch.inf, 0.0) for v in values[:2])
    growth = torch.where(values[0].isposinf(), growth - of_mean, of_mean)
    largest = torch.finfo(x.dtype).max
    return none, growth, [torch.where(v < 0, torch.nan, v.clamp(max=largest)) for v in values]


def shared_unit(*values: Tensor) -> Tensor:
    """The unit in which no product of two of these leaves float64."""
    large = torch.stack(torch.broadcast_tensors(*values)).amax(0) > 2.0**500
    return torch.exp2(530 * large.to(values[0].dtype))
