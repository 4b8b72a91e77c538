"""Which results are right: the rule for numbers of design.md, element by element.

- Within twice PyTorch's own error for that element or 4 ulp, whichever is larger, both measured against mpmath. Where
  PyTorch's own error is larger than 1e-5 (float32), 1e-12 (float64) or 4 ulp (16-bit) of the scale, it is no allowance:
  32 ulp. An ulp is the result's; for what cancels it is that of the sum of absolute terms in the dtype of the
  arithmetic, which is float32 for 16-bit inputs.
- Results below the smallest normal number of the arithmetic's dtype, and tails of exp before they are multiplied, may
  be flushed to zero or held at that number: four times it is always allowed.
- A value too large for the result's dtype is infinite, of the right sign.
- Parameters outside their domain give NaN. A NaN input gives what PyTorch's own lines give, NaN as a rule; a gradient
  that does not depend on the NaN may be the formula's.
- Where an input is infinite the formula's limit is right, and so is PyTorch's own NaN or infinity. Where that limit is
  infinite, or there is none, NaN is right, too; a loss of -inf is not, and beside such a loss a gradient may be NaN or
  any infinity. theta = inf is a limit by definition: NaN is wrong.
- Where a loss is too large for its dtype, its gradient may be NaN, or what PyTorch's own is if that is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# PyTorch's own relative error up to which twice of it is allowed; of 16-bit results in their own ulp.
TRUSTED = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass
class Truth:
    """One result of every element, in float64: its value as a sum of two numbers, what rounding acts on, what
    multiplies tails of exp; and what else is right: PyTorch's `own` answer, `nan`, +inf, -inf."""

    high: Tensor
    low: Tensor
    scale: Tensor
    tails: Tensor
    own: Tensor
    nan: Tensor
    inf: Tensor
    minus_inf: Tensor


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours in dtype at |x|, whose exponent may be larger than dtype's; not below that of the
    smallest normal number."""
    info = torch.finfo(dtype)
    size = x.abs().clamp(info.smallest_normal, torch.finfo(x.dtype).max)
    return torch.ldexp(torch.full_like(size, info.eps), torch.frexp(size).exponent - 1)


def judge(got: Tensor, truth: Truth, own: Tensor, arithmetic: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each element: its error over what is allowed (at most 1 is right), and what is allowed."""
    result = got.dtype
    info, wide = torch.finfo(result), torch.finfo(arithmetic)
    g, own = got.double(), own.double()
    high, scale = truth.high, torch.maximum(truth.scale, truth.high.abs())

    place, arithmetic_place = ulp(high.clamp(info.min, info.max), result), ulp(scale, arithmetic)
    few = torch.maximum(4 * place, 4 * arithmetic_place)
    many = torch.maximum((4 if result.itemsize == 2 else 32) * place, 32 * arithmetic_place)
    own_error = (own - high - truth.low).abs()
    trusted = own_error <= (TRUSTED[result] * scale if result in TRUSTED else 4 * place)
    allowed = torch.where(trusted, torch.maximum(few, 2 * own_error), many)
    allowed = torch.maximum(allowed, 4 * wide.smallest_normal * truth.tails)

    error = ((g - high) - truth.low).abs()
    # From half a unit beyond the largest number on, a value is infinite.
    overflows = (high.abs() + allowed >= info.max * (1 + info.eps / 4)) & (g.sign() == high.sign())
    error = torch.where(g.isinf(), torch.where((g == high) | overflows, 0.0, torch.inf), error)
    error = torch.where(high.isinf() & ~g.isinf(), torch.inf, error)
    error = torch.where(high.isnan(), torch.where(g.isnan(), 0.0, torch.inf), error)
    error = torch.where(g.isnan() & ~high.isnan(), torch.inf, error)
    right = (truth.own & ((g == own) | (g.isnan() & own.isnan()))) | (truth.nan & g.isnan())
    right |= (truth.inf & (g == torch.inf)) | (truth.minus_inf & (g == -torch.inf))
    return torch.where(right, 0.0, error / allowed), allowed


def report(
    where: str, inputs: dict[str, Tensor], got: Tensor, truth: Truth, own: Tensor, arithmetic: torch.dtype
) -> str:
    """The wrong elements of one result: how many, and the worst ten. Empty if all are right."""
    excess, allowed = judge(got, truth, own, arithmetic)
    excess = excess.nan_to_num(torch.inf, torch.inf)
    wrong = int((excess > 1).sum())
    if not wrong:
        return ""
    lines = [
        f"{where}: {wrong} of {excess.numel()} are wrong, by up to {excess.max():.4g} times what is allowed"
    ]
    for flat in excess.flatten().argsort(descending=True, stable=True)[: min(10, wrong)].tolist():
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape))
        given = ", ".join(f"{k} {_number(t[at[0]])}" for k, t in inputs.items())
        lines.append(
            f"  {given}{f', number {at[1]}' if len(at) > 1 else ''}: got {_number(got[at])}, true is "
            f"{truth.high[at].item():.9g}, allowed {allowed[at].item():.3g}, PyTorch's own {own[at].item():.9g}"
        )
    return "\n".join(lines)


def _number(t: Tensor) -> str:
    if t.ndim:
        return f"[{', '.join(map(_number, t))}]"
    v = t.item()
    return f"{v:.9g} ({v.hex()})" if isinstance(v, float) and v == v and abs(v) != torch.inf else f"{v}"
