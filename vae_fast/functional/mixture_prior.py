"""Densities of a mixture of diagonal Gaussians: mixture and Vamp priors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.contract import Generators
from ..checks import (
    check_device,
    check_num_samples,
    check_pair,
    check_shape,
    check_tensor,
    resolve_rng_state,
    shape_of,
)
from ..likelihoods.numerics import arithmetic_dtype
from ..ops.mixture_kl import mixture_kl as mixture_kl_op
from ..ops.pairwise import pairwise


def mixture_log_prob(z: Tensor, means: Tensor, logvars: Tensor, logits: Tensor | None = None) -> Tensor:
    """The log-density of a mixture of diagonal Gaussians.

        log p(z) = log sum_k softmax(logits)_k N(z; means_k, exp logvars_k)

    Nothing of the size of z times K is stored, forward or backward.

    Args:
        z: (..., D), float32, bfloat16, float16 or float64, any strides.
        means, logvars: (K, D); the natural log of the variances. A Vamp prior's are the encoder's of its pseudo-inputs.
        logits: (K,), by default all alike. A component of logit -inf has no part.

    Returns:
        (...), in nats; float32 (float64 for float64 inputs), with gradients in all arguments. -inf for K = 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Tomczak & Welling, "VAE with a VampPrior", 2018, equation 9, for the use.
    """
    check_tensor("z", z)
    _check_mixture("means", means, "logvars", logvars, logits, "z", z)
    log_weights = _log_weights(means, logits)
    joint, _ = pairwise(
        z.reshape(math.prod(z.shape[:-1]), z.shape[-1]), means, logvars, log_weights, want_dims=False
    )
    return joint.view(z.shape[:-1])


def mixture_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    logits: Tensor | None = None,
    *,
    num_samples: int = 1,
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """KL(N(mu, exp logvar) || mixture) per sample, estimated by draws: it has no closed form.

        kl = mean over s of  log q(z_s) - log p(z_s),   z_s = mu + exp(logvar / 2) eps_s

    log q is taken from eps itself and p is `mixture_log_prob`. Draws are made a few at a time, and made again by
    backward: noise and z of a million elements (4 MB each) are there at once, and one number a draw and sample is
    kept. An rng_state per sample (or a list of generators) makes all draws at once.

    Args:
        mu, logvar: (batch, D), float32, bfloat16, float16 or float64, any strides.
        prior_mu, prior_logvar: (K, D), and logits (K,), as means, logvars and logits of `mixture_log_prob`.
        num_samples: draws per sample.
        generator, rng_state, noise: as in `reparameterize_kl`; noise is (num_samples, batch, D).

    Returns:
        (batch,), in nats; float32 (float64 for float64 inputs), with gradients in mu, logvar and the mixture's.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match, or a value out of range.

    Source: Tomczak & Welling, "VAE with a VampPrior", 2018, section 3.
    """
    check_pair(mu, logvar)
    if mu.ndim != 2:
        raise ValueError(f"expected mu to have shape (batch, dims), but got {shape_of(mu)}")
    _check_mixture("prior_mu", prior_mu, "prior_logvar", prior_logvar, logits, "mu", mu)
    num_samples = check_num_samples(num_samples)
    rng_state = resolve_rng_state(mu, mu.shape, num_samples, generator, rng_state, noise)
    log_weights = _log_weights(prior_mu, logits)
    return mixture_kl_op(mu, logvar, prior_mu, prior_logvar, log_weights, rng_state, noise, num_samples)


def _check_mixture(
    name: str, means: Tensor, logvars_name: str, logvars: Tensor, logits: Tensor | None, other_name: str, like: Tensor
) -> None:  # fmt: skip
    check_tensor(name, means)
    if means.ndim != 2 or means.shape[1] != like.shape[-1]:
        raise ValueError(
            f"expected {name} to have shape (components, {like.shape[-1]}) for {other_name} of shape "
            f"{shape_of(like)}, but got {shape_of(means)}"
        )
    check_device(name, means, other_name, like)
    check_tensor(logvars_name, logvars)
    check_shape(logvars_name, logvars, name, means.shape)
    check_device(logvars_name, logvars, name, means)
    if logits is not None:
        check_tensor("logits", logits)
        if logits.shape != means.shape[:1]:
            raise ValueError(
                f"expected logits to have shape ({means.shape[0]},), one a component, but got {shape_of(logits)}"
            )
        check_device("logits", logits, name, means)


def _log_weights(means: Tensor, logits: Tensor | None) -> Tensor:
    if logits is None:
        logits = torch.zeros(means.shape[0], dtype=arithmetic_dtype(means), device=means.device)
    return F.log_softmax(logits.to(arithmetic_dtype(means, logits)), 0)
