"""Every op as a few lines of plain, differentiable PyTorch: the definition of truth (`vae_fast.reference`)."""

from ...likelihoods.bernoulli import bernoulli_nll_from_probs
from ...likelihoods.categorical import categorical_nll
from ...likelihoods.continuous_bernoulli import continuous_bernoulli_nll
from ...likelihoods.discretized_logistic import discretized_logistic_nll
from ...likelihoods.discretized_logistic_mixture import discretized_logistic_mixture_nll
from ...likelihoods.gaussian import gaussian_nll
from ...likelihoods.laplace import laplace_nll
from ...likelihoods.multinomial import multinomial_nll
from ...likelihoods.negative_binomial import negative_binomial_nll
from ...likelihoods.negative_binomial_mixture import negative_binomial_mixture_nll
from ...likelihoods.poisson import poisson_nll
from ...likelihoods.zero_inflated_negative_binomial import zero_inflated_negative_binomial_nll
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
from .likelihood import bernoulli_nll
from .linear_likelihood import (
    linear_bernoulli_nll,
    linear_categorical_nll,
    linear_continuous_bernoulli_nll,
    linear_discretized_logistic_nll,
    linear_gaussian_nll,
    linear_laplace_nll,
    linear_multinomial_nll,
    linear_negative_binomial_mixture_nll,
    linear_negative_binomial_nll,
    linear_nll,
    linear_poisson_nll,
    linear_zero_inflated_negative_binomial_nll,
)
from .rng import binarize, draw_rng_state, noise, philox

__all__ = [
    "bernoulli_nll",
    "bernoulli_nll_from_probs",
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
    "linear_negative_binomial_mixture_nll",
    "linear_negative_binomial_nll",
    "linear_nll",
    "linear_poisson_nll",
    "linear_zero_inflated_negative_binomial_nll",
    "mixture_backward",
    "mixture_forward",
    "multinomial_nll",
    "negative_binomial_mixture_nll",
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
