"""Torch's own noise for the fused normal distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import _standard_normal

from .. import functional
from ..distributions.normal import spread


def check_noise(noise: str) -> bool:
    """Whether torch's own is wanted."""
    if noise not in ("vae_fast", "torch"):
        raise ValueError(f'expected noise to be "vae_fast" or "torch", but got {noise!r}')
    return noise == "torch"


class TorchNoise:
    """Before a fused Normal among a class's bases: draws as torch.distributions.Normal does, so that a seed gives the
    same samples and the same state of the generator."""

    def rsample(self: Any, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own default)
        eps = _standard_normal(
            self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device
        )
        if len(sample_shape) or self.loc.ndim == 0:
            z: Tensor = self.loc + eps * self.scale
            return z
        raw, form = spread(self)
        return functional.reparameterize(self.loc, raw, noise=eps, **form)

    def sample(self: Any, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return torch.distributions.Normal.sample(self, sample_shape)
