"""Schema, fake kernel and autograd of each op; the numbers come from a backend."""

from .latent import latent, latent_packed
from .likelihood import likelihood
from .noise import noise

__all__ = ["latent", "latent_packed", "likelihood", "noise"]
