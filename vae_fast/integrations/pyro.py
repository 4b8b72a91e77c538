"""Pyro on the fused ops: `vae_fast.distributions` with Pyro's mixin, for plates, to_event, mask and all its ELBOs.

    vae_fast.integrations.pyro.patch()            # before a model asks pyro.distributions for its classes
    from vae_fast.integrations.pyro import Normal, Bernoulli     # or these classes by themselves

Each class is also one of Pyro's class of its name, and takes its arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import distributions as fused
from ..distributions._fused import sums_events
from ..distributions.normal import remember
from ._noise import TorchNoise, check_noise
from ._patch import Patch, Switch, import_library

import_library("pyro", "pyro-ppl")

import pyro.distributions as theirs  # noqa: E402
from pyro.distributions.util import sum_rightmost  # noqa: E402

__all__ = [*fused.__all__, "patch"]


class Normal(fused.Normal, theirs.Normal):
    pass


class TorchNoiseNormal(TorchNoise, Normal):
    """The Normal of patch(noise="torch")."""


class Bernoulli(fused.Bernoulli, theirs.Bernoulli):
    pass


class ContinuousBernoulli(fused.ContinuousBernoulli, theirs.ContinuousBernoulli):
    pass


class Laplace(fused.Laplace, theirs.Laplace):
    pass


class NegativeBinomial(fused.NegativeBinomial, theirs.NegativeBinomial):
    pass


class Independent(fused.Independent, theirs.Independent):
    """What `to_event` makes."""


class Multinomial(fused.Multinomial, theirs.Multinomial):
    pass


class ZeroInflatedNegativeBinomial(theirs.ZeroInflatedNegativeBinomial):
    log_prob = fused.ZeroInflatedNegativeBinomial.log_prob


class Poisson(fused.Poisson, theirs.Poisson):
    @sums_events
    def log_prob(self, value: Tensor, event_dims: int = 0) -> Tensor:
        """With is_sparse=True Pyro's own."""
        if not self.is_sparse:
            return fused.Poisson.log_prob(self, value, event_dims)
        return sum_rightmost(_own_poisson(self, value), event_dims)


class Categorical(fused.Categorical, theirs.Categorical):
    def log_prob(self, value: Tensor) -> Tensor:
        """Of all classes, as enumeration asks for it, Pyro's own: it is a view of the logits."""
        is_support = getattr(value, "_pyro_categorical_support", None) == id(self)
        return (_own_categorical if is_support else fused.Categorical.log_prob)(self, value)


_own_poisson, _own_categorical = theirs.Poisson.log_prob, theirs.Categorical.log_prob
remember(
    (Normal, Normal),
    (Normal, torch.distributions.Normal),
    (Independent, Independent),
    (theirs.Independent, theirs.Independent),
)

_FINGERPRINTS = {
    "1.9.2": {
        "Bernoulli": "cea76016028e3833",
        "Categorical": "adc26c2cc314e0c7",
        "ContinuousBernoulli": "58920891266958b3",
        "Independent": "56b9552119cc6ac1",
        "Laplace": "d6f8366ce81a2748",
        "Multinomial": "e898c171e4041dfe",
        "NegativeBinomial": "ac17bd2fb72befba",
        "Normal": "b4c6f1c75a209773",
        "Poisson": "17125aa0485fef91",
        "ZeroInflatedNegativeBinomial": "b51353d71f9465ba",
    }
}


def _paths(name: str) -> list[str]:
    """Where Pyro has the class."""
    home = "zero_inflated" if name.startswith("Zero") else "torch"
    return [f"pyro.distributions:{name}", f"pyro.distributions.{home}:{name}"]


KNOWN = {
    version: {path: seen for name, seen in classes.items() for path in _paths(name)}
    for version, classes in _FINGERPRINTS.items()
}
_SWITCH = Switch("pyro", "pyro-ppl", KNOWN)


def patch(*, noise: str = "vae_fast") -> Patch:
    """Has pyro.distributions give these classes: what asks for `dist.Normal` from now on, Pyro's own guides too.

    A class that a module imported by its name before (`from pyro.distributions import Normal`) stays Pyro's.

    Args:
        noise: "vae_fast" draws a Normal's samples as `vae_fast.reparameterize` does; "torch" draws them exactly as Pyro
            does, so that a seed gives the same numbers with and without the patch, within rounding.

    Returns:
        A context manager and a switch: `with patch(): ...`, or `.undo()`. Objects that were made stay as they are.

    Raises:
        RuntimeError: Pyro's code is not that of a version that is known here.
        ValueError: no such noise.
    """
    classes = {name: globals()[name] for name in fused.__all__}
    if check_noise(noise):
        classes["Normal"] = TorchNoiseNormal
    return _SWITCH.patch(lambda: {path: cls for name, cls in classes.items() for path in _paths(name)})
