"""The likelihood of a class at every position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from ...checks import number_of
from .base import RARE, Library, Likelihood, Params, set_finite, uniform


class Categorical(Likelihood):
    """x (batch, ...) holds class numbers: text, labels; -100 is left out, as in torch. The decoder gives logits
    (batch, ..., classes). `classes`, if given, is checked against the decoder.
    """

    name = "categorical"
    support = "classes"
    over_classes = True

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        number = number_of(classes)
        self.classes = number if isinstance(number, int) else None
        if classes is not None and (self.classes is None or self.classes < 1):
            raise ValueError(f"expected classes to be an int of at least 1, but got {classes!r}")

    def extra_repr(self) -> str:
        return "" if self.classes is None else f"classes={self.classes}"

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.classes is None:
            raise ValueError("expected classes to be an int, but got None: the decoder's shape depends on it")
        return (*shape, self.classes)

    def data_shape(self, params: Params) -> tuple[int, ...]:
        *shape, classes = params[0].shape[1:] or (0,)
        if self.classes not in (None, classes):
            raise ValueError(
                f"expected decoder to return {self.classes} numbers along the last dim for {self}, but got {classes}"
            )
        return tuple(shape)

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x in `dtype` for an encoder that takes numbers. Without a dtype, x as nn.Embedding takes it."""
        if dtype is not None:
            return x.to(dtype)
        if x.is_floating_point():
            raise TypeError(f"expected class numbers of an integer dtype for the encoder, but got {x.dtype}")
        return x.long() if x.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16) else x

    def start_bias(self, bias: Tensor, x: Tensor) -> None:
        """To the frequencies of the classes at each position; of a bias (classes,), at all positions together."""
        positions = x.flatten(1).T.long() if bias.ndim > 1 else x.reshape(1, -1).long()
        classes = bias.shape[-1]
        is_class = (positions >= 0) & (positions < classes)
        counts = torch.zeros(len(positions), classes, device=x.device)
        counts.scatter_add_(1, positions.where(is_class, 0), is_class.float())
        logits = (counts / counts.sum(1, keepdim=True)).clamp_min(RARE).log()
        set_finite(bias, (logits - logits.mean(1, keepdim=True)).view_as(bias))

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.categorical_nll(params[0], x, mask=mask, reduction=reduction)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_categorical_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """The probabilities (batch, ..., classes): the mean of x with ones and zeros for each class."""
        return params[0].softmax(-1)

    def point(self, expectation: Tensor) -> Tensor:
        return expectation.argmax(-1)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        """Class numbers (batch, ...)."""
        gumbel = -torch.log(-torch.log(uniform(params[0], generator)))
        return (params[0] + gumbel).argmax(-1)
