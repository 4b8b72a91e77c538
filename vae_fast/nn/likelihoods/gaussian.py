"""Likelihoods of real numbers: a location, and a scale that is fixed, learned or the decoder's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from .base import Library, Params, Spread, deviations, uniform


class Density(Spread):
    """Towards a spread of 0 the density of what is met exactly grows without bound."""

    @property
    def is_unbounded(self) -> bool:
        return isinstance(self._value, str)  # it is learned


class Gaussian(Density):
    """The decoder gives the mean, and the variance is one of

    a number     fixed (1.0: half the squared error and a constant);
    "learned"    one for all x, the parameter `logvar` (Rybkin et al., "Simple and Effective VAE Training with
                 Calibrated Decoders", 2021);
    "feature"    one for each feature, learned likewise; `features` where the decoder does not tell x's shape;
    "decoder"    one for every element: the decoder gives mean and log-variance (Kingma & Welling, 2014).
    """

    option, parameter = "variance", "logvar"

    def __init__(self, variance: float | str = 1.0, features: int | Sequence[int] | None = None) -> None:
        super().__init__(variance, features)

    def start(self, x: Tensor) -> None:
        self.fill(deviations(x).pow(2).mean().log())

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.gaussian_nll(params[0], x, self.spread(params))

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_gaussian_nll(hidden, weight, bias, x, self.fixed())

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return params[0]

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        mean = params[0]
        std = torch.as_tensor(0.5 * self.spread(params)).exp().to(mean.dtype)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + std * noise


class Laplace(Density):
    """The decoder gives the location; its distance from x counts as it is, not squared. The scale is as Gaussian's
    variance: a number (1.0: the L1 loss and a constant), "learned" (the parameter `log_scale`), "feature" or "decoder"
    (location and log-scale).

    Source: the reconstruction loss of latent diffusion (Rombach et al., 2022), with its one learned log-scale.
    """

    option, parameter = "scale", "log_scale"

    def __init__(self, scale: float | str = 1.0, features: int | Sequence[int] | None = None) -> None:
        super().__init__(scale, features)

    def start(self, x: Tensor) -> None:
        self.fill(deviations(x).abs().mean().log())

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.laplace_nll(params[0], x, self.spread(params))

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_laplace_nll(hidden, weight, bias, x, self.fixed())

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return params[0]

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        location = params[0]
        scale = torch.as_tensor(self.spread(params)).exp()
        u = uniform(location, generator) - 0.5
        return (location - scale * u.sign() * torch.log1p(-2 * u.abs())).to(location.dtype)
