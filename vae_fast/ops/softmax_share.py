"""A softmax of whose classes each process of a group has some: what the processes exchange, a few numbers a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..likelihoods.categorical import IGNORED


def reduce_over(tensor: Tensor, op: str, group: str | None) -> Tensor:
    """In place, over the processes of the group of that name; without one, the tensor as it is."""
    if group is not None:
        from torch.distributed import ReduceOp, all_reduce, distributed_c10d

        processes = distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
        all_reduce(tensor, getattr(ReduceOp, op), group=processes)
    return tensor


def softmax(logits: Tensor, out: Tensor, group: str | None) -> None:
    """Over the last dim and the group."""
    if group is None:
        torch.softmax(logits, -1, out=out)
        return
    largest = reduce_over(logits.amax(-1, keepdim=True), "MAX", group)
    torch.exp(torch.sub(logits, largest, out=out), out=out)
    out.div_(reduce_over(out.sum(-1, keepdim=True), "SUM", group))


def categorical_share(
    backend: Any, logits: Tensor, target: Tensor, nll: Tensor, lse: Tensor, total: Tensor, group: str
) -> Tensor:
    """`categorical_forward` with the group's lse and total; nll is this process's share.

    Over all classes nll = n lse - sum x l with n = sum x, so a share of n' counts adds n' (lse - lse').

    Returns the target as `categorical_backward` takes it here: a number for each class of this process. A class number
    (-1: a class of another process) is 1 for one of them.
    """
    counts = target
    if target.ndim < logits.ndim:
        counts = target[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    backend.categorical_forward(logits, counts, nll=nll, lse=lse, total=total)
    own = lse.clone()
    largest = reduce_over(own.clone(), "MAX", group)
    torch.exp(own - largest, out=lse)
    reduce_over(lse, "SUM", group).log_().add_(largest)
    nll += torch.where(total == 0, 0.0, total * (lse - own))
    reduce_over(total, "SUM", group)
    if counts is not target:
        unknown = (total == 0) & (target != IGNORED)  # no process has it
        for t in (nll, total):
            t.masked_fill_(unknown, torch.nan)
    return counts
