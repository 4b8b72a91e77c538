"""Differences that are known, each with its reason and the largest share of the elements that it may touch."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest


class Known(NamedTuple):
    where: str  # a pattern of "function, engine, dtype, result"
    share: float
    reason: str


KNOWN = (
    Known(
        r"discretized_logistic_mixture_nll, .*gradient of params",
        0.05,
        "the gradient is NaN where the value itself overflowed, and where a mean, a logit or a scale is infinite",
    ),
    Known(
        r"linear_(poisson|negative_binomial|zero_inflated_negative_binomial)_nll.*gradient",
        0.08,
        "an exp of the outputs or a library that leaves the dtype, or shares that cancel beside one that is nearly 1; a library of -inf",
    ),
    Known(r"linear_laplace_nll.*, torch.bfloat16, gradient", 0.02, "a difference of two subnormal numbers"),
    Known(
        r"(kl_divergence|reparameterize.*), triton, ",
        0.6,
        "Triton's latent keeps the shorter exp: the longer one took 64 instead of 42 instructions an element in bfloat16",
    ),
    Known(
        r"bernoulli_nll_from_probs, (reference|twin), torch.float64, gradient",
        0.4,
        "torch's 1e-12 is rounded to float32 in its float64 kernel, too, which is what the reference calls",
    ),
    Known(r"reparameterize.*gradient of logvar", 0.01, "exp of a log-variance from 177 on leaves float32 before a factor of 1/2 or a tiny noise brings it back"),
    Known(r"kl_divergence, (reference|twin), torch.float64, gradient", 0.001, "a few ulp more beside a NaN mean"),
    Known(r"gaussian_nll, reference, .*gradient of mean", 0.001, "a mean of finfo.max: a product that leaves float32"),
    Known(r"negative_binomial_nll, cpu baseline, torch.bfloat16, nll", 0.002, "a count of 1e-4, without FMA: 6e-5 relative"),
)
_WRONG = re.compile(r"^(.*): (\d+) of (\d+) (?:is|are) wrong", re.MULTILINE)


def reasons(report: str) -> list[str] | None:
    """Why everything that a report calls wrong is known; None if something is not."""
    found = []
    for where, wrong, of in _WRONG.findall(report):
        known = next((k for k in KNOWN if re.search(k.where, where) and int(wrong) <= k.share * int(of)), None)
        if known is None:
            return None
        found.append(known.reason)
    return found or None


def judge(report: str) -> None:
    """Fails with the report, or says that all of it is known."""
    if not report:
        return
    if why := reasons(report):
        pytest.xfail("; ".join(dict.fromkeys(why)))
    pytest.fail(report, pytrace=False)
