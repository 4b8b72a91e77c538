"""The op `pairwise`: log q_j(z_i) of every row and column, reduced over the columns, one kernel each way.

Saved for backward are the inputs and the results: one number per row, and per row and dim where they are wanted.
Backward computes each pair's share of a sum again, exp(term - logsumexp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend, OwnColumn
from ..backends.reference import pairwise as reference_pairwise
from . import _common
from .op import Args, Gradients, Op


def pairwise(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None = None,
    first: int | None = None,
    dataset_size: int | None = None,
    want_dims: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """(joint, dims); dims is None if it is not wanted. The arguments have been checked in `functional`.

    first: row i is a sample of column first + i; with a dataset_size the columns have the weights of `OwnColumn`.
    """
    backend = _common.dispatch("pairwise", z, mu, logvar, log_weights)
    if backend is reference:
        return reference_pairwise.pairwise(z, mu, logvar, log_weights, _own(first, dataset_size))
    pair: tuple[Tensor, Tensor | None] = PAIRWISE(
        backend, z, mu, logvar, log_weights, first, dataset_size, want_dims
    )
    return pair


def _own(first: int | None, dataset_size: int | None) -> OwnColumn | None:
    return None if first is None else OwnColumn(first, dataset_size)


def dense_weights(log_weights: Tensor | None) -> Tensor | None:
    """One number a column: as the kernels read them."""
    return None if log_weights is None else log_weights.float().contiguous()


def pairwise_forward(
    backend: Any,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    first: int | None,
    dataset_size: int | None,
    want_dims: bool,
) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, ...]]:
    dtype = _common.result_dtype(z, mu, logvar, log_weights)
    joint = torch.empty(z.shape[0], dtype=dtype, device=z.device)
    dims = torch.empty(z.shape, dtype=dtype, device=z.device) if want_dims else None
    if backend is not FakeBackend:  # nor are the weights of a symbolic number of columns numbers
        weights, own = log_weights, _own(first, dataset_size)
        if backend is not reference:
            weights = dense_weights(log_weights)
        backend.pairwise_forward(z, mu, logvar, weights, own, joint=joint, dims=dims)
    # Copies: an op's results never share memory, and the caller may change them in place.
    return (joint, dims), (joint.clone(),) if dims is None else (joint.clone(), dims.clone())


def pairwise_backward(
    backend: Any, needs: Sequence[bool], grads: Args, args: Args, kept: Sequence[Tensor]
) -> Gradients:
    """Gradients of z, mu, logvar, log_weights."""
    grad_joint, grad_dims = grads
    z, mu, logvar, log_weights, first, dataset_size, _ = args
    joint, dims = kept if len(kept) > 1 else (*kept, None)
    outs = [
        None if t is None or not needed else _common.empty_like(backend, t)
        for t, needed in zip((z, mu, logvar), needs, strict=False)
    ]
    weights = log_weights if backend is reference else dense_weights(log_weights)
    by_weight = None
    if needs[3] and weights is not None:
        by_weight = torch.empty(weights.shape, dtype=weights.dtype, device=z.device)
    if backend is not FakeBackend:
        own = _own(first, dataset_size)
        backend.pairwise_backward(
            grad_joint, grad_dims, z, mu, logvar, weights, own, joint, dims,
            grad_z=outs[0], grad_mu=outs[1], grad_logvar=outs[2], grad_log_weights=by_weight,
        )  # fmt: skip
    if by_weight is not None:
        by_weight = by_weight.to(log_weights.dtype)
    return (*outs, by_weight)


def _batch_dims(
    z: Tensor, mu: Any, logvar: Any, log_weights: Any, first: Any, dataset_size: Any, want_dims: bool
) -> tuple[Sequence[int | None], Sequence[int]]:
    """Rows are shared out, columns are whole."""
    if dataset_size is not None:
        raise TypeError(
            "expected plain tensors for stratified weights, which a row's number decides, but got a DTensor"
        )
    return (0, None, None, None, None, None, None), (0, 0)


PAIRWISE = Op(
    "pairwise(Tensor z, Tensor mu, Tensor logvar, Tensor? log_weights, SymInt? first, SymInt? dataset_size, "
    "bool want_dims) -> (Tensor joint, Tensor dims, Tensor[] kept)",
    pairwise_forward,
    pairwise_backward,
    differentiable=("z", "mu", "logvar", "log_weights"),
    batch_dims=_batch_dims,
)
