"""Why a loss is infinite or NaN, as far as the data set and the recipe tell, and what helps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import nn
from ..nn.likelihoods.base_dispersion import LocationScale
from . import tables
from .config import Recipe
from .data import Dataset

# From these on, training was seen to fail for that reason alone.
FAR = 10.0  # values under a density of a location and a scale
MANY = 1e9  # counts
ALIKE = 1e-6  # the range of a value over the samples, of its magnitude or of 1
FAST = 1e-2  # learning rate
HEAVY = 1e3  # beta
NARROW = 1e-4  # a variance or scale that is given


def explain(recipe: Recipe, dataset: Dataset) -> str:
    """What is likely to be the cause and what helps against it, in one line."""
    if dataset.columns:
        return _explain_table(dataset)
    parts = [part for part in dataset.dense_parts if part.is_floating_point() and isinstance(part, Tensor)]
    if not all(torch.isfinite(part).all() for part in parts):  # of streamed ones all were looked at
        return "the data hold NaN or infinite values, leave those samples out"
    likelihood = nn.LIKELIHOODS[recipe.likelihood]
    support, spread, option = likelihood.support, None, ""
    if issubclass(likelihood, LocationScale):
        spread, option = getattr(recipe, likelihood.dispersion_name), f"--{likelihood.dispersion_name}"
    lo, hi = dataset.limits()
    reasons = []
    if isinstance(spread, str):
        same, n = _alike(dataset), math.prod(dataset.shape)
        if same == n or (same and spread != "learned"):
            what = (
                "all training samples are"
                if same == n
                else f"{same} of {n} values are in all training samples"
            )
            reasons.append(
                f"{what} the same, where {option} {spread} has no lower bound: give {option} a number"
            )
    elif spread is not None and spread < NARROW:
        reasons.append(f"{option} is {spread:g}: a larger one may help")
    if support == "real" and max(-lo, hi) > FAR:
        reasons.append(f"the data's values from {lo:g} to {hi:g} are far from 0: scale them to -1 to 1")
    if support == "counts" and hi > MANY:
        reasons.append(f"the data's counts up to {hi:g} are too large: count in larger units")
    if recipe.beta > HEAVY:
        reasons.append("a smaller --beta may help")
    if recipe.lr > FAST:
        reasons.append("a smaller --lr may help")
    return "; ".join(reasons) or "a smaller --lr or --clamp=-20,10 may help"


def _explain_table(dataset: Dataset) -> str:
    far = 0.0
    for column, x in zip(tables.order(dataset.columns), dataset.dense_parts[0].unbind(1), strict=True):
        if column.deviation != 1 and (most := x[~x.isnan()].abs().max().item()) > far:
            far, name = most, column.name
    if far > FAR:
        return f"an entry of column {name} is {far:.3g} deviations from its mean: leave such rows out"
    return "a smaller --lr or --clamp=-20,10 may help"


def _alike(dataset: Dataset) -> int:
    """How many values of a sample are the same in all training samples, or nearly."""
    x = dataset.dense_parts[0]
    ends = [torch.stack(torch.aminmax(x[i : i + 4096].flatten(1), dim=0)) for i in range(0, len(x), 4096)]
    lo, hi = (
        torch.stack([a for a, _ in ends]).amin(0).float(),
        torch.stack([b for _, b in ends]).amax(0).float(),
    )
    return int(((hi - lo) <= ALIKE * torch.maximum(lo.abs(), hi.abs()).clamp_min(1)).sum())
