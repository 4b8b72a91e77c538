"""Likelihoods of counts: x holds whole numbers of at least 0, in any dtype (uint8: the number itself)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...checks import number_of
from ...likelihoods.csr import is_csr
from ..sparse import row_sums
from .base import RARE, Library, Likelihood, Params

LINKS = ("softmax", "exp", "softplus")


class Counts(Likelihood):
    """A likelihood of counts. `link` makes their mean from the decoder's first output y:

    "softmax"    library softmax(y), over all dims but the batch: y says which share of a sample's counts falls to each
                 feature. The library size is the sample's number of counts, sum x, as in scvi-tools (Lopez et al.,
                 2018). Without an x (`VAE.generate`) it is the option `library`.
    "exp"        exp(y)
    "softplus"   log(1 + exp(y))
    """

    support = "counts"

    def __init__(self, link: str = "softmax", library: float = 1e4) -> None:
        super().__init__()
        if link not in LINKS:
            raise ValueError(f"expected link to be one of {', '.join(LINKS)}, but got {link!r}")
        self.link, self.default_library = link, check_library(library)

    @property
    def has_linear_nll(self) -> bool:
        return self.link != "softplus"

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return as_numbers(x, dtype)

    def library(self, x: Tensor) -> Tensor | None:
        """The library size: sum x of each sample, shape (batch,)."""
        if self.link != "softmax":
            return None
        if is_csr(x):
            return row_sums(x)
        total = x.flatten(1).sum(1, dtype=torch.float32 if x.is_floating_point() and x.itemsize < 4 else None)
        return total if total.is_floating_point() else total.float()

    def rate(self, output: Tensor, library: Library, ndim: int | None = None) -> Tensor:
        """The mean of the counts before any dropout. `ndim`: x's, where the output may have draws before it."""
        if self.link == "softmax":
            ndim = output.ndim if ndim is None else ndim
            library = self.default_library if library is None else library
            if isinstance(library, Tensor) and library.ndim:
                library = library.unsqueeze(1)
            return (output.flatten(1 - ndim).softmax(-1) * library).view_as(output)
        if library is not None:
            raise ValueError(f'expected link to be "softmax" for library, but got {self}')
        return output.exp() if self.link == "exp" else F.softplus(output)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return self.rate(params[0], library)

    def output_of_mean(self, mean: Tensor) -> Tensor:
        """Of the counts before any dropout."""
        mean = mean.clamp_min(RARE)
        if self.link == "softplus":
            return mean + (-(-mean).expm1()).log()
        return mean.log() if self.link == "exp" else centered_log(mean)


def centered_log(mean: Tensor) -> Tensor:
    """The logits of a softmax in proportion to the mean; of logits that add up to 0 none is far away."""
    logits = mean.clamp_min(RARE).log()
    return logits - logits.mean()


def check_library(library: float) -> float:
    number = number_of(library)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"expected library to be a finite number above 0, but got {library!r}")
    return float(number)


def as_numbers(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Counts in `dtype`. Without one, floats stay as they are and other dtypes become torch's default. CSR stays, too:
    the layer that takes it converts its values."""
    if is_csr(x):
        return x
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return x.to(dtype)
