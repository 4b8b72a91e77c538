"""log q(z_i | x_j) of all pairs in plain PyTorch: Chen et al., "Isolating sources of disentanglement in variational
autoencoders", 2018, section 4 and appendix C.

Shapes: B rows, M columns, D dims, S draws.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...likelihoods.numerics import arithmetic_dtype, upcast, widest
from ..contract import Generators, OwnColumn
from .rng import draw_rng_state
from .rng import noise as draw_noise

LOG_2PI = math.log(2 * math.pi)


class AggregatePosterior(NamedTuple):
    """The terms of KL(q(z|x) || p(z)), each (batch,)."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


def log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp logvar) of each element."""
    scaled = (z - mu) * torch.exp(-0.5 * logvar)
    return -0.5 * scaled * scaled - 0.5 * logvar - 0.5 * LOG_2PI


def stratified_log_weights(rows: int, columns: int, dataset_size: int, first: int, like: Tensor) -> Tensor:
    """Of `OwnColumn`, (B, M). The own column comes last: of a single column it is the next one, too."""
    place = torch.arange(rows, device=like.device)[:, None] + first
    column = torch.arange(columns, device=like.device)
    n, m = dataset_size, columns - 1
    if m < 1:
        return like.new_zeros(rows, columns)
    other, next_one = like.new_full((), 1 / m), like.new_full((), (n - m) / (n * m))
    weights = torch.where(column == (place + 1) % columns, next_one, other)
    return torch.where(column == place % columns, 1 / n, weights).log()


def pairwise(
    z_BD: Tensor,
    mu_MD: Tensor,
    logvar_MD: Tensor,
    log_weights_M: Tensor | None = None,
    own: OwnColumn | None = None,
) -> tuple[Tensor, Tensor]:
    """logsumexp over the columns, of the sum over dims and of each dim: joint_B, dims_BD."""
    z_BD, mu_MD, logvar_MD = upcast(z_BD, mu_MD, logvar_MD)
    terms_BMD = log_density(z_BD[:, None], mu_MD, logvar_MD)
    weights_BM = _log_weights(terms_BMD, log_weights_M, own)
    joint_B = torch.logsumexp(weights_BM + terms_BMD.sum(-1), 1)
    return joint_B, torch.logsumexp(weights_BM[..., None] + terms_BMD, 1)


def _log_weights(terms_BMD: Tensor, log_weights_M: Tensor | None, own: OwnColumn | None) -> Tensor:
    rows, columns = terms_BMD.shape[:2]
    if own is not None and own.dataset_size is not None:
        return stratified_log_weights(rows, columns, own.dataset_size, own.first, terms_BMD)
    if log_weights_M is None:
        return terms_BMD.new_zeros(1, columns)
    return log_weights_M.to(terms_BMD.dtype)[None]


def pairwise_forward(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    own: OwnColumn | None,
    *,
    joint: Tensor,
    dims: Tensor | None,
) -> None:
    of_joint, of_dims = pairwise(z, mu, logvar, log_weights, own)
    joint.copy_(of_joint)
    if dims is not None:
        dims.copy_(of_dims)


def pairwise_backward(
    grad_joint: Tensor | None,
    grad_dims: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    own: OwnColumn | None,
    joint: Tensor,
    dims: Tensor | None,
    *,
    grad_z: Tensor | None,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    grad_log_weights: Tensor | None,
) -> None:
    """By each term it is its share of the sums, exp(term - logsumexp)."""
    wide = widest(z)
    z, mu, logvar = (t.to(wide) for t in (z, mu, logvar))
    terms = log_density(z[:, None], mu, logvar)
    weights = _log_weights(terms, log_weights, own)
    share, by_weight = torch.zeros_like(terms), torch.zeros_like(terms.sum(-1))
    if grad_joint is not None:
        by_weight = grad_joint.to(wide)[:, None] * torch.exp(weights + terms.sum(-1) - joint[:, None])
        share = share + by_weight[..., None]
    if grad_dims is not None:
        assert dims is not None
        each = grad_dims.to(wide)[:, None] * torch.exp(weights[..., None] + terms - dims[:, None])
        share, by_weight = share + each, by_weight + each.sum(-1)
    root = torch.exp(-0.5 * logvar)
    scaled = (z[:, None] - mu) * root
    for out, grad in (
        (grad_z, -(share * scaled * root).sum(1)),
        (grad_mu, (share * scaled * root).sum(0)),
        (grad_logvar, (share * (0.5 * scaled * scaled - 0.5)).sum(0)),
        (grad_log_weights, by_weight.sum(0)),
    ):
        if out is not None:
            out.copy_(grad)


def gather_columns(mu: Tensor, logvar: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
    """mu and logvar (B, D) of all ranks of a process group, in the ranks' order, and where this rank's begin. The
    gradient of a rank's own is the sum over the ranks."""
    if group is None:
        return mu, logvar, 0
    from torch import distributed
    from torch.distributed._functional_collectives import all_gather_tensor_autograd

    rows, packed = mu.shape[0], torch.cat(torch.broadcast_tensors(*upcast(mu, logvar)), 1)
    everyone = all_gather_tensor_autograd(packed.contiguous(), 0, group)
    mu, logvar = everyone.chunk(2, 1)
    return mu, logvar, distributed.get_rank(group) * rows


def aggregate_posterior(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int,
    estimator: str = "mss",
    *,
    group: Any = None,
) -> AggregatePosterior:
    """log q(z|x) - log q(z), log q(z) - sum_d log q(z_d), sum_d log q(z_d) - log p(z)."""
    z_BD, mu_BD, logvar_BD = (t.flatten(1) for t in upcast(z, mu, logvar))
    mu_MD, logvar_MD, first = gather_columns(mu_BD, logvar_BD, group)
    rows, columns = z_BD.shape[0], mu_MD.shape[0]
    terms_BMD = log_density(z_BD[:, None], mu_MD, logvar_MD)
    if estimator == "mss":
        weights_BM = stratified_log_weights(rows, columns, dataset_size, first, terms_BMD)
    elif estimator == "mss_columns":
        weights_BM = column_log_weights(columns, dataset_size, terms_BMD)[first : first + rows]
    else:
        weights_BM = terms_BMD.new_full((1, columns), 1 / (dataset_size * max(columns, 1))).log()
    log_q_B = torch.logsumexp(weights_BM + terms_BMD.sum(-1), 1)
    log_marginals_B = torch.logsumexp(weights_BM[..., None] + terms_BMD, 1).sum(-1)
    return AggregatePosterior(
        log_density(z_BD, mu_BD, logvar_BD).sum(-1) - log_q_B,
        log_q_B - log_marginals_B,
        log_marginals_B - log_density(z_BD, torch.zeros_like(z_BD), torch.zeros_like(z_BD)).sum(-1),
    )


def column_log_weights(columns: int, dataset_size: int, like: Tensor) -> Tensor:
    """(M, M) as rtqichen/beta-tcvae's code has it: what belongs to the own column and the next is in the first two."""
    n, m = dataset_size, columns - 1
    if m < 1:
        return like.new_zeros(columns, columns)
    row, column = (
        torch.arange(columns, device=like.device)[:, None],
        torch.arange(columns, device=like.device),
    )
    strat = (column == 1) | ((row == m - 1) & (column == 0))
    weights = torch.where(column == 0, 1 / n, like.new_full((), 1 / m))
    return torch.where(strat, (n - m) / (n * m), weights).log()


def mixture_log_prob(z: Tensor, means: Tensor, logvars: Tensor, logits: Tensor | None = None) -> Tensor:
    """log sum_k softmax(logits)_k N(z; means_k, exp logvars_k)"""
    z, means, logvars = upcast(z, means, logvars)
    if logits is None:
        logits = means.new_zeros(means.shape[0])
    terms = log_density(z[..., None, :], means, logvars).sum(-1)
    return torch.logsumexp(F.log_softmax(logits.to(terms.dtype), -1) + terms, -1)


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
    """The mean over z ~ q of log q(z) - log p(z), where q = N(mu, exp logvar) and p is the mixture."""
    if noise is None:
        if rng_state is None:
            rng_state = draw_rng_state(mu.device, generator, mu.shape[0])
        dtype = arithmetic_dtype(mu, logvar, prior_mu, prior_logvar)
        noise = draw_noise(mu.shape, rng_state, num_samples=num_samples, dtype=dtype)
    mu_BD, logvar_BD, prior_mu, eps_SBD = upcast(mu, logvar, prior_mu, noise)
    z_SBD = mu_BD + torch.exp(0.5 * logvar_BD) * eps_SBD
    log_q_SB = (-0.5 * eps_SBD * eps_SBD - 0.5 * logvar_BD - 0.5 * LOG_2PI).sum(-1)
    return (log_q_SB - mixture_log_prob(z_SBD, prior_mu, prior_logvar, logits)).mean(0)
