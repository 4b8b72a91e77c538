"""Checks of a linear layer and of what its outputs are to explain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_device, check_mask, check_parameter, check_target_type, check_tensor

_CLASSES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def check_layer(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    heads: tuple[int, ...],
) -> int:
    """The checks of likelihoods with a parameter per element; returns how many parameters the layer makes."""
    _check_linear(hidden, weight, bias)
    if hidden.ndim != 2:
        raise ValueError(f"hidden has shape {_of(hidden)}, it takes (batch, H)")
    check_target_type("target", target)
    check_device("target", target, "hidden", hidden)
    if target.ndim < 2 or target.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"target has shape {_of(target)}, hidden has {_of(hidden)}: the first dim is the batch"
        )
    features = math.prod(target.shape[1:])
    if features == 0:
        raise ValueError(f"target has shape {_of(target)}, it takes at least one element per sample")
    if all(weight.shape[0] != n * features for n in heads):
        takes = " or ".join(str(n * features) for n in heads)
        raise ValueError(
            f"weight has shape {_of(weight)}, for target's {features} elements per sample it takes {takes} rows"
        )
    _check_options(target, "target's", target.shape, mask, sample_weight)
    return weight.shape[0] // features


def check_class_layer(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    counts: bool,
) -> None:
    """The checks of likelihoods with a softmax over all of the layer's outputs."""
    _check_linear(hidden, weight, bias)
    check_target_type("target", target)
    if not counts and target.dtype not in _CLASSES:
        raise TypeError(
            f"target has dtype {target.dtype}, it takes class numbers: uint8, int16, int32 or int64"
        )
    check_device("target", target, "hidden", hidden)
    positions = tuple(hidden.shape[:-1])
    expected = (*positions, weight.shape[0]) if counts else positions
    if tuple(target.shape) != expected:
        raise ValueError(f"target has shape {_of(target)}, hidden and weight ask for {expected}")
    _check_options(target, "the positions of target", positions, mask, sample_weight)


def _check_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("hidden", hidden)
    check_tensor("weight", weight)
    if hidden.ndim < 2:
        raise ValueError(f"hidden has shape {_of(hidden)}, it takes (batch, ..., H)")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight has shape {_of(weight)}, it takes (outputs, H) with H = {hidden.shape[-1]}")
    layer = [("weight", weight)]
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {_of(bias)}, weight has {_of(weight)}")
        layer.append(("bias", bias))
    for name, tensor in layer:
        check_device(name, tensor, "hidden", hidden)
        if tensor.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise TypeError(f"{name} has dtype {tensor.dtype}, hidden has {hidden.dtype}")


def _check_options(
    target: Tensor, name: str, shape: Sequence[int], mask: Tensor | None, sample_weight: Tensor | None
) -> None:
    if mask is not None:
        check_mask(mask, target, f"{name}'s", shape)
    check_per_sample("sample_weight", sample_weight, target)


def check_per_sample(name: str, tensor: Tensor | None, target: Tensor) -> None:
    if tensor is None:
        return
    check_tensor(name, tensor)
    if tensor.shape != target.shape[:1]:
        raise ValueError(f"{name} has shape {_of(tensor)}, it takes (batch,) = ({target.shape[0]},)")
    check_device(name, tensor, "target", target)


def check_fixed_param(
    name: str, value: Tensor | float | None, target: Tensor, missing: bool, optional: bool = False
) -> tuple[Tensor, ...]:
    """The parameter that the layer does not make; nothing where it makes it."""
    if missing:
        return (check_parameter(name, value, "target", target, optional),)
    if value is not None:
        raise ValueError(f"{name} is given, but weight has rows for it: leave one of them out")
    return ()


def _of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
