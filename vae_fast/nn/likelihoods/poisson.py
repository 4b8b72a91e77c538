"""The likelihood of counts with variance equal to the mean."""

from __future__ import annotations

import torch
import torch.distributions as D
from torch import Tensor

from ... import functional
from .base import Library, Params
from .base_counts import Counts


class Poisson(Counts):
    """The decoder gives the mean of the counts through `link`."""

    name = "poisson"

    def extra_repr(self) -> str:
        return f"link={self.link!r}"

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.poisson_nll(
            self.rate(params[0], self.library(x), x.ndim), x, mask=mask, reduction=reduction
        )

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        return -D.Poisson(self.rate(params[0], self.library(x)), validate_args=False).log_prob(x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_poisson_nll(hidden, weight, bias, x, library=self.library(x))

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        return torch.poisson(self.rate(params[0], library), generator)
