"""p(x | z) by name. A new likelihood is one small class around one function of `vae_fast.functional`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from .base import Likelihood, Params
from .base_counts import Counts
from .bernoulli import Bernoulli
from .categorical import Categorical
from .continuous_bernoulli import ContinuousBernoulli
from .discretized_logistic import DiscretizedLogistic
from .discretized_logistic_mixture import DiscretizedLogisticMixture
from .gaussian import Gaussian
from .laplace import Laplace
from .mixed_columns import MixedColumns
from .multinomial import Multinomial
from .negative_binomial import NegativeBinomial
from .negative_binomial_mixture import NegativeBinomialMixture
from .poisson import Poisson
from .zero_inflated_negative_binomial import ZeroInflatedNegativeBinomial

_ALL: tuple[type[Likelihood], ...] = (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Categorical,
    Multinomial,
    Poisson,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    NegativeBinomialMixture,
)
LIKELIHOODS = {likelihood.name: likelihood for likelihood in _ALL}

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Counts",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "MixedColumns",
    "Multinomial",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Params",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "make_likelihood",
]


def make_likelihood(likelihood: str | Likelihood, **options: Any) -> Likelihood:
    """The likelihood of that name, made with its own options; or the module itself."""
    if isinstance(likelihood, Likelihood):
        _check_options(likelihood, type(likelihood), options)
        if options:
            raise TypeError(f"likelihood is a module, so {', '.join(options)} must be given to it")
        return likelihood
    if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
        names = ", ".join(LIKELIHOODS)
        raise ValueError(
            f"expected likelihood to be one of {names}, or a vae_fast.nn.Likelihood, but got {likelihood!r}"
        )
    _check_options(likelihood, LIKELIHOODS[likelihood], options)
    return LIKELIHOODS[likelihood](**options)


def _check_options(likelihood: str | Likelihood, kind: type[Likelihood], options: Iterable[str]) -> None:
    known = inspect.signature(kind).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"likelihood {likelihood!r} does not take {', '.join(unknown)} (it takes {', '.join(known) or 'nothing'}), "
            "nor is it an option of the model"
        )
