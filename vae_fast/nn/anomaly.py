"""Anomaly scores, in nats and without gradients: the higher, the less the model knows such a sample.

A model in training mode is evaluated as it is: call `model.eval()` first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_int
from .draws import decoded_draws, posterior_of
from .evaluation import importance_nll, reconstruction_nll
from .vae import VAE

__all__ = ["anomaly_score", "feature_nll"]

SCORES = ("elbo", "reconstruction", "iwae")


@torch.no_grad()
def anomaly_score(
    model: VAE,
    x: Tensor,
    score: str = "elbo",
    num_samples: int = 10,
    *,
    condition: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """A score for each sample, (batch,), with `num_samples` draws of q(z | x). `score` is one of

    "elbo"             -ELBO = -E_q[log p(x | z)] + KL;
    "reconstruction"   -E_q[log p(x | z)]: the negative reconstruction probability (`reconstruction_nll`);
    "iwae"             IWAE's bound of -log p(x) (`importance_nll`).

    Raises:
        TypeError, ValueError: as `importance_nll`; another score.
    """
    k = check_int("num_samples", num_samples, least=1)
    if score == "reconstruction":
        return reconstruction_nll(model, x, k, condition=condition, generator=generator, rng_state=rng_state)
    if score == "iwae":
        return importance_nll(model, x, k, condition=condition, generator=generator, rng_state=rng_state)
    if score != "elbo":
        raise ValueError(f"expected score to be one of {', '.join(SCORES)}, but got {score!r}")
    return -model.elbo(x, condition=condition, num_samples=k, generator=generator, rng_state=rng_state)


@torch.no_grad()
def feature_nll(
    model: VAE,
    x: Tensor,
    num_samples: int = 10,
    *,
    mask: Tensor | None = None,
    condition: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """-E_q[log p(x_d | z)] of each feature d: a map that shows which entries make a sample unlikely. Its sum over the
    features is `reconstruction_nll` with the same rng_state.

    Args:
        x, condition: as in `VAE.forward`.
        num_samples: draws of q(z | x).
        mask: bool, broadcastable to x. False leaves an entry out: 0.
        generator, rng_state, chunk: as in `importance_nll`.

    Returns:
        x's shape; of coloured images under "discretized_logistic_mixture" a number for each pixel, of counts under
        "multinomial" one for each position. float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `importance_nll`.
    """
    k = check_int("num_samples", num_samples, least=1)
    posterior = posterior_of(model, x, k, condition, generator, rng_state)
    total: Tensor | None = None
    for draws in decoded_draws(posterior, k, chunk):
        nll = model.likelihood.nll(draws.params, posterior.x, mask, "none").sum(0)
        total = nll if total is None else total + nll
    assert total is not None
    return total / k
