"""What a likelihood is: its parameters, its support and its formula. The rest of the package derives from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter of p(x | z).

    Attributes:
        name: as the functions' argument.
        is_log: a fused head's output is its logarithm.
        is_bounded: the exponential of a fused head's output is held at what the dtype can hold.
        may_be_fixed: a fused head takes it from the caller where the layer does not make it.
        default: its value where neither gives one. None: the caller must.
    """

    name: str
    is_log: bool = False
    is_bounded: bool = False
    may_be_fixed: bool = False
    default: float | None = None


@dataclass(frozen=True, eq=False)
class Spec:
    """A likelihood.

    Attributes:
        name: the same in every room of the package.
        parameters: in the order of the kernels, and of a fused head's outputs.
        support: of x: "real", "unit" (0 to 1; uint8 counts 255ths), "counts" or "classes" (both: uint8 as it is).
        nll: (*parameters before x, x, *the others, mask=, weight=) -> -log p(x) of each sample, in plain PyTorch.
        derivatives: (x, *parameters) -> the derivatives of an element's -log p by its parameters. None where an element
            does not stand for itself.
        op: what computes it: "likelihood", "categorical" or "mixture".
        takes_library: a fused head's first parameter may be a share of each sample's library size.
        source: where it comes from.
    """

    name: str
    parameters: tuple[Parameter, ...]
    support: str
    nll: Callable[..., Tensor]
    derivatives: Callable[..., tuple[Tensor, ...]] | None = None
    op: str = "likelihood"
    takes_library: bool = False
    source: str = ""

    @property
    def is_counts(self) -> bool:
        """Whether a uint8 target holds numbers, not 255ths."""
        return self.support == "counts"

    @cache  # noqa: B019  (Specs live as long as the module)
    def heads(self, num_fixed: int) -> tuple[Parameter, ...]:
        """The parameters that a fused head's layer makes, where the caller gives `num_fixed` others."""
        fixed = [p for p in self.parameters if p.may_be_fixed][:num_fixed]
        return tuple(p for p in self.parameters if p not in fixed)

    @cache  # noqa: B019
    def _order(self, num_fixed: int) -> tuple[int, ...]:
        """Where each parameter is among those that the layer makes, followed by the fixed ones."""
        made = self.heads(num_fixed)
        places = [*made, *(p for p in self.parameters if p not in made)]
        return tuple(places.index(p) for p in self.parameters)

    def in_order(self, heads: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, ...]:
        """All parameters: those that the layer makes, and those that are fixed."""
        values = (*heads, *fixed)
        return tuple([values[i] for i in self._order(len(fixed))])


@cache
def largest_log(dtype: torch.dtype) -> float:
    """Where the exponential of a bounded parameter is held."""
    return math.log(torch.finfo(dtype).max) - 0.01
