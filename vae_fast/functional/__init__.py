"""What users call: argument checks, then the op. Wrong input raises before any kernel runs."""

from .aggregate_posterior import aggregate_posterior
from .bernoulli import bernoulli_nll, bernoulli_nll_from_probs, linear_bernoulli_nll
from .categorical import categorical_nll, linear_categorical_nll
from .continuous_bernoulli import continuous_bernoulli_nll, linear_continuous_bernoulli_nll
from .discretized_logistic import discretized_logistic_nll, linear_discretized_logistic_nll
from .discretized_logistic_mixture import discretized_logistic_mixture_nll
from .gaussian import gaussian_nll, linear_gaussian_nll
from .importance import log_weights
from .laplace import laplace_nll, linear_laplace_nll
from .latent import kl_divergence, reparameterize, reparameterize_kl, reparameterize_kl_packed
from .mixture_prior import mixture_kl, mixture_log_prob
from .multinomial import linear_multinomial_nll, multinomial_nll
from .negative_binomial import linear_negative_binomial_nll, negative_binomial_nll
from .negative_binomial_mixture import linear_negative_binomial_mixture_nll, negative_binomial_mixture_nll
from .poisson import linear_poisson_nll, poisson_nll
from .zero_inflated_negative_binomial import (
    linear_zero_inflated_negative_binomial_nll,
    zero_inflated_negative_binomial_nll,
)

__all__ = [
    "aggregate_posterior",
    "bernoulli_nll",
    "bernoulli_nll_from_probs",
    "categorical_nll",
    "continuous_bernoulli_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "gaussian_nll",
    "kl_divergence",
    "laplace_nll",
    "linear_bernoulli_nll",
    "linear_categorical_nll",
    "linear_continuous_bernoulli_nll",
    "linear_discretized_logistic_nll",
    "linear_gaussian_nll",
    "linear_laplace_nll",
    "linear_multinomial_nll",
    "linear_negative_binomial_mixture_nll",
    "linear_negative_binomial_nll",
    "linear_poisson_nll",
    "linear_zero_inflated_negative_binomial_nll",
    "log_weights",
    "mixture_kl",
    "mixture_log_prob",
    "multinomial_nll",
    "negative_binomial_mixture_nll",
    "negative_binomial_nll",
    "poisson_nll",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
    "zero_inflated_negative_binomial_nll",
]
