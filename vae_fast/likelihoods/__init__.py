"""The likelihoods: each one's Spec and plain-PyTorch formula. The only list; every layer may import it."""

from .bernoulli import (
    BERNOULLI,
    BERNOULLI_PROBS,
    bernoulli_nll,
    bernoulli_nll_from_probs,
    linear_bernoulli_nll,
)
from .categorical import CATEGORICAL, categorical_nll, linear_categorical_nll
from .continuous_bernoulli import (
    CONTINUOUS_BERNOULLI,
    continuous_bernoulli_nll,
    linear_continuous_bernoulli_nll,
)
from .discretized_logistic import (
    DISCRETIZED_LOGISTIC,
    discretized_logistic_nll,
    linear_discretized_logistic_nll,
)
from .discretized_logistic_mixture import DISCRETIZED_LOGISTIC_MIXTURE, discretized_logistic_mixture_nll
from .gaussian import GAUSSIAN, UNIT_GAUSSIAN, gaussian_nll, linear_gaussian_nll
from .laplace import LAPLACE, laplace_nll, linear_laplace_nll
from .linear import linear_nll
from .multinomial import MULTINOMIAL, linear_multinomial_nll, multinomial_nll
from .negative_binomial import NEGATIVE_BINOMIAL, linear_negative_binomial_nll, negative_binomial_nll
from .negative_binomial_mixture import (
    NEGATIVE_BINOMIAL_MIXTURE,
    linear_negative_binomial_mixture_nll,
    negative_binomial_mixture_nll,
)
from .poisson import POISSON, linear_poisson_nll, poisson_nll
from .spec import Spec
from .zero_inflated_negative_binomial import (
    ZERO_INFLATED_NEGATIVE_BINOMIAL,
    linear_zero_inflated_negative_binomial_nll,
    zero_inflated_negative_binomial_nll,
)

LIKELIHOODS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        BERNOULLI,
        BERNOULLI_PROBS,
        CONTINUOUS_BERNOULLI,
        GAUSSIAN,
        UNIT_GAUSSIAN,
        LAPLACE,
        DISCRETIZED_LOGISTIC,
        DISCRETIZED_LOGISTIC_MIXTURE,
        CATEGORICAL,
        MULTINOMIAL,
        POISSON,
        NEGATIVE_BINOMIAL,
        ZERO_INFLATED_NEGATIVE_BINOMIAL,
        NEGATIVE_BINOMIAL_MIXTURE,
    )
}
# Those of the op `likelihood`: a number and its parameters have a term of their own.
ELEMENTWISE = {name: spec for name, spec in LIKELIHOODS.items() if spec.op == "likelihood"}

# The formulas, which `vae_fast.reference` hands on.
__all__ = [
    "bernoulli_nll",
    "bernoulli_nll_from_probs",
    "categorical_nll",
    "continuous_bernoulli_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "gaussian_nll",
    "laplace_nll",
    "linear_bernoulli_nll",
    "linear_categorical_nll",
    "linear_continuous_bernoulli_nll",
    "linear_discretized_logistic_nll",
    "linear_gaussian_nll",
    "linear_laplace_nll",
    "linear_multinomial_nll",
    "linear_negative_binomial_mixture_nll",
    "linear_negative_binomial_nll",
    "linear_nll",
    "linear_poisson_nll",
    "linear_zero_inflated_negative_binomial_nll",
    "multinomial_nll",
    "negative_binomial_mixture_nll",
    "negative_binomial_nll",
    "poisson_nll",
    "zero_inflated_negative_binomial_nll",
]
