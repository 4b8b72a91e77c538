"""diffusers' posteriors on the fused ops: one line, and every autoencoder that has one of them uses it.

    vae_fast.integrations.diffusers.patch()

Replaced are the methods of DiagonalGaussianDistribution and OobleckDiagonalGaussianDistribution, which 60 modules
import by name. std and var are computed when they are asked for. Arithmetic is in float32 for 16-bit parameters, and so
are kl and nll, which are then finite where sums or variances leave float16; samples have the parameters' dtype and
layout. A sample that learns brings its KL divergence along, so that both are one pass forward and one back.

Objects that were made before the patch take part in it; those that are made while it is on stay as they are after
`undo()`. The distribution is that of `parameters`: an assignment to one of its parts does not change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.distributions.utils import lazy_property

from .. import functional
from ..backends.contract import Generators
from ..checks import check_generator_count
from ..distributions.normal import exchanged
from ..rng import draw_rng_state
from ._noise import check_noise
from ._patch import Patch, Switch

_GAUSSIAN = "diffusers.models.autoencoders.vae:DiagonalGaussianDistribution"
_OOBLECK = "diffusers.models.autoencoders.autoencoder_oobleck:OobleckDiagonalGaussianDistribution"
KNOWN = {
    "0.42.1": {
        _GAUSSIAN + ".__init__": "0c4dd41cd40cf078",
        _GAUSSIAN + ".sample": "a77f29156fa19e2e",
        _GAUSSIAN + ".kl": "9fccbee087fbbf9f",
        _GAUSSIAN + ".nll": "1dbf2c7414da7fbe",
        _GAUSSIAN + ".mode": "f4334e40eb3a7cc9",
        _OOBLECK + ".__init__": "67f4abb62db28021",
        _OOBLECK + ".sample": "a77f29156fa19e2e",
        _OOBLECK + ".kl": "d9ddbabab8c608af",
        _OOBLECK + ".mode": "f4334e40eb3a7cc9",
        "diffusers.utils.torch_utils:randn_tensor": "6385e987f6660405",
    }
}
_SWITCH = Switch("diffusers", "diffusers", KNOWN)
_CLAMP = (-30.0, 20.0)
_SOFTPLUS: dict[str, Any] = {"parametrization": "softplus", "epsilon": 1e-4}
Draw = Callable[[Tensor, Generators], dict[str, Any]]


def patch(*, noise: str = "vae_fast", kl: str = "diffusers") -> Patch:
    """Has diffusers' posteriors compute with vae_fast.

    Args:
        noise: "vae_fast" draws noise as `vae_fast.reparameterize` does, from the generators that are given, one or one
            a sample; "torch" draws it exactly as diffusers does, so that a seed gives the same samples with and without
            the patch, within rounding.
        kl: "diffusers" gives what its kl() gives: for images and sounds the sum of each sample, (batch,); for videos,
            parameters of 5 dims, a sum over dims 1 to 3, (batch, width); of Oobleck a mean over batch and time, without
            the factor 1/2. "sample" gives the KL divergence of each sample, (batch,), in nats, for every shape and
            class.

    Returns:
        A context manager and a switch: `with patch(): ...`, or `.undo()`.

    Raises:
        ImportError: diffusers is not installed.
        RuntimeError: its code is not that of a version that is known here.
        ValueError: no such noise or kl.
    """
    draw = _torch_noise if check_noise(noise) else _own_noise
    if kl not in ("diffusers", "sample"):
        raise ValueError(f'expected kl to be "diffusers" or "sample", but got {kl!r}')

    def replacements() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, methods, lazy in (
            (_GAUSSIAN, _gaussian(draw, kl == "sample"), _LAZY_GAUSSIAN),
            (_OOBLECK, _oobleck(draw, kl == "sample"), _LAZY_OOBLECK),
        ):
            found |= {f"{path}.{name}": method for name, method in methods.items()}
            found[path + ".__init__"] = _init(path, methods | lazy)
        return found

    return _SWITCH.patch(replacements)


def _init(path: str, members: dict[str, Any]) -> Callable[..., None]:
    """An __init__ that computes nothing, and makes the object one of a subclass that has all it needs for life."""
    owner, name = _SWITCH.find(path)
    own = getattr(owner, name)
    members = members | {"__module__": own.__module__, "__qualname__": own.__qualname__}
    members["__reduce__"] = lambda self: (own, (self.parameters, self.deterministic))
    lazy = type(name, (own,), members)

    def __init__(self: Any, parameters: Tensor, deterministic: bool = False) -> None:
        if is_compiling() or type(self) is not own:  # a compiler drops what nothing asks for by itself
            _SWITCH.original(path + ".__init__")(self, parameters, deterministic)
            return
        self.__class__ = lazy
        self.parameters, self.deterministic = parameters, deterministic
        self.mean, self._raw = torch.chunk(parameters, 2, dim=1)

    return __init__


def _own_noise(like: Tensor, generator: Generators) -> dict[str, Any]:
    device = like.device
    if isinstance(generator, (list, tuple)) and len(generator) == 1:  # as diffusers takes it
        (generator,) = generator
    if isinstance(generator, torch.Generator):
        device = generator.device
    elif generator is not None:
        check_generator_count(generator, like.shape[0])
        device = generator[0].device
    if device.type not in (like.device.type, "cpu"):
        raise ValueError(f"Cannot generate a {like.device} tensor from a generator of type {device.type}.")
    return {"rng_state": draw_rng_state(device, generator, like.shape[0]).to(like.device)}


def _torch_noise(like: Tensor, generator: Generators) -> dict[str, Any]:
    from diffusers.utils.torch_utils import randn_tensor

    return {"noise": randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)}


def _learns(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


def _gaussian(draw: Draw, per_sample: bool) -> dict[str, Callable[..., Tensor]]:
    """The methods of DiagonalGaussianDistribution."""

    def sample(self: Any, generator: Generators = None) -> Tensor:
        source = draw(self.mean, generator)
        if self.deterministic:
            return self.mean.clone()
        if not _learns(self.parameters):
            mean, raw = torch.chunk(self.parameters, 2, dim=1)
            return functional.reparameterize(mean, raw, clamp=_CLAMP, **source)
        z, self._kl = functional.reparameterize_kl_packed(self.parameters, clamp=_CLAMP, **source)
        return z

    def kl(self: Any, other: Any = None) -> Tensor:
        if self.deterministic:
            return torch.Tensor([0.0])
        if other is not None and other.deterministic:
            own: Tensor = _SWITCH.original(_GAUSSIAN + ".kl")(self, other)
            return own
        mean, raw = torch.chunk(self.parameters, 2, dim=1)
        reduction = "sample" if per_sample or mean.ndim != 5 else "none"
        if other is not None:
            shape = torch.broadcast_shapes(mean.shape, other.mean.shape)
            found = functional.kl_divergence(
                mean.expand(shape),
                raw.expand(shape),
                prior=other.parameters,
                clamp=_CLAMP,
                reduction=reduction,
            )
        elif reduction == "sample" and _learns(self.parameters) and "_kl" in self.__dict__:
            return self._kl
        else:
            found = functional.kl_divergence(mean, raw, clamp=_CLAMP, reduction=reduction)
        return found if reduction == "sample" else found.sum([1, 2, 3])

    def nll(self: Any, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        if self.deterministic:
            return torch.Tensor([0.0])
        mean, x = torch.broadcast_tensors(*exchanged(self.mean, sample))
        dims = [d for d in dims if d < mean.ndim]
        if sorted(d % mean.ndim for d in dims) == list(range(1, mean.ndim)):
            return functional.gaussian_nll(mean, x, self.logvar)
        return functional.gaussian_nll(mean, x, self.logvar, reduction="none").sum(dims)

    return {"sample": sample, "kl": kl, "nll": nll}


def _zeros_if_deterministic(compute: Callable[[Tensor], Tensor]) -> Any:
    return lazy_property(
        lambda self: torch.zeros_like(self.mean) if self.deterministic else compute(self.logvar)
    )


_LAZY_GAUSSIAN: dict[str, Any] = {
    "logvar": lazy_property(lambda self: torch.clamp(self._raw, *_CLAMP)),
    "std": _zeros_if_deterministic(lambda logvar: torch.exp(0.5 * logvar)),
    "var": _zeros_if_deterministic(torch.exp),
}


def _oobleck(draw: Draw, per_sample: bool) -> dict[str, Callable[..., Tensor]]:
    """The methods of OobleckDiagonalGaussianDistribution."""

    def sample(self: Any, generator: Generators = None) -> Tensor:
        source = draw(self.mean, generator)
        if not _learns(self.parameters):
            mean, raw = torch.chunk(self.parameters, 2, dim=1)
            return functional.reparameterize(mean, raw, **_SOFTPLUS, **source)
        z, self._kl = functional.reparameterize_kl_packed(self.parameters, **_SOFTPLUS, **source)
        return z

    def kl(self: Any, other: Any = None) -> Tensor:
        if self.deterministic:
            return torch.Tensor([0.0])
        prior = None if other is None else other.parameters
        if other is None and _learns(self.parameters) and "_kl" in self.__dict__:
            nats = self._kl
        else:
            mean, raw = torch.chunk(self.parameters, 2, dim=1)
            nats = functional.kl_divergence(mean, raw, prior=prior, **_SOFTPLUS)
        if per_sample:
            return nats
        if other is not None:  # diffusers adds what a KL divergence subtracts
            nats = nats + (self.logvar - other.logvar).flatten(1).sum(1)
        # the mean over batch and time of twice the sums over channels
        return nats.sum() * (2 * self.mean.shape[1] / self.mean.numel())

    return {"sample": sample, "kl": kl}


_LAZY_OOBLECK: dict[str, Any] = {
    "scale": lazy_property(lambda self: self._raw),
    "std": lazy_property(lambda self: F.softplus(self._raw) + 1e-4),
    "var": lazy_property(lambda self: self.std * self.std),
    "logvar": lazy_property(lambda self: torch.log(self.var)),
}
