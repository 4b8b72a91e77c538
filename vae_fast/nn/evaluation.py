"""How good a trained VAE is: estimates of log p(x) with thousands of draws, rate and distortion, anomaly scores.

All in nats, without gradients. A model in training mode is evaluated as it is: call `model.eval()` first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_int
from .draws import draws_of, posterior_of
from .latent_space import active_units
from .posterior import Posterior
from .vae import VAE

__all__ = ["Evaluation", "evaluate", "importance_nll", "reconstruction_nll"]


@torch.no_grad()
def importance_nll(
    model: VAE,
    x: Tensor,
    num_samples: int = 100,
    *,
    condition: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """-log p(x) by importance sampling with k draws z_i of q(z|x), which is IWAE's bound of it:

        -log 1/k sum_i p(x | z_i) p(z_i) / q(z_i | x)

    It falls towards -log p(x) as k grows; k = 1 is one draw's -ELBO. The draws are taken `chunk` at a time, with a
    running log-sum-exp, so that memory does not depend on k.

    Args:
        x, condition: as in `VAE.forward`.
        num_samples: k.
        generator, rng_state: where the noise comes from, as in `VAE.forward`. The result does not depend on `chunk`
            but for rounding.
        chunk: draws at a time; by default as many as give the decoder some 16 million numbers to make.

    Returns:
        (batch,), float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `VAE.forward`; num_samples or chunk below 1.

    Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", 2016, equation 8.
    """
    return _estimate(model, x, num_samples, condition, generator, rng_state, chunk).nll


@torch.no_grad()
def reconstruction_nll(
    model: VAE,
    x: Tensor,
    num_samples: int = 10,
    *,
    condition: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """-E_q[log p(x | z)] of each sample with `num_samples` draws, (batch,): high for samples that the model cannot
    give back. Its negative is the reconstruction probability of An & Cho, "Variational autoencoder based anomaly
    detection using reconstruction probability", 2015. Arguments and errors as
    `importance_nll`."""
    return _estimate(model, x, num_samples, condition, generator, rng_state, chunk).distortion


class Evaluation(NamedTuple):
    """Attributes:
    elbo: the mean of E_q[log p(x | z)] - KL over the samples.
    nll: the mean of `importance_nll`.
    rate: the mean KL of q(z | x) from the prior, in nats a sample.
    distortion: the mean of -E_q[log p(x | z)]. -elbo is rate + distortion (Alemi et al., "Fixing a broken ELBO", 2018).
    kl_per_dimension: the rate of each latent dimension, of one latent's shape; None where the prior is no diagonal
        Gaussian, whose KL is estimated as a whole.
    active_units: how many dimensions' mu varies over the data (`active_units`).
    samples: how many there were.
    """

    elbo: float
    nll: float
    rate: float
    distortion: float
    kl_per_dimension: Tensor | None
    active_units: int
    samples: int


@torch.no_grad()
def evaluate(
    model: VAE, batches: Iterable[Any], num_samples: int = 100, *, generator: torch.Generator | None = None
) -> Evaluation:
    """All of `Evaluation` over a data set, batch by batch; mu of all samples is kept for the active units.

    Args:
        batches: of x, (x,) or (x, condition), as a DataLoader gives them; of a model that takes no condition (x, label)
            as well, whose labels have no part in it.
        num_samples: draws of `importance_nll`, and of the ELBO.
        generator: of the noise.

    Raises:
        TypeError, ValueError: as `importance_nll`; fewer than two samples.
    """
    count, sums, means = 0, torch.zeros(3, dtype=torch.float64), []
    by_dimension: Tensor | None = None
    for batch in batches:
        x, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        condition = rest[0] if rest and model.takes_condition else None
        found = _estimate(model, x, num_samples, condition, generator)
        kl = found.posterior.kl_per_element()
        if kl is not None:
            in_sum = kl.sum(0, dtype=torch.float64)
            by_dimension = in_sum if by_dimension is None else by_dimension + in_sum
        rate = found.rate if kl is None else kl.flatten(1)
        sums += torch.stack([t.sum(dtype=torch.float64) for t in (found.distortion, found.nll, rate)]).cpu()
        means.append(found.posterior.mu)
        count += x.shape[0]
    if count < 2:
        raise ValueError(f"expected batches with at least two samples, but got {count}")
    distortion, nll, mean_rate = (sums / count).tolist()
    return Evaluation(
        elbo=-distortion - mean_rate,
        nll=nll,
        rate=mean_rate,
        distortion=distortion,
        kl_per_dimension=None if by_dimension is None else by_dimension / count,
        active_units=int(active_units(torch.cat(means)).sum()),
        samples=count,
    )


class _Estimate(NamedTuple):
    """Of a batch: q(z | x); of each sample importance_nll, reconstruction_nll and the mean of log q(z | x) / p(z)."""

    posterior: Posterior
    nll: Tensor
    distortion: Tensor
    rate: Tensor


def _estimate(
    model: VAE,
    x: Tensor,
    num_samples: int,
    condition: Tensor | int | None,
    generator: torch.Generator | None,
    rng_state: Tensor | None = None,
    chunk: int | None = None,
) -> _Estimate:
    k = check_int("num_samples", num_samples, least=1)
    posterior = posterior_of(model, x, k, condition, generator, rng_state)
    zero = torch.zeros((), device=x.device)
    bound = zero - math.inf
    distortion, rate = zero, zero
    for z, weights in draws_of(posterior, k, chunk):
        nll = posterior.nll(z)
        bound = torch.logaddexp(bound, (weights - nll).logsumexp(0))
        distortion, rate = distortion + nll.sum(0), rate - weights.sum(0)
    return _Estimate(posterior, math.log(k) - bound, distortion / k, rate / k)
