"""q(z | x) of a batch: what an objective is given, and all it needs of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional
from ..likelihoods.numerics import held_between
from .condition import repeated
from .likelihoods.base import Params
from .priors import Density, Moments, by_kind, halves, standard_log_prob

if TYPE_CHECKING:
    from .vae import VAE

__all__ = ["Posterior"]


class Posterior:
    """Made by the model for each pass; encoder and prior have run, and nothing else yet.

    Attributes:
        model, x, condition: of this pass; x is binarized where the likelihood does that.
        num_samples: draws that the caller asked for, or None for one without a dim of its own.
        moments: the encoder's output, (mu, logvar) or one tensor with both along dim 1, before the model's clamp.
        prior: p(z): None for N(0, 1), (mu_p, logvar_p), or a `Density`.
    """

    def __init__(
        self,
        model: VAE,
        x: Tensor,
        condition: Tensor | None,
        num_samples: int | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None = None,
    ) -> None:
        self.model, self.x, self.condition, self.num_samples = model, x, condition, num_samples
        self.moments = model._moments(x, condition)
        self.prior = model._p_z(condition)
        self._noise: dict[str, Any] = {"generator": generator, "rng_state": rng_state}

    @property
    def gaussian_prior(self) -> Moments | None:
        """The prior, for what is defined for diagonal Gaussians alone. Raises ValueError for others."""
        pair, density = by_kind(self.prior)
        if density is not None:
            raise ValueError(
                f"expected a diagonal Gaussian prior for {type(self.model.objective).__name__}, "
                f"but got {type(self.model.prior).__name__}"
            )
        return pair

    @property
    def mu(self) -> Tensor:
        return halves(self.moments)[0]

    @property
    def logvar(self) -> Tensor:
        """With the model's clamp."""
        clamp, logvar = self.model.clamp, halves(self.moments)[1]
        return logvar if clamp is None else held_between(logvar, *clamp)

    def sample(self, reduction: str = "sample") -> tuple[Tensor, Tensor]:
        """z (batch, ...), or (num_samples, batch, ...), and its KL from the prior: (batch,), or of each element with
        reduction="none", which takes a Gaussian prior."""
        pair, density = by_kind(self.prior if reduction == "sample" else self.gaussian_prior)
        z, kl = self._draw(pair, reduction)
        if density is not None:
            excess = self._standard(z) - self._log_p(density, z)
            kl = kl + (excess if self.num_samples is None else excess.mean(0))
        return z, kl

    def log_weights(
        self, num_samples: int, *, path_derivative: bool = False, first_draw: int = 0
    ) -> tuple[Tensor, Tensor]:
        """z (num_samples, batch, ...) and log p(z) - log q(z | x) of each draw, as `vae_fast.log_weights`."""
        mu, logvar = halves(self.moments)
        pair, density = by_kind(self.prior)
        z, weights = functional.log_weights(
            mu, logvar, num_samples=num_samples, prior=pair, clamp=self.model.clamp, path_derivative=path_derivative,
            first_draw=first_draw, **self._noise,
        )  # fmt: skip
        assert z is not None
        if density is not None:
            weights = weights + (self._log_p(density, z) - self._standard(z))
        return z, weights

    def kl_per_element(self) -> Tensor | None:
        """The KL of each element of mu, in closed form; None where the prior is no diagonal Gaussian."""
        pair, density = by_kind(self.prior)
        if density is not None:
            return None
        mu, logvar = halves(self.moments)
        return functional.kl_divergence(mu, logvar, prior=pair, clamp=self.model.clamp, reduction="none")

    def nll(self, z: Tensor) -> Tensor:
        """-log p(x | z): (batch,), or (draws, batch) for z (draws, batch, ...)."""
        draws = z.shape[0] if z.ndim > self._ndim else None
        return self.model._nll(z, self.x, repeated(self.condition, draws), draws)

    def mean_nll(self, z: Tensor) -> Tensor:
        """The mean of `nll` over the draws, (batch,), of a z that `sample` gave."""
        nll = self.nll(z)
        return nll if self.num_samples is None else nll.mean(0)

    def params(self, z: Tensor) -> Params:
        """The likelihood's parameters for z (draws, batch, ...), a row for each draw of each sample."""
        draws = z.shape[0]
        return self.model._params_of_rows(z.flatten(0, 1), self.x, repeated(self.condition, draws), draws)

    @property
    def _ndim(self) -> int:
        """That of mu. Without halves of the moments, which are made only where they are needed."""
        return (self.moments if isinstance(self.moments, Tensor) else self.moments[0]).ndim

    def _draw(self, prior: Moments | None, reduction: str) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {
            "num_samples": self.num_samples, "prior": prior, "clamp": self.model.clamp, "reduction": reduction,
        }  # fmt: skip
        if isinstance(self.moments, Tensor):
            return functional.reparameterize_kl_packed(self.moments, **options, **self._noise)
        mu, logvar = self.moments
        return functional.reparameterize_kl(mu, logvar, **options, **self._noise)

    def _standard(self, z: Tensor) -> Tensor:
        return standard_log_prob(z, self._ndim - 1)

    def _log_p(self, density: Density, z: Tensor) -> Tensor:
        log_p, expected = density.log_prob(z), z.shape[: z.ndim - self._ndim + 1]
        if log_p.shape != expected:
            raise ValueError(
                f"expected the prior's log_prob to have shape {tuple(expected)} for z of shape {tuple(z.shape)}, "
                f"summed over a latent's dims, but got {tuple(log_p.shape)}"
            )
        return log_p
