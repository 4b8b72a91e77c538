"""DTensors in the ops: each process computes its own samples of the batch, as DTensor's own ops do.

On a mesh dim along which an argument is sharded by its samples, all that have samples are; what has none (theta of each
feature) is whole, and its gradient Partial. Everything else is whole. A plain tensor beside DTensors is taken to be the
same on all processes. A state of the noise stands for the whole batch, of which a process draws its rows.

`torch.distributed.tensor` is not imported here before a DTensor comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends.reference.rng import state_of_part
from . import _common
from ._common import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

    from .op import Op

STATE = -1  # in place of where an argument's samples are


def batch_dim(tensor: Tensor | None, like: Tensor, ndim: int | None = None) -> int | None:
    """Where the samples of `like` (batch, ...) are in what broadcasts to it, perhaps after draws; None: nowhere.

    ndim: of `like` as the tensor broadcasts to it.
    """
    ndim = like.ndim if ndim is None else ndim
    if tensor is None or tensor.ndim not in (ndim, ndim + 1):
        return None
    dim = tensor.ndim - ndim
    return dim if tensor.shape[dim] == like.shape[0] else None


class Batch:
    """How the samples of a call lie on a mesh.

    Args:
        args: the call's arguments.
        dims: of each, where its samples are; None where it has none.
        split: a mesh dim that the samples are not sharded along, whatever the arguments are: each process of it
            computes a part of every sample.
    """

    def __init__(self, args: Sequence[Any], dims: Sequence[int | None], split: int | None = None) -> None:
        self.mesh: DeviceMesh = next(a for a in args if is_dtensor(a)).device_mesh
        self.split = split
        pairs = [(a.placements, dim) for a, dim in zip(args, dims, strict=True) if is_dtensor(a)]
        self.sharded = [
            m != split and any(dim not in (None, STATE) and p[m].is_shard(dim) for p, dim in pairs)
            for m in range(self.mesh.ndim)
        ]

    def local(self, tensor: Tensor, dim: int | None, split: Placement | None = None) -> Tensor:
        """This process's part of an argument whose samples are in `dim`; `split`: its placement on that mesh dim."""
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        wanted: list[Placement] = []
        grads: list[Placement] = []
        for m, is_sharded in enumerate(self.sharded):
            place: Placement = Shard(dim) if is_sharded and dim is not None else Replicate()
            if m == self.split and split is not None:
                place = split
            # Processes that compute something else each have a share of the gradient of what they all have.
            is_shared = place.is_replicate() and (is_sharded or m == self.split)
            wanted.append(place)
            grads.append(Partial() if is_shared else place)
        if not is_dtensor(tensor):
            whole = [Replicate()] * self.mesh.ndim
            tensor = DTensor.from_local(tensor, self.mesh, whole, run_check=False)
        if list(tensor.placements) != wanted:  # type: ignore[attr-defined]
            tensor = tensor.redistribute(placements=wanted)  # type: ignore[attr-defined]
        local: Tensor = tensor.to_local(grad_placements=grads)  # type: ignore[attr-defined]
        return local

    def first(self, batch: int) -> int:
        """The first of this process's samples of a batch, as Shard cuts it."""
        first, count = 0, batch
        for m, is_sharded in enumerate(self.sharded):
            if is_sharded:
                skipped, count = cut(count, self.mesh, m)
                first += skipped
        return first

    def state(self, rng_state: Tensor, batch: int) -> Tensor:
        """That of this process's samples of a batch, from the whole batch's."""
        if rng_state.ndim == 2:
            return self.local(rng_state, 0)
        rng_state = self.local(rng_state, None)
        return state_of_part(rng_state, self.first(batch), batch) if any(self.sharded) else rng_state

    def whole(self, local: Tensor, dim: int, batch: int) -> Tensor:
        """The DTensor of what each process computed for its samples, in `dim`; a share of it along `split`."""
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        placements: list[Placement] = [Shard(dim) if s else Replicate() for s in self.sharded]
        if self.split is not None:
            placements[self.split] = Partial()
        shape = torch.Size((*local.shape[:dim], batch, *local.shape[dim + 1 :]))
        stride, size = [0] * local.ndim, 1  # in the layout of the parts
        for d in sorted(range(local.ndim), key=lambda d: (local.stride(d), -d)):
            stride[d], size = size, size * max(1, shape[d])
        return DTensor.from_local(
            local, self.mesh, placements, run_check=False, shape=shape, stride=tuple(stride)
        )


def cut(size: int, mesh: DeviceMesh, dim: int) -> tuple[int, int]:
    """(first, count) of this process's part of `size` along a mesh dim, as torch.chunk cuts it."""
    return part(size, mesh.size(dim), mesh.get_local_rank(dim))


def part(size: int, parts: int, index: int) -> tuple[int, int]:
    step = -(-size // parts)
    first = min(index * step, size)
    return first, min(step, size - first)


def run(
    function: Callable[..., Any], args: Sequence[Any], dims: Sequence[int | None], output_dims: Sequence[int]
) -> Any:
    """function(*args), a tensor or a tuple of them, computed by each process for its samples.

    dims: of each argument, where its samples are, STATE for a state of the noise, None where it has none; output_dims:
    likewise of the results.
    """
    batch = Batch(args, dims)
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d not in (None, STATE))
    local = [
        a if not isinstance(a, Tensor) else batch.state(a, size) if d is STATE else batch.local(a, d)
        for a, d in zip(args, dims, strict=True)
    ]
    outputs = function(*local)
    if isinstance(outputs, Tensor):
        return batch.whole(outputs, output_dims[0], size)
    pairs = zip(outputs, output_dims, strict=True)
    return tuple(o if o is None else batch.whole(o, d, size) for o, d in pairs)


def call(op: Op, args: Sequence[Any]) -> Any:
    """The outputs of an op on DTensors."""
    if op.batch_dims is None:
        raise TypeError(f"expected plain tensors for {op.name}, but got a DTensor")

    def local(*args: Any) -> Any:
        return op(_common.dispatch(op.name, *[a for a in args if isinstance(a, Tensor)]), *args)

    return run(local, args, *op.batch_dims(*args))
