"""The likelihood of overdispersed counts that drop out."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import functional
from .base import Library, Params
from .negative_binomial import NegativeBinomial


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial count, or 0 with probability sigmoid(dropout logit). The decoder gives the mean, log theta
    (under theta="decoder") and the dropout logits, in this order. The options are those of NegativeBinomial.

    Source: as NegativeBinomial.
    """

    name = "zero_inflated_negative_binomial"
    num_parameters = 2

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        mean = self.rate(params[0], self.library(x), x.ndim)
        return functional.zero_inflated_negative_binomial_nll(
            mean, x, self.theta_of(params), params[-1], mask=mask, reduction=reduction
        )

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        return None

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_zero_inflated_negative_binomial_nll(
            hidden, weight, bias, x, self.own_theta(x), library=self.library(x)
        )

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return super().mean(params, library) * torch.sigmoid(-params[-1])

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        counts = super().sample(params, generator, library)
        return counts * torch.bernoulli(torch.sigmoid(-params[-1]), generator=generator)
