"""Priors p(z) for `VAE(prior=...)`: modules whose parameters are learned with the model's.

A prior is called once in a pass and returns what p(z) is there: None for N(0, 1); a pair (mu_p, logvar_p) for a
diagonal Gaussian, whose KL the fused kernel knows in closed form; or a `Density`, whose KL is estimated with the draws
of the pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import functional
from ..checks import check_int, check_is_tensor, check_pair, check_sizes, shape_of
from ..likelihoods.numerics import held_between, upcast
from .describe import Described

__all__ = [
    "ConditionalPrior",
    "Density",
    "GaussianPrior",
    "MixturePrior",
    "Prior",
    "StandardNormal",
    "VampPrior",
]

Moments = tuple[Tensor, Tensor]


class Density(Protocol):
    """p(z) without a closed form of its KL. Any object with these methods is one.

    A torch.distributions object is none, as it does not draw from given noise: a flow's prior is a `Prior` whose
    `forward` returns itself, with `log_prob` and, from the noise on, the flow as `sample`.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats of z (batch, ...) or (draws, batch, ...), summed over the dims of a latent."""

    def sample(self, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws made of standard normal noise (n, ...); what else is random comes from the generator."""


class Prior(Described, nn.Module):
    """Base class. `forward` returns None, (mu_p, logvar_p) or a `Density`; each broadcastable to z's batch.

    It is called without arguments, with the `condition` where `takes_condition` is True (with None if there is none),
    and with encode=model.encode where `takes_encoder` is.
    """

    takes_condition = False
    takes_encoder = False

    def forward(self, *args: Any, **kwargs: Any) -> Moments | Density | None:
        raise NotImplementedError


class StandardNormal(Prior):
    """N(0, 1), the default."""

    def forward(self) -> None:
        return None


class GaussianPrior(Prior):
    """N(mu_p, exp logvar_p), learned from N(0, 1) on. `latent_shape` is z's without the batch."""

    def __init__(self, latent_shape: int | Sequence[int]) -> None:
        super().__init__()
        shape = check_sizes("latent_shape", latent_shape)
        self.mu, self.logvar = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def extra_repr(self) -> str:
        return f"latent_shape={shape_of(self.mu)}"

    def forward(self) -> Moments:
        return self.mu, self.logvar


class FixedPrior(Prior):
    """The Gaussian of two tensors, which are not learned."""

    mu: Tensor
    logvar: Tensor

    def __init__(self, mu: Tensor, logvar: Tensor) -> None:
        super().__init__()
        self.register_buffer("mu", mu.detach())
        self.register_buffer("logvar", logvar.detach())

    def extra_repr(self) -> str:
        return f"mu={shape_of(self.mu)}, logvar={shape_of(self.logvar)}"

    def forward(self) -> Moments:
        return self.mu, self.logvar


class ConditionalPrior(Prior):
    """p(z | condition), a diagonal Gaussian by a network: network(condition) gives (mu_p, logvar_p), or one tensor with
    both side by side along dim 1. For labels, nn.Embedding(labels, 2 * latent) is one.

    Source: Sohn, Lee & Yan, "Learning structured output representation using deep conditional generative models", 2015.
    """

    takes_condition = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, condition: Tensor | None) -> Moments:
        if condition is None:
            raise ValueError("expected a condition, which the prior is a function of, but got None")
        is_for_all = condition.ndim == (1 if condition.is_floating_point() else 0)
        moments = self.network(condition.unsqueeze(0) if is_for_all else condition)
        return halves(moments)


@dataclass(frozen=True)
class Mixture:
    """A mixture of diagonal Gaussians: means and logvars (components, ...), logits (components,) or None."""

    means: Tensor
    logvars: Tensor
    logits: Tensor | None = None

    def log_prob(self, z: Tensor) -> Tensor:
        means, logvars = self.means.flatten(1), self.logvars.flatten(1)
        flat = z.flatten(z.ndim - self.means.ndim + 1) if self.means.ndim > 1 else z.unsqueeze(-1)
        return functional.mixture_log_prob(flat, means, logvars, self.logits)

    def sample(self, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if not len(noise):
            return noise
        count = self.means.shape[0]
        logits = self.means.new_zeros(count) if self.logits is None else self.logits
        shares = logits.float().softmax(0).to(noise.device if generator is None else generator.device)
        chosen = torch.multinomial(shares, noise.shape[0], replacement=True, generator=generator)
        chosen = chosen.to(self.means.device)
        return torch.addcmul(self.means[chosen], (self.logvars[chosen] / 2).exp(), noise)


class MixturePrior(Prior):
    """sum_k softmax(logits)_k N(means_k, exp logvars_k), all learned. Its KL is estimated with the draws of a pass:

        kl = KL(q || N(0, 1)) + mean over draws of  log N(z; 0, 1) - log p(z)

    the first in closed form, so that only the difference of the two priors is random.

    Args:
        components: how many.
        latent_shape: z's without the batch.
        spread: standard deviation of the means at the start; log-variances and logits start at 0.

    Source: Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture VAEs", 2016, for the use.
    """

    def __init__(self, components: int, latent_shape: int | Sequence[int], *, spread: float = 1.0) -> None:
        super().__init__()
        shape = (check_int("components", components, 1), *check_sizes("latent_shape", latent_shape))
        self.means = nn.Parameter(spread * torch.randn(shape))
        self.logvars = nn.Parameter(torch.zeros(shape))
        self.logits = nn.Parameter(torch.zeros(shape[:1]))

    def extra_repr(self) -> str:
        components, *latent_shape = self.means.shape
        return f"{components}, latent_shape={tuple(latent_shape)}"

    def forward(self) -> Mixture:
        return Mixture(self.means, self.logvars, self.logits)


class VampPrior(Prior):
    """The mixture of the posteriors of pseudo-inputs u_k, which are learned: 1/K sum_k q(z | u_k). KL as
    `MixturePrior`'s.

    Args:
        pseudo_inputs: where they start, (components, ...) as x with a floating dtype: samples of the training data, or
            noise around its mean. Class numbers have no gradient: no prior for text.
        bounds: (lo, hi) that they are held to, by default of an image; None: none.

    Source: Tomczak & Welling, "VAE with a VampPrior", 2018.
    """

    takes_encoder = True

    def __init__(self, pseudo_inputs: Tensor, *, bounds: tuple[float, float] | None = (0.0, 1.0)) -> None:
        super().__init__()
        check_is_tensor("pseudo_inputs", pseudo_inputs)
        if not pseudo_inputs.is_floating_point():
            raise TypeError(f"expected pseudo_inputs to have a floating dtype, but got {pseudo_inputs.dtype}")
        if pseudo_inputs.ndim < 2 or not len(pseudo_inputs):
            raise ValueError(
                f"expected pseudo_inputs to have shape (components, ...), but got {shape_of(pseudo_inputs)}"
            )
        if bounds is not None and not pseudo_inputs.is_meta:
            least, most = pseudo_inputs.min().item(), pseudo_inputs.max().item()
            if least < bounds[0] or most > bounds[1]:  # such values would have no gradient
                raise ValueError(
                    f"expected pseudo_inputs to be within bounds={tuple(bounds)}, but got values from {least:g} to "
                    f"{most:g}; clamp them, or give the data's own bounds or None"
                )
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        self.bounds = bounds

    def extra_repr(self) -> str:
        return f"{len(self.pseudo_inputs)} pseudo-inputs, bounds={self.bounds}"

    def forward(self, *, encode: Callable[[Tensor], Moments]) -> Mixture:
        inputs = self.pseudo_inputs
        return Mixture(*encode(inputs if self.bounds is None else held_between(inputs, *self.bounds)))


def make_prior(prior: Any) -> nn.Module:
    """What `VAE(prior=...)` was given, as a module."""
    if prior is None:
        return StandardNormal()
    if isinstance(prior, nn.Module):
        return prior
    if isinstance(prior, (tuple, list)) and len(prior) == 2:
        check_pair(*prior)
        return FixedPrior(*prior)
    raise TypeError(
        "expected prior to be None for N(0, 1), a pair of tensors (mu_p, logvar_p), or a module such as "
        f"vae_fast.nn.MixturePrior, but got {prior!r}"
    )


def halves(moments: Tensor | Moments) -> Moments:
    """mu and logvar of a network's output: of both, or of one tensor with them side by side along dim 1."""
    mu, logvar = moments.chunk(2, dim=1) if isinstance(moments, Tensor) else moments
    return mu, logvar


def by_kind(prior: Moments | Density | None) -> tuple[Moments | None, Density | None]:
    """(the Gaussian or None for N(0, 1), the density if it is neither)"""
    if prior is None or isinstance(prior, tuple):
        return prior, None
    if not hasattr(prior, "log_prob"):
        raise TypeError(
            "expected the prior to return None, a tuple (mu_p, logvar_p) or an object with log_prob and sample, "
            f"but got {type(prior).__name__}"
        )
    return None, prior


def draw(prior: Moments | Density | None, noise: Tensor, generator: torch.Generator | None) -> Tensor:
    """z ~ p(z) from standard normal noise (n, ...)."""
    pair, density = by_kind(prior)
    if density is not None:
        return density.sample(noise, generator)
    if pair is None:
        return noise
    mu, logvar = (t.to(noise.dtype) for t in pair)
    return torch.addcmul(mu, (logvar / 2).exp(), noise)


def standard_log_prob(z: Tensor, dims: int) -> Tensor:
    """log N(z; 0, 1), summed over the last `dims` dims."""
    (wide,) = upcast(z)
    flat = wide.flatten(z.ndim - dims) if dims else wide.unsqueeze(-1)
    return -0.5 * (flat.square() + math.log(2 * math.pi)).sum(-1)
