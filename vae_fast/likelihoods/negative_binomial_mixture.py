"""A count of one of two negative binomials: foreground and background of a protein in totalVI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import count_nll
from .csr import Csr
from .linear import Value, linear_nll
from .negative_binomial import THETA, d_negative_binomial, negative_binomial
from .spec import Parameter, Spec


def negative_binomial_mixture_nll(
    mean_1: Tensor,
    target: Tensor | Csr,
    mean_2: Tensor | float,
    theta: Tensor | float,
    mixture_logits: Tensor | float,
    theta_2: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log(sigmoid(l) NB(x; mu_1, theta) + sigmoid(-l) NB(x; mu_2, theta_2)); theta_2 None is theta."""
    params = (mean_1, mean_2, theta, mixture_logits, theta if theta_2 is None else theta_2)
    return count_nll(
        negative_binomial_mixture,
        d_negative_binomial_mixture,
        target,
        *params,
        mask=mask,
        weight=weight,
        reduction=reduction,
    )


def negative_binomial_mixture(
    x: Tensor, mean_1: Tensor, mean_2: Tensor, theta: Tensor, logit: Tensor, theta_2: Tensor
) -> Tensor:
    first, second = negative_binomial(x, mean_1, theta), negative_binomial(x, mean_2, theta_2)
    # Near 1 from its distance to 1, else the logarithm of a sum whose larger term is taken out.
    distance = -torch.sigmoid(logit) * torch.expm1(-first) - torch.sigmoid(-logit) * torch.expm1(-second)
    a, b = first - F.logsigmoid(logit), second - F.logsigmoid(-logit)
    larger = torch.minimum(a, b)
    apart = torch.where(larger.isposinf(), 0.0, (a - b).abs())
    far = larger - torch.log1p(torch.exp(-apart))
    near = distance < 0.5
    return torch.where(near, -torch.log1p(-torch.where(near, distance, 0.0)), far)


def d_negative_binomial_mixture(
    x: Tensor, mean_1: Tensor, mean_2: Tensor, theta: Tensor, logit: Tensor, theta_2: Tensor
) -> tuple[Tensor, ...]:
    first, second = negative_binomial(x, mean_1, theta), negative_binomial(x, mean_2, theta_2)
    apart = torch.where(first == second, 0.0, second - first)  # two infinite ones are alike
    of_first, of_second = torch.sigmoid(logit + apart), torch.sigmoid(-logit - apart)  # P(component | x)
    # sigmoid(l) - P(1 | x), from the factor that does not cancel
    up = of_first * torch.sigmoid(-logit) * torch.expm1(-apart.clamp(min=0))
    down = -torch.sigmoid(logit) * of_second * torch.expm1(apart.clamp(max=0))
    by_logit = torch.where(apart > 0, up, down)

    def scaled(share: Tensor, *slopes: Tensor) -> list[Tensor]:
        return [torch.where(share == 0, 0.0, share * slope) for slope in slopes]

    by_mean_1, by_theta = scaled(of_first, *d_negative_binomial(x, mean_1, theta))
    by_mean_2, by_theta_2 = scaled(of_second, *d_negative_binomial(x, mean_2, theta_2))
    undefined = torch.where((first + second).isnan() | logit.isnan(), torch.nan, 0.0)  # as the value is
    return tuple(by + undefined for by in (by_mean_1, by_mean_2, by_theta, by_logit, by_theta_2))


NEGATIVE_BINOMIAL_MIXTURE = Spec(
    "negative_binomial_mixture",
    (
        Parameter("mean_1", is_log=True),
        Parameter("mean_2", is_log=True),
        THETA,
        Parameter("mixture_logits"),
        Parameter("theta_2", is_log=True, is_bounded=True, may_be_fixed=True),
    ),
    support="counts",
    nll=negative_binomial_mixture_nll,
    derivatives=d_negative_binomial_mixture,
    source='Gayoso et al., "Joint probabilistic modeling of single-cell multi-omic data with totalVI", 2021',
)


def linear_negative_binomial_mixture_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    theta: Value = None,
    theta_2: Value = None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    theta_2 = theta if theta_2 is None else theta_2
    return linear_nll(
        NEGATIVE_BINOMIAL_MIXTURE, hidden, weight, bias, target, theta, theta_2,
        mask=mask, sample_weight=sample_weight,
    )  # fmt: skip
