"""The op `likelihood`, element by element: of each likelihood a pair of functions, -log p(x) and its derivatives.

NAME_nll(params, x, EXACT)         params: a tuple of as many parameters as the likelihood's Spec has, in its order
NAME_grads(params, x, g, EXACT)    g times the derivatives by them: as long a tuple
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ....likelihoods import ELEMENTWISE

_MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


def _find(function: str) -> Any:
    [found] = [vars(module)[function] for module in _MODULES if function in vars(module)]
    return found


# nll, gradients, and whether a uint8 target counts 255ths
LIKELIHOODS = {
    name: (_find(f"{name}_nll"), _find(f"{name}_grads"), not spec.is_counts)
    for name, spec in ELEMENTWISE.items()
}
