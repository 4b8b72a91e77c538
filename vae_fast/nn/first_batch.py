"""Whether the first training batch holds what the likelihood is of. Nothing else in nn.VAE waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import check_class_type, check_target_type
from ..likelihoods.categorical import IGNORED
from ..ops._common import are_real
from .checks import warn

if TYPE_CHECKING:
    from .likelihoods import Likelihood

PART = 1 << 22  # elements that a test reads at a time: its temporaries stay small beside the batch
ROUNDING = 1e-6  # what x may leave [0, 1] by

Test = Callable[[Tensor], Tensor]


def can_be_read(x: Tensor) -> bool:
    """Whether the values of x may be asked for now: not of fake, meta or wrapped tensors, not while a graph is traced
    or captured, nor where PyTorch was told to refuse to wait."""
    return (
        are_real(x)
        and not x.is_meta
        and torch._C._get_tracing_state() is None
        and all(torch._C._get_dispatch_mode(key) is None for key in _TRACING_MODES)
        and not (
            x.is_cuda
            and (torch.cuda.is_current_stream_capturing() or torch.cuda.get_sync_debug_mode() == _REFUSED)
        )
    )


_REFUSED = 2  # torch.cuda.set_sync_debug_mode("error")
_MODES = torch._C._TorchDispatchModeKey
_TRACING_MODES = (_MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL)


def check(x: Tensor, likelihood: Likelihood, classes: int | None) -> None:
    """Raises TypeError or ValueError where x (not empty) is outside of the support; warns where it may be meant
    otherwise. `classes` is how many the decoder gives, None if that is not known."""
    if likelihood.support == "classes":
        _check_classes(x, likelihood, classes)
        return
    check_target_type("x", x)
    if x.dtype is torch.bool:
        return
    if likelihood.support == "counts":
        _check_counts(x, likelihood)
    else:
        _check_numbers(x, likelihood)


def _check_numbers(x: Tensor, likelihood: Likelihood) -> None:
    """Of "unit" and "real"."""
    lo, hi, differ = _look(x, lambda part: part != x[:1])
    unit = likelihood.support == "unit"
    if not (math.isfinite(lo) and math.isfinite(hi)):
        takes = "lie between 0 and 1" if unit else "hold finite numbers"
        raise ValueError(f"expected x to {takes} for {likelihood}, but got NaN or infinite values")
    if x.dtype is torch.uint8:
        if hi == 1:
            warn(
                f"x is uint8 and holds 0 and 1 alone, which {likelihood} reads as 0 and 1/255; "
                "if they are bits, x.bool() says so"
            )
    elif unit and not -ROUNDING <= lo <= hi <= 1 + ROUNDING:
        raise ValueError(
            f"expected x to lie between 0 and 1 for {likelihood}, but got values from {lo:.9g} to {hi:.9g}; "
            + _advice(lo, hi)
        )
    if not differ and x.shape[0] > 1 and likelihood.is_unbounded:
        warn_alike(likelihood)


def warn_alike(likelihood: Likelihood) -> None:
    warn(
        f"all samples of x are alike and {likelihood} learns their spread: towards 0 the loss has no lowest value; "
        "a fixed number for it has one"
    )


def _advice(lo: float, hi: float) -> str:
    if lo >= 0 and hi <= 255:
        return "x / 255 brings 8-bit values there"
    if lo >= -1 and hi <= 1:
        return '(x + 1) / 2 brings them there, likelihood="gaussian" takes them as they are'
    return 'scale them, or take likelihood="gaussian"'


def _check_counts(x: Tensor, likelihood: Likelihood) -> None:
    lo, hi, fractions = _look(x, lambda part: part != part.round())
    if not 0 <= lo <= hi < math.inf:
        raise ValueError(
            f"expected x to hold counts, whole numbers of at least 0, for {likelihood}, "
            f"but got values from {lo:.9g} to {hi:.9g}"
        )
    if fractions:
        warn(f"x holds fractions, {likelihood} is of counts: whole numbers, neither scaled nor logarithms")


def _check_classes(x: Tensor, likelihood: Likelihood, classes: int | None) -> None:
    check_class_type("x", x)
    lo, hi, negative = _look(x, lambda part: (part < 0) & (part != IGNORED))
    if negative or (classes is not None and hi >= classes):
        last = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"expected x to hold class numbers from 0{last} ({IGNORED} is left out) for {likelihood}, "
            f"but got numbers from {lo} to {hi}"
        )


def _look(x: Tensor, test: Test) -> tuple[float, float, bool]:
    """The least value, the largest, and whether the test is true of any element."""
    x = x.detach()
    found = torch.zeros((), dtype=torch.bool, device=x.device)
    for part in x.split(max(1, PART * x.shape[0] // x.numel())):
        found |= test(part).any()
    facts = x.new_zeros(3)  # filled rather than stacked, which autocast refuses for some dtypes
    facts[0], facts[1] = x.aminmax()
    facts[2] = found
    lo, hi, any_found = facts.tolist()
    return lo, hi, bool(any_found)
