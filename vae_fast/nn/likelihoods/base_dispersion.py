"""Likelihoods with a dispersion parameter that is fixed, learned or the decoder's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...checks import check_sizes, number_of
from .. import first_batch
from .base import Library, Likelihood, Params, spread_rows


class DispersionLikelihood(Likelihood):
    """A likelihood with a dispersion parameter: a variance, a scale or an inverse dispersion. It is one of

    a number     fixed;
    "learned"    one for all x, learned;
    "feature"    one for each feature, learned. Its shape is x's without the batch. The decoder tells it where its
                 output size is known; else `features` gives it (any shape that broadcasts to x's);
    "decoder"    one for every element: the decoder's second parameter.

    The learned parameter is the dispersion's logarithm. It starts at 0.
    """

    dispersion_name: ClassVar[str]  # the constructor's argument
    log_dispersion_name: ClassVar[str]  # the attribute that holds its logarithm: a number or an nn.Parameter

    def __init__(
        self, value: float | str, features: int | Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        number = number_of(value)
        self._dispersion = value = value if number is None else number
        setattr(self, self.dispersion_name, value)
        word = value if isinstance(value, str) else None
        if word == "learned":
            setattr(self, self.log_dispersion_name, nn.Parameter(torch.zeros(())))
        elif word == "feature":
            shape = None if features is None else check_sizes("features", features)
            learned = None if shape is None else nn.Parameter(torch.zeros(shape))
            self.register_parameter(self.log_dispersion_name, learned)
        elif word == "decoder":
            self.num_parameters = self.num_parameters + 1
        elif number is not None and 0 < number < math.inf:
            setattr(self, self.log_dispersion_name, math.log(number))
        else:
            words = '"learned", "feature" or "decoder"'
            raise ValueError(
                f"expected {self.dispersion_name} to be a finite number above 0, {words}, but got {value!r}"
            )
        if features is not None and word != "feature":
            raise ValueError(
                f'expected {self.dispersion_name} to be "feature" for features, but got {value!r}'
            )

    def extra_repr(self) -> str:
        return f"{self.dispersion_name}={self._dispersion!r}"

    def bind(self, shape: tuple[int, ...] | None) -> None:
        if self._dispersion != "feature":
            return
        learned: Tensor | None = getattr(self, self.log_dispersion_name)
        if learned is None:
            if shape is None:
                raise ValueError(
                    f'expected features to be x\'s shape for {self.dispersion_name}="feature", but got None: '
                    "the decoder does not tell it"
                )
            setattr(self, self.log_dispersion_name, nn.Parameter(torch.zeros(shape)))
        elif shape is not None and not _broadcasts(learned.shape, shape):
            raise ValueError(
                f"expected features to broadcast to the shape {shape} of x that the decoder gives, "
                f"but got {tuple(learned.shape)}"
            )

    def init_log_dispersion(self, log_value: Tensor) -> None:
        """Sets the learned parameter, if there is one, to `log_value`. Samples that are all alike give -inf: the
        parameter then keeps its value."""
        learned = getattr(self, self.log_dispersion_name, None)
        if not isinstance(learned, nn.Parameter):
            return
        value = log_value.item()
        if value == -math.inf:
            first_batch.warn_alike(self)
        elif not math.isfinite(value):
            raise ValueError(f"expected x to have a finite spread, but its logarithm is {value}")
        else:
            with torch.no_grad():
                learned.fill_(value)

    def log_dispersion(self, params: Params) -> Tensor | float:
        """The dispersion's logarithm, from the module or from the decoder."""
        own = self.own_log_dispersion()
        return params[1] if own is None else own

    def own_log_dispersion(self) -> Tensor | float | None:
        """The dispersion's logarithm where the module holds it; None where the decoder gives it."""
        if self._dispersion == "decoder":
            return None
        learned: Tensor | float | None = getattr(self, self.log_dispersion_name)
        if learned is None:
            raise ValueError(
                f'expected features to be x\'s shape for {self.dispersion_name}="feature", but got None: '
                "give it, or use a VAE whose decoder tells it"
            )
        return learned


class LocationScale(DispersionLikelihood):
    """A density of x - location over a scale: the decoder's first parameter is the location, which is the mean."""

    @property
    def is_unbounded(self) -> bool:
        """Whether the scale is learned. Towards a scale of 0 the density at the location grows without bound."""
        return isinstance(self._dispersion, str)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return params[0]

    def output_of_mean(self, mean: Tensor) -> Tensor:
        return mean


def deviations(x: Tensor) -> Tensor:
    """The deviations of x (uint8: 255ths) from its mean over the batch. Of a batch of more than 10,000 samples, at most
    10,000 are taken, evenly spaced. Exactly 0 where all samples are alike, although their mean may be rounded."""
    values = spread_rows(x).float()
    values = values / 255 if x.dtype == torch.uint8 else values
    return (values - values.mean(0)).where((values != values[:1]).any(0), 0)


def _broadcasts(shape: Sequence[int], full: Sequence[int]) -> bool:
    pairs = zip(shape[::-1], full[::-1], strict=False)
    return len(shape) <= len(full) and all(n in (1, m) for n, m in pairs)
