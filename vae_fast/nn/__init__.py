"""Modules: a thin VAE, the likelihoods, priors and objectives it knows, encoders and decoders, the latent space,
evaluation."""

from ..output import VAEOutput
from . import evaluation, latent_space, likelihoods, networks, objectives, posterior, priors, schedules
from .anomaly import anomaly_score, feature_nll
from .condition import AddCondition, ConditionalSequential
from .evaluation import *  # noqa: F403
from .export import export_model
from .hierarchy import HierarchicalVAE
from .imputation import impute
from .latent_space import *  # noqa: F403
from .likelihoods import *  # noqa: F403
from .networks import *  # noqa: F403
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
    "HierarchicalVAE",
    "SparseLinear",
    "VAEOutput",
    "anomaly_score",
    "export_model",
    "feature_nll",
    "impute",
]
# Not in a loop, which type checkers do not follow.
__all__ += evaluation.__all__ + latent_space.__all__ + likelihoods.__all__ + networks.__all__
__all__ += objectives.__all__ + posterior.__all__ + priors.__all__ + schedules.__all__
