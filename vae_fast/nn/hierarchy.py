"""A VAE with two levels of latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.reference.rng import state_of_draws, state_of_level
from ..checks import check_clamp, check_num_samples, check_rng_state, fresh_rng_state
from ..functional import reparameterize
from ..likelihoods.numerics import arithmetic_dtype
from ..ops.noise import noise
from .checks import check_batch
from .inputs import on_device
from .likelihoods.base import Library, Params
from .objectives import Objective, make_objective
from .posterior import Posterior
from .priors import Moments, make_prior
from .schedules import Schedule
from .vae import VAE

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(VAE):
    """Two levels, inferred from the top down: z2 of the encoder `top`, then z1 of the VAE `bottom` with condition z2:

        loss = mean of  -log p(x | z1, z2) + beta (KL(q(z1 | x, z2) || p(z1 | z2)) + KL(q(z2 | x) || p(z2)))

    Args:
        top: encoder of q(z2 | x), as VAE's.
        bottom: a `VAE` of which encoder, decoder and prior, or some of them, take z2 (batch, L2) as their condition:
            `MLPEncoder(..., conditions=L2)`, `MLPDecoder(..., conditions=L2)`, `ConditionalPrior(network)`. Its own
            objective and num_samples are not used.
        prior: of z2, as VAE's.
        objective, beta, clamp, num_samples: as VAE's. An objective has the KLs of both levels as one: "elbo", "iwae"
            with the total gradient, `Capacity`, or `FreeBits` per sample.

    z in outputs and for `decode` is [z2 | z1], (batch, L2 + L1); `encode` gives mu and logvar of z2. With several draws
    the bottom encoder runs for each of them.

    Source: Sonderby et al., "Ladder variational autoencoders", 2016, and Kingma et al., "Improving variational
    inference with inverse autoregressive flow", 2016, for inference from the top down.
    """

    def __init__(
        self,
        top: nn.Module,
        bottom: VAE,
        *,
        prior: nn.Module | tuple[Tensor, Tensor] | None = None,
        objective: str | Objective = "elbo",
        beta: float | Tensor | Schedule = 1.0,
        clamp: tuple[float, float] | None = None,
        num_samples: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if not isinstance(bottom, VAE):
            raise TypeError(f"expected bottom to be a vae_fast.nn.VAE, but got {type(bottom).__name__}")
        if not bottom.takes_condition:
            raise ValueError(
                "expected bottom to have an encoder, a decoder or a prior that takes z2 as its condition "
                "(conditions=, ConditionalPrior), but none of them does"
            )
        self.encoder, self.bottom = top, bottom
        self.prior = make_prior(prior)
        self.objective = make_objective(objective, beta)
        self.clamp = check_clamp(clamp)
        self.num_samples = None if num_samples is None else check_num_samples(num_samples)
        self._once = bottom._once  # one set: either looks at the first batch
        sizes = [
            math.prod(s) for s in (getattr(top, "latent_shape", None), bottom.latent_shape) if s is not None
        ]
        self.latent_shape = (sum(sizes),) if len(sizes) == 2 else None

    def arguments(self) -> dict[str, Any]:
        names = ("bottom", "prior", "objective", "clamp", "num_samples")
        return {"top": self.encoder, **{name: getattr(self, name) for name in names}}

    @property
    def decoder(self) -> Any:  # type: ignore[override]
        return self.bottom.decoder

    @property
    def likelihood(self) -> Any:  # type: ignore[override]
        return self.bottom.likelihood

    @property
    def data_shape(self) -> Any:  # type: ignore[override]
        return self.bottom.data_shape

    @property
    def _outputs(self) -> int:  # type: ignore[override]
        return self.bottom._outputs

    @property
    def _classes(self) -> int | None:  # type: ignore[override]
        return self.bottom._classes

    @property
    def validate(self) -> bool:
        """That of `bottom`."""
        return self.bottom.validate

    @validate.setter
    def validate(self, validate: bool) -> None:
        self.bottom.validate = validate

    def decode(
        self,
        z: Tensor,
        *,
        condition: Tensor | int | None = None,
        library: Library = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of p(x | z) at z = [z2 | z1], or with `sample` a draw of it; as `VAE.decode`."""
        check_batch("z", z, self.latent_shape)
        self._checked(condition, "z", z)
        first = math.prod(self._top_shape())
        z1 = z[:, first:].unflatten(1, self.bottom.latent_shape or (-1,))
        return self.bottom.decode(
            z1, condition=z[:, :first], library=library, sample=sample, generator=generator
        )

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        sample_z: bool = False,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of p(x | z) where z2 and then z1 are the means of their posteriors; with `sample_z` draws of these,
        with `sample` a draw of p(x | z)."""
        z2, logvar = self.encode(x, condition=condition)
        if sample_z:
            z2 = reparameterize(z2, logvar, generator=on_device(generator, z2.device))
        return self.bottom.reconstruct(
            x, condition=z2.flatten(1), sample_z=sample_z, sample=sample, generator=generator
        )

    def _checked(self, condition: Tensor | int | None, like: str, sample: Tensor) -> None:
        if condition is not None:
            raise ValueError("expected no condition, because that of the bottom VAE is z2")

    def _top_shape(self) -> Sequence[int]:
        shape: Sequence[int] | None = getattr(self.encoder, "latent_shape", None)
        if shape is None:
            raise ValueError("expected the top encoder to have an attribute latent_shape")
        return shape

    def _sample_prior(
        self,
        n: int,
        shape: Sequence[int],
        condition: Tensor | int | None,
        generator: torch.Generator | None,
        temperature: float,
    ) -> Tensor:
        """[z2 | z1]"""
        bottom = self.bottom
        z2 = super()._sample_prior(n, self._top_shape(), condition, generator, temperature).flatten(1)
        z1 = bottom._sample_prior(n, bottom.latent_shape or (), z2, generator, temperature)
        return torch.cat((z2, z1.flatten(1)), 1)

    def _infer(
        self,
        x: Tensor,
        condition: Tensor | None,
        draws: int | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
    ) -> Posterior:
        if rng_state is None:
            rng_state = fresh_rng_state("x", x, draws, generator)
        return TwoPosteriors(self, x, draws, check_rng_state(rng_state, x.shape[0], draws))


class TwoPosteriors(Posterior):
    """That of z2, which asks for the bottom's once z2 is drawn."""

    model: HierarchicalVAE

    def __init__(self, model: HierarchicalVAE, x: Tensor, num_samples: int | None, rng_state: Tensor) -> None:
        super().__init__(model, x, None, num_samples, None, rng_state)
        self._rng_state = rng_state

    @property
    def gaussian_prior(self) -> Moments | None:
        """There is none of both levels."""
        raise self._of_whole_kl()

    def _of_whole_kl(self) -> ValueError:
        name = type(self.model.objective).__name__
        return ValueError(f"expected an objective of the whole KL for a hierarchy, but got {name}")

    def sample(self, reduction: str = "sample") -> tuple[Tensor, Tensor]:
        if reduction != "sample":
            raise self._of_whole_kl()
        z2, kl2 = super().sample()
        draws = self.num_samples
        z1, kl1 = self._bottom(z2, draws, 0).sample()
        if draws is None:
            return torch.cat((z2.flatten(1), z1.flatten(1)), 1), kl2 + kl1
        z1 = z1[0].unflatten(0, (draws, -1))
        return torch.cat((z2.flatten(2), z1.flatten(2)), 2), kl2 + kl1.unflatten(0, (draws, -1)).mean(0)

    def log_weights(
        self, num_samples: int, *, path_derivative: bool = False, first_draw: int = 0
    ) -> tuple[Tensor, Tensor]:
        if path_derivative:  # the moments of q(z1 | x, z2) depend on z2: they are no parameters alone
            raise ValueError('expected gradient="total" for a hierarchy')
        z2, top = super().log_weights(num_samples, first_draw=first_draw)
        z1, below = self._bottom(z2, num_samples, first_draw).log_weights(1)
        z1, below = (t[0].unflatten(0, (num_samples, -1)) for t in (z1, below))
        return torch.cat((z2.flatten(2), z1.flatten(2)), 2), top + below

    def nll(self, z: Tensor) -> Tensor:
        draws = z.shape[0] if z.ndim > 2 else None
        z2, z1 = self._levels(z)
        return self.model.bottom._nll(z1, self.x, z2 if draws is None else z2.flatten(0, 1), draws)

    def params(self, z: Tensor) -> Params:
        z2, z1 = (level.flatten(0, 1) for level in self._levels(z))
        return self.model.bottom._params_of_rows(z1, self.x, z2, z.shape[0])

    def _levels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, shape = math.prod(self.mu.shape[1:]), self.model.bottom.latent_shape
        z2, z1 = z[..., :first], z[..., first:]
        return z2, z1 if shape is None else z1.unflatten(-1, shape)

    def kl_per_element(self) -> None:
        return None

    def _bottom(self, z2: Tensor, draws: int | None, first_draw: int) -> Posterior:
        """The bottom's posterior. With draws it is that of a row for each, whose noise is that of one batch's draws."""
        bottom, state = self.model.bottom, state_of_level(self._rng_state)
        if draws is None:
            return Posterior(bottom, self.x, z2.flatten(1), None, None, state)
        rows = self.x.repeat(draws, *[1] * (self.x.ndim - 1))
        below = Posterior(bottom, rows, z2.flatten(0, 1).flatten(1), 1, None)
        shape = (self.x.shape[0], *below.mu.shape[1:])
        skipped = first_draw if state.ndim == 2 else 0  # with a state per sample a draw's number is its row
        if state.ndim == 1 and first_draw:
            state = state_of_draws(state, first_draw, shape[0])
        eps = noise(shape, state, skipped + draws, arithmetic_dtype(below.mu))[skipped:]
        below._noise = {"noise": eps.flatten(0, 1).unsqueeze(0)}
        return below
