"""Fused operations for training variational autoencoders fast."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from .backends import backend, info, reference
from .functional import (
    bernoulli_nll,
    bernoulli_nll_from_probs,
    categorical_nll,
    continuous_bernoulli_nll,
    discretized_logistic_mixture_nll,
    discretized_logistic_nll,
    gaussian_nll,
    kl_divergence,
    laplace_nll,
    linear_bernoulli_nll,
    linear_categorical_nll,
    linear_continuous_bernoulli_nll,
    linear_discretized_logistic_nll,
    linear_gaussian_nll,
    linear_laplace_nll,
    linear_multinomial_nll,
    linear_negative_binomial_mixture_nll,
    linear_negative_binomial_nll,
    linear_poisson_nll,
    linear_zero_inflated_negative_binomial_nll,
    multinomial_nll,
    negative_binomial_mixture_nll,
    negative_binomial_nll,
    poisson_nll,
    reparameterize,
    reparameterize_kl,
    reparameterize_kl_packed,
    zero_inflated_negative_binomial_nll,
)
from .output import VAEOutput as _VAEOutput  # noqa: F401  (torch.export.load asks for it)
from .rng import binarize, noise

if TYPE_CHECKING:
    from . import nn as nn
    from . import training as training
else:  # hidden from type checkers: with it, they would take any name

    def __getattr__(name: str) -> Any:
        """`vae_fast.nn` and `vae_fast.training` are imported when they are asked for."""
        if name not in ("nn", "training"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            return import_module(f".{name}", __name__)
        except ImportError as error:  # an extra is not installed; hasattr() and help() go on
            raise AttributeError(f"vae_fast.{name} cannot be imported: {error}") from error


__all__ = [
    "__version__",
    "backend",
    "bernoulli_nll",
    "bernoulli_nll_from_probs",
    "binarize",
    "categorical_nll",
    "continuous_bernoulli_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "gaussian_nll",
    "info",
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
    "multinomial_nll",
    "negative_binomial_mixture_nll",
    "negative_binomial_nll",
    "nn",
    "noise",
    "poisson_nll",
    "reference",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
    "zero_inflated_negative_binomial_nll",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
