"""Draws of q(z | x) and what the decoder makes of them, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_int, fresh_rng_state
from .likelihoods.base import Params
from .posterior import Posterior
from .vae import VAE

# Numbers that the decoder gives for the draws of a chunk, about 64 MB of float32.
CHUNK_NUMBERS = 1 << 24


class Draws(NamedTuple):
    """Attributes:
    z: (draws, batch, ...).
    log_weights: log p(z) - log q(z | x), (draws, batch).
    rows: the parameters of p(x | z), (draws * batch, ...) each.
    params: the same as (draws, batch, ...).
    """

    z: Tensor
    log_weights: Tensor
    rows: Params
    params: Params


def posterior_of(
    model: VAE,
    x: Tensor,
    num_samples: int,
    condition: Tensor | int | None,
    generator: torch.Generator | None,
    rng_state: Tensor | None = None,
) -> Posterior:
    """q(z | x) with a state, so that its draws do not depend on how many are made at a time."""
    if rng_state is None:
        rng_state = fresh_rng_state("x", x, num_samples, generator)
    return model._posterior(x, condition, num_samples, None, rng_state)


def draws_of(
    posterior: Posterior, num_samples: int, chunk: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """z and log p(z) - log q(z | x) of `num_samples` draws, `chunk` at a time; by default as many as give the decoder
    some 16 million numbers to make."""
    model, x = posterior.model, posterior.x
    numbers = x.numel() if model.data_shape is None else x.shape[0] * model._outputs
    step = max(1, CHUNK_NUMBERS // max(1, numbers)) if chunk is None else check_int("chunk", chunk, least=1)
    for first in range(0, num_samples, step):
        yield posterior.log_weights(min(step, num_samples - first), first_draw=first)


def decoded_draws(posterior: Posterior, num_samples: int, chunk: int | None = None) -> Iterator[Draws]:
    """Those of `draws_of`, decoded."""
    for z, log_weights in draws_of(posterior, num_samples, chunk):
        rows = posterior.params(z)
        yield Draws(z, log_weights, rows, tuple(p.unflatten(0, log_weights.shape) for p in rows))
