"""Several variables as one event."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .normal import remember


class Independent(torch.distributions.Independent):  # type: ignore[type-arg]
    """torch.distributions.Independent(base, reinterpreted_batch_ndims) whose log_prob sums over the event in base's
    kernel, where base is one of these classes and at most one dim is not of the event."""

    def log_prob(self, value: Tensor) -> Tensor:
        base: Any = self.base_dist
        if getattr(type(base).log_prob, "sums_events", False):
            summed: Tensor = base.log_prob(value, self.reinterpreted_batch_ndims)
            return summed
        return super().log_prob(value)


remember((Independent, Independent))
