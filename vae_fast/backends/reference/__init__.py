"""Every op as a few lines of plain, differentiable PyTorch: the definition of truth (`vae_fast.reference`)."""

from ... import likelihoods
from ...likelihoods import *  # noqa: F403
from . import kernels
from .importance import log_weights
from .kernels import *  # noqa: F403
from .latent import kl_divergence, reparameterize, reparameterize_kl, reparameterize_kl_packed
from .likelihood import bernoulli_nll as bernoulli_nll  # which binarizes, too
from .pairwise import (
    aggregate_posterior,
    mixture_kl,
    mixture_log_prob,
    pairwise_backward,
    pairwise_forward,
)
from .rng import binarize, draw_rng_state, noise, philox

__all__ = [
    "aggregate_posterior",
    "binarize",
    "draw_rng_state",
    "kl_divergence",
    "log_weights",
    "mixture_kl",
    "mixture_log_prob",
    "noise",
    "pairwise_backward",
    "pairwise_forward",
    "philox",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
]
__all__ += likelihoods.__all__
__all__ += kernels.__all__
