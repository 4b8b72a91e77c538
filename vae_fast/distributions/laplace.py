"""A Laplace variable."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ._fused import log_prob, sums_events, wide
from .normal import exchanged


class Laplace(torch.distributions.Laplace):
    """torch.distributions.Laplace(loc, scale) with a fused log_prob, whose gradient by a value that learns is fused
    too."""

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        loc, value = exchanged(self.loc, value)
        return log_prob(
            functional.laplace_nll, value, loc, torch.log(wide(self.scale)), event_dims=event_dims
        )
