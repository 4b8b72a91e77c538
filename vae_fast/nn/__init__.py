"""Modules: a thin VAE, the likelihoods it knows by name, encoders and decoders for common use."""

from ..output import VAEOutput
from . import latent_space, likelihoods
from .latent_space import *  # noqa: F403
from .likelihoods import *  # noqa: F403
from .networks import ConvDecoder, ConvEncoder, Log1p, MLPDecoder, MLPEncoder
from .vae import VAE

__all__ = ["VAE", "ConvDecoder", "ConvEncoder", "Log1p", "MLPDecoder", "MLPEncoder", "VAEOutput"]
__all__ += latent_space.__all__ + likelihoods.__all__
