"""The likelihood of counts of two origins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from .base import Library, Params
from .negative_binomial import NegativeBinomial


class NegativeBinomialMixture(NegativeBinomial):
    """A count of one of two negative binomials: of mean 1 with probability sigmoid(mixture logit), else of mean 2. The
    decoder gives mean 1, mean 2 (both through `link`, "exp" or "softplus") and the mixture logits, in this order. Both
    components have one theta: "feature", "learned" or a number, as in NegativeBinomial.

    Source: Gayoso et al., "Joint probabilistic modeling of single-cell multi-omic data with totalVI", 2021.
    """

    name = "negative_binomial_mixture"
    num_parameters = 3

    def __init__(
        self,
        theta: float | str = "feature",
        features: int | Sequence[int] | None = None,
        link: str = "exp",
    ) -> None:
        if theta == "decoder":
            raise ValueError("expected theta to be a number, 'learned' or 'feature', but got 'decoder'")
        if link == "softmax":
            raise ValueError("expected link to be 'exp' or 'softplus', but got 'softmax'")
        super().__init__(theta, features, link=link)

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        mean_1, mean_2, logits = params
        means = self.rate(mean_1, None, x.ndim), self.rate(mean_2, None, x.ndim)
        return functional.negative_binomial_mixture_nll(
            means[0], x, means[1], self.theta_of(params), logits, mask=mask, reduction=reduction
        )

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        return None

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_negative_binomial_mixture_nll(hidden, weight, bias, x, self.own_theta(x))

    def output_of_mean(self, mean: Tensor) -> Tensor:
        """Two components that start alike would stay so: theirs are half the mean and one and a half times it, each of
        probability 1/2."""
        first, second = super().output_of_mean(mean / 2), super().output_of_mean(mean * 1.5)
        return torch.cat([first, second, torch.zeros_like(mean)])

    def mean(self, params: Params, library: Library = None) -> Tensor:
        mean_1, mean_2, logits = params
        share = torch.sigmoid(logits)
        return share * self.rate(mean_1, library) + (1 - share) * self.rate(mean_2, library)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        mean_1, mean_2, logits = params
        is_first = torch.bernoulli(torch.sigmoid(logits), generator=generator) > 0
        return super().sample((torch.where(is_first, mean_1, mean_2),), generator, library)
