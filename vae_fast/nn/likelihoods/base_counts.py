"""Likelihoods of counts: x holds whole numbers of at least 0, in any dtype (uint8 too: the number itself)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import functional
from .base import Library, Likelihood, Params, Spread, as_numbers, check_library

LINKS = ("softmax", "exp", "softplus")


class Counts(Likelihood):
    """How the decoder's first output y becomes the mean of the counts, `link`:

    "softmax"    library softmax(y), over all but the batch: y says which share of a sample's counts falls to each
                 feature. The library is the sample's own number of counts, sum x, as in scvi-tools (Lopez et al.,
                 2018); where there is no x (`VAE.generate`), `library`.
    "exp"        exp(y)
    "softplus"   log(1 + exp(y))
    """

    support = "counts"

    def __init__(self, link: str = "softmax", library: float = 1e4) -> None:
        super().__init__()
        if link not in LINKS:
            raise ValueError(f"link is {link!r}, it takes one of {', '.join(LINKS)}")
        self.link, self.default_library = link, check_library(library)

    @property
    def has_linear_nll(self) -> bool:
        return self.link != "softplus"

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return as_numbers(x, dtype)

    def library(self, x: Tensor) -> Tensor | None:
        """sum x of each sample, shape (batch,)."""
        if self.link != "softmax":
            return None
        total = x.flatten(1).sum(1, dtype=torch.float32 if x.is_floating_point() and x.itemsize < 4 else None)
        return total if total.is_floating_point() else total.float()

    def rate(self, output: Tensor, library: Library) -> Tensor:
        """The mean of the counts, without the zeros that a dropout adds."""
        if self.link == "softmax":
            library = self.default_library if library is None else library
            if isinstance(library, Tensor) and library.ndim:
                library = library.unsqueeze(1)
            return (output.flatten(1).softmax(1) * library).view_as(output)
        if library is not None:
            raise ValueError(f'library is of link="softmax", {self} has another')
        return output.exp() if self.link == "exp" else F.softplus(output)


class Poisson(Counts):
    """The decoder gives the mean by way of `link`."""

    def extra_repr(self) -> str:
        return f"link={self.link!r}"

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.poisson_nll(self.rate(params[0], self.library(x)), x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_poisson_nll(hidden, weight, bias, x, library=self.library(x))

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return self.rate(params[0], library)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        return torch.poisson(self.rate(params[0], library), generator)


class NegativeBinomial(Spread, Counts):
    """Variance mean + mean^2 / theta. The decoder gives the mean by way of `link`; the inverse dispersion theta is
    "feature" (one for each, scvi-tools' dispersion="gene"; `features` where the decoder does not tell x's shape),
    "learned" (one for all), a number, or "decoder" (mean and theta, scvi-tools' "gene-cell"). What is learned is
    `log_theta`; the decoder's theta is the exponential of what it gives.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools).
    """

    option, parameter = "theta", "log_theta"

    def __init__(
        self,
        theta: float | str = "feature",
        features: int | Sequence[int] | None = None,
        link: str = "softmax",
        library: float = 1e4,
    ) -> None:
        super().__init__(theta, features, link=link, library=library)

    def extra_repr(self) -> str:
        return f"theta={self._value!r}, link={self.link!r}"

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.negative_binomial_nll(
            self.rate(params[0], self.library(x)), x, self.theta_of(params)
        )

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        fixed = self.fixed()
        theta = fixed if fixed is None else torch.as_tensor(fixed, device=x.device).exp()
        return functional.linear_negative_binomial_nll(
            hidden, weight, bias, x, theta, library=self.library(x)
        )

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return self.rate(params[0], library)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        mean = self.rate(params[0], library)
        theta = self.theta_of(params).expand_as(mean)
        gamma = torch._standard_gamma(theta, generator=generator)  # of mean theta
        return torch.poisson(gamma * (mean / theta), generator)

    def theta_of(self, params: Params) -> Tensor:
        return torch.as_tensor(self.spread(params), device=params[0].device).exp()


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial count, or 0 with probability sigmoid(dropout logit). The decoder gives mean, theta (if it is
    "decoder") and dropout logits, in this order; theta, `link` and `library` as NegativeBinomial.

    Source: as there.
    """

    num_parameters = 2

    def nll(self, params: Params, x: Tensor) -> Tensor:
        mean = self.rate(params[0], self.library(x))
        return functional.zero_inflated_negative_binomial_nll(mean, x, self.theta_of(params), params[-1])

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        fixed = self.fixed()
        theta = fixed if fixed is None else torch.as_tensor(fixed, device=x.device).exp()
        return functional.linear_zero_inflated_negative_binomial_nll(
            hidden, weight, bias, x, theta, library=self.library(x)
        )

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return super().mean(params, library) * torch.sigmoid(-params[-1])

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        counts = super().sample(params, generator, library)
        return counts * torch.bernoulli(torch.sigmoid(-params[-1]), generator=generator)
