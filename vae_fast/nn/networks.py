"""Encoders and decoders for common use. Any module with the same calls does as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..checks import check_int, check_sizes
from .condition import AddCondition, ConditionalSequential
from .sparse import SparseLinear


class InPlaceReLU(nn.ReLU):
    """In place where that can be: the layers before it do not need their output for the backward pass. Of a tensor-
    parallel layer the output is a view of a DTensor's part, which autograd lets nobody write to."""

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not is_compiling() and not x._is_view())


def relu() -> nn.Module:
    return InPlaceReLU()


def _mlp(
    first: nn.Module,
    sizes: Sequence[int],
    activation: Callable[[], nn.Module],
    conditions: int | None,
    batch_norm: bool,
    dropout: float,
) -> list[nn.Module]:
    """`first` and further linear layers of the widths `sizes`. All but the last have a condition, batch norm,
    activation and dropout, in this order."""
    layers: list[nn.Module] = []
    for linear, width in zip((first, *(nn.Linear(n, m) for n, m in pairwise(sizes))), sizes, strict=True):
        layers.append(linear)
        if conditions is not None:
            layers.append(AddCondition(conditions, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width, eps=1e-3, momentum=0.01))  # scvi-tools' numbers
        layers.append(activation())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return layers[: layers.index(linear) + 1]


class Log1p(nn.Module):
    """log(1 + x): counts as an encoder can take them, as scvi-tools gives them to its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log1p()


class MLPEncoder(ConditionalSequential):
    """x (batch, ...) with `in_features` elements -> (batch, 2 latent), mu and logvar side by side.

    MLPEncoder(784, 400, 20) is that of pytorch/examples: its two last layers as one of twice the width. For counts,
    log1p=True.

    Args:
        conditions: every hidden layer takes a condition, labels below this number or as many numbers: see
            `AddCondition`.
        batch_norm, dropout: of every hidden layer, as in scvi-tools (there True and 0.1).
        sparse: the first layer is a `SparseLinear`, which takes rows of a torch.sparse_csr tensor as well.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int],
        latent: int,
        activation: Callable[[], nn.Module] = relu,
        log1p: bool = False,
        *,
        conditions: int | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
        sparse: bool = False,
    ) -> None:
        in_features, latent = check_int("in_features", in_features), check_int("latent", latent)
        sizes = (*check_sizes("hidden", hidden), 2 * latent)
        if sparse:
            start: list[nn.Module] = []
            first: nn.Module = SparseLinear(in_features, sizes[0], log1p=log1p)
        else:
            start, first = [Log1p()] if log1p else [], nn.Linear(in_features, sizes[0])
            start.append(nn.Flatten())
        super().__init__(*start, *_mlp(first, sizes, activation, conditions, batch_norm, dropout))
        self.in_features, self.latent_shape = in_features, (latent,)


class MLPDecoder(ConditionalSequential):
    """z (batch, latent) -> (batch, *shape), or num_parameters times shape[0] along dim 1.

    `hidden` is read from z to x. MLPDecoder(20, 400, 784) is that of pytorch/examples, up to its sigmoid. The options
    are those of MLPEncoder (scvi-tools' decoder has batch norm and no dropout).
    """

    def __init__(
        self,
        latent: int,
        hidden: int | Sequence[int],
        shape: int | Sequence[int],
        num_parameters: int = 1,
        activation: Callable[[], nn.Module] = relu,
        *,
        conditions: int | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        top, *rest = check_sizes("shape", shape)
        outputs = (check_int("num_parameters", num_parameters, 1) * top, *rest)
        sizes = (*check_sizes("hidden", hidden), math.prod(outputs))
        first = nn.Linear(check_int("latent", latent), sizes[0])
        layers = _mlp(first, sizes, activation, conditions, batch_norm, dropout)
        super().__init__(*layers, nn.Unflatten(1, outputs))


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of (height, width) or (channels, height, width)."""
    shape = check_sizes("shape", shape)
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ValueError(f"expected shape to be (height, width) or (channels, height, width), but got {shape}")


def _halvings(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """The sizes of the feature maps: every convolution halves them, rounding up."""
    sizes = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


class ConvEncoder(nn.Module):
    """Images (batch, channels, height, width) or (batch, height, width) -> (batch, 2 latent).

    One 3x3 convolution of stride 2 for each of `channels`, then one linear layer. For counts, log1p=True.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        latent: int,
        activation: Callable[[], nn.Module] = relu,
        log1p: bool = False,
    ) -> None:
        super().__init__()
        colours, height, width = _image(shape)
        channels, latent = check_sizes("channels", channels), check_int("latent", latent)
        layers: list[nn.Module] = [Log1p()] if log1p else []
        for n, m in pairwise((colours, *channels)):
            layers += [nn.Conv2d(n, m, 3, stride=2, padding=1), activation()]
        self.convolutions = nn.Sequential(*layers)
        last = _halvings(height, width, len(channels))[-1]
        self.linear = nn.Linear((colours, *channels)[-1] * math.prod(last), 2 * latent)
        self.in_features, self.latent_shape = colours * height * width, (latent,)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            x = x.unsqueeze(1)
        moments: Tensor = self.linear(self.convolutions(x).flatten(1))
        return moments


class ConvDecoder(nn.Module):
    """z (batch, latent) -> images (batch, *shape): ConvEncoder's way back, `channels` in the encoder's order.

    With num_parameters of 2 and more the decoder returns as many tensors.
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        shape: Sequence[int],
        num_parameters: int = 1,
        activation: Callable[[], nn.Module] = relu,
    ) -> None:
        super().__init__()
        colours, height, width = _image(shape)
        channels, num_parameters = (
            check_sizes("channels", channels),
            check_int("num_parameters", num_parameters, 1),
        )
        sizes = _halvings(height, width, len(channels))[::-1]
        widths = (colours * num_parameters, *channels)[::-1]
        self.grid = (widths[0], *sizes[0])
        layers: list[nn.Module] = []
        for i, (small, large) in enumerate(pairwise(sizes)):
            extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)  # 1 for an even size
            layers += [
                activation(),
                nn.ConvTranspose2d(widths[i], widths[i + 1], 3, stride=2, padding=1, output_padding=extra),
            ]
        self.linear = nn.Linear(check_int("latent", latent), math.prod(self.grid))
        self.convolutions = nn.Sequential(*layers)
        self.shape, self.num_parameters = check_sizes("shape", shape), num_parameters

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = self.convolutions(self.linear(z).unflatten(1, self.grid))
        params = tuple(p.reshape(z.shape[0], *self.shape) for p in y.chunk(self.num_parameters, dim=1))
        return params if self.num_parameters > 1 else params[0]
