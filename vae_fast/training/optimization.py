"""What moves the weights: the optimizer by its name, the learning rate of each step, the KL's warm-up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import nn
from ..checks import number_of
from .config import OPTIMIZERS, Recipe
from .errors import TrainingError

_LEAST_STEP = 1e-8  # of a learning rate that falls, as ReduceLROnPlateau has it
_FUSED = ("adam", "adamw", "sgd")  # those of which torch has one kernel for a whole step


def make_optimizer(
    recipe: Recipe, parameters: Iterable[Tensor], device: torch.device, is_sharded: bool = False
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr}
    if recipe.weight_decay is not None:
        options["weight_decay"] = recipe.weight_decay
    has_kernel = recipe.optimizer in _FUSED
    if has_kernel and not (is_sharded and recipe.optimizer == "sgd"):  # whose kernel takes no DTensors
        options["fused"] = device.type in ("cpu", "cuda")
    if recipe.cuda_graph and device.type == "cuda":
        if recipe.optimizer != "sgd":  # which has no state that steps on the host
            options["capturable"] = True
        if (
            recipe.lr_schedule != "constant" or recipe.lr_warmup
        ):  # a number would be that of the recorded step
            options["lr"] = torch.tensor(recipe.lr, device=device)
    optimizer: torch.optim.Optimizer = getattr(torch.optim, OPTIMIZERS[recipe.optimizer])(
        parameters, **options
    )
    return optimizer


def lr_of(recipe: Recipe, step: int, steps_per_epoch: int, top: float) -> float:
    """The learning rate of a step, from the step's number alone: there is nothing of it to save. `top`: `top_lr`'s."""
    warmup, last = recipe.lr_warmup * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return top * min(1.0, (step + 1) / warmup)
    way = (step - warmup) / max(1, last - warmup)
    factor = {"cosine": (1 + math.cos(math.pi * way)) / 2, "linear": 1 - way}.get(recipe.lr_schedule, 1.0)
    return top * max(0.0, factor)


def top_lr(recipe: Recipe, elbos: Sequence[float]) -> float:
    """The recipe's learning rate, after evaluations with these ELBOs. It changes with the schedule plateau: to what
    `torch.optim.lr_scheduler.ReduceLROnPlateau` makes of it where every higher ELBO is better, mode="max", threshold=0.
    (Its own threshold, 1e-4 of the best one, takes lower ELBOs for better where they are negative.)"""
    if recipe.lr_schedule != "plateau":
        return recipe.lr
    (factor, patience), lr, best, bad = recipe.plateau, recipe.lr, -math.inf, 0
    for elbo in elbos:
        bad = 0 if elbo > best else bad + 1
        best = max(best, elbo)
        if bad > patience:
            lr, bad = (lr * factor if lr - lr * factor > _LEAST_STEP else lr), 0
    return lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # of a recorded step
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def warm_up_kl(model: nn.VAE, epochs: float, steps_per_epoch: int) -> None:
    """Has the KL's weight grow from 0 to what it is, over as many epochs. Raises TrainingError."""
    name = type(model.objective).__name__
    if not hasattr(model.objective, "beta"):
        raise TrainingError(
            f"expected kl_warmup to be 0 for the objective {name}, which has no weight of the KL"
        )
    end = None if isinstance(model.beta, nn.Schedule) else number_of(model.beta)
    if end is None:
        raise TrainingError("expected kl_warmup to be 0 for a model whose beta is a schedule already")
    model.beta = nn.LinearSchedule(max(1, round(epochs * steps_per_epoch)), 0.0, float(end))
