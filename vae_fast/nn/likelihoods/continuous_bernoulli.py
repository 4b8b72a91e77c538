"""The likelihood of numbers from 0 to 1 with a density exponential in x."""

from __future__ import annotations

import torch
import torch.distributions as D
from torch import Tensor

from ... import functional
from .base import Library, Likelihood, Params, uniform


class ContinuousBernoulli(Likelihood):
    """The decoder gives logits l. x is in [0, 1], and its density is proportional to exp(l x).

    Source: Loaiza-Ganem & Cunningham, "The continuous Bernoulli", 2019.
    """

    name = "continuous_bernoulli"
    support = "unit"

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.continuous_bernoulli_nll(params[0], x, mask=mask, reduction=reduction)

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        return -D.ContinuousBernoulli(logits=params[0], validate_args=False).log_prob(x)

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
