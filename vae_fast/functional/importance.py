"""Draws of the latent variable with their log importance weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.contract import Generators
from ..checks import (
    check_bool,
    check_clamp,
    check_first_draw,
    check_num_samples,
    check_pair,
    check_prior,
    resolve_rng_state,
)
from ..ops.importance import importance


def log_weights(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int,
    prior: tuple[Tensor, Tensor] | None = None,
    clamp: tuple[float, float] | None = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    path_derivative: bool = False,
    first_draw: int = 0,
    return_z: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """k draws of q(z|x) = N(mu, sigma^2) and log p(z) - log q(z|x) of each, in one pass; sigma = exp(logvar / 2).

        z = mu + sigma eps,   eps ~ N(0, 1)
        log w = sum eps^2 / 2 + logvar / 2 - (z - mu_p)^2 exp(-logvar_p) / 2 - logvar_p / 2

    The sum runs over all dims of a sample; it is 0 where q is the prior, and does not cancel near it. The noise is
    never stored: backward makes it again from `rng_state`. The bound of IWAE, an estimate of -log p(x) in nats:

        z, weights = log_weights(mu, logvar, num_samples=k)
        weights = weights - bernoulli_nll(decoder(z), x)  # log p(x, z) - log q(z|x): (k, batch)
        nll = log(k) - weights.logsumexp(0)

    DReG multiplies each draw's gradient by the square of its softmax over the draws, with path_derivative:

        share = weights.detach().softmax(0)
        loss = -(share.square() * weights).sum(0)  # for the encoder; the decoder has share instead of its square

    Thousands of draws take the memory of a few: first_draw=j gives draws j to j + num_samples - 1 of `rng_state`, as
    one call for all would, and return_z=False leaves z out.

    Args:
        mu: (batch, ...), float32, bfloat16, float16 or float64, any strides.
        logvar: the shape of mu; the natural log of the variance.
        num_samples: k, the number of draws.
        prior: (mu_p, logvar_p) of another diagonal Gaussian than N(0, 1), each broadcastable to mu, with gradients.
        clamp: (lo, hi) for logvar, as torch.clamp, with a gradient of 1 on the bounds and 0 outside.
        rng_state, generator: where the noise comes from, as in `reparameterize_kl`.
        noise: a constant (k, batch, ...) to take for eps. At most one of noise, rng_state and generator.
        path_derivative: leaves out of the weights' gradient that of log q by mu and logvar at fixed z, whose mean is 0:
            "sticking the landing". The values are the same. By default the derivative is the total one.
        first_draw: the number of the first of these draws, from 0; not together with noise.
        return_z: without it z is None.

    Returns:
        z: (k, batch, ...), in mu's dtype and layout.
        log weights: (k, batch), in nats; float32 (float64 for float64 inputs). 0 for samples without elements. They are
            those of the draws before z is rounded to a dtype of 16 bits.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match, or a value out of range.

    Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", 2016, equation 8; Roeder, Wu & Duvenaud,
    "Sticking the landing", 2017; Tucker, Lawson, Gu & Maddison, "Doubly reparameterized gradient estimators for Monte
    Carlo objectives", 2019.
    """
    check_pair(mu, logvar)
    if isinstance(prior, Tensor):
        raise TypeError("expected prior to be a pair of tensors (mu_p, logvar_p), but got Tensor")
    prior = check_prior(prior, mu)  # type: ignore[assignment]
    clamp = check_clamp(clamp)
    num_samples = check_num_samples(num_samples)
    if isinstance(first_draw, torch.SymInt) or first_draw != 0:
        check_first_draw(first_draw, noise)
    drawn = num_samples if noise is not None else first_draw + num_samples
    return importance(
        mu,
        logvar,
        num_samples,
        prior=prior,
        rng_state=resolve_rng_state(mu, mu.shape, drawn, generator, rng_state, noise),
        noise=noise,
        clamp=clamp,
        first_draw=first_draw,
        path_derivative=check_bool("path_derivative", path_derivative),
        want_z=check_bool("return_z", return_z),
    )
