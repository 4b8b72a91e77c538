"""Checks of a linear layer and of what its outputs are to explain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import (
    check_class_type,
    check_device,
    check_mask,
    check_parameter,
    check_per_sample,
    check_target_type,
    check_tensor,
    shape_of,
)
from ..likelihoods.csr import Csr


def check_layer(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    heads: tuple[int, ...],
    of_counts: bool = False,
) -> int:
    """The checks of likelihoods with a parameter per element; returns how many parameters the layer makes."""
    _check_linear(hidden, weight, bias)
    if hidden.ndim not in (2, 3):
        raise ValueError(f"expected hidden to have shape (batch, H), but got {shape_of(hidden)}")
    check_target_type("target", target, of_counts)
    check_device("target", target, "hidden", hidden)
    if target.ndim < 2 or target.shape[0] != hidden.shape[-2]:
        raise ValueError(
            f"expected target to have shape ({hidden.shape[-2]}, features, ...) for hidden of shape "
            f"{shape_of(hidden)}, but got {shape_of(target)}: the first dim is the batch"
        )
    features = math.prod(target.shape[1:])
    if features == 0:
        raise ValueError(
            f"expected target to have at least one element per sample, but got shape {shape_of(target)}"
        )
    if all(weight.shape[0] != n * features for n in heads):
        takes = " or ".join(str(n * features) for n in heads)
        raise ValueError(
            f"expected weight to have {takes} rows for target's {features} elements per sample, "
            f"but got shape {shape_of(weight)}"
        )
    draws = hidden.shape[0] if hidden.ndim == 3 else None
    _check_options(target, "target", target.shape, mask, sample_weight, draws)
    return weight.shape[0] // features


def check_class_layer(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    counts: bool,
) -> None:
    """The checks of likelihoods with a softmax over all of the layer's outputs."""
    _check_linear(hidden, weight, bias)
    if counts:
        check_target_type("target", target, of_counts=True)
    else:
        check_class_type("target", target)
    check_device("target", target, "hidden", hidden)
    positions = tuple(hidden.shape[:-1])
    classes = (weight.shape[0],) if counts else ()
    expected, draws = (*positions, *classes), None
    if len(positions) > 1 and target.ndim == len(expected) - 1 and tuple(target.shape) == expected[1:]:
        draws, positions = positions[0], positions[1:]
    elif tuple(target.shape) != expected:
        raise ValueError(
            f"expected target to have shape {expected} for hidden of shape {shape_of(hidden)} "
            f"and weight of shape {shape_of(weight)}, but got {shape_of(target)}"
        )
    _check_options(target, "the positions of target", positions, mask, sample_weight, draws)


def _check_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("hidden", hidden)
    check_tensor("weight", weight)
    if hidden.ndim < 2:
        raise ValueError(f"expected hidden to have shape (batch, ..., H), but got {shape_of(hidden)}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"expected weight to have shape (outputs, H) with H = {hidden.shape[-1]}, but got {shape_of(weight)}"
        )
    layer = [("weight", weight)]
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"expected bias to have shape {shape_of(weight)[:1]} for weight of shape {shape_of(weight)}, "
                f"but got {shape_of(bias)}"
            )
        layer.append(("bias", bias))
    for name, tensor in layer:
        check_device(name, tensor, "hidden", hidden)
        if tensor.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise TypeError(
                f"expected {name} to have dtype {hidden.dtype} like hidden, but got {tensor.dtype}"
            )


def _check_options(
    target: Tensor | Csr,
    masked: str,
    shape: Sequence[int],
    mask: Tensor | None,
    sample_weight: Tensor | None,
    draws: int | None,
) -> None:
    if mask is not None:
        check_mask(mask, target, masked, shape)
    check_per_sample("sample_weight", sample_weight, target, draws)


def check_fixed_param(
    name: str, value: Tensor | float | None, target: Tensor | Csr, missing: bool, optional: bool = False
) -> tuple[Tensor, ...]:
    """The parameter that the layer does not make; nothing where it makes it."""
    if missing:
        return (check_parameter(name, value, "target", target, optional),)
    if value is not None:
        raise ValueError(f"{name} is given, but weight has rows for it: leave one of them out")
    return ()
