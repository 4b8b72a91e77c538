"""What a Trainer does before the first step: makes the model, and refuses what could not be trained."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator

from .. import nn
from .config import Recipe
from .data import Dataset
from .errors import TrainingError, is_out_of_memory
from .model import HubVAE


def make_model(recipe: Recipe, dataset: Dataset, device: torch.device) -> HubVAE:
    """The recipe's model for the data, on the device. Raises TrainingError."""
    config = recipe.model_config(dataset.shape)
    try:
        if dataset.columns:
            config["columns"] = [column.to_dict() for column in dataset.columns]
            config["encoder_mask"] = any(bool(part.isnan().any()) for part in dataset.dense_parts)
        if dataset.vocabulary:
            config["vocabulary"] = dataset.vocabulary.to_dict()
        if dataset.sound:  # the bands of a spectrogram are the channels of a signal
            config["sound"] = dataset.sound.to_dict()
            config["dims"] = 1 if recipe.architecture in ("conv", "resnet") else None
        model: HubVAE = HubVAE(**config, conditions=dataset.conditions, sparse=dataset.is_sparse).to(device)
        return model
    except (ValueError, TypeError) as error:
        raise TrainingError(str(error)) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "the networks do not fit in memory: a smaller --hidden or --latent may help"
        ) from None


def try_batch(recipe: Recipe, dataset: Dataset, accelerator: Accelerator) -> None:
    """A batch that cannot be had at all is found now, and not after its shuffles were made. Raises TrainingError."""
    if dataset.is_sparse:
        return
    parts = accelerator.num_processes * recipe.accumulate
    try:
        torch.empty((math.ceil(recipe.batch_size / parts), *dataset.shape), device=accelerator.device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{recipe.batch_size:,} samples do not fit in memory: a smaller --batch-size may help"
        ) from None


def start(model: nn.VAE, dataset: Dataset) -> None:
    """Starts the model from the training samples. Raises TrainingError."""
    try:
        for part in dataset.dense_parts[:1]:
            model.start(part)
    except ValueError as error:
        raise TrainingError(f"{dataset.name}: {error}") from None


def check_objective(recipe: Recipe, model: nn.VAE, processes: int) -> None:
    """TrainingError where parts of a batch would not add up to its loss."""
    if processes * recipe.accumulate > 1 and not getattr(model.objective, "is_mean_of_samples", False):
        what = f"{processes} processes" if processes > 1 else f"accumulate={recipe.accumulate}"
        raise TrainingError(
            f"expected an objective whose loss is the mean of a term of each sample (is_mean_of_samples = True) "
            f"with {what}, but got {type(model.objective).__name__}: it takes the whole batch at once"
        )
