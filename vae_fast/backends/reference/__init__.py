"""Every op as a few lines of plain, differentiable PyTorch: the definition of truth (`vae_fast.reference`)."""

from ... import likelihoods
from ...likelihoods import *  # noqa: F403
from .kernels import (
    categorical_backward,
    categorical_forward,
    latent_backward,
    latent_forward,
    likelihood_backward,
    likelihood_forward,
    mixture_backward,
    mixture_forward,
    noise_fill,
)
from .latent import kl_divergence, reparameterize, reparameterize_kl, reparameterize_kl_packed
from .likelihood import bernoulli_nll as bernoulli_nll  # which binarizes, too
from .rng import binarize, draw_rng_state, noise, philox

__all__ = [
    "binarize",
    "categorical_backward",
    "categorical_forward",
    "draw_rng_state",
    "kl_divergence",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "mixture_backward",
    "mixture_forward",
    "noise",
    "noise_fill",
    "philox",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
]
__all__ += likelihoods.__all__
