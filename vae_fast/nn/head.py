"""What a decoder ends in: its output's shape, known before it runs, and a last linear layer that can be fused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def find_head(decoder: nn.Module, flat: bool = False) -> int | None:
    """The place in the nn.Sequential `decoder` of the nn.Linear that it ends in, an nn.Unflatten of dim 1 after it or
    not (`flat`: one that changes nothing). None if there is none, or if something would not be done if the layer were
    not called: a hook, a parametrization.
    """
    if not isinstance(decoder, nn.Sequential) or type(decoder).forward is not nn.Sequential.forward:
        return None
    place = len(decoder) - 1
    unflatten = decoder[place] if place > 0 else None
    if isinstance(unflatten, nn.Unflatten):
        place -= 1
        if unflatten.dim != 1 or (flat and len(unflatten.unflattened_size) > 1) or _is_watched(unflatten):
            return None
    if (
        place < 0
        or type(decoder[place]) is not nn.Linear
        or _is_watched(decoder[place])
        or _is_watched(decoder)
    ):
        return None
    return place


def run(layers: Iterable[nn.Module], z: Tensor) -> Tensor:
    for layer in layers:
        z = layer(z)
    return z


def try_out(decoder: nn.Module, latent_shape: Sequence[int] | None) -> Any:
    """What decoder(z) returns for a batch of two, as tensors without memory; None if that cannot be known."""
    if latent_shape is None:
        return _end_of(decoder)
    try:
        tensors = {
            name: torch.empty_like(t, device="meta")
            for named in (decoder.named_parameters(), decoder.named_buffers())
            for name, t in named
        }
        dtype = next((p.dtype for p in decoder.parameters() if p.is_floating_point()), None)
        z = torch.empty((2, *latent_shape), dtype=dtype, device="meta")
        with torch.no_grad():
            return torch.func.functional_call(decoder, tensors, (z,))
    except Exception:  # whatever an arbitrary decoder does with tensors that hold nothing
        return _end_of(decoder)


def _end_of(decoder: nn.Module) -> Tensor | None:
    """What the last layers say by themselves, for z of shape (batch, latent)."""
    place = find_head(decoder)
    if place is None:
        return None
    linear, *rest = list(decoder)[place:]  # type: ignore[call-overload]
    return run(rest, torch.empty((2, linear.out_features), device="meta"))


def _is_watched(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
