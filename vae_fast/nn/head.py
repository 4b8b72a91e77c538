"""What a decoder ends in: its output's shape, known before it runs, and a last linear layer that can be fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..ops._common import is_dtensor
from .condition import run, takes_condition, takes_target
from .inputs import IN_ORDER, float_dtype
from .sharding import class_of, is_stood_in_for, why_not_by_outputs


def find_head(decoder: nn.Module, flat: bool = False) -> int | str:
    """The place in the nn.Sequential `decoder` of the nn.Linear that it ends in, an nn.Unflatten of dim 1 after it or
    not (`flat`: one that changes nothing). Or why there is none: also if something would not be done if the layer were
    not called, such as a hook. A parametrized layer is one: its weight is computed where it is asked for.
    """
    if not isinstance(decoder, nn.Sequential) or class_of(decoder).forward not in IN_ORDER:
        return f"the decoder is {_type(decoder)}, not an nn.Sequential with its forward"
    layers: list[Any] = list(decoder)
    unflatten = layers.pop() if len(layers) > 1 and isinstance(layers[-1], nn.Unflatten) else None
    if unflatten is not None and unflatten.dim != 1:
        return f"the decoder ends in an nn.Unflatten of dim {unflatten.dim}, not 1"
    if unflatten is not None and flat and len(unflatten.unflattened_size) > 1:
        return "the last layer makes several softmaxes for each sample"
    if not layers or class_of(layers[-1]) is not nn.Linear:
        last = _type(layers[-1]) if layers else "missing"
        return f"the last layer is {last}, not a plain nn.Linear"
    linear = layers[-1]
    for module in (decoder, linear, unflatten):
        if module is not None and (watch := _watch(module, is_head=module is linear)):
            return f"{_type(module)} has {watch}"
    if (reason := why_not_by_outputs(linear)) is not None:
        return f"the last layer's weight is {reason}"
    weight = linear._parameters.get("weight")  # not of a parametrized layer, which would compute it
    if weight is not None and is_traceable_wrapper_subclass(weight) and not is_dtensor(weight):
        return f"the last layer's weight is {_type(weight)}, not a plain tensor"
    return len(layers) - 1


def ends_in_linear(decoder: nn.Module) -> bool:
    """Whether the last layer is a linear one of any kind: torch's, a quantized one, one with an adapter."""
    layers = list(decoder) if isinstance(decoder, nn.Sequential) else []
    if layers and isinstance(layers[-1], nn.Unflatten):
        layers.pop()
    return bool(layers) and hasattr(layers[-1], "out_features")


def try_out(decoder: nn.Module, latent_shape: Sequence[int] | None) -> Any:
    """What decoder(z) returns for a batch of two, as tensors without memory; None if that cannot be known. A decoder
    that takes a target says the shape of one by an attribute `data_shape`."""
    if latent_shape is None:
        return _end_of(decoder)
    try:
        tensors = {
            name: torch.empty_like(t, device="meta")
            for named in (decoder.named_parameters(), decoder.named_buffers())
            for name, t in named
        }
        inputs = [torch.empty((2, *latent_shape), dtype=float_dtype(decoder), device="meta")]
        if takes_condition(decoder):
            inputs.append(torch.empty((), dtype=torch.int64, device="meta"))  # a label
        options = {}
        if takes_target(decoder):
            shape: Any = decoder.data_shape
            options["target"] = torch.empty((2, *shape), dtype=torch.int64, device="meta")
        with torch.no_grad():
            return torch.func.functional_call(decoder, tensors, tuple(inputs), options)
    except Exception:  # whatever an arbitrary decoder does with tensors that hold nothing
        return _end_of(decoder)


def _end_of(decoder: nn.Module) -> Tensor | None:
    """What the last layers say by themselves, for z of shape (batch, latent)."""
    place = find_head(decoder)
    if isinstance(place, str):
        return None
    linear, *rest = list(decoder)[place:]  # type: ignore[call-overload]
    return run(rest, torch.empty((2, linear.out_features), device="meta"))


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"  # not every Linear is torch's


def _watch(module: nn.Module, is_head: bool) -> str | None:
    """What only a call of the module would do beside its class's forward."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if any(not is_stood_in_for(hook, is_head) for found in hooks for hook in found.values()):
        return "a hook"
    return "a forward of its own" if "forward" in module.__dict__ else None  # accelerate's hooks are such
