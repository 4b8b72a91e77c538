"""Classes and counts of classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Binomial, Distribution
from torch.distributions.utils import lazy_property, probs_to_logits

from .. import functional


class Categorical(torch.distributions.Categorical):
    """torch.distributions.Categorical(probs | logits) with a fused log_prob: softmax and choice are one pass.

    Where arguments are not validated, logits are normalised when something else asks for them. A class that does not
    exist gives NaN, if it is not validated.
    """

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        validated = self._validate_args if validate_args is None else validate_args
        if validated or probs is not None or logits is None or logits.dim() == 0:
            super().__init__(probs, logits, validate_args)
            return
        self._raw_logits = self._param = logits
        self._num_events = logits.shape[-1]
        Distribution.__init__(self, logits.shape[:-1], validate_args=validate_args)

    @lazy_property
    def logits(self) -> Tensor:
        """Normalised."""
        if "_raw_logits" in self.__dict__:
            return torch.log_softmax(self._raw_logits, -1)
        return probs_to_logits(self.probs)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Categorical:
        new: Categorical = self._get_checked_instance(Categorical, _instance)
        if "_raw_logits" in self.__dict__:
            new._raw_logits = new._param = self._raw_logits.expand(*batch_shape, self._num_events)
        super().expand(batch_shape, _instance=new)
        return new

    def unnormalised(self) -> Tensor:
        """Logits up to a constant for each softmax."""
        raw: Tensor = self._raw_logits if "_raw_logits" in self.__dict__ else self.logits
        return raw

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits = self.unnormalised()
        shape = torch.broadcast_shapes(value.shape, logits.shape[:-1])
        full = shape or (1,)
        classes = value.long().clamp(min=-1).expand(full)  # -100 would be left out
        nll = functional.categorical_nll(logits.expand(*full, -1), classes, reduction="none")
        return -nll.view(shape)


class Multinomial(torch.distributions.Multinomial):
    """torch.distributions.Multinomial(total_count, probs | logits) with a fused log_prob, the multinomial coefficient
    included; softmax, logarithm and products are one pass."""

    def __init__(
        self,
        total_count: int = 1,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(total_count, int):
            raise NotImplementedError("inhomogeneous total_count is not supported")
        self.total_count = total_count
        self._categorical = Categorical(probs, logits, validate_args)
        shape = self._categorical.param_shape
        Distribution.__init__(self, shape[:-1], shape[-1:], validate_args=validate_args)

    _categorical: Categorical

    @lazy_property
    def _binomial(self) -> Binomial:
        return Binomial(self.total_count, probs=self.probs)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Multinomial:
        new: Multinomial = self._get_checked_instance(Multinomial, _instance)
        super().expand(batch_shape, _instance=new)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits = self._categorical.unnormalised()
        shape = torch.broadcast_shapes(value.shape, logits.shape)
        full = shape if len(shape) > 1 else (1, *shape)
        nll = functional.multinomial_nll(logits.expand(full), value.expand(full), reduction="none")
        x = value.to(nll.dtype)
        coefficient = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
        return coefficient - nll.view(shape[:-1])
