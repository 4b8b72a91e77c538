"""Modules: a thin VAE, the likelihoods it knows by name, encoders and decoders, the latent space, evaluation."""

from ..output import VAEOutput
from . import evaluation, latent_space, likelihoods, networks
from .condition import AddCondition, ConditionalSequential
from .evaluation import *  # noqa: F403
from .latent_space import *  # noqa: F403
from .likelihoods import *  # noqa: F403
from .networks import *  # noqa: F403
from .sparse import SparseLinear
from .vae import VAE

__all__ = [
    "VAE",
    "AddCondition",
    "ConditionalSequential",
    "SparseLinear",
    "VAEOutput",
]
__all__ += evaluation.__all__ + latent_space.__all__ + likelihoods.__all__ + networks.__all__
