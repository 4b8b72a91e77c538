"""Training from data to checkpoint. Takes the extra `train`: pip install 'vae_fast[train]'."""

from . import callbacks
from .checkpoint import load_model, save_model
from .config import Recipe
from .data import Dataset, load
from .errors import CheckpointError, DataError, TrainingError
from .loop import Trainer
from .model import HubVAE

__all__ = [
    "CheckpointError",
    "DataError",
    "Dataset",
    "HubVAE",
    "Recipe",
    "Trainer",
    "TrainingError",
    "callbacks",
    "load",
    "load_model",
    "save_model",
]
