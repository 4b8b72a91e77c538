"""Likelihoods of images: values from 0 to 1 (uint8: 255ths)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from ...backends.reference.likelihood import LEAST_LOG_SCALE
from ...checks import check_bool
from ...rng import binarize as draw_bits
from .base import Library, Likelihood, Params, Spread, deviations, uniform


class Bernoulli(Likelihood):
    """The decoder gives logits. x is in [0, 1]; grey values are taken as they are, as a cross-entropy, or with
    binarize=True as the probabilities of being 1: in every pass, evaluation too, x is drawn anew, and encoder and
    likelihood see the same draw (Salakhutdinov & Murray, 2008; Burda et al., 2016).
    """

    support = "unit"

    def __init__(self, binarize: bool = False) -> None:
        super().__init__()
        self.binarize = check_bool("binarize", binarize)

    def extra_repr(self) -> str:
        return "binarize=True" if self.binarize else ""

    def observe(self, x: Tensor, rng_state: Tensor) -> Tensor:
        return draw_bits(x, rng_state) if self.binarize else x

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.bernoulli_nll(params[0], x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_bernoulli_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return params[0].sigmoid()

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        return torch.bernoulli(self.mean(params), generator=generator)


class ContinuousBernoulli(Likelihood):
    """The decoder gives logits l, x is in [0, 1] and its density proportional to exp(l x).

    Source: Loaiza-Ganem & Cunningham, "The continuous Bernoulli", 2019.
    """

    support = "unit"

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.continuous_bernoulli_nll(params[0], x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_continuous_bernoulli_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        logits = params[0]
        a = logits.abs().clamp_min(0.3)
        far = 1 / -torch.expm1(-a) - 1 / a
        near = 0.5 + logits / 12 - logits**3 / 720
        return torch.where(logits.abs() < 0.3, near, torch.where(logits < 0, 1 - far, far))

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        logits = params[0]
        u = uniform(logits, generator)
        a = logits.abs().clamp_min(1e-3)
        high = 1 + torch.log(u + (1 - u) * torch.exp(-a)) / a  # the inverse of the distribution function
        return torch.where(logits < 0, 1 - high, high).clamp(0, 1).to(logits.dtype)


class DiscretizedLogistic(Spread):
    """x is one of 256 levels; its probability is that of a logistic distribution between the level's edges, the
    outermost levels reaching to infinity. The decoder gives the mean in [-1, 1] for x in [0, 1] (as PixelCNN++, NVAE
    and VDVAE do); `scale`, in the same units, is a number, "learned" (the parameter `log_scale`), "feature" or
    "decoder" (mean and log-scale). Log-scales are clamped at -7.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016.
    """

    support = "unit"
    option, parameter = "scale", "log_scale"

    def __init__(self, scale: float | str = "learned", features: int | Sequence[int] | None = None) -> None:
        super().__init__(scale, features)

    def start(self, x: Tensor) -> None:
        std = 2 * deviations(x).pow(2).mean().sqrt()
        log_scale = (std * math.sqrt(3) / math.pi).log()
        if not log_scale < LEAST_LOG_SCALE:  # below, no gradient would bring it back
            self.fill(log_scale)

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.discretized_logistic_nll(params[0], x, self.spread(params))

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_discretized_logistic_nll(hidden, weight, bias, x, self.fixed())

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """Of the logistic distribution cut at 0 and 1, in x's units: the levels' own but for rounding to them."""
        return unit(cut_logistic_mean(params[0], self.spread(params)))

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        return levels(draw_logistic(params[0], self.spread(params), generator))


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
    """Of a logistic variable cut at -1 and 1: -1 + the integral of P(t > y) for y from -1 to 1."""
    scale = _scale(log_scale, mean)
    softplus = torch.nn.functional.softplus
    cut: Tensor = scale * (softplus((mean + 1) / scale) - softplus((mean - 1) / scale)) - 1
    return cut.clamp(-1, 1).to(mean.dtype)  # rounding may leave it


def draw_logistic(mean: Tensor, log_scale: Tensor | float, generator: torch.Generator | None) -> Tensor:
    u = uniform(mean, generator)
    return mean + _scale(log_scale, mean) * (torch.log(u) - torch.log1p(-u))
