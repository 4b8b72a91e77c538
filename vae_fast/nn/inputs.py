"""What a network is given: the dtype of its input, a generator on its device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .condition import ConditionalSequential
from .networks.conv import ConvolutionalEncoder
from .networks.layers import Log1p
from .sparse import SparseLinear

_PASSING = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)
# The forwards that call one layer after the other.
IN_ORDER = (nn.Sequential.forward, ConditionalSequential.forward)
_OF_INDICES = (nn.Embedding, nn.EmbeddingBag)
_OF_NUMBERS = (nn.Linear, _ConvNd, ConvolutionalEncoder, Log1p, SparseLinear)


def float_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating parameter that is not an nn.Embedding's, in most networks that of the layer which
    reads the input; None if there is none. (Asked in every pass; `next(module.parameters())` takes several times as
    long.)"""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point() and not isinstance(module, _OF_INDICES):
            return parameter.dtype
    for child in module._modules.values():
        if child is not None and (dtype := float_dtype(child)) is not None:
            return dtype
    return None


def input_dtype(module: nn.Module, x: Tensor, support: str) -> torch.dtype | None:
    """What x, of a likelihood's `support`, is converted to for `module`; None: it is left as it is."""
    dtype = float_dtype(module) if isinstance(module, nn.Module) else None
    if dtype is None or dtype is x.dtype or x.is_complex():
        return None
    if x.is_floating_point():
        if _autocast_converts(x) and dtype.itemsize <= 4:
            return None
        if any(p.dtype is x.dtype for p in module.parameters()):
            return None  # parameters of several dtypes, and x has one of them
        return dtype
    is_number = support == "counts" or (support != "classes" and x.dtype in (torch.uint8, torch.bool))
    return dtype if is_number or not takes_indices(module, support == "classes") else None


def _autocast_converts(x: Tensor) -> bool:
    device = x.device.type
    return torch.is_autocast_enabled(device) and x.dtype in (torch.float32, torch.get_autocast_dtype(device))


def takes_indices(encoder: nn.Module, classes: bool) -> bool:
    """Whether integers are meant for an nn.Embedding, or for whatever an encoder of classes begins with. Not where the
    first layer is known to be one of numbers."""
    first: nn.Module | None = encoder
    while isinstance(first, nn.Sequential) and type(first).forward in IN_ORDER:
        first = next((layer for layer in first if not isinstance(layer, _PASSING)), None)
    if isinstance(first, _OF_NUMBERS):
        return False
    return classes or any(isinstance(m, _OF_INDICES) for m in encoder.modules())


def on_device(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """The generator, or where it is of another device a new one that is seeded by it."""
    if generator is None or generator.device.type == device.type:
        return generator
    seed = torch.randint(1 << 62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))
