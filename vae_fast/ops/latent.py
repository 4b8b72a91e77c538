"""The op `latent`: a sample and its KL, one kernel forward and one backward.

Saved for backward are the inputs and rng_state; the noise is made again. Wherever `logvar` is None, `mu` holds both,
[mu | logvar] along `dim`, and the gradient is one packed tensor. The same holds of `prior_mu` and `prior_logvar`; a
packed prior is read by the parametrization and the clamps of mu and logvar, a pair is (mu_p, logvar_p) as it is.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import Parametrization
from ..backends.reference import latent as reference_latent
from ..checks import check_counters
from . import _common
from .dtensor import STATE, batch_dim
from .noise import noise as draw
from .op import Args, Gradients, Op

Clamp = Sequence[float] | None
Pair = tuple[Tensor | None, Tensor | None]


def latent(
    mu: Tensor,
    logvar: Tensor | None,
    dim: int = 1,
    *,
    prior: tuple[Tensor, Tensor] | Tensor | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    num_samples: int | None = None,
    want_z: bool = True,
    want_kl: bool = True,
    per_element: bool = False,
    form: tuple[str, float, float | None] | None = None,
    affine: Pair | None = None,
) -> Pair:
    """(z, kl); what is not wanted is None. The arguments have been checked in `functional`."""
    prior_mu = prior_logvar = None
    if prior is not None:
        prior_mu, prior_logvar = (prior, None) if isinstance(prior, Tensor) else prior
    backend = _common.dispatch("latent", mu, logvar, prior_mu, prior_logvar, noise, *affine or ())
    if prior_mu is not None and backend is not None and torch.is_grad_enabled():
        if prior_logvar is None:
            prior_mu = _unexpanded_packed(prior_mu, dim, mu.ndim)
        else:
            prior_mu, prior_logvar = _common.unexpanded(prior_mu), _common.unexpanded(prior_logvar)
    # Numbers of its own: torch.compile makes an input of a global's.
    parametrization, epsilon, soft_clamp = form or ("logvar", 0.0, None)
    shift, scale = affine or (None, None)
    args = (
        mu, logvar, dim, prior_mu, prior_logvar, rng_state, noise, clamp, num_samples, want_z, want_kl, per_element,
        parametrization, epsilon, soft_clamp, shift, scale,
    )  # fmt: skip
    pair: Pair = _expression(*args) if backend is reference else LATENT(backend, *args)
    return pair


@functools.lru_cache
def rounded(clamp: tuple[float, float], dtype: torch.dtype) -> tuple[float, ...]:
    """The bounds in logvar's dtype, as torch.clamp takes them. Not by a tensor: fake ones have no numbers."""
    return tuple(_round(bound, dtype) for bound in clamp)


def _round(bound: float, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return bound
    try:
        (bits,) = struct.unpack("<I", struct.pack("<f", bound))
        if dtype == torch.bfloat16:  # the upper half, to the nearest, ties to even
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        (bound,) = struct.unpack("<f", struct.pack("<I", bits))
        return struct.unpack("<e", struct.pack("<e", bound))[0] if dtype == torch.float16 else bound
    except OverflowError:
        return math.copysign(math.inf, bound)


def _split(mu: Tensor, logvar: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    return mu.chunk(2, dim) if logvar is None else (mu, logvar)  # type: ignore[return-value]


def _split_prior(prior_mu: Tensor | None, prior_logvar: Tensor | None, dim: int, ndim: int) -> Pair:
    if prior_mu is None or prior_logvar is not None:
        return prior_mu, prior_logvar
    return reference_latent.split_prior(prior_mu, dim, ndim)


def _unexpanded_packed(prior: Tensor, dim: int, ndim: int) -> Tensor:
    """`unexpanded`, unless the prior is expanded along `dim` itself."""
    base = _common.unexpanded(prior)
    dim -= ndim if dim >= 0 else 0
    return base if base.ndim >= -dim and base.shape[dim] == prior.shape[dim] else prior


def _form_of(
    parametrization: str, epsilon: float, soft_clamp: float | None, clamp: Clamp, is_packed: bool
) -> Parametrization | None:
    """None where mu and logvar are read as they are, and the prior too."""
    is_plain = parametrization == "logvar" and epsilon == 0 and soft_clamp is None
    if is_plain and (clamp is None or not is_packed):
        return None
    return Parametrization(parametrization, epsilon, soft_clamp, is_packed)


def _expression(
    mu: Tensor,
    logvar: Tensor | None,
    dim: int,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Any,
    num_samples: int | None,
    want_z: bool,
    want_kl: bool,
    per_element: bool,
    parametrization: str,
    epsilon: float,
    soft_clamp: float | None,
    shift: Tensor | None,
    scale: Tensor | None,
) -> Pair:
    mu, logvar = _split(mu, logvar, dim)
    is_packed = prior_mu is not None and prior_logvar is None
    prior_mu, prior_logvar = _split_prior(prior_mu, prior_logvar, dim, mu.ndim)
    prior = None if prior_mu is None or prior_logvar is None else (prior_mu, prior_logvar)
    form = Parametrization(parametrization, epsilon, soft_clamp, is_packed)
    z = kl = None
    if want_z:
        if noise is None:
            dtype = _common.result_dtype(mu, logvar)
            if rng_state is None:  # ONNX draws by its own op
                shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
                noise = torch.randn(shape, dtype=dtype, device=mu.device)
            else:
                noise = draw(mu.shape, rng_state, num_samples, dtype)
        z = reference_latent.sample(mu, logvar, noise, form, clamp, shift, scale)
    if want_kl:
        kl = reference_latent.divergence(mu, logvar, prior, form, clamp, "none" if per_element else "sample")
    return z, kl


def latent_forward(
    backend: Any,
    mu: Tensor,
    logvar: Tensor | None,
    dim: int,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
    clamp: Clamp,
    num_samples: int | None,
    want_z: bool,
    want_kl: bool,
    per_element: bool,
    parametrization: str,
    epsilon: float,
    soft_clamp: float | None,
    shift: Tensor | None,
    scale: Tensor | None,
) -> tuple[Pair, tuple[()]]:
    mu, logvar = _split(mu, logvar, dim)
    options: dict[str, Any] = {}  # a plain call pays for none
    is_packed = prior_mu is not None and prior_logvar is None
    has_form = is_packed or parametrization != "logvar" or epsilon != 0 or soft_clamp is not None
    if has_form or shift is not None or scale is not None:
        prior_mu, prior_logvar = _split_prior(prior_mu, prior_logvar, dim, mu.ndim)
        options = {
            "form": _form_of(parametrization, epsilon, soft_clamp, clamp, is_packed),
            "shift": _broadcast(shift, mu),
            "scale": _broadcast(scale, mu),
        }
    clamp = clamp and rounded(tuple(clamp), logvar.dtype)
    z = kl = None
    if want_z:
        z = _common.empty_like(backend, mu, num_samples)
    if want_kl:
        dtype = _common.result_dtype(mu, logvar, prior_mu, prior_logvar)
        kl = _common.empty_loss(backend, mu, per_element, dtype)
    backend.latent_forward(
        mu, logvar, expand_prior(prior_mu, prior_logvar, mu), rng_state, noise, clamp,
        z=z, kl=kl, **options,
    )  # fmt: skip
    return (z, kl), ()


def latent_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of mu, logvar, prior_mu, prior_logvar."""
    grad_z, grad_kl = grads
    mu, logvar, dim, prior_mu, prior_logvar, rng_state, noise, clamp, *_ = args
    parametrization, epsilon, soft_clamp, _, scale = args[12:]
    first, second, *needs_prior = needs
    of_unused: list[Tensor | None] = [None, None]
    if grad_kl is None:  # z does not depend on the prior, and the kernels write no gradient of it
        of_unused = [
            torch.zeros_like(p) if needed else None
            for p, needed in zip((prior_mu, prior_logvar), needs_prior, strict=True)
        ]
        needs_prior = [False, False]
    grad_mu = grad_first = _common.empty_like(backend, mu) if first else None
    grad_logvar = _common.empty_like(backend, logvar) if second and logvar is not None else None
    grad_second = grad_logvar
    if logvar is None and grad_first is not None:  # the kernel writes both halves of one packed gradient
        grad_mu, grad_logvar = grad_first.chunk(2, dim)
    mu, logvar = _split(mu, logvar, dim)
    packed_prior = prior_mu if prior_logvar is None else None
    options: dict[str, Any] = {}
    has_form = packed_prior is not None or parametrization != "logvar" or epsilon != 0
    if has_form or soft_clamp is not None or scale is not None:
        form = _form_of(parametrization, epsilon, soft_clamp, clamp, packed_prior is not None)
        options = {"form": form, "scale": _broadcast(scale, mu)}
    if packed_prior is not None:
        prior_mu, prior_logvar = _split_prior(prior_mu, prior_logvar, dim, mu.ndim)
        needs_prior[1] = needs_prior[0]
    clamp = clamp and rounded(tuple(clamp), logvar.dtype)
    grad_prior: Pair | None = None
    whole: Tensor | None = None  # the packed prior's gradient, where the kernel writes both halves of it
    if any(needs_prior):
        if packed_prior is not None and prior_mu.shape == mu.shape:
            whole = _common.empty_like(backend, packed_prior)
            grad_prior = _split_prior(whole, None, dim, mu.ndim)
        else:
            grad_prior = (
                _common.empty_gradient(backend, prior_mu, mu.shape, needs_prior[0]),
                _common.empty_gradient(backend, prior_logvar, mu.shape, needs_prior[1]),
            )
    backend.latent_backward(
        grad_z, grad_kl, mu, logvar, expand_prior(prior_mu, prior_logvar, mu), rng_state, noise, clamp,
        grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=grad_prior, **options,
    )  # fmt: skip
    if grad_prior is None:
        return grad_first, grad_second, *of_unused
    if whole is not None:
        return grad_first, grad_second, whole, None
    grad_prior_mu = _common.reduce_gradient(grad_prior[0], prior_mu)
    grad_prior_logvar = _common.reduce_gradient(grad_prior[1], prior_logvar)
    if packed_prior is not None:
        assert grad_prior_mu is not None and grad_prior_logvar is not None
        dim -= mu.ndim if dim >= 0 else 0
        return grad_first, grad_second, torch.cat((grad_prior_mu, grad_prior_logvar), dim), None
    return grad_first, grad_second, grad_prior_mu, grad_prior_logvar


def _broadcast(constant: Tensor | None, mu: Tensor) -> Tensor | None:
    return None if constant is None else _common.expand(constant, mu.shape)


def expand_prior(
    prior_mu: Tensor | None, prior_logvar: Tensor | None, mu: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The prior in mu's shape, by strides of zero."""
    if prior_mu is None or prior_logvar is None:
        return None
    return _common.expand(prior_mu, mu.shape), _common.expand(prior_logvar, mu.shape)


def _check(
    mu: Tensor, logvar: Any, dim: int, prior_mu: Any, prior_logvar: Any, rng_state: Any, noise: Any,
    clamp: Any, num_samples: int | None, *_: Any,
) -> None:  # fmt: skip
    if rng_state is not None:
        check_counters("mu", _split(mu, logvar, dim)[0].shape, num_samples)


def _batch_dims(*args: Any) -> tuple[Sequence[int | None], Sequence[int]]:
    mu, num_samples = args[0], args[8]
    dims = [batch_dim(a, mu) if isinstance(a, Tensor) else None for a in args]
    dims[5] = STATE
    return dims, (int(num_samples is not None), 0)


LATENT = Op(
    "latent(Tensor mu, Tensor? logvar, int dim, Tensor? prior_mu, Tensor? prior_logvar, Tensor? rng_state, "
    "Tensor? noise, float[]? clamp, SymInt? num_samples, bool want_z, bool want_kl, bool per_element, "
    "str parametrization, float epsilon, float? soft_clamp, Tensor? shift, Tensor? scale) "
    "-> (Tensor z, Tensor kl)",
    latent_forward,
    latent_backward,
    differentiable=("mu", "logvar", "prior_mu", "prior_logvar"),
    check=_check,
    batch_dims=_batch_dims,
)
