"""Checks of the public functions' arguments. Each error names the argument, what it got and what it takes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .backends.contract import Rows
from .backends.reference import draw_rng_state

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
_TARGETS = (*_DTYPES, torch.bool, *_INTEGERS)


def _of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def python_value(value: Any) -> Any:
    """The value of a numpy scalar or of a tensor without dims; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def number_of(value: Any) -> int | float | None:
    """The Python number that it is; None if it is none, or a bool."""
    value = python_value(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def bool_of(value: Any) -> bool | None:
    """The Python bool that it is; None if it is none."""
    value = python_value(value)
    return value if isinstance(value, bool) else None


def check_int(name: str, value: Any, least: int = 0) -> int:
    number = number_of(value)
    if not isinstance(number, int):
        raise TypeError(f"expected {name} to be an int, but got {value!r}")
    if number < least:
        raise ValueError(f"expected {name} to be at least {least}, but got {number}")
    return number


def check_bool(name: str, value: Any) -> bool:
    flag = bool_of(value)
    if flag is None:
        raise TypeError(f"expected {name} to be a bool, but got {value!r}")
    return flag


def check_sizes(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """One size or several, as Python ints."""
    if number_of(value) is None and isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(check_int(name, n) for n in value)
    return (check_int(name, value),)


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}, it takes a tensor")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, it takes float32, bfloat16, float16 or float64")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, it takes a dense tensor")
    if tensor.ndim == 0:
        raise ValueError(f"{name} has shape (), it takes (batch, ...)")


def check_dim(moments: Tensor, dim: int) -> None:
    ndim = moments.ndim
    if ndim == 1:
        raise ValueError(
            f"moments has shape {_of(moments)}, it takes (batch, ...) with mu and logvar along dim"
        )
    if not isinstance(dim, (int, numbers.Integral)):
        raise TypeError(f"dim is {type(dim).__name__}, it takes an int")
    if not -ndim < dim < ndim or dim == 0:
        takes = "1 or -1" if ndim == 2 else f"1 to {ndim - 1} or -{ndim - 1} to -1"
        raise ValueError(f"dim is {dim}, moments of shape {_of(moments)} takes {takes}")


def check_pair(mu: Tensor, logvar: Tensor) -> None:
    check_tensor("mu", mu)
    check_tensor("logvar", logvar)
    if mu.shape != logvar.shape:
        raise ValueError(f"logvar has shape {_of(logvar)}, mu has {_of(mu)}")
    check_device("logvar", logvar, "mu", mu)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, {other_name} is on {other.device}")


def check_target(target: Tensor, other_name: str, other: Tensor) -> None:
    check_target_type("target", target)
    if target.shape != other.shape:
        raise ValueError(f"target has shape {_of(target)}, {other_name} has {_of(other)}")
    check_device("target", target, other_name, other)


def check_target_type(name: str, target: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} is {type(target).__name__}, it takes a tensor")
    if target.dtype not in _TARGETS:
        raise TypeError(
            f"{name} has dtype {target.dtype}, it takes a float dtype, uint8, bool, int16, int32 or int64"
        )
    if target.layout is not torch.strided:
        raise TypeError(f"{name} has layout {target.layout}, it takes a dense tensor")


def check_broadcast(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}, it takes a tensor")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, it takes float32, bfloat16, float16 or float64")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, it takes a dense tensor")
    if tensor.ndim != other.ndim or tensor.shape != other.shape:
        _check_broadcast_to(name, tensor, f"{other_name}'s", other.shape)
    check_device(name, tensor, other_name, other)


def _check_broadcast_to(name: str, tensor: Tensor, whose: str, full: Sequence[int]) -> None:
    shape = tensor.shape
    if len(shape) > len(full) or any(
        n != m and n != 1 for n, m in zip(shape[::-1], full[::-1], strict=False)
    ):
        raise ValueError(f"{name} has shape {_of(tensor)}, which does not broadcast to {whose} {tuple(full)}")


def check_prior(prior: tuple[Tensor, Tensor] | None, mu: Tensor) -> tuple[Tensor, Tensor] | None:
    if prior is None:
        return None
    if not isinstance(prior, (tuple, list)):
        raise TypeError(f"prior is {type(prior).__name__}, it takes a pair of tensors (mu_p, logvar_p)")
    if len(prior) != 2:
        raise TypeError(f"prior has {len(prior)} element(s), it takes a pair of tensors (mu_p, logvar_p)")
    prior_mu, prior_logvar = prior
    check_broadcast("prior mu", prior_mu, "mu", mu)
    check_broadcast("prior logvar", prior_logvar, "mu", mu)
    return prior_mu, prior_logvar


def check_clamp(clamp: Sequence[float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    try:
        lo, hi = clamp
        if isinstance(lo, str) or isinstance(hi, str):
            raise TypeError
        lo, hi = float(lo), float(hi)
    except (TypeError, ValueError):
        raise TypeError(f"clamp is {clamp!r}, it takes a pair of numbers (lo, hi)") from None
    if not lo <= hi:
        raise ValueError(f"clamp is ({lo}, {hi}), it takes lo <= hi")
    return lo, hi


def resolve_rng_state(
    mu: Tensor,
    shape: torch.Size,
    num_samples: int | None,
    generator: torch.Generator | None,
    rng_state: Tensor | None,
    noise: Tensor | None,
) -> Tensor | None:
    """Checks what the noise comes from, and returns the rng_state to use (None if the noise is given)."""
    if num_samples is not None:
        check_num_samples(num_samples)
    if (noise is not None) + (rng_state is not None) + (generator is not None) > 1:
        raise ValueError("the noise comes from at most one of noise, rng_state and generator")
    if noise is not None:
        check_tensor("noise", noise)
        expected = shape if num_samples is None else (num_samples, *shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {_of(noise)}, z has {tuple(expected)}")
        if noise.requires_grad:
            raise ValueError("noise requires grad, it takes a constant (noise.detach(), say)")
        check_device("noise", noise, "mu", mu)
        return None
    if not is_compiling() and mu.numel() * (num_samples or 1) >= 2**32:
        check_counters("mu", shape, num_samples)
    if rng_state is not None:
        check_rng_state(rng_state, shape[0])
        check_device("rng_state", rng_state, "mu", mu)
        return rng_state
    return draw_rng_state(mu.device, check_generator(generator, "mu", mu))


def check_rng_state(rng_state: Tensor, batch: int) -> None:
    if not isinstance(rng_state, Tensor):
        raise TypeError(f"rng_state is {type(rng_state).__name__}, it takes an int64 tensor")
    if rng_state.dtype != torch.int64:
        raise TypeError(f"rng_state has dtype {rng_state.dtype}, it takes torch.int64")
    if rng_state.shape != ((2,) if rng_state.ndim == 1 else (batch, 2)):
        raise ValueError(
            f"rng_state has shape {tuple(rng_state.shape)}, it takes (2,) or (batch, 2) = ({batch}, 2)"
        )


def check_num_samples(num_samples: int) -> int:
    """It, as a Python int."""
    if not isinstance(num_samples, (int, numbers.Integral, torch.SymInt)) or isinstance(num_samples, bool):
        raise TypeError(f"num_samples is {type(num_samples).__name__}, it takes an int")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, it takes at least 1")
    return num_samples if isinstance(num_samples, (int, torch.SymInt)) else int(num_samples)


def check_counters(
    name: str, shape: Sequence[int], num_samples: int | None, rows: Rows | None = None
) -> None:
    """The noise counts elements of a sample and rows in 32 bits each (four elements a count).

    While a graph is traced nothing is compared: it would not take larger batches than this one. The library op looks
    when it runs.
    """
    if is_compiling():
        return
    size = math.prod(shape[1:])
    if size >= 2**34:
        raise ValueError(f"{name} has {size} elements per sample, the noise takes fewer than 2**34")
    if rows is None:
        samples = shape[0] * (num_samples or 1)
        if samples >= 2**32:
            raise ValueError(
                f"{name} has {samples} samples (draws included), the noise takes fewer than 2**32"
            )
        return
    end = ((num_samples or 1) - 1) * rows.per_draw + rows.offset + shape[0]
    if rows.offset < 0 or rows.per_draw < 0 or end > 2**32:
        raise ValueError(
            f"{name} has the rows {rows.offset} to {end - 1} of the noise (draws included), it has 0 to 2**32 - 1"
        )


def check_parameter(
    name: str, parameter: Tensor | float | None, other_name: str, other: Tensor, optional: bool = False
) -> Tensor:
    """A likelihood's second parameter, as a tensor: a number becomes one, and so does None (0) where it is optional."""
    if isinstance(parameter, Tensor):
        check_broadcast(name, parameter, other_name, other)
        return parameter
    if isinstance(parameter, (int, float, numbers.Real)) or (optional and parameter is None):
        dtype = torch.float64 if other.dtype is torch.float64 else torch.float32
        return torch.full((), parameter or 0.0, dtype=dtype, device=other.device)
    takes = "a tensor, a number or None" if optional else "a tensor or a number"
    raise TypeError(f"{name} is {type(parameter).__name__}, it takes {takes}")


def check_mask(
    mask: Tensor, target: Tensor, whose: str = "target's", shape: Sequence[int] | None = None
) -> None:
    """Of the elements of target, or of what it has in `shape`."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is {type(mask).__name__}, it takes a bool tensor")
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}, it takes torch.bool")
    _check_broadcast_to("mask", mask, whose, target.shape if shape is None else shape)
    check_device("mask", mask, "target", target)


def check_weight(weight: Tensor, other: Tensor) -> None:
    """Of each sample."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight is {type(weight).__name__}, it takes a tensor (batch,)")
    if weight.dtype not in _DTYPES:
        raise TypeError(f"weight has dtype {weight.dtype}, it takes float32, bfloat16, float16 or float64")
    if weight.shape != other.shape[:1]:
        raise ValueError(f"weight has shape {_of(weight)}, it takes (batch,) = ({other.shape[0]},)")
    check_device("weight", weight, "target", other)


def resolve_bits_state(
    target: Tensor, binarize: bool, generator: torch.Generator | None, rng_state: Tensor | None
) -> Tensor:
    """Checks where the bits of a target come from, and returns the rng_state to use."""
    if not isinstance(binarize, bool):
        raise TypeError(f"binarize is {type(binarize).__name__}, it takes a bool")
    if not binarize:
        raise ValueError("rng_state and generator take binarize=True: without it nothing is drawn")
    if rng_state is not None and generator is not None:
        raise ValueError("the bits come from at most one of rng_state and generator")
    if target.requires_grad:
        raise ValueError("target requires grad, binarize takes a constant (target.detach(), say)")
    check_counters("target", target.shape, None)
    if rng_state is not None:
        check_rng_state(rng_state, target.shape[0])
        check_device("rng_state", rng_state, "target", target)
        return rng_state
    return draw_rng_state(target.device, check_generator(generator, "target", target))


def check_generator(
    generator: torch.Generator | None, other_name: str, other: Tensor
) -> torch.Generator | None:
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator is {type(generator).__name__}, it takes a torch.Generator")
        if generator.device != other.device:
            raise ValueError(f"generator is on {generator.device}, {other_name} is on {other.device}")
    return generator


def check_logits(logits: Tensor) -> None:
    """Of a softmax over the last dim."""
    check_tensor("logits", logits)
    if logits.ndim < 2 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits has shape {_of(logits)}, it takes (batch, ..., classes), at least one class"
        )


def check_class_type(name: str, target: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} is {type(target).__name__}, it takes a tensor")
    if target.dtype not in _INTEGERS:
        raise TypeError(
            f"{name} has dtype {target.dtype}, it takes class numbers: uint8, int16, int32 or int64"
        )


def check_classes(target: Tensor, logits: Tensor) -> None:
    check_class_type("target", target)
    if target.shape != logits.shape[:-1]:
        raise ValueError(f"target has shape {_of(target)}, logits of {_of(logits)} take {_of(logits)[:-1]}")
    check_device("target", target, "logits", logits)


def check_mixture(params: Tensor, target: Tensor) -> None:
    check_tensor("params", params)
    check_target_type("target", target)
    if params.ndim < 2:
        raise ValueError(f"params has shape {_of(params)}, it takes (batch, P, ...)")
    channels = target.shape[1] if target.ndim > 1 else 0
    expected = (params.shape[0], channels, *params.shape[2:])
    if channels not in (1, 3) or target.shape != expected:
        takes = ", ".join(map(str, (params.shape[0], "1 or 3", *params.shape[2:])))
        raise ValueError(f"target has shape {_of(target)}, params of {_of(params)} takes ({takes})")
    each = 3 if channels == 1 else 10
    if params.shape[1] < each or params.shape[1] % each:
        raise ValueError(
            f"params has shape {_of(params)}, target of {channels} channel(s) takes a multiple of {each} along dim 1"
        )
    check_device("target", target, "params", params)
