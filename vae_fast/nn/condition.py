"""Conditions: what encoder and decoder are told beside x and z, such as the batch that a cell was measured in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..checks import check_device, check_int, check_is_tensor, shape_of
from .describe import Described


class AddCondition(Described, nn.Module):
    """h + c V, where c is a label's one-hot vector or the numbers of a condition: after a linear layer of h, what a
    linear layer of [h | c] would give; after a convolution, a shift of every channel. V starts at 0.

    Args:
        conditions: how many labels there are, or how many numbers a condition has.
        width: of h (batch, width, ...).

    The condition is of an integer dtype: labels (batch,), or one label of shape () for all; or of a floating dtype:
    numbers that broadcast to (batch, conditions).
    """

    takes_condition = True

    def __init__(self, conditions: int, width: int) -> None:
        super().__init__()
        self.conditions = check_int("conditions", conditions, 1)
        self.weight = nn.Parameter(torch.zeros(self.conditions, check_int("width", width, 1)))

    def extra_repr(self) -> str:
        return f"{self.conditions}, {self.weight.shape[1]}"

    def forward(self, h: Tensor, condition: Tensor | None = None) -> Tensor:
        n = self.conditions
        if condition is None:
            raise ValueError(
                f"expected condition to be labels from 0 to {n - 1} or {n} numbers for each sample, but got None"
            )
        if not condition.is_floating_point():
            return _add_to_channels(h, self._of_labels(condition))
        if condition.ndim == 0 or condition.shape[-1] != n:
            raise ValueError(
                f"expected condition to have shape (batch, {n}) or to be labels of an integer dtype, "
                f"but got {shape_of(condition)} of {condition.dtype}"
            )
        return _add_to_channels(h, condition.to(self.weight.dtype) @ self.weight)

    def _of_labels(self, labels: Tensor) -> Tensor:
        try:
            return F.embedding(labels, self.weight)
        except IndexError:
            lo, hi = labels.aminmax()
            raise ValueError(
                f"expected condition to hold labels from 0 to {self.conditions - 1}, but got {lo.item()} to {hi.item()}"
            ) from None


def _add_to_channels(h: Tensor, shift: Tensor) -> Tensor:
    """h (batch, width, ...) + shift (batch, width), (1, width) or (width,)."""
    if h.ndim > 2:
        shift = shift.reshape(*shift.shape, *[1] * (h.ndim - 2))
    return h + shift.to(h.dtype)


class ConditionalSequential(Described, nn.Sequential):
    """An nn.Sequential that hands the condition to those of its layers that take one, layer(x, condition), which they
    say by an attribute `takes_condition`; and the target to those of a decoder that say `takes_target`."""

    @property
    def takes_condition(self) -> bool:
        return any(map(takes_condition, self))

    @property
    def takes_target(self) -> bool:
        return any(map(takes_target, self))

    def forward(self, x: Tensor, condition: Tensor | None = None, target: Tensor | None = None) -> Tensor:
        return run(self, x, condition, target)


def run(layers: Any, x: Tensor, condition: Tensor | None = None, target: Tensor | None = None) -> Tensor:
    """The layers of an nn.Sequential, one after the other."""
    if condition is None and target is None:  # nothing to ask the layers for
        for layer in layers:
            x = layer(x)
        return x
    for layer in layers:
        x = call(layer, x, condition, target)
    return x


def call(network: Any, x: Tensor, condition: Tensor | None = None, target: Tensor | None = None) -> Any:
    """network(x), with the condition and the target that it takes."""
    options = {"target": target} if target is not None and takes_target(network) else {}
    if condition is None or not takes_condition(network):
        return network(x, **options)
    return network(x, condition, **options)


def takes_condition(network: Any) -> bool:
    """Whether it is called network(x, condition): it says so by its attribute `takes_condition`."""
    return _says(network, "takes_condition")


def takes_target(decoder: Any) -> bool:
    """Whether it is called decoder(z, target=x), because its output at a position depends on x at those before: it says
    so by its attribute `takes_target`."""
    return _says(decoder, "takes_target")


def _says(network: Any, attribute: str) -> Any:
    kind = type(network)
    # Most layers have no such attribute, which nn.Module takes 1.5 us to find out: 5 % of a small model's pass.
    is_plain = not is_compiling() and getattr(kind, "__getattr__", None) is nn.Module.__getattr__
    if is_plain and not hasattr(kind, attribute):
        return network.__dict__.get(attribute, False)
    return getattr(network, attribute, False)


def check_condition(condition: Any, like: str, sample: Tensor) -> Tensor:
    """The condition of the batch `sample` as labels of an integer dtype, or numbers."""
    if isinstance(condition, int) and not isinstance(condition, bool):
        condition = torch.tensor(condition, device=sample.device)
    check_is_tensor("condition", condition)
    check_device("condition", condition, like, sample)
    if condition.is_complex():
        raise TypeError(f"expected condition to be labels or real numbers, but got {condition.dtype}")
    n, dims = sample.shape[0], condition.ndim
    if condition.dtype is torch.bool or (dims > 1 and not condition.is_floating_point()):
        condition = condition.float()
    is_number = condition.is_floating_point()
    if (dims > 0 and condition.shape[0] != n) and not (is_number and (dims == 1 or condition.shape[0] == 1)):
        raise ValueError(
            f"expected condition to have the {n} samples of {like} in its first dim, but got {shape_of(condition)}"
        )
    return condition if is_number else condition.long()


def repeated(condition: Tensor | None, draws: int | None) -> Tensor | None:
    """The condition of (draws, batch) samples as rows; one that is for all samples stays."""
    if condition is None or draws is None or condition.ndim == 0:
        return condition
    if condition.is_floating_point() and (condition.ndim == 1 or condition.shape[0] == 1):
        return condition
    return condition.repeat(draws, *[1] * (condition.ndim - 1))
