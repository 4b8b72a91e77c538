"""-log p(target | decoder output) per sample, in plain PyTorch, and its derivatives per element."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import per_sample, upcast


def upcast_target(target: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
    """All in the dtype of the arithmetic; uint8 targets count 255ths, bool is 0 or 1."""
    x, *rest = upcast(target, *params)
    return (x / 255 if target.dtype == torch.uint8 else x), *rest


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """log(1 + exp(l)) - x l, summed per sample; logsigmoid is the stable form, and smooth at 0."""
    x, el = upcast_target(target, logits)
    return per_sample(-F.logsigmoid(-el) - x * el)


def gaussian_nll(mean: Tensor, target: Tensor, logvar: Tensor | float | None = None) -> Tensor:
    """(log 2 pi + logvar + (x - mean)^2 exp(-logvar)) / 2, summed per sample; logvar None is unit variance."""
    if not isinstance(logvar, Tensor):
        logvar = torch.full((), logvar or 0.0, dtype=torch.float32, device=mean.device)
    x, m, lv = upcast_target(target, mean, logvar)
    return per_sample(0.5 * (math.log(2 * math.pi) + lv + (x - m) ** 2 * torch.exp(-lv)))


# Derivatives of one element with respect to each parameter: (x, *params) -> (d/d param, ...).
DERIVATIVES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "bernoulli": lambda x, el: (torch.sigmoid(el) - x,),
    "gaussian": lambda x, m, lv: ((m - x) * torch.exp(-lv), 0.5 * (1 - (x - m) ** 2 * torch.exp(-lv))),
}
