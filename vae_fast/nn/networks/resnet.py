"""Residual convolutional encoders and decoders of signals, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...checks import check_int, check_sizes
from ..condition import AddCondition
from .conv import (
    CONVOLUTIONS,
    Activation,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Size,
    channels_and_size,
    halvings,
)

_POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 8 channels: a group of one channel would be nothing but its bias at a single position."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


class Upsample(nn.Module):
    """Repeats every position 2 times along each dim, up to `size`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        return str(self.size)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size)


class ResidualBlock(nn.Module):
    """x (batch, n, *size) -> (batch, m, *new size): a shortcut and norm, activation, convolution, twice; the condition
    is added to the first convolution's output. `resample` is "down" (half the size, rounded up) or the size of
    up-sampling.
    """

    def __init__(
        self,
        n: int,
        m: int,
        dims: int,
        activation: Activation,
        resample: str | Size | None = None,
        conditions: int | None = None,
    ) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        is_down = resample == "down"
        up = [Upsample(resample)] if isinstance(resample, tuple) else []
        first = convolution(n, m, 3, stride=2 if is_down else 1, padding=1)
        self.first = nn.Sequential(group_norm(n), activation(), *up, first)
        self.condition = None if conditions is None else AddCondition(conditions, m)
        self.takes_condition = conditions is not None
        self.second = nn.Sequential(group_norm(m), activation(), convolution(m, m, 3, padding=1))
        # Averages of all positions, where a convolution of 1 and stride 2 would read a part of them; before a
        # convolution the size is small.
        pool = [_POOLS[dims](2, ceil_mode=True)] if is_down else []
        self.shortcut = nn.Sequential(*pool, *([convolution(n, m, 1)] if n != m else []), *up)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        if self.condition is not None:
            hidden = self.condition(hidden, condition)
        result: Tensor = self.shortcut(x) + self.second(hidden)
        return result


class ResNetEncoder(ConvolutionalEncoder):
    """x (batch, channels, *size) or (batch, *size) -> (batch, 2 latent), mu and logvar side by side.

    A convolution, for each of `channels` a residual block that halves the size and `blocks` - 1 further ones, then one
    linear layer. Sizes need not be even. For counts, log1p=True.

    Args:
        shape, dims: as in `ConvEncoder`.
        blocks: residual blocks for each of `channels`.
        conditions: every residual block takes a condition: labels below this number, or as many numbers.

    The norm is GroupNorm: what a sample becomes depends neither on the batch nor on training or evaluation.

    Source: He et al., "Identity Mappings in Deep Residual Networks", 2016; Wu & He, "Group Normalization", 2018.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        latent: int,
        activation: Activation = nn.SiLU,
        log1p: bool = False,
        *,
        blocks: int = 1,
        dims: int = 2,
        conditions: int | None = None,
    ) -> None:
        colours, _ = channels_and_size(shape, dims)
        channels, blocks = check_sizes("channels", channels), check_int("blocks", blocks, 1)
        layers: list[nn.Module] = [CONVOLUTIONS[dims](colours, channels[0], 3, padding=1)]
        for n, m in pairwise((channels[0], *channels)):
            layers.append(ResidualBlock(n, m, dims, activation, "down", conditions))
            layers += [ResidualBlock(m, m, dims, activation, None, conditions) for _ in range(blocks - 1)]
        layers += [group_norm(channels[-1]), activation()]
        super().__init__(layers, shape, dims, len(channels), channels[-1], latent, log1p)


class ResNetDecoder(ConvolutionalDecoder):
    """z (batch, latent) -> (batch, *shape): ResNetEncoder's way back, `channels` in the encoder's order, the same
    options.

    With num_parameters of 2 and more the decoder returns as many tensors.
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        shape: Sequence[int],
        num_parameters: int = 1,
        activation: Activation = nn.SiLU,
        *,
        blocks: int = 1,
        dims: int = 2,
        conditions: int | None = None,
    ) -> None:
        colours, size = channels_and_size(shape, dims)
        num_parameters = check_int("num_parameters", num_parameters, 1)
        channels, blocks = check_sizes("channels", channels), check_int("blocks", blocks, 1)
        sizes = halvings(size, len(channels))[::-1]
        widths = (channels[0], *channels)[::-1]
        layers: list[nn.Module] = []
        for (n, m), large in zip(pairwise(widths), sizes[1:], strict=True):
            layers += [ResidualBlock(n, n, dims, activation, None, conditions) for _ in range(blocks - 1)]
            layers.append(ResidualBlock(n, m, dims, activation, large, conditions))
        out = CONVOLUTIONS[dims](widths[-1], colours * num_parameters, 3, padding=1)
        layers += [group_norm(widths[-1]), activation(), out]
        super().__init__(layers, shape, (widths[0], *sizes[0]), latent, num_parameters, conditions)
