"""The op `likelihood`, element by element: of each likelihood a pair of functions, -log p(x) and its derivatives.

NAME_nll(p, q, r, x, EXACT)         p, q, r: the parameters, of which a likelihood reads as many as it has
NAME_grads(p, q, r, x, g, EXACT)    g times the derivatives by p, q, r; 0.0 by those that it does not have
"""

from __future__ import annotations

from typing import Any

from ....likelihoods import ELEMENTWISE
from . import (
    bernoulli,
    continuous_bernoulli,
    discretized_logistic,
    gaussian,
    laplace,
    negative_binomial,
    poisson,
    zero_inflated_negative_binomial,
)

_MODULES = (
    bernoulli,
    continuous_bernoulli,
    discretized_logistic,
    gaussian,
    laplace,
    negative_binomial,
    poisson,
    zero_inflated_negative_binomial,
)


def _find(function: str) -> Any:
    [found] = [vars(module)[function] for module in _MODULES if function in vars(module)]
    return found


# nll, gradients, and whether a uint8 target counts 255ths
LIKELIHOODS = {
    name: (_find(f"{name}_nll"), _find(f"{name}_grads"), not spec.is_counts)
    for name, spec in ELEMENTWISE.items()
}
