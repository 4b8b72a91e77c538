"""-log p(target | decoder output) per sample, in plain PyTorch, and its derivatives per element."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import per_sample, upcast


def value(target: Tensor) -> Tensor:
    """A target as a number: uint8 counts 255ths, bool is 0 or 1."""
    if target.dtype == torch.uint8:
        return target.to(torch.float32) / 255
    return target.to(torch.float32) if target.dtype == torch.bool else target


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """log(1 + exp(l)) - x l, summed per sample; logsigmoid is the stable form, and smooth at 0."""
    el, x = upcast(logits, value(target))
    return per_sample(-F.logsigmoid(-el) - x * el)


def gaussian_nll(mean: Tensor, target: Tensor, logvar: Tensor | float | None = None) -> Tensor:
    """(log 2 pi + logvar + (x - mean)^2 exp(-logvar)) / 2, summed per sample; logvar None is unit variance."""
    if not isinstance(logvar, Tensor):
        logvar = torch.full((), logvar or 0.0, dtype=torch.float32, device=mean.device)
    m, x, lv = upcast(mean, value(target), logvar)
    return per_sample(0.5 * (math.log(2 * math.pi) + lv + (x - m) ** 2 * torch.exp(-lv)))


# Derivatives of one element with respect to each parameter: (x, *params) -> (d/d param, ...).
DERIVATIVES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "bernoulli": lambda x, el: (torch.sigmoid(el) - x,),
    "gaussian": lambda x, m, lv: ((m - x) * torch.exp(-lv), 0.5 * (1 - (x - m) ** 2 * torch.exp(-lv))),
}
