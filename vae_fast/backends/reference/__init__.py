"""Every op as a few lines of plain, differentiable PyTorch: the definition of truth (`vae_fast.reference`)."""

from .kernels import latent_backward, latent_forward, likelihood_backward, likelihood_forward, noise_fill
from .latent import kl_divergence, reparameterize, reparameterize_kl, reparameterize_kl_packed
from .likelihood import bernoulli_nll, gaussian_nll
from .noise import draw_rng_state, noise, philox

__all__ = [
    "bernoulli_nll",
    "draw_rng_state",
    "gaussian_nll",
    "kl_divergence",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "noise",
    "noise_fill",
    "philox",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
]
