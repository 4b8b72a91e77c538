"""Every op as a few lines of plain, differentiable PyTorch: the definition of truth (`vae_fast.reference`)."""

from .categorical import categorical_nll, multinomial_nll
from .counts import negative_binomial_nll, poisson_nll, zero_inflated_negative_binomial_nll
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
from .likelihood import (
    bernoulli_nll,
    bernoulli_nll_from_probs,
    bernoulli_probs_nll,
    continuous_bernoulli_nll,
    discretized_logistic_nll,
    gaussian_nll,
    laplace_nll,
)
from .linear_likelihood import (
    linear_bernoulli_nll,
    linear_categorical_nll,
    linear_continuous_bernoulli_nll,
    linear_discretized_logistic_nll,
    linear_gaussian_nll,
    linear_laplace_nll,
    linear_multinomial_nll,
    linear_negative_binomial_nll,
    linear_poisson_nll,
    linear_zero_inflated_negative_binomial_nll,
)
from .mixture import discretized_logistic_mixture_nll
from .rng import binarize, draw_rng_state, noise, philox

__all__ = [
    "bernoulli_nll",
    "bernoulli_nll_from_probs",
    "bernoulli_probs_nll",
    "binarize",
    "categorical_backward",
    "categorical_forward",
    "categorical_nll",
    "continuous_bernoulli_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "draw_rng_state",
    "gaussian_nll",
    "kl_divergence",
    "laplace_nll",
    "latent_backward",
    "latent_forward",
    "likelihood_backward",
    "likelihood_forward",
    "linear_bernoulli_nll",
    "linear_categorical_nll",
    "linear_continuous_bernoulli_nll",
    "linear_discretized_logistic_nll",
    "linear_gaussian_nll",
    "linear_laplace_nll",
    "linear_multinomial_nll",
    "linear_negative_binomial_nll",
    "linear_poisson_nll",
    "linear_zero_inflated_negative_binomial_nll",
    "mixture_backward",
    "mixture_forward",
    "multinomial_nll",
    "negative_binomial_nll",
    "noise",
    "noise_fill",
    "philox",
    "poisson_nll",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
    "zero_inflated_negative_binomial_nll",
]
