"""Differences that are known, each with its reason and the largest share of the elements that it may touch."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import pytest


class Known(NamedTuple):
    where: str  # a pattern of "function, engine, dtype, way, result"
    share: float
    reason: str
    most: float = math.inf  # times what is allowed


KNOWN = (
    Known(
        r"reparameterize, (cpu|triton|cuda).*, gradient of logvar",
        0.002,
        "a log-variance from 353 on counts as 353: a noise of the smallest normal number shows it",
    ),
    Known(
        r"reparameterize, triton, .*, (z|gradient of logvar)",
        0.004,
        "a log-variance of inf, too, beside a noise of exactly 0: mu, where PyTorch has NaN",
    ),
    Known(
        r"kl_divergence, triton, torch.(float32|bfloat16), .*, kl",
        0.003,
        "log-variances of finfo.max and -finfo.max: their difference is infinite",
    ),
    Known(
        r"(kl_divergence|reparameterize_kl), triton, torch.(bfloat16|float16), samples, kl",
        0.18,
        "16-bit inputs have the shorter exp, good to 2^-20 of exp, 1 and logvar, which the KL is a difference of",
        most=16,
    ),
    Known(
        r"bernoulli_nll, triton, torch.(bfloat16|float16), samples, nll",
        0.004,
        "16-bit inputs have the shorter exp, good to 2^-20",
        most=16,
    ),
    Known(
        r"(bernoulli|continuous_bernoulli|laplace)\w*, triton, torch.bfloat16",
        0.09,
        "Triton's interpreter reads subnormal numbers of bfloat16 as 0",
    ),
    Known(
        r"negative_binomial_nll, cpu baseline, torch.bfloat16, samples, nll",
        0.001,
        "a count of 1e-4, without FMA: 6e-5 relative",
        most=1.1,
    ),
    Known(
        r"discretized_logistic_mixture_nll, reference, torch.float64, .*gradient of params",
        0.003,
        "a component that is impossible, its mean being finfo.max: 0 times an infinite slope",
    ),
    Known(
        r"linear_.*library\), reference, .*gradient of outputs",
        0.016,
        "counts of 1e30 beside means of 1e-8: a slope by the mean that leaves the dtype before the softmax is 0",
    ),
)
_WRONG = re.compile(r"^(.*): (\d+) of (\d+) are wrong, by up to (\S+) times", re.MULTILINE)


def _covers(known: Known, where: str, share: float, excess: float) -> bool:
    return bool(re.search(known.where, where)) and share <= known.share and excess <= known.most


def reasons(report: str) -> list[str] | None:
    """Why everything that a report calls wrong is known; None if something is not."""
    found = []
    for where, wrong, of, excess in _WRONG.findall(report):
        known = next((k for k in KNOWN if _covers(k, where, int(wrong) / int(of), float(excess))), None)
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
