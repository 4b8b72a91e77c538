"""What torch.distributed does around a module's forward, for a forward of which this package runs parts by itself.

FSDP2 (`fully_shard`) gathers a module's parameters before its forward and frees them after it. Tensor parallelism
(`parallelize_module`) makes DTensors of a layer's weight and input. Nothing here imports torch.distributed: where the
program has not, no module is sharded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..ops._common import is_dtensor

_FSDP, _TENSOR = "torch.distributed.fsdp", "torch.distributed.tensor"


def is_fsdp(kind: type) -> bool:
    """Whether it is FSDP2's class of a module; `fully_shard` makes one of each class that it is given."""
    fsdp = sys.modules.get(_FSDP)
    return fsdp is not None and issubclass(kind, fsdp.FSDPModule)


def class_of(module: nn.Module) -> type[nn.Module]:
    """Its class before it was sharded or parametrized."""
    kind: Any = type(module)
    if is_fsdp(kind):
        kind = next(base for base in kind.__mro__ if not is_fsdp(base))
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def gather_around(kind: type, names: Iterable[str]) -> None:
    """Has FSDP gather the parameters around these methods of its class `kind`, too."""
    for name in names:
        setattr(kind, name, _gathering(kind, name))


def _gathering(kind: type, name: str) -> Callable[..., Any]:
    """The method with its parameters gathered. Within another one it is called as it is: FSDP would take the end of the
    inner one for the outer one's, and free the parameters too early."""

    @wraps(getattr(kind, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(super(kind, self), name)
        if self.__dict__.get("_is_gathered", False):
            return own(*args, **kwargs)
        self._is_gathered = True
        try:
            return run_as_forward(self, own, *args, **kwargs)
        finally:
            self._is_gathered = False

    return method


def run_as_forward(module: nn.Module, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """function(*inputs, **options) in place of the forward of `module`, whose parameters FSDP gathers for it."""
    if not is_fsdp(type(module)):
        return function(*inputs, **options)
    if "_run_gathered" not in module.__dict__:
        from torch.distributed.fsdp import register_fsdp_forward_method

        module._run_gathered = MethodType(_run_gathered, module)  # type: ignore[assignment]
        register_fsdp_forward_method(module, "_run_gathered")
    return module._run_gathered(function, *inputs, **options)  # type: ignore[operator]


def _run_gathered(module: nn.Module, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    return function(*inputs, **options)


def run_head(linear: nn.Module, function: Callable[..., Any], hidden: Any) -> Any:
    """function(hidden), a loss of each sample, in place of the forward of `linear`, which may be tensor-parallel."""
    for hook in linear._forward_pre_hooks.values():
        if _is_tensor_parallel(hook):
            hidden = hook(linear, (hidden,))
    loss = run_as_forward(linear, function, hidden)
    return loss.full_tensor() if is_dtensor(loss) else loss


def is_stood_in_for(hook: Any, is_head: bool) -> bool:
    """Whether `run_as_forward`, or `run_head` of a head, does what the hook of a module does. FSDP's is one where the
    module is a group by itself."""
    owner = type(getattr(hook, "__self__", None)).__module__
    return owner.startswith(f"{_FSDP}.") or (is_head and _is_tensor_parallel(hook))


def _is_tensor_parallel(hook: Any) -> bool:
    """Whether `distribute_module` made it, with which ColwiseParallel and its like take their inputs."""
    return getattr(hook, "__module__", None) == f"{_TENSOR}._api"


def why_not_by_outputs(linear: nn.Module) -> str | None:
    """What is sharded of a tensor-parallel layer's weight if that is not its outputs."""
    weight = linear._parameters.get("weight")
    if not is_dtensor(weight) or not any(map(_is_tensor_parallel, linear._forward_pre_hooks.values())):
        return None
    is_by_outputs = all(getattr(placement, "dim", 0) == 0 for placement in weight.placements)  # type: ignore[union-attr]
    return None if is_by_outputs else "sharded by its inputs, not by its outputs (RowwiseParallel)"
