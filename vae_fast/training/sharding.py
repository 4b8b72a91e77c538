"""Training with sharded weights: FSDP2 (`fully_shard`) in the place of DistributedDataParallel.

Each process keeps a part of every parameter, of its gradient and of the optimizer's state; a layer's parameters are
gathered while it computes. torch's own `fully_shard` is called here, as Accelerate (1.15) has FSDP on GPUs alone.

To call a sharded model takes all processes. What one process runs by itself is a whole copy: `Shards.whole`.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module, Parameter

from .. import nn
from ..nn.inputs import IN_ORDER
from ..nn.pretrained import first_line
from ..nn.sharding import is_fsdp
from ..ops._common import is_dtensor
from .errors import TrainingError

# Parameters of a layer that is gathered by itself (4 MiB of float32); smaller ones are gathered with their network.
UNIT = 1 << 20


def check() -> None:
    """TrainingError where Accelerate was told to shard by itself."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise TrainingError(
            "expected Accelerate's own FSDP to be off (accelerate launch without --use_fsdp): "
            "--fsdp, in Python Recipe(fsdp=True), shards the weights"
        )


class Shards:
    """Shards a model and its copies over all processes.

    The parameters of process 0 are everybody's. A parameter of shape () has no parts: each process keeps it, and its
    gradient is made the processes' mean by `finish_gradients`.
    """

    def __init__(self, model: nn.VAE, accelerator: Accelerator) -> None:
        from torch.distributed import broadcast
        from torch.distributed.device_mesh import init_device_mesh

        self._device, self._processes = accelerator.device, accelerator.num_processes
        self._mesh = init_device_mesh(self._device.type, (self._processes,))
        for t in chain(model.parameters(), model.buffers()):
            t.data = t.data.contiguous()  # FSDP takes no other memory format
            broadcast(t.data, 0)
        self._empty = _copy(model, torch.device("meta"))
        self._scalars: list[tuple[Tensor, Tensor]] = []
        self._buffers: list[Tensor] = []

    def shard(self, model: nn.VAE) -> None:
        """In place. Raises TrainingError."""
        from torch.distributed.fsdp import fully_shard

        scalars = {p for p in model.parameters() if not p.ndim}
        try:
            for unit in units(model):
                fully_shard(unit, mesh=self._mesh, ignored_params=scalars)
        except (ValueError, NotImplementedError, AssertionError) as error:
            raise TrainingError(f"--fsdp does not take this model: {first_line(error)}") from None
        # FSDP warns of outputs that are views: of these nothing is changed in place here.
        for unit in (model.encoder, model.decoder, model):
            kind = f"FSDP2-wrapped module \\({type(unit).__name__}\\) returned a view tensor"
            warnings.filterwarnings("ignore", kind, UserWarning)

    def parameters(self, model: nn.VAE) -> list[Tensor]:
        """What an optimizer of the sharded model is given, all of one kind: its parameters, and those of shape () as
        DTensors in the same memory."""
        from torch.distributed.tensor import DTensor, Replicate

        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        found: list[Tensor] = []
        for p in model.parameters():
            if is_dtensor(p):
                found.append(p)
                continue
            shared = DTensor.from_local(p.detach(), self._mesh, [Replicate()], run_check=False)
            found.append(Parameter(shared, p.requires_grad))
            self._scalars.append((p, found[-1]))
        return found

    def finish_gradients(self) -> None:
        """Before the optimizer's step."""
        from torch.distributed import all_reduce
        from torch.distributed.tensor import DTensor, Replicate

        for p, shared in self._scalars:
            if (grad := p.grad) is not None:
                all_reduce(grad)
                shared.grad = DTensor.from_local(
                    grad / self._processes, self._mesh, [Replicate()], run_check=False
                )
                p.grad = None

    def share_buffers(self) -> None:
        """Has all processes begin a step with the statistics (of batch norm) of process 0, as under
        DistributedDataParallel."""
        from torch.distributed import broadcast

        for b in self._buffers:
            broadcast(b, 0)

    @torch.no_grad()
    def whole(self, model: nn.VAE) -> nn.VAE:
        """A copy that is not sharded, on every process. All call this."""
        found = _copy(self._empty, self._device)
        ours, theirs = (chain(m.parameters(), m.buffers()) for m in (found, model))
        for t, part in zip(ours, theirs, strict=True):
            t.copy_(_full(part))
            t.requires_grad_(part.requires_grad)
        return found.train(model.training)


def units(model: nn.VAE) -> list[Module]:
    """The modules whose parameters are gathered together, inner ones first: encoder, decoder and, where they are an
    nn.Sequential, their large layers; the model has the rest. Where modules of two units share a parameter: the model
    alone.

    A module that somebody's forward does not call, but reads a weight of, must not be a unit: hence no other layers.
    """
    networks = [
        network
        for vae in model.modules()
        if isinstance(vae, nn.VAE)
        for network in (vae.encoder, vae.decoder)
    ]
    parts = list(dict.fromkeys(n for n in networks if isinstance(n, Module)))
    layers = [
        layer
        for part in parts
        if type(part).forward in IN_ORDER
        for layer in part.children()
        if sum(p.numel() for p in layer.parameters()) >= UNIT
    ]
    found = dict.fromkeys([*layers, *parts, model])
    return [*found] if _are_apart(model, (), found, {}) else [model]


def _are_apart(
    module: Module,
    within: tuple[Module, ...],
    units: Mapping[Module, Any],
    seen: dict[int, tuple[Module, ...]],
) -> bool:
    """Whether each parameter below the module is in the same units wherever it is found."""
    within = (*within, module) if module in units else within
    own = (p for p in module._parameters.values() if p is not None)
    return all(seen.setdefault(id(p), within) == within for p in own) and all(
        _are_apart(child, within, units, seen) for child in module.children()
    )


def _copy(model: nn.VAE, device: torch.device) -> nn.VAE:
    """With parameters that hold nothing yet."""
    memo: dict[int, Any] = {
        id(p): Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def reshard(model: Module) -> None:
    """Frees what the model has gathered in a pass without gradients."""
    if is_fsdp(type(model)):
        model.reshard()  # type: ignore[operator]


def _full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def local(tensor: Any) -> Tensor:
    """This process's part."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def by_parts(average: Callable[..., None]) -> Callable[..., None]:
    """An AveragedModel's `multi_avg_fn` for the parts of a process: parameters of shape () are no DTensors, and torch's
    ops on lists take one kind."""

    def average_parts(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        average([local(t) for t in averaged], [local(t) for t in current], count)

    return average_parts


def whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors as they are without sharding, on the CPU, where a whole model's state fits; with `keep` False none,
    after helping the others to theirs."""
    found = {}
    for name, t in tensors.items():
        t = _full(t)
        if keep:
            found[name] = t.cpu()
    return found


def parts_like(tensors: Mapping[str, Tensor], of: Mapping[str, Any]) -> dict[str, Tensor]:
    """This process's parts of whole tensors, sharded as those of the same name are."""
    return {name: part_like(t, of.get(name)) for name, t in tensors.items()}


def state_parts(
    state: dict[int, dict[str, Tensor]], parameters: list[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """An optimizer's state, by the numbers of its parameters: this process's parts of what there is of each of a
    parameter's elements. Of a parameter of shape () that is what the others say: a count of steps has its shape."""
    of_elements = {
        name
        for i, values in state.items()
        for name, t in values.items()
        if t.ndim and t.shape == parameters[i].shape
    }
    return {
        i: {name: part_like(t, parameters[i]) if name in of_elements else t for name, t in values.items()}
        for i, values in state.items()
    }


def part_like(tensor: Tensor, of: Any) -> Tensor:
    if not is_dtensor(of):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # A copy: the part would keep all of the tensor's memory.
    return distribute_tensor(tensor, of.device_mesh, of.placements, src_data_rank=None).clone()
