"""Modules: a thin VAE, the likelihoods it knows by name, encoders and decoders for common use."""

from .likelihoods import LIKELIHOODS, Bernoulli, Gaussian, Likelihood
from .networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from .vae import VAE, VAEOutput

__all__ = [
    "LIKELIHOODS",
    "VAE",
    "Bernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "Gaussian",
    "Likelihood",
    "MLPDecoder",
    "MLPEncoder",
    "VAEOutput",
]
