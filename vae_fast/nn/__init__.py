"""Modules: a thin VAE, the likelihoods it knows by name, encoders and decoders for common use."""

from ..output import VAEOutput
from .likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
    Likelihood,
    Multinomial,
    NegativeBinomial,
    NegativeBinomialMixture,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from .networks import ConvDecoder, ConvEncoder, Log1p, MLPDecoder, MLPEncoder
from .vae import VAE

__all__ = [
    "LIKELIHOODS",
    "VAE",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "Log1p",
    "MLPDecoder",
    "MLPEncoder",
    "Multinomial",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Poisson",
    "VAEOutput",
    "ZeroInflatedNegativeBinomial",
]
