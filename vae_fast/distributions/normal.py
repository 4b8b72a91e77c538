"""A normal variable: samples, densities and KL divergences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl as torch_kl
from torch.distributions.utils import broadcast_all, lazy_property

from .. import functional
from ._fused import log_prob, sums_events, wide


class _computed(lazy_property):  # type: ignore[type-arg]
    """A lazy_property that keeps nothing: what is computed from parameters that learn belongs to one backward pass."""

    def __get__(self, instance: Any, obj_type: Any = None) -> Any:
        return super().__get__(None, obj_type) if instance is None else self.wrapped(instance)


class Normal(torch.distributions.Normal):
    """torch.distributions.Normal(loc, scale) with fused rsample, log_prob and KL divergence.

    `kl_divergence` of two, or of one and torch's own, is one kernel each way, exact near the prior. The noise of
    `rsample` and `sample` is vae_fast's: repeated by torch.manual_seed, never stored, and made again in backward.
    Samples have loc's dtype.
    """

    _raw: Tensor  # of from_logvar
    _epsilon: float

    @classmethod
    def from_logvar(
        cls, loc: Tensor, logvar: Tensor, *, epsilon: float = 0.0, validate_args: bool | None = None
    ) -> Normal:
        """N(loc, exp(logvar) + epsilon), of tensors that broadcast, as an encoder gives them. `scale` is computed when
        it is asked for: nothing here needs it."""
        new: Normal = cls.__new__(cls)
        new.loc, new._raw = broadcast_all(loc, logvar)
        new._epsilon = epsilon
        torch.distributions.Distribution.__init__(new, new.loc.shape, validate_args=validate_args)
        return new

    @_computed
    def scale(self) -> Tensor:
        return torch.exp(0.5 * self.logvar) if self._epsilon == 0 else self._variance().sqrt()

    @property
    def logvar(self) -> Tensor:
        """The natural log of the variance; it broadcasts to loc."""
        if "_raw" not in self.__dict__:
            return torch.log(wide(self.scale)).mul_(2)
        return self._raw if self._epsilon == 0 else torch.log(self._variance())

    def _variance(self) -> Tensor:
        return torch.exp(self._raw) + self._epsilon

    def expand(self, batch_shape: Any, _instance: Any = None) -> Normal:
        new: Normal = self._get_checked_instance(Normal, _instance)
        shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(shape)
        for name in {"scale", "_raw"} & self.__dict__.keys():
            setattr(new, name, getattr(self, name).expand(shape))
        if "_epsilon" in self.__dict__:
            new._epsilon = self._epsilon
        torch.distributions.Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own default)
        shape = self._extended_shape(sample_shape)
        draws = torch.Size(sample_shape).numel() if len(sample_shape) else None
        raw, form = spread(self)
        if shape.numel() == 0:
            return (self.loc + raw).to(self.loc.dtype).expand(shape)
        full = self._batch_shape or (1,)
        z = functional.reparameterize(self.loc.expand(full), raw.expand(full), num_samples=draws, **form)
        return z.view(shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.rsample(sample_shape)

    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        loc, value = exchanged(self.loc, value)
        return log_prob(functional.gaussian_nll, value, loc, self.logvar, event_dims=event_dims)


def exchanged(loc: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(loc, value) for a density of their distance, so that the value does not learn: kernels take it as data."""
    if not value.requires_grad:
        return loc, value
    return (value, loc) if not loc.requires_grad else (value - loc, loc.new_zeros(()))


def spread(normal: torch.distributions.Normal) -> tuple[Tensor, dict[str, Any]]:
    """What the kernels read beside loc, in its shape, and how they are to read it."""
    if isinstance(normal, Normal) and "_raw" in normal.__dict__:
        return normal._raw, {"epsilon": normal._epsilon}
    return normal.scale, {"parametrization": "std"}


def _kl(p: torch.distributions.Normal, q: torch.distributions.Normal) -> Tensor:
    """KL(p || q) of each element."""
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    full = shape or (1,)
    raw, form = spread(p)
    prior = (q.loc, q.logvar if isinstance(q, Normal) else torch.log(wide(q.scale)).mul_(2))
    kl = functional.kl_divergence(p.loc.expand(full), raw.expand(full), prior=prior, reduction="none", **form)
    return kl.view(shape)


def remember(*pairs: tuple[type, type]) -> None:
    """Looks the KL divergence of these up: torch.compile cannot trace the look-up, only what torch kept of it."""
    for pair in pairs:
        torch_kl._KL_MEMOIZE[pair] = torch_kl._dispatch_kl(*pair)


_PAIRS = ((Normal, Normal), (Normal, torch.distributions.Normal), (torch.distributions.Normal, Normal))
for _pair in _PAIRS:
    torch_kl.register_kl(*_pair)(_kl)
remember(*_PAIRS, (torch.distributions.Independent,) * 2)
