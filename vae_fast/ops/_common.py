"""What the ops share: which backend a call goes to, and the memory and shapes of results and gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

from .. import backends
from ..backends.contract import FakeBackend
from ..tracing import in_onnx_export

_len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack
_get_tracing_state = torch._C._get_tracing_state
_peek_interpreter_stack = torch._C._functorch.peek_interpreter_stack
_is_functorch_wrapped_tensor = torch._C._functorch.is_functorch_wrapped_tensor

LARGE = 1 << 20  # bytes; malloc reuses what is smaller by itself


def dispatch(op: str, first: Tensor, *others: Tensor | None) -> Any:
    """The backend to call now, `reference` for its differentiable expression, or None for the library op.

    Kernels take plain tensors, outside of tracing. torch.compile, torch.jit.trace, fake, meta and subclass tensors and
    dispatch modes understand the library op; functorch's transforms, forward-mode AD and ONNX only the expression.
    """
    traced = is_compiling()
    if not traced:
        if _peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return None if first.is_meta else backends.reference
        traced = _get_tracing_state() is not None or _len_torch_dispatch_stack() > 0
    double = False
    for t in (first, *others):
        if t is not None:
            if not traced:  # `_is_real`, spelled out: its call would take as long as what it looks at
                kind = type(t)
                traced = (
                    (kind is not Tensor and kind is not Parameter)
                    or t.is_neg()
                    or _is_functorch_wrapped_tensor(t)
                )
            if t.dtype is torch.float64:
                double = True
    if first.is_meta:
        return None
    if not traced:
        return backends.reference if double else backends.serving(op, device_type(first))
    if any(map(is_dtensor, (first, *others))):
        return None
    is_reference = double or in_onnx_export() or backends.choose(first.device.type) == "reference"
    return backends.reference if is_reference else None


def is_dtensor(value: Any) -> bool:
    """Without an import of torch.distributed.tensor: where the program has none, there are none."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def is_plain() -> bool:
    """Whether nothing traces or transforms this call."""
    return not is_compiling() and _peek_interpreter_stack() is None and forward_ad._current_level < 0


def device_type(tensor: Tensor) -> str:
    """Its device.type, in a sixth of the time where it is one of two."""
    return "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type


def _is_real(t: Tensor) -> bool:
    """Whether the memory of the tensor holds its numbers. Negation may be pending in a view, and a tensor that escaped
    from a transform of torch.func has no memory."""
    return (
        (type(t) is Tensor or type(t) is Parameter) and not t.is_neg() and not _is_functorch_wrapped_tensor(t)
    )


def are_real(*grads: Tensor | None) -> bool:
    """Whether a kernel can take these gradients; autograd may hand over batched, fake or negated ones."""
    for g in grads:
        if g is not None and not _is_real(g):
            return False
    return _peek_interpreter_stack() is None


def needs_grad(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def on_cpu(tensor: Tensor) -> bool:
    return tensor.is_cpu


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of a sum per sample, which is also that of the arithmetic."""
    for t in tensors:
        if t is not None and t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def per_sample(values: Tensor, ndim: int) -> Tensor:
    """values (batch,) or (draws, batch), to multiply what has `ndim` dims."""
    return values.view(*values.shape, *(1,) * (ndim - values.ndim))


def _allocator(backend: Any, size: int) -> Callable[..., Tensor] | None:
    """The backend's own torch.empty_strided, where it has one and a result of `size` bytes is large. Fake kernels have
    none, so they compare no sizes: each comparison would bound the batch of a traced graph."""
    return getattr(backend, "empty_strided", None) if backend is not FakeBackend and size >= LARGE else None


def empty(
    backend: Any,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """torch.empty, or torch.empty_strided, out of the backend's own memory for large results where it has some: that is
    kept between steps."""
    own = _allocator(backend, math.prod(shape) * dtype.itemsize)
    if own is not None:
        return own(shape, strides or contiguous_strides(shape), dtype)
    if strides is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def empty_loss(
    backend: Any, like: Tensor, per_element: bool, dtype: torch.dtype, draws: int | None = None
) -> Tensor:
    """Where the kernel writes a loss of `like` (batch, ...): of each sample, or of each element, in its layout; after
    the draws, if there are any."""
    if per_element:
        return empty_like(backend, like, draws, dtype)
    n = like.shape[0]
    if draws is not None:
        return torch.empty((draws, n), dtype=dtype, device=like.device)
    if like.dtype is dtype:  # a quarter less time
        return like.new_empty(n)
    return torch.empty(n, dtype=dtype, device=like.device)


def expand(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The tensor in that shape, by strides of zero. A view of what has it would take longer than a small output."""
    return tensor if tensor.ndim == len(shape) and tensor.shape == shape else tensor.expand(shape)


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def empty_like(
    backend: Any, like: Tensor, draws: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """torch.empty_like, of (draws, *like.shape) if draws are given: each keeps the layout of `like`."""
    dtype = dtype or like.dtype
    if draws is None and _allocator(backend, like.numel() * dtype.itemsize) is None:
        return torch.empty_like(like, dtype=dtype)
    shape: tuple[int, ...] = like.shape
    strides = torch.empty_like(like, device="meta").stride()
    if draws is not None:
        shape, strides = (draws, *shape), (like.numel(), *strides)
    return empty(backend, shape, dtype, like.device, strides)


def empty_gradient(
    backend: Any, param: Tensor | None, shape: Sequence[int], wanted: bool, draws: int | None = None
) -> Tensor | None:
    """Where the kernel writes the gradient of `param`, which broadcasts to `shape` (batch, ...), after draws or not.

    (draws, *shape), or shape where there are no draws: one per element. shape beside draws: summed over them.
    shape[1:]: summed over the batch, too. (): summed over everything.
    """
    if param is None or not wanted:
        return None
    if param.ndim == len(shape) and param.shape == shape:
        return empty_like(backend, param, dtype=None if draws is None else result_dtype(param))
    if draws is not None and param.ndim > len(shape):
        if param.shape[1:] == shape:
            return empty_like(backend, param)
        shape = (draws, *shape)
    elif param.numel() == 1:
        shape = ()
    elif param.ndim < len(shape) or param.shape[0] == 1:
        shape = shape[1:]
    return torch.empty(shape, dtype=result_dtype(param), device=param.device)


def unexpanded(param: Tensor) -> Tensor:
    """What `param` is an expanded view of, as broadcasting left it: the kernel then sums its gradient, and none of full
    size is written. Else param itself."""
    base = param._base if param.requires_grad else None
    if base is None or base.numel() >= param.numel() or param.retains_grad or param._backward_hooks:
        return param
    if base.dtype != param.dtype or base.is_neg() != param.is_neg() or base.ndim > param.ndim:
        return param
    lead = (1,) * (param.ndim - base.ndim)
    if any(b not in (1, n) for b, n in zip((*lead, *base.shape), param.shape, strict=True)):
        return param
    expanded = base.expand(param.shape)
    is_same = expanded.data_ptr() == param.data_ptr() and expanded.stride() == param.stride()
    return base if is_same else param


def reduce_gradient(grad: Tensor | None, param: Tensor | None) -> Tensor | None:
    """The rest of the sum, for the broadcasts that kernels do not know."""
    if grad is None or param is None or (grad.shape == param.shape and grad.dtype == param.dtype):
        return grad
    grad = grad.reshape((1,) * (param.ndim - grad.ndim) + grad.shape)
    return grad.sum_to_size(param.shape).to(param.dtype)
