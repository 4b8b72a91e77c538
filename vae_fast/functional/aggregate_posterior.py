"""The terms of the KL divergence by the aggregate posterior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..backends.reference.pairwise import AggregatePosterior, gather_columns, log_density
from ..checks import check_device, check_int, check_pair, check_shape, check_tensor
from ..likelihoods.numerics import upcast
from ..ops.pairwise import pairwise

ESTIMATORS = ("mss", "mws", "mss_columns")


def aggregate_posterior(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int,
    estimator: str = "mss",
    *,
    group: Any = None,
) -> AggregatePosterior:
    """The three terms of KL(q(z|x) || N(0, 1)) around the aggregate posterior q(z) = mean over the data of q(z|x).

        mutual_information = log q(z|x) - log q(z)
        total_correlation  = log q(z) - sum_d log q(z_d)
        dimension_wise_kl  = sum_d log q(z_d) - log p(z)

    beta-TCVAE weights them: alpha, beta and gamma times their means. q(z) and each q(z_d) are estimated from a batch of
    M samples of a data set of N, log q(z_i) = logsumexp_j(log w_ij + log q(z_i|x_j)):

        "mss"          minibatch stratified sampling: w_ii = 1/N, w_i,i+1 = (N - m)/(N m), all others 1/m, m = M - 1,
                       which add up to 1; a batch of one has w = 1.
        "mws"          minibatch weighted sampling: w_ij = 1/(N M).
        "mss_columns"  what the code that came with the paper computes, and pythae and disentangling-vae after it: the
                       weight 1/N is not the own sample's but that of column 0, (N - m)/(N m) is column 1's (and that
                       of column 0 in row m - 1). For their numbers; not for new work.

    Bias: "mws" takes a sum over M for one over N. Where only the own sample is near, it makes log q(z) and each
    log q(z_d) too small by log M, and the total correlation of D dims too large by (D - 1) log M; where all samples of
    the batch are as near, too large by (D - 1) log N. The gradient does not see a constant, but values of different
    batch sizes do not compare. "mss" is unbiased for q(z), not for its logarithm.

    Normalisation elsewhere: rtqichen/beta-tcvae, pythae and early versions of disentangling-vae compute "mws" and
    "mss_columns" as above. disentangling-vae since then has no 1/(N M) without is_mss, so its total correlation is
    (D - 1) log(N M) below "mws"; with is_mss it adds log w_ij to every dim before the joint sum, D times in log q(z).

    Memory: the inputs, one number per sample and dim, and scratch of a few MB; never a tensor of all pairs.

    Args:
        z: (batch, ...), samples of N(mu, exp logvar); float32, bfloat16, float16 or float64, any strides.
        mu, logvar: the shape of z. All dims but the first are latent dims.
        dataset_size: N, at least the number of samples in the batch.
        estimator: see above.
        group: a torch.distributed process group: pairs with mu and logvar of all its ranks, gathered with their
            gradients, as if the ranks' batches, of equal size, were one.

    Returns:
        A named tuple of (batch,), in nats; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match, an unknown estimator, a dataset_size below the batch.

    Source: Chen et al., "Isolating sources of disentanglement in variational autoencoders", 2018, section 4 and
    appendix C.
    """
    check_tensor("z", z)
    check_pair(mu, logvar)
    check_shape("z", z, "mu", mu.shape)
    check_device("z", z, "mu", mu)
    if estimator not in ESTIMATORS:
        raise ValueError(f'expected estimator to be "mss", "mws" or "mss_columns", but got {estimator!r}')
    dataset_size = check_int("dataset_size", dataset_size, 1)
    z, own_mu, own_logvar = (t.flatten(1) for t in (z, mu, logvar))
    mu, logvar, first = gather_columns(own_mu, own_logvar, group)
    # While a graph is traced nothing is compared: it would bound the batch.
    if estimator != "mws" and not is_compiling() and dataset_size < mu.shape[0]:
        raise ValueError(
            f"expected dataset_size to be at least the batch of {mu.shape[0]}, but got {dataset_size}"
        )
    log_q, log_marginals = _log_q(z, mu, logvar, dataset_size, estimator, first)
    wide_z, own_mu, own_logvar = upcast(z, own_mu, own_logvar)
    log_conditional = log_density(wide_z, own_mu, own_logvar).sum(1)
    log_prior = -0.5 * (wide_z.square() + math.log(2 * math.pi)).sum(1)
    return AggregatePosterior(log_conditional - log_q, log_q - log_marginals, log_marginals - log_prior)


def _log_q(
    z: Tensor, mu: Tensor, logvar: Tensor, dataset_size: int, estimator: str, first: int
) -> tuple[Tensor, Tensor]:
    """log q(z), sum_d log q(z_d)"""
    if estimator == "mss":
        joint, dims = pairwise(z, mu, logvar, first=first, dataset_size=dataset_size)
        return joint, _sum(dims)
    if estimator == "mws":
        joint, dims = pairwise(z, mu, logvar, first=first)
        # A tensor: a number of a symbolic batch would bind the graph to it.
        count = torch.scalar_tensor(dataset_size * mu.shape[0], dtype=torch.float64, device=mu.device)
        shift = count.log().to(joint.dtype)
        return joint - shift, _sum(dims) - z.shape[1] * shift
    return _by_columns(z, mu, logvar, dataset_size, first)


def _by_columns(z: Tensor, mu: Tensor, logvar: Tensor, n: int, first: int) -> tuple[Tensor, Tensor]:
    """Weights of each column; row m - 1 has others."""
    columns = mu.shape[0]
    m = columns - 1
    if m < 1:
        joint, dims = pairwise(z, mu, logvar, first=first)
        return joint, _sum(dims)
    strat = (n - m) / (n * m)
    weights = torch.full((columns,), 1 / m, dtype=torch.float64, device=z.device)
    weights[0], weights[1] = 1 / n, strat
    special = weights.clone()
    special[0] = strat
    row, parts = m - 1 - first, []
    for rows, given, place in (
        (z[: max(0, row)], weights, first),
        (z[max(0, row) : max(0, row + 1)], special, first + max(0, row)),
        (z[max(0, row + 1) :], weights, first + max(0, row + 1)),
    ):
        parts.append(pairwise(rows, mu, logvar, given.log().float().to(z.dtype), first=place))
    joint, dims = (torch.cat(of) for of in zip(*parts, strict=True))
    return joint, _sum(dims)


def _sum(dims: Tensor | None) -> Tensor:
    """Over the dims, in float64, so that torch's order of the additions does not show."""
    assert dims is not None
    return dims.sum(1, dtype=torch.float64).to(dims.dtype)
