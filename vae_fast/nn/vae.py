"""The variational autoencoder: any encoder, any decoder, a likelihood by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from .likelihoods import Likelihood, make_likelihood


class VAEOutput(NamedTuple):
    loss: Tensor  # scalar: the batch mean of nll + beta kl
    nll: Tensor  # (batch,) -log p(x | z) in nats, the mean over draws
    kl: Tensor  # (batch,) KL(q(z | x) || N(0, 1)) in nats
    z: Tensor  # (batch, ...), or (num_samples, batch, ...)


class VAE(nn.Module):
    """loss = mean over the batch of  -log p(x | z) + beta KL(q(z | x) || N(0, 1)),  z ~ q(z | x).

    Args:
        encoder: encoder(x) gives (mu, logvar), or one tensor with both side by side along dim 1.
        decoder: decoder(z) gives the likelihood's parameters in x's shape: one tensor, a tuple of them,
            or one tensor with them side by side along dim 1.
        likelihood: "bernoulli" (logits), "gaussian" (mean), or a `vae_fast.nn.Likelihood`.
        beta: weight of the KL (Higgins et al., "beta-VAE", 2017). 1 gives the evidence lower bound.
        clamp: (lo, hi), bounds of the encoder's log-variance, as torch.clamp.
        num_samples: draws of z for each x; nll is their mean. None: one.
        latent_shape: z's shape without the batch, for `generate`. By default the encoder's `latent_shape`.
        likelihood_options: the likelihood's own, for "gaussian" variance=1.0, "learned" or "decoder".

    x has a floating dtype, uint8 (255ths: converted for the encoder, read as it is by the likelihood) or bool.
    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: str | Likelihood = "bernoulli",
        *,
        beta: float = 1.0,
        clamp: tuple[float, float] | None = None,
        num_samples: int | None = None,
        latent_shape: Sequence[int] | None = None,
        **likelihood_options: Any,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = make_likelihood(likelihood, **likelihood_options)
        self.beta, self.clamp, self.num_samples = beta, clamp, num_samples
        if latent_shape is None:
            latent_shape = getattr(encoder, "latent_shape", None)
        self.latent_shape = None if latent_shape is None else tuple(latent_shape)

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None, rng_state: Tensor | None = None
    ) -> VAEOutput:
        """One pass. The noise comes from torch's generator of the device, `generator` or `rng_state`."""
        z, kl = self._draw(x, self.num_samples, generator, rng_state)
        nll = self._nll(z, x, self.num_samples)
        return VAEOutput((nll + self.beta * kl).mean(), nll, kl, z)

    def elbo(
        self,
        x: Tensor,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        rng_state: Tensor | None = None,
    ) -> Tensor:
        """E_q[log p(x | z)] - KL in nats, shape (batch,): the mean over `num_samples` draws, without beta."""
        num_samples = num_samples or self.num_samples
        z, kl = self._draw(x, num_samples, generator, rng_state)
        return -(self._nll(z, x, num_samples) + kl)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and (clamped) log-variance of q(z | x)."""
        moments = self._moments(x)
        mu, logvar = moments.chunk(2, dim=1) if isinstance(moments, Tensor) else moments
        return mu, logvar if self.clamp is None else logvar.clamp(*self.clamp)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z)."""
        return self.likelihood.mean(self.likelihood.split(self.decoder(z)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at z = mu."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def generate(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The means of p(x | z) at `n` draws z ~ N(0, 1), which are made on the generator's device."""
        if self.latent_shape is None:
            raise ValueError("latent_shape is not known: give it to VAE, or to the encoder as an attribute")
        parameter = next(self.parameters())
        device = parameter.device if generator is None else generator.device
        z = torch.randn((n, *self.latent_shape), generator=generator, dtype=parameter.dtype, device=device)
        return self.decode(z.to(parameter.device))

    def _moments(self, x: Tensor) -> Any:
        if x.dtype == torch.uint8:
            x = x / 255  # float32, one pass
        elif x.dtype == torch.bool:
            x = x.to(torch.get_default_dtype())
        return self.encoder(x)

    def _draw(
        self, x: Tensor, num_samples: int | None, generator: torch.Generator | None, rng_state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        moments = self._moments(x)
        options: dict[str, Any] = {
            "num_samples": num_samples,
            "clamp": self.clamp,
            "generator": generator,
            "rng_state": rng_state,
        }
        if isinstance(moments, Tensor):
            return functional.reparameterize_kl_packed(moments, **options)
        mu, logvar = moments
        return functional.reparameterize_kl(mu, logvar, **options)

    def _nll(self, z: Tensor, x: Tensor, draws: int | None) -> Tensor:
        if draws is None:
            return self.likelihood.nll(self.likelihood.split(self.decoder(z)), x)
        params = self.likelihood.split(self.decoder(z.flatten(0, 1)))
        by_draw = zip(*(p.reshape(draws, *x.shape).unbind(0) for p in params), strict=True)
        return torch.stack([self.likelihood.nll(p, x) for p in by_draw]).mean(0)
