"""Fused operations for training variational autoencoders fast."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from . import functional
from .backends import backend, info, reference
from .functional import *  # noqa: F403
from .likelihoods.csr import Csr
from .output import VAEOutput as _VAEOutput  # noqa: F401  (torch.export.load asks for it)
from .rng import binarize, draw_rng_state, noise, set_noise_group

if TYPE_CHECKING:
    from . import distributions as distributions
    from . import integrations as integrations
    from . import nn as nn
    from . import training as training
else:  # hidden from type checkers: with it, they would take any name

    def __getattr__(name: str) -> Any:
        """These modules are imported when they are asked for."""
        if name not in ("distributions", "integrations", "nn", "training"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            return import_module(f".{name}", __name__)
        except ImportError as error:  # an extra is not installed; hasattr() and help() go on
            raise AttributeError(f"vae_fast.{name} cannot be imported: {error}") from error


__all__ = [
    "Csr",
    "__version__",
    "backend",
    "binarize",
    "distributions",
    "draw_rng_state",
    "info",
    "integrations",
    "nn",
    "noise",
    "reference",
    "set_noise_group",
]
__all__ += functional.__all__


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
