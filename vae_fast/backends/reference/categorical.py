"""-log p(class) and -log p(counts) of a softmax over the last dim, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .latent import per_sample, upcast

IGNORED = -100  # as in torch


def categorical_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-log_softmax(l)[x], 0 where x is -100, NaN where there is no class x."""
    (el,) = upcast(logits)
    index, classes = target.long(), logits.shape[-1]
    counted = index != IGNORED
    if mask is not None:
        counted = counted & mask
    el = torch.where(counted[..., None], el, 0.0)  # what is left out may be NaN, and learns nothing
    known = (index >= 0) & (index < classes)
    log_p = torch.log_softmax(el, -1).gather(-1, torch.where(known, index, 0)[..., None])[..., 0]
    nll = -log_p * torch.where(known, 1.0, torch.nan)
    nll = per_sample(torch.where(counted, nll, 0.0))
    return nll if weight is None else nll * weight


def multinomial_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-sum x log_softmax(l)"""
    el, x = upcast(logits, target)
    if mask is not None:
        el, x = (torch.where(mask[..., None], v, 0.0) for v in (el, x))
    nll = per_sample(-(x * torch.log_softmax(el, -1)).sum(-1))
    return nll if weight is None else nll * weight
