"""Fully connected encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from ...checks import check_int, check_sizes
from ..condition import AddCondition, ConditionalSequential
from ..sparse import SparseLinear
from .layers import Log1p, relu


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
