"""Weights that change over the training steps. They count the model's calls in training mode; the count is in the
state_dict, so that a resumed run goes on where it was."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_int, number_of
from .describe import Described

__all__ = ["CyclicalSchedule", "LinearSchedule", "Schedule"]


class Schedule(Described, nn.Module):
    """Base class: `at(step)` gives the value, a tensor of shape (), from the step, an int64 tensor of shape ().

    A step is a pass in training mode: with gradients accumulated over n passes, n of them make one of the optimizer's.
    """

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def at(self, step: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The value of this step; in training mode the next call is the next step."""
        value = self.at(self.step)
        if self.training:
            if torch.compiler.is_compiling():
                # The backward pass of a compiled graph computes cheap ops again from the graph's inputs, and `step` is
                # the next one by then. cumsum is none of those ops; a scalar's is the scalar.
                value = value.cumsum(0)
            self.step += 1
        return value


class LinearSchedule(Schedule):
    """From `start` to `end` in equal parts over `steps` steps, then `end`.

    Source: Bowman et al., "Generating sentences from a continuous space", 2016, for the KL's weight; Burgess et al.,
    "Understanding disentangling in beta-VAE", 2018, for its capacity.
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        super().__init__()
        self.steps = check_int("steps", steps, 1)
        self.start, self.end = check_finite("start", start), check_finite("end", end)

    def extra_repr(self) -> str:
        return f"{self.steps}, {self.start:g}, {self.end:g}"

    def at(self, step: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1)


class CyclicalSchedule(Schedule):
    """`LinearSchedule` again and again: in every `period` steps from 0 to `end` over the first `ratio` of them, then
    `end`.

    Source: Fu et al., "Cyclical annealing schedule", 2019.
    """

    def __init__(self, period: int, ratio: float = 0.5, end: float = 1.0) -> None:
        super().__init__()
        self.period, self.end = check_int("period", period, 1), check_finite("end", end)
        self.ratio = check_finite("ratio", ratio)
        if not 0 < self.ratio <= 1:
            raise ValueError(f"expected ratio to be above 0 and at most 1, but got {self.ratio:g}")

    def extra_repr(self) -> str:
        return f"{self.period}, ratio={self.ratio:g}, end={self.end:g}"

    def at(self, step: Tensor) -> Tensor:
        return self.end * (step % self.period / (self.period * self.ratio)).clamp(max=1)


def check_finite(name: str, value: Any) -> float:
    number = number_of(value)
    if number is None:
        raise TypeError(f"expected {name} to be a number, but got {value!r}")
    if not math.isfinite(number):
        raise ValueError(f"expected {name} to be finite, but got {number}")
    return float(number)
