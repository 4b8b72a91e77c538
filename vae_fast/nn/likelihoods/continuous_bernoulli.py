"""The likelihood of numbers from 0 to 1 with a density exponential in x."""

from __future__ import annotations

import torch
import torch.distributions as D
from torch import Tensor

from ... import functional
from .base import Library, Likelihood, Params, uniform

# The least mean, and the least distance to 1, that a start takes from the data. A pixel that is 0 in all samples has no
# best l, and one that it is not 0 in costs as much as |l|, which is its inverse.
LEAST = 0.01


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

    def output_of_mean(self, mean: Tensor) -> Tensor:
        """By bisection: the mean grows with l, and near 0 and 1 it is -1 / l and 1 - 1 / l."""
        mean = mean.clamp(LEAST, 1 - LEAST)
        low, high = torch.full_like(mean, -1 / LEAST), torch.full_like(mean, 1 / LEAST)
        for _ in range(40):
            middle = (low + high) / 2
            is_low = self.mean((middle,)) < mean
            low, high = middle.where(is_low, low), high.where(is_low, middle)
        return (low + high) / 2

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
