"""The Laplace likelihood of real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributions as D
from torch import Tensor

from ... import functional
from .base import Library, Params, uniform
from .base_dispersion import LocationScale, deviations


class Laplace(LocationScale):
    """The decoder gives the location. Its distance from x counts as it is, not squared. The scale has the options of
    Gaussian's variance: a number (1.0: the L1 loss and a constant), "learned" (the parameter `log_scale`), "feature" or
    "decoder" (location and log-scale).

    Source: the reconstruction loss of latent diffusion (Rombach et al., 2022), with its one learned log-scale.
    """

    name = "laplace"
    dispersion_name, log_dispersion_name = "scale", "log_scale"

    def __init__(self, scale: float | str = 1.0, features: int | Sequence[int] | None = None) -> None:
        super().__init__(scale, features)

    def start(self, x: Tensor) -> None:
        self.init_log_dispersion(deviations(x).abs().mean().log())

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.laplace_nll(
            params[0], x, self.log_dispersion(params), mask=mask, reduction=reduction
        )

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        scale = torch.as_tensor(self.log_dispersion(params), device=x.device).exp()
        return -D.Laplace(params[0], scale, validate_args=False).log_prob(x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_laplace_nll(hidden, weight, bias, x, self.own_log_dispersion())

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        location = params[0]
        scale = torch.as_tensor(self.log_dispersion(params)).exp()
        u = uniform(location, generator) - 0.5
        return (location - scale * u.sign() * torch.log1p(-2 * u.abs())).to(location.dtype)
