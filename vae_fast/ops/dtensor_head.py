"""A fused head on DTensors: samples sharded over processes, and a weight of which each has the rows of its outputs.

The likelihood is a sum over features, so each process computes its own features' share of every sample's loss, and the
shares are added up. The weight is gathered nowhere. A softmax over all outputs exchanges two numbers a row, chunk by
chunk (`chunks.py`). Where the layer makes several parameters, a process has rows of some of them: these move, once a
pass, to the process that has their features, as many bytes as it holds of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..likelihoods import LIKELIHOODS
from ..likelihoods.categorical import IGNORED
from ._common import is_dtensor
from .dtensor import Batch, batch_dim, part

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ELSEWHERE = -1  # a class whose output another process has


def linear_likelihood(
    local_nll: Callable[..., Tensor],
    likelihood: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *fixed_params: Tensor,
    library: Tensor | None,
    mask: Tensor | None,
    sample_weight: Tensor | None,
) -> Tensor:
    """The loss of each sample, by `local_nll` of what this process has: a DTensor if hidden or target is one, else
    whole on every process."""
    from torch.distributed.tensor import Shard

    spec = LIKELIHOODS[likelihood]
    over_classes = spec.op == "categorical"
    positions = target.ndim - spec.is_counts if over_classes else 1
    draws_dim, split = int(hidden.ndim - 1 > positions), _mesh_dim_of_outputs(weight)
    per_sample = (library, mask, sample_weight, *fixed_params)
    dims = (
        None if library is None else 0,
        batch_dim(mask, target, positions if over_classes else None),
        batch_dim(sample_weight, target, 1),
        *(batch_dim(p, target) for p in fixed_params),
    )
    batch = Batch((hidden, target, weight, bias, *per_sample), (draws_dim, 0, None, None, *dims), split)

    def local(tensor: Any, dim: int | None, placement: Any = None) -> Any:
        return None if tensor is None else batch.local(tensor, dim, placement)

    x = batch.local(target, 0)
    library, mask, sample_weight, *fixed = map(local, per_sample, dims)
    layer = [local(t, None, Shard(0) if split is not None else None) for t in (weight, bias)]
    options: dict[str, Any] = {}
    if split is not None:
        shape = target.shape
        features = weight.shape[0] if over_classes else math.prod(shape[1:])
        heads = weight.shape[0] // features
        own, most = _own(features, batch.mesh, split)
        if heads > 1:
            plan, group = _plan(features, heads, batch.mesh, split), batch.mesh.get_group(split)
            layer = [None if t is None else _ByFeature.apply(t.contiguous(), plan, group) for t in layer]
        if not over_classes:
            mask, *fixed = (None if t is None else _features(t, shape, own) for t in (mask, *fixed))
        x = (
            _classes(x, features, own)
            if over_classes and not spec.is_counts
            else x.flatten(positions)[..., own]
        )
        if over_classes or library is not None:
            options = {"group": batch.mesh.get_group(split).group_name, "outputs": heads * most}
    nll = local_nll(
        likelihood, batch.local(hidden, draws_dim), *layer, x, *fixed,
        library=library, mask=mask, sample_weight=sample_weight, **options,
    )  # fmt: skip
    loss = batch.whole(nll, draws_dim, target.shape[0])
    return loss if is_dtensor(hidden) or is_dtensor(target) else loss.full_tensor()  # type: ignore[attr-defined]


def _own(features: int, mesh: DeviceMesh, dim: int) -> tuple[slice, int]:
    """This process's features; the most that one has."""
    parts = mesh.size(dim)
    _, most = part(features, parts, 0)
    if (parts - 1) * most >= features:
        raise ValueError(
            f"expected weight to have outputs for {parts} processes, but got {features} features"
        )
    first, count = part(features, parts, mesh.get_local_rank(dim))
    return slice(first, first + count), most


def _mesh_dim_of_outputs(weight: Tensor) -> int | None:
    """The last mesh dim along which the weight's rows are sharded."""
    if not is_dtensor(weight):
        return None
    return next((m for m, p in reversed([*enumerate(weight.placements)]) if p.is_shard(0)), None)  # type: ignore[attr-defined]


def _features(tensor: Tensor, shape: torch.Size, own: slice) -> Tensor:
    """Those of what broadcasts to a target of that shape, in one dim, after samples or not."""
    lead = tensor.shape[:1] if tensor.ndim == len(shape) else ()
    if math.prod(tensor.shape[len(lead) :]) == 1:  # one for all features
        return tensor.reshape((*lead, 1)) if lead else tensor.reshape(())
    return tensor.expand((*lead, *shape[1:])).flatten(len(lead))[..., own]


def _classes(target: Tensor, classes: int, own: slice) -> Tensor:
    """Class numbers as numbers of this process's outputs; one that does not exist stays one."""
    index = target.long()
    is_own, exists = (index >= own.start) & (index < own.stop), (index >= 0) & (index < classes)
    numbers = torch.where(is_own, index - own.start, torch.where(exists, ELSEWHERE, classes))
    return numbers.masked_fill(index == IGNORED, IGNORED)


class _ByFeature(torch.autograd.Function):
    """From this process's part of the rows of all parameters, one parameter after the other, the rows of its features
    of each parameter. Rows go from where they are to where they belong, with no copy in between."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: Plan, group: Any) -> Tensor:
        ctx.plan, ctx.group, ctx.count = plan, group, len(rows)
        taken = rows.new_empty((plan[-1].taken.stop, *rows.shape[1:]))
        from torch.distributed import all_to_all_single

        for move in plan:
            all_to_all_single(taken[move.taken], rows[move.held], move.received, move.sent, group=group)
        return taken

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad = grad.contiguous()
        rows = grad.new_empty((ctx.count, *grad.shape[1:]))
        from torch.distributed import all_to_all_single

        for move in ctx.plan:
            all_to_all_single(rows[move.held], grad[move.taken], move.sent, move.received, group=ctx.group)
        return rows, None, None


class Move(NamedTuple):
    """Of one parameter: the rows that this process holds and how many of them belong to each process; the rows that
    belong to it and how many of them each process holds."""

    held: slice
    sent: list[int]
    taken: slice
    received: list[int]


Plan = list[Move]


def _plan(features: int, heads: int, mesh: DeviceMesh, dim: int) -> Plan:
    parts, me = mesh.size(dim), mesh.get_local_rank(dim)
    held, owned = ([part(n, parts, p) for p in range(parts)] for n in (heads * features, features))

    def count(holder: int, owner: int, head: int) -> int:
        (start, size), (first, own) = held[holder], owned[owner]
        first += head * features
        return max(0, min(start + size, first + own) - max(start, first))

    plan, start, size = [], 0, owned[me][1]
    for head in range(heads):
        sent = [count(me, owner, head) for owner in range(parts)]
        received = [count(holder, me, head) for holder in range(parts)]
        plan.append(
            Move(slice(start, start + sum(sent)), sent, slice(head * size, (head + 1) * size), received)
        )
        start += sum(sent)
    return plan
