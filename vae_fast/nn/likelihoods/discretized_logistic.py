"""The likelihood of images in 256 levels: a logistic distribution cut into levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from ...likelihoods.discretized_logistic import LEAST_LOG_SCALE
from .base import Library, Params, uniform
from .base_dispersion import DispersionLikelihood, deviations


class DiscretizedLogistic(DispersionLikelihood):
    """x is one of 256 levels. A level's probability is that of a logistic distribution between its edges; the outermost
    levels reach to infinity. The decoder gives the mean in [-1, 1] for x in [0, 1], as PixelCNN++, NVAE and VDVAE do.
    `scale`, in the same units, is a number, "learned" (the parameter `log_scale`), "feature" or "decoder" (mean and
    log-scale). Log-scales are clamped at -7.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016.
    """

    name = "discretized_logistic"
    support = "unit"
    dispersion_name, log_dispersion_name = "scale", "log_scale"

    def __init__(self, scale: float | str = "learned", features: int | Sequence[int] | None = None) -> None:
        super().__init__(scale, features)

    def start(self, x: Tensor) -> None:
        std = 2 * deviations(x).pow(2).mean().sqrt()
        log_scale = (std * math.sqrt(3) / math.pi).log()
        if not log_scale < LEAST_LOG_SCALE:  # below, no gradient would bring it back
            self.init_log_dispersion(log_scale)

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.discretized_logistic_nll(
            params[0], x, self.log_dispersion(params), mask=mask, reduction=reduction
        )

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_discretized_logistic_nll(hidden, weight, bias, x, self.own_log_dispersion())

    def output_of_mean(self, mean: Tensor) -> Tensor:
        return 2 * mean - 1

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """The mean of the logistic distribution cut at 0 and 1, in x's units. The levels' mean differs by rounding."""
        return unit(cut_logistic_mean(params[0], self.log_dispersion(params)))

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        return levels(draw_logistic(params[0], self.log_dispersion(params), generator))


def unit(t: Tensor) -> Tensor:
    """[-1, 1] as [0, 1]."""
    return (t + 1) / 2


def levels(t: Tensor) -> Tensor:
    """The level in [0, 1] nearest to t in [-1, 1]."""
    return (unit(t).clamp(0, 1) * 255).round() / 255


def _scale(log_scale: Tensor | float, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.as_tensor(log_scale, device=like.device).to(dtype).clamp_min(LEAST_LOG_SCALE).exp()


def cut_logistic_mean(mean: Tensor, log_scale: Tensor | float) -> Tensor:
    """The mean of a logistic variable cut at -1 and 1: -1 + the integral of P(t > y) for y from -1 to 1."""
    scale = _scale(log_scale, mean)
    softplus = torch.nn.functional.softplus
    cut: Tensor = scale * (softplus((mean + 1) / scale) - softplus((mean - 1) / scale)) - 1
    return cut.clamp(-1, 1).to(mean.dtype)  # rounding may leave it


def draw_logistic(mean: Tensor, log_scale: Tensor | float, generator: torch.Generator | None) -> Tensor:
    u = uniform(mean, generator)
    return mean + _scale(log_scale, mean) * (torch.log(u) - torch.log1p(-u))
