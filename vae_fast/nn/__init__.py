"""Modules: a thin VAE, the likelihoods, priors and objectives it knows, encoders and decoders, the latent space,
evaluation."""

from ..output import VAEOutput
from . import evaluation, latent_space, likelihoods, objectives, posterior, priors, schedules
from .condition import AddCondition, ConditionalSequential
from .evaluation import *  # noqa: F403
from .latent_space import *  # noqa: F403
from .likelihoods import *  # noqa: F403
from .networks import ConvDecoder, ConvEncoder, Log1p, MLPDecoder, MLPEncoder
from .objectives import *  # noqa: F403
from .posterior import *  # noqa: F403
from .priors import *  # noqa: F403
from .schedules import *  # noqa: F403
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
for _module in (evaluation, latent_space, likelihoods, objectives, posterior, priors, schedules):
    __all__ += _module.__all__
