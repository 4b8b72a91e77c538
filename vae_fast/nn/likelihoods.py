"""p(x | z) by name. A new member is one small class here, around one function of `vae_fast.functional`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional

Params = tuple[Tensor, ...]


class Likelihood(nn.Module, ABC):
    """How a decoder's output is read as a distribution of x.

    The decoder returns `num_parameters` tensors of x's shape, or one with them side by side along dim 1.
    """

    num_parameters = 1

    def split(self, output: Tensor | Sequence[Tensor]) -> Params:
        """The distribution's parameters, each of x's shape, from what the decoder returned."""
        n = self.num_parameters
        if not isinstance(output, Tensor):
            params = tuple(output)
            if len(params) != n:
                raise ValueError(f"decoder returned {len(params)} tensors, {self} takes {n}")
            return params
        if n == 1:
            return (output,)
        if output.ndim < 2 or output.shape[1] % n:
            raise ValueError(
                f"decoder returned shape {tuple(output.shape)}, {self} takes {n} parameters along dim 1"
            )
        return output.chunk(n, dim=1)

    @abstractmethod
    def nll(self, params: Params, x: Tensor) -> Tensor:
        """-log p(x | z) in nats, shape (batch,)."""

    @abstractmethod
    def mean(self, params: Params) -> Tensor:
        """The mean of p(x | z), of x's shape."""

    @abstractmethod
    def sample(self, params: Params, generator: torch.Generator | None = None) -> Tensor:
        """A draw from p(x | z), of x's shape."""


class Bernoulli(Likelihood):
    """The decoder gives logits. x is in [0, 1]; grey values are taken as they are."""

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.bernoulli_nll(params[0], x)

    def mean(self, params: Params) -> Tensor:
        return params[0].sigmoid()

    def sample(self, params: Params, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(params), generator=generator)


class Gaussian(Likelihood):
    """The decoder gives the mean, and the variance is one of

    a number     fixed (1.0: half the squared error and a constant);
    "learned"    one for all x, the parameter `logvar` (Rybkin et al., "Simple and Effective VAE Training with
                 Calibrated Decoders", 2021);
    "decoder"    one for every element: the decoder gives mean and log-variance (Kingma & Welling, 2014).
    """

    def __init__(self, variance: float | str = 1.0) -> None:
        super().__init__()
        self.variance = variance
        self.logvar: nn.Parameter | float = 0.0
        if variance == "learned":
            self.logvar = nn.Parameter(torch.zeros(()))
        elif variance == "decoder":
            self.num_parameters = 2
        elif not isinstance(variance, (str, bool)) and 0 < variance < math.inf:
            self.logvar = math.log(variance)
        else:
            raise ValueError(f'variance is {variance!r}, it takes a number above 0, "learned" or "decoder"')

    def extra_repr(self) -> str:
        return f"variance={self.variance!r}"

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.gaussian_nll(params[0], x, self._logvar(params))

    def mean(self, params: Params) -> Tensor:
        return params[0]

    def sample(self, params: Params, generator: torch.Generator | None = None) -> Tensor:
        mean = params[0]
        std = torch.as_tensor(0.5 * self._logvar(params)).exp().to(mean.dtype)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + std * noise

    def _logvar(self, params: Params) -> Tensor | float:
        return params[1] if self.num_parameters == 2 else self.logvar


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def make_likelihood(likelihood: str | Likelihood, **options: Any) -> Likelihood:
    """The member of that name, made with its own options; or the module itself."""
    if isinstance(likelihood, Likelihood):
        if options:
            raise TypeError(f"likelihood is a module, so {', '.join(options)} must be given to it")
        return likelihood
    if likelihood not in LIKELIHOODS:
        names = ", ".join(LIKELIHOODS)
        raise ValueError(f"likelihood is {likelihood!r}, it takes one of {names} or a vae_fast.nn.Likelihood")
    try:
        return LIKELIHOODS[likelihood](**options)
    except TypeError:
        raise TypeError(f"likelihood {likelihood!r} does not take {', '.join(options)}") from None
