"""What the formulas share: the dtype of their arithmetic, products that leave it halfway, sums of a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def arithmetic_dtype(*inputs: object) -> torch.dtype:
    """float64 if one of the tensors is, else float32."""
    double = any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in inputs)
    return torch.float64 if double else torch.float32


def widest(like: Tensor) -> torch.dtype:
    """float64, for steps that leave float32 though their result does not; float32 on Apple's GPU, which has no more."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of the arithmetic."""
    dtype = arithmetic_dtype(*tensors)
    return tuple(t.to(dtype) for t in tensors)


def per_sample(x: Tensor, ndim: int) -> Tensor:
    """Sum over all dims of (batch, ...), `ndim` dims, but the first. Draws before them stay."""
    return x.sum(dim=tuple(range(1 - ndim, 0))) if ndim > 1 else x


def held_between(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """torch.clamp with a gradient of 1 at the bounds. So was torch's own up to 2.13; that of 2.14 is 0 there."""
    held = x.detach().clamp(low, high)
    return torch.where(held == x, x, held)


def times_exp(d: Tensor, x: Tensor) -> Tensor:
    """d exp(x), wherever it fits though exp(x) may not: in factors. 0 for d = 0, but NaN where x is infinite too."""
    limit = 0.98 * math.log(torch.finfo(x.dtype).max)
    infinite = x.isinf()
    x, beyond = torch.where(infinite, 0.0, x), torch.where(infinite, x, 0.0)
    rest = x.detach()
    for _ in range(3):
        part = rest.clamp(-limit, limit)
        d, rest = d * torch.exp(part), rest - part
    return (
        d * torch.exp(x - x.detach()) * torch.exp(beyond)
    )  # by 1, whose slope makes the slope by x the product


def half_square(d: Tensor, logvar: Tensor) -> Tensor:
    """d^2 exp(-logvar) / 2, of two factors that have slopes of their own: that of their square is twice as large."""
    return 0.5 * times_exp(d, -0.5 * logvar) * times_exp(d, -0.5 * logvar)


def read(
    target: Tensor,
    *params: Tensor | float | None,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
    counts: bool = False,
) -> tuple[Tensor, ...]:
    """Target and parameters in the dtype of the arithmetic; None is 0, uint8 targets that do not count are 255ths.

    What the mask leaves out becomes 1, so that it is neither NaN nor infinite, and learns nothing.
    """
    dtype = dtype or arithmetic_dtype(target, *params)
    x = target.to(dtype)
    if target.dtype == torch.uint8 and not counts:
        x = x / 255
    numbers = [torch.as_tensor(p or 0.0) if not isinstance(p, Tensor) else p for p in params]
    values = [x, *(p.to(device=target.device, dtype=dtype) for p in numbers)]
    return tuple(values if mask is None else (torch.where(mask, v, 1.0) for v in values))


def total(
    terms: Tensor, mask: Tensor | None, weight: Tensor | None, reduction: str, ndim: int | None = None
) -> Tensor:
    """The weighted sum of each sample, over what the mask leaves in; or, with "none", each element's part of it.

    Terms are (batch, ...), of `ndim` dims where draws stand before them.
    """
    ndim = terms.ndim if ndim is None else ndim
    nll = terms if mask is None else torch.where(mask, terms, 0.0)
    if reduction == "sample":
        return weighted(per_sample(nll, ndim), weight)
    return weighted(nll, weight, ndim)


def weighted(nll: Tensor, weight: Tensor | None, ndim: int = 1) -> Tensor:
    """Times a factor for each sample (or each of its draws); nll has `ndim` dims from the batch on."""
    return nll if weight is None else nll * weight.view(*weight.shape, *(1,) * (ndim - 1))
