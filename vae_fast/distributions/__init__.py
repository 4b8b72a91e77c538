"""torch.distributions on the fused ops: the same classes, arguments and shapes, one kernel each way.

`log_prob` is one fused pass for the value and one for all gradients, where torch.distributions runs 4 to 50 kernels
each way; a parameter that broadcasts is never expanded in memory. It is float32 (float64 for float64 parameters), for
16-bit parameters too, whose sums would overflow. What is not named in a class's description is torch's own.

The classes with Pyro's mixin are in `vae_fast.integrations.pyro`.
"""

from .bernoulli import Bernoulli, ContinuousBernoulli
from .categorical import Categorical, Multinomial
from .counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .independent import Independent
from .laplace import Laplace
from .normal import Normal

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Independent",
    "Laplace",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]
