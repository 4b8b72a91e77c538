"""What every likelihood has: how a decoder's output is read, p(x | z), its mean and its samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...checks import check_sizes, number_of
from .. import first_batch

Params = tuple[Tensor, ...]
Library = Tensor | float | None


class Likelihood(nn.Module, ABC):
    """How a decoder's output is read as a distribution of x.

    The decoder returns `num_parameters` tensors of x's shape, or one with them side by side along dim 1. (The classes
    that read another shape say so.)
    """

    num_parameters = 1
    support = "real"  # x's values: "real", "unit" (0 to 1; uint8: 255ths), "counts" or "classes" (both: uint8 as it is)
    over_classes = False  # a softmax over the last dim: a layer that makes several of them is not fused
    binarize = False  # x is drawn anew from its grey values in every pass: `observe`

    def split(self, output: Tensor | Sequence[Tensor]) -> Params:
        """The distribution's parameters, one tensor each, from what the decoder returned."""
        n = self.num_parameters
        if not isinstance(output, Tensor):
            params = tuple(output)
            if len(params) != n:
                raise ValueError(f"decoder returned {len(params)} tensors, {self} takes {n}")
            return params
        if n == 1:
            return (output,)
        if output.ndim < 2 or output.shape[1] % n:
            raise ValueError(
                f"decoder returned shape {tuple(output.shape)}, {self} takes {n} parameters along dim 1: "
                f"a multiple of {n}"
            )
        return output.chunk(n, dim=1)

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A parameter's shape for x of `shape`, both without the batch."""
        return tuple(shape)

    def data_shape(self, params: Params) -> tuple[int, ...]:
        """x's shape, without the batch, that belongs to these parameters. ValueError if there is none."""
        return tuple(params[0].shape[1:])

    def bind(self, shape: tuple[int, ...] | None) -> None:
        """Told x's shape (None if it cannot be known) when the VAE is made: parameters of x's shape are made then."""

    @property
    def is_unbounded(self) -> bool:
        """Whether -log p has no lowest value where all samples are alike."""
        return False

    def start(self, x: Tensor) -> None:
        """Sets what is learned beside the networks to where a decoder of nothing but the mean of x would bring it."""

    def observe(self, x: Tensor, rng_state: Tensor) -> Tensor:
        """The x that encoder and likelihood are given, where `binarize` says that it is not the very data."""
        return x

    def check(self, x: Tensor, classes: int | None = None) -> None:
        """Raises TypeError or ValueError where the batch x is outside of the support, and warns where it may be meant
        otherwise. Waits for the device. `classes` is the size of the decoder's last dim, None if it is not known."""
        first_batch.check(x, self, classes)

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x as the encoder is given it, in its `dtype`: uint8 as 255ths, bool as 0 and 1. Without a dtype these two are
        in torch's default, and others stay as they are."""
        if x.dtype is not torch.uint8:
            if dtype is None and x.dtype is torch.bool:
                dtype = torch.get_default_dtype()
            return x if dtype is None else x.to(dtype)
        if dtype is None or dtype is torch.get_default_dtype():
            return x / 255  # one pass
        return x.to(dtype) / 255

    def library(self, x: Tensor) -> Tensor | None:
        """What of x itself the mean needs: the number of counts in each sample. None where it needs nothing."""
        return None

    @abstractmethod
    def nll(self, params: Params, x: Tensor) -> Tensor:
        """-log p(x | z) in nats, shape (batch,)."""

    @property
    def has_linear_nll(self) -> bool:
        return True

    @abstractmethod
    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """`nll` where the parameters are the outputs of a linear layer, one after the other, each in x's shape."""

    @abstractmethod
    def mean(self, params: Params, library: Library = None) -> Tensor:
        """The mean of p(x | z), of x's shape."""

    @abstractmethod
    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        """A draw from p(x | z), of x's shape."""


class Spread(Likelihood):
    """A likelihood with a parameter that need not come from the decoder; the class names it in `option`.

    a number     fixed;
    "learned"    one for all x, learned;
    "feature"    one for each feature, learned. Its shape is x's without the batch: known from the decoder where its
                 output size is, else given as `features` (as any shape that broadcasts to x's);
    "decoder"    one for every element: the decoder's second parameter.

    What is learned is a logarithm, and starts at 0.
    """

    option: ClassVar[str]  # the constructor's name for it
    parameter: ClassVar[str]  # the attribute's, which is its logarithm: a number or a parameter of the module

    def __init__(
        self, value: float | str, features: int | Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        number = number_of(value)
        self._value = value = value if number is None else number
        setattr(self, self.option, value)
        word = value if isinstance(value, str) else None
        if word == "learned":
            setattr(self, self.parameter, nn.Parameter(torch.zeros(())))
        elif word == "feature":
            self.register_parameter(self.parameter, None)
            if features is not None:
                setattr(self, self.parameter, nn.Parameter(torch.zeros(check_sizes("features", features))))
        elif word == "decoder":
            self.num_parameters = self.num_parameters + 1
        elif number is not None and 0 < number < math.inf:
            setattr(self, self.parameter, math.log(number))
        else:
            words = '"learned", "feature" or "decoder"'
            raise ValueError(f"{self.option} is {value!r}, it takes a number above 0, {words}")
        if features is not None and word != "feature":
            raise ValueError(f'features is of {self.option}="feature", {self.option} is {value!r}')

    def extra_repr(self) -> str:
        return f"{self.option}={self._value!r}"

    def bind(self, shape: tuple[int, ...] | None) -> None:
        if self._value != "feature":
            return
        learned: Tensor | None = getattr(self, self.parameter)
        if learned is None:
            if shape is None:
                raise ValueError(
                    f'{self.option}="feature" takes features=, x\'s shape: the decoder does not tell it'
                )
            setattr(self, self.parameter, nn.Parameter(torch.zeros(shape)))
        elif shape is not None and not _broadcasts(learned.shape, shape):
            raise ValueError(f"features is {tuple(learned.shape)}, the decoder gives x of shape {shape}")

    def fill(self, log_value: Tensor) -> None:
        """Sets what is learned, if anything is. A spread of 0, that of samples that are alike, would be -inf: then what
        is learned stays at its start."""
        learned = getattr(self, self.parameter, None)
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

    def spread(self, params: Params) -> Tensor | float:
        """The parameter's logarithm."""
        fixed = self.fixed()
        return params[1] if fixed is None else fixed

    def fixed(self) -> Tensor | float | None:
        """The same, or None where the decoder gives it."""
        if self._value == "decoder":
            return None
        learned: Tensor | float | None = getattr(self, self.parameter)
        if learned is None:
            raise ValueError(
                f'{self.option}="feature" takes features=, or a VAE whose decoder tells x\'s shape'
            )
        return learned


def _broadcasts(shape: Sequence[int], full: Sequence[int]) -> bool:
    pairs = zip(shape[::-1], full[::-1], strict=False)
    return len(shape) <= len(full) and all(n in (1, m) for n, m in pairs)


def check_library(library: float) -> float:
    number = number_of(library)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"library is {library!r}, it takes a number above 0")
    return float(number)


def as_numbers(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Counts in `dtype`; None: as they are where that is floating, else in torch's default."""
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return x.to(dtype)


def deviations(x: Tensor) -> Tensor:
    """Of uint8 (255ths) or floats from their means over the batch; of 10,000 samples, evenly spaced, of a larger one.
    Exactly 0 where all are alike: their mean may be rounded."""
    values = x[:: max(1, -(-len(x) // 10_000))].float()
    values = values / 255 if x.dtype == torch.uint8 else values
    return (values - values.mean(0)).where((values != values[:1]).any(0), 0)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """In (0, 1), float32 at least, no nearer to 0 than to 1: its logarithm and that of 1 - u are finite."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    u = torch.rand(like.shape, generator=generator, dtype=dtype, device=like.device)
    return u.clamp_min(torch.finfo(dtype).eps / 2)
