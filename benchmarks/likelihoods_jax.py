"""-log p as it is written in JAX; every expression takes (target, *parameters) and returns nll, (batch,)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from .likelihoods import EPS


def bernoulli(target: Any, logits: Any) -> Any:  # as optax.sigmoid_binary_cross_entropy
    each = -target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)
    return jnp.sum(each, axis=-1)


def gaussian(target: Any, mean: Any, logvar: Any) -> Any:
    return jnp.sum(0.5 * (math.log(2 * math.pi) + logvar + (target - mean) ** 2 / jnp.exp(logvar)), axis=-1)


def laplace(target: Any, location: Any, log_scale: Any) -> Any:
    return jnp.sum(math.log(2) + log_scale + jnp.abs(target - location) / jnp.exp(log_scale), axis=-1)


def poisson(target: Any, mean: Any) -> Any:
    mean = mean + EPS
    return jnp.sum(mean - target * jnp.log(mean) + gammaln(target + 1), axis=-1)


def negative_binomial(target: Any, mean: Any, theta: Any) -> Any:
    log_theta_mu = jnp.log(theta + mean + EPS)
    log_prob = (
        theta * (jnp.log(theta + EPS) - log_theta_mu)
        + target * (jnp.log(mean + EPS) - log_theta_mu)
        + gammaln(target + theta)
        - gammaln(theta)
        - gammaln(target + 1)
    )
    return -jnp.sum(log_prob, axis=-1)


def multinomial(target: Any, logits: Any) -> Any:
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def categorical(target: Any, logits: Any) -> Any:  # as optax.softmax_cross_entropy_with_integer_labels
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
    return -jnp.sum(each, axis=(-2, -1))
