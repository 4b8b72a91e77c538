"""Bernoulli and continuous Bernoulli variables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs, probs_to_logits

from .. import functional
from ._fused import log_prob, sums_events, wide


class Bernoulli(torch.distributions.Bernoulli):
    """torch.distributions.Bernoulli(probs | logits) with a fused log_prob.

    Of probs, they are held in [eps, 1 - eps] as in torch; a value that is not in [0, 1] gives NaN there, if it is not
    validated.
    """

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if "logits" in self.__dict__:
            return log_prob(functional.bernoulli_nll, value, self.logits, event_dims=event_dims)
        return log_prob(
            functional.bernoulli_nll_from_probs, value, clamp_probs(self.probs), event_dims=event_dims
        )


class ContinuousBernoulli(torch.distributions.ContinuousBernoulli):
    """torch.distributions.ContinuousBernoulli(probs | logits) with a fused log_prob, exact around probs = 1/2 too,
    where torch takes a Taylor polynomial between `lims`."""

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # Not torch's own logits of probs, which 16 bits round.
        given = "logits" in self.__dict__
        logits = self.logits if given else probs_to_logits(wide(self.probs), is_binary=True)
        return log_prob(functional.continuous_bernoulli_nll, value, logits, event_dims=event_dims)
