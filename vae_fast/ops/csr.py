"""The ops `likelihood` and `categorical` of counts in CSR form.

A graph of torch.compile has no sparse tensors: the library ops take the three that one is made of.
The kernels are the dense ops': a target of theirs may be a `Csr`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..likelihoods import LIKELIHOODS
from ..likelihoods.csr import Csr, as_csr
from . import _common
from . import likelihood as dense
from .op import Args, Gradients, Op


def csr_likelihood(
    likelihood: str,
    target: Tensor | Csr,
    *params: Tensor,
    mask: Tensor | None = None,
    per_element: bool = False,
    draws: int | None = None,
) -> Tensor:
    """As `likelihood`, of counts (batch, features)."""
    csr = as_csr(target)
    backend = _common.dispatch("likelihood", csr.values, csr.crow, csr.col, mask, *params)
    if backend is reference or (csr.requires_grad and torch.is_grad_enabled()):
        first, *others = params
        reduction = "none" if per_element else "sample"
        return LIKELIHOODS[likelihood].nll(first, csr, *others, mask=mask, reduction=reduction)
    params = dense.unexpanded(backend, csr, params, draws)
    nll: Tensor = CSR_LIKELIHOOD(backend, likelihood, *csr.parts, mask, per_element, *params)
    return nll


def _likelihood_forward(
    backend: Any,
    likelihood: str,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    features: int,
    mask: Tensor | None,
    per_element: bool,
    *params: Tensor,
) -> tuple[Tensor, tuple[()]]:
    target = Csr(crow, col, values, features)
    expanded, mask, draws = dense.expand(params, mask, target)
    lead = () if draws is None else (draws,)
    shape = (*lead, *(target.shape if per_element else target.shape[:1]))
    nll = _common.empty(backend, shape, _common.result_dtype(values, *params), values.device)
    backend.likelihood_forward(likelihood, expanded, target, mask, None, nll=nll, draws=draws)
    return nll, ()


def _likelihood_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    likelihood, *parts, mask, per_element = args[:7]
    args = (likelihood, Csr(*parts), mask, None, per_element, *args[7:])
    return dense.likelihood_backward(backend, needs, grads, args, kept)


def csr_categorical(
    logits: Tensor, target: Tensor | Csr, mask: Tensor | None = None, per_element: bool = False
) -> Tensor:
    """As `categorical`, of counts (batch, classes); a sample is one position, so that `per_element` changes nothing."""
    csr = as_csr(target)
    backend = _common.dispatch("categorical", csr.values, csr.crow, csr.col, logits, mask)
    if backend is reference or (csr.requires_grad and torch.is_grad_enabled()):
        return reference.multinomial_nll(logits, csr, mask=mask)
    nll: Tensor = CSR_CATEGORICAL(backend, logits, csr.crow, csr.col, csr.values, mask)
    return nll


def _as_positions(logits: Tensor) -> Tensor:
    """The samples as positions, as the kernel has them, of the draws or of one batch."""
    return logits if logits.ndim == 3 else logits.unsqueeze(0)


def _categorical_forward(
    backend: Any, logits: Tensor, crow: Tensor, col: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    dtype, (*shape, classes) = _common.result_dtype(logits, values), logits.shape
    each = _as_positions(logits)
    nll, lse, total = (torch.empty(each.shape[:-1], dtype=dtype, device=logits.device) for _ in range(3))
    target = Csr(crow, col, values, classes)
    backend.categorical_forward(each, target, nll=nll, lse=lse, total=total)
    if mask is not None:
        nll = nll.masked_fill_(~mask, 0)
    return nll.view(shape), (lse, total)


def _categorical_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    logits, crow, col, values, mask = args
    grad, (lse, total) = _common.empty_like(backend, logits), kept
    target = Csr(crow, col, values, logits.shape[-1])
    each, grad_each = _as_positions(logits), _as_positions(grad)
    backend.categorical_backward(each, target, lse, total, grads[0].expand(lse.shape), grad_logits=grad_each)
    if mask is not None:
        grad.masked_fill_(~mask[..., None], 0)
    return (grad,)


CSR_LIKELIHOOD = Op(
    "csr_likelihood(str likelihood, Tensor crow, Tensor col, Tensor values, SymInt features, Tensor? mask, "
    "bool per_element, Tensor[] params) -> Tensor",
    _likelihood_forward,
    _likelihood_backward,
)
CSR_CATEGORICAL = Op(
    "csr_categorical(Tensor logits, Tensor crow, Tensor col, Tensor values, Tensor? mask) "
    "-> (Tensor nll, Tensor[] kept)",
    _categorical_forward,
    _categorical_backward,
    differentiable=("logits",),
)
