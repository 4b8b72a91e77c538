"""The likelihoods: each one's Spec and plain-PyTorch formula. The only list; every layer may import it."""

from .bernoulli import BERNOULLI, BERNOULLI_PROBS
from .categorical import CATEGORICAL
from .continuous_bernoulli import CONTINUOUS_BERNOULLI
from .discretized_logistic import DISCRETIZED_LOGISTIC
from .discretized_logistic_mixture import DISCRETIZED_LOGISTIC_MIXTURE
from .gaussian import GAUSSIAN
from .laplace import LAPLACE
from .multinomial import MULTINOMIAL
from .negative_binomial import NEGATIVE_BINOMIAL
from .negative_binomial_mixture import NEGATIVE_BINOMIAL_MIXTURE
from .poisson import POISSON
from .spec import Parameter, Spec
from .zero_inflated_negative_binomial import ZERO_INFLATED_NEGATIVE_BINOMIAL

LIKELIHOODS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        BERNOULLI,
        BERNOULLI_PROBS,
        CONTINUOUS_BERNOULLI,
        GAUSSIAN,
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

__all__ = ["ELEMENTWISE", "LIKELIHOODS", "Parameter", "Spec"]
