"""Likelihoods over classes: one of them for each position, or how often each occurs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import functional
from ...checks import number_of
from .base import Library, Likelihood, Params, as_numbers, check_library, uniform


class Categorical(Likelihood):
    """x (batch, ...) holds class numbers (text, labels; -100 is left out, as in torch), and the decoder gives logits
    (batch, ..., classes). `classes`, if given, is checked against the decoder.
    """

    support = "classes"
    over_classes = True

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        number = number_of(classes)
        self.classes = number if isinstance(number, int) else None
        if classes is not None and (self.classes is None or self.classes < 1):
            raise ValueError(f"classes is {classes!r}, it takes a number of at least 1")

    def extra_repr(self) -> str:
        return "" if self.classes is None else f"classes={self.classes}"

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.classes is None:
            raise ValueError("classes is not given: the decoder's shape depends on it")
        return (*shape, self.classes)

    def data_shape(self, params: Params) -> tuple[int, ...]:
        *shape, classes = params[0].shape[1:] or (0,)
        if self.classes not in (None, classes):
            raise ValueError(
                f"decoder returned {classes} numbers along the last dim, {self} takes {self.classes}"
            )
        return tuple(shape)

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x as nn.Embedding takes it; for an encoder that takes numbers, in its `dtype`."""
        if dtype is not None:
            return x.to(dtype)
        return x.long() if x.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16) else x

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.categorical_nll(params[0], x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_categorical_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """The probabilities (batch, ..., classes): the mean of x with ones and zeros for each class."""
        return params[0].softmax(-1)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        """Class numbers (batch, ...)."""
        gumbel = -torch.log(-torch.log(uniform(params[0], generator)))
        return (params[0] + gumbel).argmax(-1)


class Multinomial(Likelihood):
    """x (batch, ..., classes) counts how often each class occurs; the decoder gives logits of this shape, softmax over
    the last dim. The multinomial coefficient, which no parameter changes, is left out of the NLL. Where there is no x
    (`VAE.generate`) the number of draws is `library`.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", 2018.
    """

    support = "counts"
    over_classes = True

    def __init__(self, library: float = 1.0) -> None:
        super().__init__()
        self.default_library = check_library(library)

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return as_numbers(x, dtype)

    def library(self, x: Tensor) -> Tensor | None:
        """The number of draws, shape (batch, ...)."""
        total = x.sum(-1, dtype=torch.float32 if x.is_floating_point() and x.itemsize < 4 else None)
        return total if total.is_floating_point() else total.float()

    def nll(self, params: Params, x: Tensor) -> Tensor:
        return functional.multinomial_nll(params[0], x)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_multinomial_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """library softmax(logits); the probabilities themselves where library is 1."""
        return params[0].softmax(-1) * self._draws(params, library).unsqueeze(-1)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        probabilities = params[0].softmax(-1).flatten(0, -2)
        draws = self._draws(params, library).flatten()
        counts = torch.zeros_like(probabilities)
        if not draws.numel():
            return counts.view_as(params[0])
        most = max(1, int(draws.max().item()))
        chosen = torch.multinomial(probabilities, most, replacement=True, generator=generator)
        kept = torch.arange(most, device=draws.device) < draws.unsqueeze(1)
        return counts.scatter_add_(1, chosen, kept.to(counts.dtype)).view_as(params[0])

    def _draws(self, params: Params, library: Library) -> Tensor:
        logits = params[0]
        library = self.default_library if library is None else library
        draws = torch.as_tensor(library, dtype=torch.float32, device=logits.device)
        return draws.expand(logits.shape[:-1])
