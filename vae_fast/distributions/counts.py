"""Counts: Poisson, negative binomial and its zero-inflated form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all, lazy_property, logits_to_probs, probs_to_logits

from .. import functional
from ..likelihoods.counts import EPS
from ._fused import log_prob, sums_events, wide

_LEAST = 1e-12


def bare(parameter: Tensor) -> Tensor:
    """Less what the kernels add, as scvi-tools does; torch.distributions does not. Negative stays negative: NaN."""
    return torch.where(parameter.abs() < _LEAST, _LEAST, parameter) - EPS


class Poisson(torch.distributions.Poisson):
    """torch.distributions.Poisson(rate) with a fused log_prob, accurate where rate and value are large and nearly
    equal.

    A rate below 1e-12 counts as 1e-12: log_prob is finite where torch gives -inf.
    """

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return log_prob(
            functional.poisson_nll, value, bare(wide(self.rate)), event_dims=event_dims, counts=True
        )


class NegativeBinomial(torch.distributions.NegativeBinomial):
    """torch.distributions.NegativeBinomial(total_count, probs | logits) with a fused log_prob, accurate for large
    total_count too, where torch's lgammas cancel.

    It is computed of the mean total_count·exp(logits), which is infinite for float32 logits from 88 on. A mean or
    total_count below 1e-12 counts as 1e-12, as in `Poisson`.
    """

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return log_prob(
            functional.negative_binomial_nll, value, *mean_and_theta(self), event_dims=event_dims, counts=True
        )


def mean_and_theta(base: torch.distributions.NegativeBinomial) -> tuple[Tensor, Tensor]:
    """As the kernels take them."""
    theta = wide(base.total_count)
    return bare(theta * torch.exp(wide(base.logits))), bare(theta)


class ZeroInflatedNegativeBinomial(Distribution):
    """A negative binomial count that drops out, that is becomes 0, with probability `gate`.

        p(x) = gate [x = 0] + (1 - gate) NB(x; total_count, probs)

    Args:
        total_count, probs, logits: as in `NegativeBinomial`, by name from probs on.
        gate, gate_logits: the probability of dropping out, or its logit; one of the two. All broadcast.
        validate_args: as in torch.distributions.

    Arguments and attributes are those of Pyro's class of this name. `log_prob` is fused.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018.
    """

    arg_constraints = {"gate": constraints.unit_interval, "gate_logits": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(
        self,
        total_count: Tensor | float,
        *,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        gate: Tensor | float | None = None,
        gate_logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (gate is None) == (gate_logits is None):
            raise ValueError("Either `gate` or `gate_logits` must be specified, but not both.")
        base = NegativeBinomial(total_count, probs, logits, validate_args)
        name, given = ("gate", gate) if gate_logits is None else ("gate_logits", gate_logits)
        _, value = broadcast_all(base._param, given)  # type: ignore[arg-type]
        setattr(self, name, value)
        self.base_dist = base.expand(value.shape)
        super().__init__(value.shape, validate_args=validate_args)

    @property
    def total_count(self) -> Tensor:
        return self.base_dist.total_count

    @property
    def probs(self) -> Tensor:
        return self.base_dist.probs

    @property
    def logits(self) -> Tensor:
        return self.base_dist.logits

    @lazy_property
    def gate(self) -> Tensor:
        return logits_to_probs(self.gate_logits, is_binary=True)

    @lazy_property
    def gate_logits(self) -> Tensor:
        return probs_to_logits(self.gate, is_binary=True)

    @property
    def mean(self) -> Tensor:
        return (1 - self.gate) * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        mean = self.base_dist.mean
        return (1 - self.gate) * (self.base_dist.variance + self.gate * mean**2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroInflatedNegativeBinomial:
        new: ZeroInflatedNegativeBinomial = self._get_checked_instance(
            ZeroInflatedNegativeBinomial, _instance
        )
        shape = torch.Size(batch_shape)
        for name in {"gate", "gate_logits"} & self.__dict__.keys():
            setattr(new, name, getattr(self, name).expand(shape))
        new.base_dist = self.base_dist.expand(shape)
        Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own default)
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            counts = self.base_dist.sample(sample_shape)
            return torch.where(torch.bernoulli(self.gate.expand(shape)).bool(), 0.0, counts)

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return log_prob(
            functional.zero_inflated_negative_binomial_nll,
            value,
            *mean_and_theta(self.base_dist),
            wide(self.gate_logits),
            event_dims=event_dims,
            counts=True,
        )
