"""The likelihood of a table: each column has the distribution of its kind, and entries may be missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_bool, check_int
from .base import Library, Likelihood, Params
from .base_counts import Counts
from .bernoulli import Bernoulli
from .categorical import Categorical
from .discretized_logistic_mixture import DiscretizedLogisticMixture
from .multinomial import Multinomial

Group = tuple[str | Likelihood, int] | tuple[str | Likelihood, int, dict[str, Any]]
# A group's likelihood, its columns of x, and its parameters.
Part = tuple[Likelihood, slice, Params]


class MixedColumns(Likelihood):
    """A table's likelihood. Its columns are independent given z:

        -log p(x | z) = sum over groups of -log p(x[:, columns of the group] | z)

    Args:
        groups: (likelihood, columns) or (likelihood, columns, options) in the order of x's columns. The likelihood is a
            name in `LIKELIHOODS` or a `Likelihood`:

            [("gaussian", 5, {"variance": "feature"}), ("categorical", 2, {"classes": 4}), ("bernoulli", 3),
             ("poisson", 2)]

            A categorical group needs `classes`. A group of counts has link "exp" by default: the columns of a table
            are no shares of a library. Not in a table: "multinomial", "discretized_logistic_mixture", link "softmax"
            and binarize, whose numbers are not of one column each.
        encoder_mask: whether the encoder gets, after the columns, 1 for each entry that is there and 0 for each that
            is missing.

    x is (batch, columns), floating: class numbers, bits and counts too. NaN is a missing entry: it adds nothing to
    the nll, its gradient is 0, and the encoder gets 0 for it. So the lower bound is that of the entries that are there
    (Nazabal et al., equation 4; zero imputation in the encoder). The encoder gets counts as log(1 + x), classes as one
    column for each class, other columns as they are: standardize them before. Its input has `encoder_features` columns
    (`MLPEncoder(likelihood.encoder_features, ...)`).

    The decoder gives `decoder_features` numbers (`MLPDecoder(..., likelihood.decoder_features)`), or a tensor for each
    group. A group has those of its first parameter for all its columns, then of the second; a categorical column has
    `classes` logits.

    `mean` and `sample` are tables as x is; `mean` has the most probable class where `expectation` has probabilities.

    Source: Nazabal et al., "Handling incomplete heterogeneous data using VAEs", 2020 (HI-VAE; without its mixture and
    hierarchy).
    """

    takes_missing = True

    def __init__(self, groups: Sequence[Group], encoder_mask: bool = False) -> None:
        super().__init__()
        made = [_make(*group) for group in groups]
        if not made:
            raise ValueError("expected groups to have at least one (likelihood, columns), but got none")
        self.groups = nn.ModuleList([likelihood for likelihood, _ in made])
        self.encoder_mask = check_bool("encoder_mask", encoder_mask)
        sizes = [columns for _, columns in made]
        self.columns = sum(sizes)
        ends = list(accumulate(sizes))
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._outputs = [
            likelihood.num_parameters * math.prod(likelihood.parameter_shape((size,)))
            for likelihood, size in made
        ]
        self.decoder_features = sum(self._outputs)
        self.encoder_features = sum(n * (_classes(likelihood) or 1) for likelihood, n in made)
        self.encoder_features += self.columns * self.encoder_mask

    def arguments(self) -> dict[str, Any]:
        sizes = [columns.stop - columns.start for columns in self.slices]
        return {
            "groups": list(zip(self.groups, sizes, strict=True)),
            "encoder_mask": self.encoder_mask,
        }

    def extra_repr(self) -> str:
        return f"columns={self.columns}, encoder_mask={self.encoder_mask}"

    def __str__(self) -> str:
        return f"MixedColumns of {self.columns} columns"

    @property
    def is_unbounded(self) -> bool:
        return any(likelihood.is_unbounded for likelihood in self._likelihoods())

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.decoder_features,)

    def data_shape(self, params: Params) -> tuple[int, ...]:
        return (self.columns,)

    def encoder_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.encoder_features,)

    def split(self, output: Tensor | Sequence[Tensor]) -> Params:
        """The parameters of all groups, one after the other: views of the decoder's output."""
        if isinstance(output, Tensor):
            if output.ndim != 2 or output.shape[1] != self.decoder_features:
                raise ValueError(
                    f"expected decoder to return {self.decoder_features} numbers for each sample for {self}, "
                    f"but got shape {tuple(output.shape)}"
                )
            output = output.split(self._outputs, dim=1)  # one pass over the gradient
        if [o.shape[-1] for o in output] != self._outputs:
            raise ValueError(
                f"expected decoder to return tensors of {self._outputs} numbers for the groups of {self}, "
                f"but got {[o.shape[-1] for o in output]}"
            )
        params: list[Tensor] = []
        for likelihood, part in zip(self._likelihoods(), output, strict=True):
            classes = _classes(likelihood)
            params += likelihood.split(part if classes is None else part.unflatten(-1, (-1, classes)))
        return tuple(params)

    def check(self, x: Tensor, classes: int | None = None) -> None:
        """Each group's own check, of the entries that are there."""
        if not x.is_floating_point():
            raise TypeError(
                f"expected x to be floating for {self}, class numbers and counts too, but got {x.dtype}"
            )
        if x.shape[1:] != (self.columns,):
            raise ValueError(
                f"expected x to have shape (batch, {self.columns}) for {self}, but got {tuple(x.shape)}"
            )
        x = x.detach()
        for likelihood, columns in zip(self._likelihoods(), self.slices, strict=True):
            part = _filled(x[:, columns])
            classes = _classes(likelihood)
            try:
                if classes is not None:
                    if (part != part.round()).any():
                        raise ValueError(
                            f"expected x to hold class numbers for {likelihood}, but got fractions"
                        )
                    part = part.clamp(-1, classes).long()  # infinities too
                likelihood.check(part, classes)
            except ValueError as error:
                place = f"columns {columns.start} to {columns.stop - 1} of x"
                raise ValueError(f"{place}: {error}") from None

    def start(self, x: Tensor) -> None:
        for likelihood, columns in zip(self._likelihoods(), self.slices, strict=True):
            part = x[:, columns].float()
            seen = ~part.isnan()
            if likelihood.support in ("real", "unit") and seen.any():
                likelihood.start((part - part.nanmean(0))[seen])  # the start is one of deviations alone

    def start_bias(self, bias: Tensor, x: Tensor) -> None:
        """Each group's own, of the entries that are there."""
        parts = bias.split(self._outputs)
        for likelihood, columns, part in zip(self._likelihoods(), self.slices, parts, strict=True):
            values, classes = x[:, columns], _classes(likelihood)
            if classes is None:
                likelihood.start_bias(part, values)
            else:
                likelihood.start_bias(part.view(-1, classes), values.nan_to_num(-1))

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        seen = x == x  # not NaN
        parts = []
        for likelihood, columns in zip(self._likelihoods(), self.slices, strict=True):
            part, classes = x[:, columns], _classes(likelihood)
            if classes is not None:
                numbers = torch.arange(classes, dtype=x.dtype, device=x.device)
                parts.append((part.unsqueeze(-1) == numbers).flatten(1).to(x.dtype))  # NaN is no class
                continue
            part = part.where(seen[:, columns], 0)
            parts.append(part.log1p() if likelihood.support == "counts" else part)
        if self.encoder_mask:
            parts.append(seen.to(x.dtype))
        return torch.cat(parts, 1).to(x.dtype if dtype is None else dtype)

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        seen = x == x if mask is None else (x == x) & mask
        terms = []
        for likelihood, columns, own in self._parts(params):
            part = x[:, columns]
            if likelihood.over_classes:
                part = part.to(torch.int32)
            terms.append(likelihood.nll(own, part, seen[:, columns], reduction))
        return sum(terms[1:], terms[0]) if reduction == "sample" else torch.cat(terms, -1)

    @property
    def has_linear_nll(self) -> bool:
        return False  # a table has few columns: its parameters are small beside the hidden layers

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        raise NotImplementedError

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return self.point(self.expectation(params, library))

    def expectation(self, params: Params, library: Library = None) -> Tensor:
        """(batch, ...): the mean of each column, the probabilities of each class."""
        _check_no_library(library)
        return torch.cat([likelihood.mean(own).flatten(1) for likelihood, _, own in self._parts(params)], 1)

    def point(self, expectation: Tensor) -> Tensor:
        """The table (batch, columns) of an expectation: the most probable class."""
        sizes = [
            (columns.stop - columns.start) * (_classes(likelihood) or 1)
            for likelihood, columns in zip(self._likelihoods(), self.slices, strict=True)
        ]
        parts = list(expectation.split(sizes, dim=1))
        for i, likelihood in enumerate(self._likelihoods()):
            if (classes := _classes(likelihood)) is not None:
                parts[i] = parts[i].unflatten(1, (-1, classes)).argmax(-1).to(expectation.dtype)
        return torch.cat(parts, 1)

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        _check_no_library(library)
        dtype = params[0].dtype
        return torch.cat([p.sample(own, generator).to(dtype) for p, _, own in self._parts(params)], 1)

    def _likelihoods(self) -> Iterator[Likelihood]:
        return iter(self.groups)  # type: ignore[arg-type]

    def _parts(self, params: Params) -> Iterator[Part]:
        first = 0
        for likelihood, columns in zip(self._likelihoods(), self.slices, strict=True):
            n = likelihood.num_parameters
            yield likelihood, columns, params[first : first + n]
            first += n


def _make(
    likelihood: str | Likelihood, columns: int, options: dict[str, Any] | None = None
) -> tuple[Likelihood, int]:
    from . import LIKELIHOODS, make_likelihood

    options = dict(options or {})
    if isinstance(likelihood, str) and issubclass(LIKELIHOODS.get(likelihood, Likelihood), Counts):
        options.setdefault("link", "exp")
    made = make_likelihood(likelihood, **options)
    if (
        isinstance(made, (DiscretizedLogisticMixture, Multinomial, MixedColumns))
        or (isinstance(made, Counts) and made.link == "softmax")
        or (isinstance(made, Bernoulli) and made.binarize)
    ):
        raise ValueError(f"expected a likelihood of single columns in groups, but got {made}")
    columns = check_int("columns", columns, 1)
    made.parameter_shape((columns,))  # raises for a categorical one without classes
    made.bind((columns,))
    return made, columns


def _classes(likelihood: Likelihood) -> int | None:
    return likelihood.classes if isinstance(likelihood, Categorical) else None


def _filled(x: Tensor) -> Tensor:
    """The missing entries replaced by a value of their column; 0 where the column has none."""
    x = x.where(~x.isnan(), x.nanmedian(0).values)
    return x.where(~x.isnan(), 0)


def _check_no_library(library: Library) -> None:
    if library is not None:
        raise ValueError("expected no library for MixedColumns, whose counts are no shares of one")
