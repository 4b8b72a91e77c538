"""Modules: a thin VAE, the likelihoods it knows by name, encoders and decoders for common use."""

from ..output import VAEOutput
from . import likelihoods
from .condition import AddCondition, ConditionalSequential
from .likelihoods import *  # noqa: F403
from .networks import ConvDecoder, ConvEncoder, Log1p, MLPDecoder, MLPEncoder
from .sparse import SparseLinear
from .vae import VAE

__all__ = [
    "VAE",
    "AddCondition",
    "ConditionalSequential",
    "ConvDecoder",
    "ConvEncoder",
    "Log1p",
    "MLPDecoder",
    "MLPEncoder",
    "SparseLinear",
    "VAEOutput",
]
__all__ += likelihoods.__all__
