"""The likelihood of overdispersed counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributions as D
from torch import Tensor

from ... import functional
from .base import Library, Params
from .base_counts import Counts
from .base_dispersion import DispersionLikelihood


class NegativeBinomial(DispersionLikelihood, Counts):
    """Counts of variance mean + mean^2 / theta. The decoder gives the mean through `link`. The inverse dispersion theta
    is one of

    "feature"    one for each feature, the parameter `log_theta` (scvi-tools' dispersion="gene"); `features` where the
                 decoder does not tell x's shape;
    "learned"    one for all x, learned likewise;
    a number     fixed;
    "decoder"    one for every element: the decoder gives mean and log theta (scvi-tools' "gene-cell").

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools).
    """

    name = "negative_binomial"
    dispersion_name, log_dispersion_name = "theta", "log_theta"

    def __init__(
        self,
        theta: float | str = "feature",
        features: int | Sequence[int] | None = None,
        link: str = "softmax",
        library: float = 1e4,
    ) -> None:
        super().__init__(theta, features, link=link, library=library)

    def extra_repr(self) -> str:
        return f"theta={self._dispersion!r}, link={self.link!r}"

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.negative_binomial_nll(
            self.rate(params[0], self.library(x), x.ndim),
            x,
            self.theta_of(params),
            mask=mask,
            reduction=reduction,
        )

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        mean, theta = self.rate(params[0], self.library(x)) + 1e-8, self.theta_of(params)
        return -D.NegativeBinomial(theta, logits=mean.log() - theta.log(), validate_args=False).log_prob(x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_negative_binomial_nll(
            hidden, weight, bias, x, self.own_theta(x), library=self.library(x)
        )

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        mean = self.rate(params[0], library)
        theta = self.theta_of(params).expand_as(mean)
        gamma = torch._standard_gamma(theta, generator=generator)  # of mean theta
        return torch.poisson(gamma * (mean / theta), generator)

    def theta_of(self, params: Params) -> Tensor:
        """theta, from the module or from the decoder."""
        return torch.as_tensor(self.log_dispersion(params), device=params[0].device).exp()

    def own_theta(self, x: Tensor) -> Tensor | None:
        """theta on x's device where the module holds it; None where the decoder gives it."""
        own = self.own_log_dispersion()
        return None if own is None else torch.as_tensor(own, device=x.device).exp()
