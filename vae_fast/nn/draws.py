"""Draws of q(z | x) and what the decoder makes of them, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ..checks import check_int
from .evaluation import CHUNK_NUMBERS
from .likelihoods.base import Params
from .posterior import Posterior


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


def decoded_draws(posterior: Posterior, num_samples: int, chunk: int | None = None) -> Iterator[Draws]:
    """`num_samples` draws, `chunk` at a time; by default as many as give the decoder some 16 million numbers to make.
    The draws do not depend on `chunk` if the posterior has an rng_state."""
    model, x = posterior.model, posterior.x
    numbers = x.numel() if model.data_shape is None else x.shape[0] * model._outputs
    step = max(1, CHUNK_NUMBERS // max(1, numbers)) if chunk is None else check_int("chunk", chunk, least=1)
    for first in range(0, num_samples, step):
        draws = min(step, num_samples - first)
        z, log_weights = posterior.log_weights(draws, first_draw=first)
        rows = posterior.params(z)
        yield Draws(z, log_weights, rows, tuple(p.unflatten(0, (draws, x.shape[0])) for p in rows))
