"""Fused operations for training variational autoencoders fast."""

__version__ = "0.1.0"

from .backends import backend, info, reference
from .functional import (
    bernoulli_nll,
    gaussian_nll,
    kl_divergence,
    reparameterize,
    reparameterize_kl,
    reparameterize_kl_packed,
)
from .noise import noise

__all__ = [
    "__version__",
    "backend",
    "bernoulli_nll",
    "gaussian_nll",
    "info",
    "kl_divergence",
    "noise",
    "reference",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_packed",
]
