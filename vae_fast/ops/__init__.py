"""Schema, fake kernel and autograd of each op; the numbers come from a backend."""

from .latent import latent
from .likelihood import likelihood
from .noise import noise

__all__ = ["latent", "likelihood", "noise"]
