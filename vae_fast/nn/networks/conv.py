"""Convolutional encoders and decoders of signals, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ...checks import check_int, check_sizes
from ..condition import AddCondition, ConditionalSequential
from ..describe import Described
from .layers import Log1p, relu

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_SIZES = {1: "length", 2: "height, width", 3: "depth, height, width"}

Activation = Callable[[], nn.Module]
Size = tuple[int, ...]


def channels_and_size(shape: Sequence[int], dims: int) -> tuple[int, Size]:
    """(channels, size) of the shape `size` or (channels, *size), where size has `dims` numbers."""
    if check_int("dims", dims, 1) not in CONVOLUTIONS:
        raise ValueError(f"expected dims to be 1, 2 or 3, but got {dims}")
    shape = check_sizes("shape", shape)
    if len(shape) == dims:
        return 1, shape
    if len(shape) == dims + 1:
        return shape[0], shape[1:]
    names = _SIZES[dims]
    alone = f"({names},)" if dims == 1 else f"({names})"
    raise ValueError(f"expected shape to be {alone} or (channels, {names}), but got {shape}")


def halvings(size: Size, times: int) -> list[Size]:
    """The sizes of the feature maps: every convolution of stride 2 halves them, rounding up."""
    sizes = [size]
    for _ in range(times):
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    return sizes


def shift(conditions: int | None, width: int) -> list[nn.Module]:
    """The layer that adds a condition to `width` channels, if there is one."""
    return [] if conditions is None else [AddCondition(conditions, width)]


class ConvolutionalEncoder(Described, nn.Module):
    """`layers`, which halve an input of `shape` `halved` times and end in `width` channels, then a linear layer."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        shape: Sequence[int],
        dims: int,
        halved: int,
        width: int,
        latent: int,
        log1p: bool,
    ) -> None:
        super().__init__()
        latent = check_int("latent", latent)
        self.dims, (colours, size) = dims, channels_and_size(shape, dims)
        start: list[nn.Module] = [Log1p()] if log1p else []
        self.convolutions = ConditionalSequential(*start, *layers)
        self.linear = nn.Linear(width * math.prod(halvings(size, halved)[-1]), 2 * latent)
        self.in_features, self.latent_shape = colours * math.prod(size), (latent,)

    @property
    def takes_condition(self) -> bool:
        return self.convolutions.takes_condition

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if x.ndim == self.dims + 1:
            x = x.unsqueeze(1)
        moments: Tensor = self.linear(self.convolutions(x, condition).flatten(1))
        return moments


class ConvolutionalDecoder(Described, nn.Module):
    """A linear layer to the smallest feature maps, `grid`, then `layers`, which end in num_parameters * channels."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        shape: Sequence[int],
        grid: Size,
        latent: int,
        num_parameters: int,
        conditions: int | None,
    ) -> None:
        super().__init__()
        self.grid, width = grid, math.prod(grid)
        self.linear = nn.Linear(check_int("latent", latent), width)
        # A condition has a weight for each position here, as if the linear layer were of [z | condition].
        start = () if conditions is None else (AddCondition(conditions, width), nn.Unflatten(1, grid))
        self.convolutions = ConditionalSequential(*start, *layers)
        self.shape, self.num_parameters = check_sizes("shape", shape), num_parameters

    @property
    def takes_condition(self) -> bool:
        return self.convolutions.takes_condition

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        hidden = self.linear(z)
        y = self.convolutions(hidden if self.takes_condition else hidden.unflatten(1, self.grid), condition)
        params = tuple(p.reshape(z.shape[0], *self.shape) for p in y.chunk(self.num_parameters, dim=1))
        return params if self.num_parameters > 1 else params[0]


class ConvEncoder(ConvolutionalEncoder):
    """x (batch, channels, *size) or (batch, *size) -> (batch, 2 latent), mu and logvar side by side.

    One convolution of 3 and stride 2 for each of `channels`, then one linear layer. For counts, log1p=True.

    Args:
        shape: of a sample, (channels, *size) or size.
        dims: how many numbers `size` has: 1 for signals, (length,) or (channels, length); 2 for images, (height, width)
            or (channels, height, width); 3 for volumes.
        conditions: every convolution's output takes a condition, labels below this number or as many numbers, as a
            shift of each channel: see `AddCondition`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        latent: int,
        activation: Activation = relu,
        log1p: bool = False,
        *,
        dims: int = 2,
        conditions: int | None = None,
    ) -> None:
        widths = (channels_and_size(shape, dims)[0], *check_sizes("channels", channels))
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [CONVOLUTIONS[dims](n, m, 3, stride=2, padding=1), *shift(conditions, m), activation()]
        super().__init__(layers, shape, dims, len(widths) - 1, widths[-1], latent, log1p)


class ConvDecoder(ConvolutionalDecoder):
    """z (batch, latent) -> (batch, *shape): ConvEncoder's way back, `channels` in the encoder's order, the same
    options.

    With num_parameters of 2 and more the decoder returns as many tensors.
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        shape: Sequence[int],
        num_parameters: int = 1,
        activation: Activation = relu,
        *,
        dims: int = 2,
        conditions: int | None = None,
    ) -> None:
        colours, size = channels_and_size(shape, dims)
        n = check_int("num_parameters", num_parameters, 1)
        widths = (colours * n, *check_sizes("channels", channels))[::-1]
        sizes = halvings(size, len(widths) - 1)[::-1]
        layers: list[nn.Module] = []
        for i, (small, large) in enumerate(pairwise(sizes)):
            extra = tuple(b - 2 * a + 1 for a, b in zip(small, large, strict=True))  # 1 for an even size
            layers += shift(conditions, widths[i]) if i else []
            layers += [
                activation(),
                _TRANSPOSED[dims](widths[i], widths[i + 1], 3, stride=2, padding=1, output_padding=extra),
            ]
        super().__init__(layers, shape, (widths[0], *sizes[0]), latent, n, conditions)
