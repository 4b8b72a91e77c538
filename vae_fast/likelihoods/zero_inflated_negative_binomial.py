"""A negative binomial count that drops out, that is becomes 0, with some probability."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import NOTHING, count_nll
from .csr import Csr
from .linear import linear_nll
from .negative_binomial import THETA, d_negative_binomial, negative_binomial
from .spec import Parameter, Spec


def zero_inflated_negative_binomial_nll(
    mean: Tensor,
    target: Tensor | Csr,
    theta: Tensor | float,
    dropout_logits: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log(sigmoid(p) [x = 0] + sigmoid(-p) NB(x; mu, theta))"""
    terms, derivatives = zero_inflated_negative_binomial, d_zero_inflated_negative_binomial
    return count_nll(
        terms, derivatives, target, mean, theta, dropout_logits, mask=mask, weight=weight, reduction=reduction
    )


def zero_inflated_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor) -> Tensor:
    """-log(sigmoid(p) [x = 0] + sigmoid(-p) NB(x; mu, theta))"""
    nb, a = negative_binomial(x, mean, theta), -logit
    # Near 1 from its distance to 1, else softplus(a) - softplus(a - nb), of a large a without what is large.
    distance = torch.sigmoid(a) * -torch.expm1(-nb)
    large = torch.minimum(nb, a) - torch.log1p(torch.exp(-(a - nb).abs()))
    far = torch.where(a > 40, large, F.logsigmoid(nb - a) - F.logsigmoid(-a))
    near = distance < 0.5
    zero = torch.where(near, -torch.log1p(-torch.where(near, distance, 0.0)), far)
    return torch.where(x.abs() < NOTHING, zero, nb - F.logsigmoid(a))


def d_zero_inflated_negative_binomial(
    x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor
) -> tuple[Tensor, ...]:
    none = x.abs() < NOTHING
    nb = negative_binomial(x, mean, theta)
    q = torch.where(none, torch.sigmoid(-logit - nb), 1.0)  # P(a count of the negative binomial | x = 0)
    by_logit = torch.sigmoid(-logit) * torch.sigmoid(logit + nb) * torch.expm1(-nb)
    by_mean, by_theta = d_negative_binomial(x, mean, theta)
    by_theta = q * torch.where(none & nb.isinf(), 0.0, by_theta)
    undefined = torch.where(by_mean.isnan() | logit.isnan(), torch.nan, 0.0)  # as the value is
    by_logit = torch.where(none, by_logit, torch.sigmoid(logit))
    return q * by_mean + undefined, by_theta + undefined, by_logit + undefined


ZERO_INFLATED_NEGATIVE_BINOMIAL = Spec(
    "zero_inflated_negative_binomial",
    (Parameter("mean", is_log=True), THETA, Parameter("dropout_logits")),
    support="counts",
    nll=zero_inflated_negative_binomial_nll,
    derivatives=d_zero_inflated_negative_binomial,
    takes_library=True,
    source='Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018',
)


def linear_zero_inflated_negative_binomial_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    theta: Tensor | float | None = None,
    *,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    return linear_nll(
        ZERO_INFLATED_NEGATIVE_BINOMIAL,
        hidden,
        weight,
        bias,
        target,
        theta,
        library=library,
        mask=mask,
        sample_weight=sample_weight,
    )
