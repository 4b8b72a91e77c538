"""scvi-tools on the fused ops: one line, and SCVI, LinearSCVI, SCANVI, TOTALVI and others train as before, faster.

    vae_fast.integrations.scvi.patch()

Replaced are the encoders' tail (a fused sample, and a normal distribution whose KL divergence is fused), and log_prob
of scvi.distributions' NegativeBinomial, ZeroInflatedNegativeBinomial, NegativeBinomialMixture and Poisson. A dispersion
of each gene stays (genes,) in memory, its gradient too. The layer of SCVI's decoder that gives logits of dropping out
is computed where the likelihood takes them. No validation synchronizes a GPU: posteriors and Poisson's
counts are validated on the CPU only, the counts of the other classes on request (validate_args=True).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..distributions import Normal
from ..distributions import _fused as fused
from ..distributions.counts import Poisson, bare
from ._noise import TorchNoise, check_noise
from ._patch import Patch, Switch

_NN, _COUNTS = "scvi.nn._base_components:", "scvi.distributions._negative_binomial:"
_GENERATIVE = "scvi.module._vae:VAE.generative"
KNOWN = {
    "1.4.2": {
        _NN + "Encoder.forward": "8cbb88b2b78f6c9d",
        _NN + "EncoderTOTALVI.forward": "be3e4c1af5a4f777",
        _NN + "DecoderSCVI.forward": "4c0cccd89388fde3",
        _GENERATIVE: "fc4a2732af4e76be",
        _COUNTS + "NegativeBinomial.log_prob": "e17a9aeb8aa6b596",
        _COUNTS + "ZeroInflatedNegativeBinomial.log_prob": "3bb553e2c4f883cf",
        _COUNTS + "NegativeBinomialMixture.log_prob": "226a7a09ff7b678c",
        _COUNTS + "Poisson.log_prob": None,  # torch's
        _COUNTS + "log_nb_positive": "8397413fc506b8f3",
        _COUNTS + "log_zinb_positive": "c7c92c78cdb094dc",
        _COUNTS + "log_mixture_nb": "3219c9dffd92037c",
    }
}
_SWITCH = Switch("scvi", "scvi-tools", KNOWN)
_EPS = 1e-8  # scvi's, and the kernels'


def patch(*, noise: str = "vae_fast") -> Patch:
    """Has scvi-tools compute with vae_fast, in every model that is there and that will be.

    Args:
        noise: "vae_fast" draws the latent noise as `vae_fast.reparameterize` does; "torch" draws it exactly as
            scvi-tools does, so that a run with a seed has the same numbers with and without the patch, within rounding.

    Returns:
        A context manager and a switch: `with patch(): ...`, or `.undo()`.

    Raises:
        ImportError: scvi-tools is not installed.
        RuntimeError: its code is not that of a version that is known here.
        ValueError: no such noise.
    """
    normal = TorchNoiseNormal if check_noise(noise) else Normal

    def posterior(mean: Tensor, raw: Tensor, epsilon: float) -> Normal:
        validate = None if mean.is_cpu else False
        return normal.from_logvar(mean, raw, epsilon=epsilon, validate_args=validate)

    def encode(self: Any, x: Tensor, *cat_list: int) -> Any:
        q = self.encoder(x, *cat_list)
        mean, raw = self.mean_encoder(q), self.var_encoder(q)
        if self.var_activation is torch.exp:
            dist = posterior(mean, raw, self.var_eps)
        else:
            dist = posterior(mean, torch.log(self.var_activation(raw) + self.var_eps), 0.0)
        latent = self.z_transformation(dist.rsample())
        return (dist, latent) if self.return_dist else (mean, dist.variance, latent)

    def encode_totalvi(self: Any, data: Tensor, *cat_list: int) -> Any:
        q = self.encoder(data, *cat_list)
        q_z = posterior(self.z_mean_encoder(q), self.z_var_encoder(q), 1e-4)
        z = q_z.rsample()
        of_library = self.l_gene_encoder(data, *cat_list)
        q_l = posterior(self.l_gene_mean_encoder(of_library), self.l_gene_var_encoder(of_library), 1e-4)
        log_library = torch.clamp(q_l.rsample(), max=15)
        latent = {"z": self.z_transformation(z), "l": self.l_transformation(log_library)}
        return q_z, q_l, latent, {"z": z, "l": log_library}

    encoders = {_NN + "Encoder.forward": encode, _NN + "EncoderTOTALVI.forward": encode_totalvi}
    return _SWITCH.patch(lambda: encoders | _DECODERS | _LOG_PROBS)


class TorchNoiseNormal(TorchNoise, Normal):
    """A posterior of patch(noise="torch")."""


def _generative(self: Any, *args: Any, **kwargs: Any) -> Any:
    """scvi-tools' own, with a decoder that knows whether its logits of dropping out are asked for."""
    own = _SWITCH.original(_GENERATIVE)
    if self.gene_likelihood == "zinb":
        return own(self, *args, **kwargs)
    self.decoder.has_no_dropout = True
    try:
        return own(self, *args, **kwargs)
    finally:
        del self.decoder.has_no_dropout


def _decode(self: Any, dispersion: str, z: Tensor, library: Tensor, *cat_list: int) -> Any:
    px = self.px_decoder(z, *cat_list)
    px_scale = self.px_scale_decoder(px)
    px_rate = torch.exp(library) * px_scale
    px_r = self.px_r_decoder(px) if dispersion == "gene-cell" else None
    return px_scale, px_r, px_rate, None if hasattr(self, "has_no_dropout") else self.px_dropout_decoder(px)


_DECODERS = {_NN + "DecoderSCVI.forward": _decode, _GENERATIVE: _generative}


def log_nb_positive(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """log NB(x; mean mu, inverse dispersion theta) of each element, with the argument order of scvi-tools: x first.

    All broadcast. `vae_fast.negative_binomial_nll` has the formula, and takes the mean first.

    Raises:
        TypeError: mu is of integers, as counts are: the order may be mixed up.
        ValueError: x requires grad and mu does not, likewise.
    """
    _check_order(x, mu)
    return _log_nb(x, mu, theta)


def log_zinb_positive(x: Tensor, mu: Tensor, theta: Tensor, pi: Tensor) -> Tensor:
    """log of the zero-inflated NB of x, whose logit of dropping out is pi. As `log_nb_positive`."""
    _check_order(x, mu)
    return _log_zinb(x, mu, theta, pi)


def log_mixture_nb(
    x: Tensor, mu_1: Tensor, mu_2: Tensor, theta_1: Tensor, theta_2: Tensor | None, pi_logits: Tensor
) -> Tensor:
    """log of sigmoid(pi_logits) NB(x; mu_1, theta_1) + sigmoid(-pi_logits) NB(x; mu_2, theta_2). As `log_nb_positive`;
    theta_2 None is theta_1."""
    _check_order(x, mu_1)
    return _log_mixture(x, mu_1, mu_2, theta_1, theta_2, pi_logits)


def _check_order(x: Tensor, mu: Tensor) -> None:
    if not mu.is_floating_point():
        raise TypeError(f"expected x, the counts, first and then mu, but got a mu of dtype {mu.dtype}")
    if x.requires_grad and not mu.requires_grad:
        raise ValueError(
            "expected x, the counts, first and then mu, but got an x that requires grad and a mu that does not"
        )


def _log_nb(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    return fused.log_prob(functional.negative_binomial_nll, x, mu, theta, counts=True)


def _log_zinb(x: Tensor, mu: Tensor, theta: Tensor, pi: Tensor) -> Tensor:
    return fused.log_prob(functional.zero_inflated_negative_binomial_nll, x, mu, theta, pi, counts=True)


def _log_mixture(x: Tensor, mu_1: Tensor, mu_2: Tensor, theta_1: Tensor, theta_2: Any, pi: Tensor) -> Tensor:
    if isinstance(theta_2, tuple):  # what scvi-tools 1.4.2 makes of theta2=: all that it broadcast
        theta_2 = theta_2[-1]
    others = (mu_2, theta_1, pi, theta_1 if theta_2 is None else theta_2)
    return fused.log_prob(functional.negative_binomial_mixture_nll, x, mu_1, *others, counts=True)


def _log_prob(name: str, compute: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A method of scvi.distributions: with another epsilon, or on Apple's GPU, scvi-tools' own."""
    path = f"{_COUNTS}{name}.log_prob"

    def log_prob(self: Any, value: Tensor) -> Tensor:
        if self.on_mps or getattr(self, "_eps", _EPS) != _EPS:
            own: Tensor = _SWITCH.original(path)(self, value)
            return own
        if self._validate_args:
            try:
                self._validate_sample(value)
            except ValueError as error:
                warnings.warn(str(error).partition(", but found")[0], UserWarning, stacklevel=2)
        return compute(self, value)

    return log_prob


def _poisson(self: Any, value: Tensor) -> Tensor:
    if not value.is_cpu:
        return fused.log_prob(functional.poisson_nll, value, bare(fused.wide(self.rate)), counts=True)
    return Poisson.log_prob(self, value)


_LOG_PROBS = {
    f"{_COUNTS}{name}.log_prob": _log_prob(name, compute)
    for name, compute in {
        "NegativeBinomial": lambda self, x: _log_nb(x, self.mu, self.theta),
        "ZeroInflatedNegativeBinomial": lambda self, x: _log_zinb(x, self.mu, self.theta, self.zi_logits),
        "NegativeBinomialMixture": lambda self, x: _log_mixture(
            x, self.mu1, self.mu2, self.theta1, self.theta2, self.mixture_logits
        ),
    }.items()
} | {f"{_COUNTS}Poisson.log_prob": _poisson}
