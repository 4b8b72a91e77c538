"""The body that likelihoods with one distribution per element share: checks, then the op."""

from __future__ import annotations

from torch import Tensor

from ..checks import (
    check_csr,
    check_mask,
    check_parameter,
    check_per_sample,
    check_reduction,
    check_target,
    check_tensor,
)
from ..likelihoods.csr import Csr
from ..likelihoods.numerics import weighted
from ..ops.csr import csr_likelihood
from ..ops.likelihood import likelihood


def elementwise_nll(
    op_name: str,
    param_name: str,
    param: Tensor,
    target: Tensor | Csr,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    optional: bool = False,
    of_counts: bool = False,
    **others: Tensor | float | None,
) -> Tensor:
    """The nll that the op calls `op_name`. `param` has target's shape, the `others` broadcast to it (`optional`: None
    is 0), and all may have draws; target may be sparse if it is `of_counts`. An error names them as here."""
    check_tensor(param_name, param)
    is_sparse = of_counts and check_csr(target)
    draws = check_target(target, param_name, param, is_sparse)
    params, like = [param], param if draws is None else param.expand(draws, *target.shape)
    for name, other in others.items():
        found = check_parameter(name, other, param_name, like, optional, draws is None)
        if draws is None and found.ndim > like.ndim:
            draws = found.shape[0]
            like = param.expand(draws, *target.shape)
        if draws is not None and found.ndim == like.ndim and found.shape[0] != draws:
            found = found.squeeze(0)  # one for all draws
        params.append(found)
    if mask is not None:
        check_mask(mask, target)
    if weight is not None:
        check_per_sample("weight", weight, target, draws)
    per_element = reduction != "sample" and check_reduction(reduction)
    if is_sparse:
        nll = csr_likelihood(op_name, target, *params, mask=mask, per_element=per_element, draws=draws)
    else:
        nll = likelihood(op_name, target, *params, mask=mask, per_element=per_element, draws=draws)  # type: ignore[arg-type]  # dense
    return nll if weight is None else weighted(nll, weight, target.ndim if per_element else 1)
