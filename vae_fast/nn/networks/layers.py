"""Layers that several networks have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..describe import FUNCTIONS, Described


class InPlaceReLU(Described, nn.ReLU):
    """In place where that can be: the layers before it do not need their output for the backward pass. Of a tensor-
    parallel layer the output is a view of a DTensor's part, which autograd lets nobody write to."""

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not is_compiling() and not x._is_view())


def relu() -> nn.Module:
    return InPlaceReLU()


FUNCTIONS["relu"] = relu


class Log1p(Described, nn.Module):
    """log(1 + x): counts as an encoder can take them, as scvi-tools gives them to its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log1p()
