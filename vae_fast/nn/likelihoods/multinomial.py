"""The likelihood of how often each class occurs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import functional
from ...likelihoods.csr import is_csr
from ..sparse import row_sums
from .base import Library, Likelihood, Params
from .base_counts import as_numbers, centered_log, check_library


class Multinomial(Likelihood):
    """x (batch, ..., classes) counts how often each class occurs. The decoder gives logits of this shape, softmax over
    the last dim. The NLL leaves out the multinomial coefficient, which no parameter changes. Without an x
    (`VAE.generate`) the number of draws is `library`.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", 2018.
    """

    name = "multinomial"
    support = "counts"
    over_classes = True

    def __init__(self, library: float = 1.0) -> None:
        super().__init__()
        self.default_library = check_library(library)

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return as_numbers(x, dtype)

    def library(self, x: Tensor) -> Tensor | None:
        """The number of draws, shape (batch, ...)."""
        if is_csr(x):
            return row_sums(x)
        total = x.sum(-1, dtype=torch.float32 if x.is_floating_point() and x.itemsize < 4 else None)
        return total if total.is_floating_point() else total.float()

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.multinomial_nll(params[0], x, mask=mask, reduction=reduction)

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        return -x * F.log_softmax(params[0], dim=-1)

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return functional.linear_multinomial_nll(hidden, weight, bias, x)

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """library softmax(logits): the probabilities where library is 1."""
        return params[0].softmax(-1) * self._draws(params, library).unsqueeze(-1)

    def output_of_mean(self, mean: Tensor) -> Tensor:
        return centered_log(mean)

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
