"""The normal likelihood of real numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from .base import Library, Params
from .base_dispersion import LocationScale, deviations


class Gaussian(LocationScale):
    """The decoder gives the mean. The variance is one of

    a number     fixed (1.0: half the squared error and a constant);
    "learned"    one for all x, the parameter `logvar` (Rybkin et al., "Simple and Effective VAE Training with
                 Calibrated Decoders", 2021);
    "feature"    one for each feature, learned likewise; `features` where the decoder does not tell x's shape;
    "decoder"    one for every element: the decoder gives mean and log-variance (Kingma & Welling, 2014).
    """

    name = "gaussian"
    dispersion_name, log_dispersion_name = "variance", "logvar"

    def __init__(self, variance: float | str = 1.0, features: int | Sequence[int] | None = None) -> None:
        super().__init__(variance, features)

    def start(self, x: Tensor) -> None:
        self.init_log_dispersion(deviations(x).pow(2).mean().log())

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.gaussian_nll(
            params[0], x, self.log_dispersion(params), mask=mask, reduction=reduction
        )

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        logvar = torch.as_tensor(self.log_dispersion(params), device=x.device)
        return 0.5 * (math.log(2 * math.pi) + logvar + (x - params[0]).pow(2) * torch.exp(-logvar))

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_gaussian_nll(hidden, weight, bias, x, self.own_log_dispersion())

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        mean = params[0]
        std = torch.as_tensor(0.5 * self.log_dispersion(params)).exp().to(mean.dtype)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + std * noise
