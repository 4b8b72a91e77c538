"""The likelihood of binary images, and of grey values as probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import functional
from ...checks import check_bool
from ...rng import binarize as draw_bits
from .base import RARE, Library, Likelihood, Params


class Bernoulli(Likelihood):
    """The decoder gives logits. x is in [0, 1]. Grey values count as they are: a cross-entropy. With binarize=True they
    are the probabilities of being 1: every pass, evaluation too, draws x anew, and encoder and likelihood see the same
    draw (Salakhutdinov & Murray, 2008; Burda et al., 2016).
    """

    name = "bernoulli"
    support = "unit"

    def __init__(self, binarize: bool = False) -> None:
        super().__init__()
        self.binarize = check_bool("binarize", binarize)

    def extra_repr(self) -> str:
        return "binarize=True" if self.binarize else ""

    def output_of_mean(self, mean: Tensor) -> Tensor:
        return mean.logit(RARE)

    def observe(self, x: Tensor, rng_state: Tensor) -> Tensor:
        return draw_bits(x, rng_state) if self.binarize else x

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.bernoulli_nll(params[0], x, mask=mask, reduction=reduction)

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        return F.binary_cross_entropy_with_logits(params[0], x, reduction="none")

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_bernoulli_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        return params[0].sigmoid()

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        return torch.bernoulli(self.mean(params), generator=generator)
