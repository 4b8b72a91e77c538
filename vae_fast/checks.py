"""Checks of the public functions' arguments. Each error names the argument, what it takes and what it got."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .backends import noise_group
from .backends.contract import PARAMETRIZATIONS, Generators
from .backends.reference import draw_rng_state
from .likelihoods.csr import Csr
from .tracing import in_onnx_export

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_get_tracing_state = torch._C._get_tracing_state
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_len_dispatch_stack = torch._C._len_torch_dispatch_stack

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INDICES = (torch.int32, torch.int64)
_CLASSES = (torch.uint8, torch.int16, torch.int32, torch.int64)
_TARGETS = (*FLOATS, torch.bool, *_CLASSES)
_COUNTS = (*_TARGETS, torch.uint16)  # of a sparse target


def shape_of(tensor: Tensor | Csr) -> tuple[int, ...]:
    """As an error shows it."""
    return tuple(tensor.shape)


def any_of(dtypes: Sequence[torch.dtype]) -> str:
    """float32, bfloat16 or float16"""
    *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(most)} or {last}"


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


def check_is_tensor(name: str, tensor: Any, what: str = "a tensor") -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected {name} to be {what}, but got {type(tensor).__name__}")


def _check_dense(name: str, tensor: Any, dtypes: Sequence[torch.dtype], what: str = "") -> None:
    if not isinstance(
        tensor, Tensor
    ):  # no call where there is nothing to say: a check takes a tenth of a small op
        check_is_tensor(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"expected {name} to have dtype {any_of(dtypes)}{what}, but got {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"expected {name} to be a dense tensor, but got layout {tensor.layout}")


def check_tensor(name: str, tensor: Tensor) -> None:
    _check_dense(name, tensor, FLOATS)
    if tensor.ndim == 0:
        raise ValueError(f"expected {name} to have shape (batch, ...), but got ()")


def check_dim(moments: Tensor, dim: int) -> None:
    ndim = moments.ndim
    if ndim == 1:
        raise ValueError(
            "expected moments to have shape (batch, ...) with mu and logvar along dim, "
            f"but got {shape_of(moments)}"
        )
    if not isinstance(dim, (int, numbers.Integral)):
        raise TypeError(f"expected dim to be an int, but got {type(dim).__name__}")
    if not -ndim < dim < ndim or dim == 0:
        takes = "1 or -1" if ndim == 2 else f"1 to {ndim - 1} or -{ndim - 1} to -1"
        raise ValueError(
            f"expected dim to be {takes} for moments of shape {shape_of(moments)}, but got {dim}"
        )


def check_pair(mu: Tensor, logvar: Tensor) -> None:
    check_tensor("mu", mu)
    check_tensor("logvar", logvar)
    check_shape("logvar", logvar, "mu", mu.shape)
    check_device("logvar", logvar, "mu", mu)


def check_shape(name: str, tensor: Tensor | Csr, other_name: str, shape: Sequence[int]) -> None:
    """Whether it has the `shape` of the other."""
    if tensor.shape != shape:
        raise ValueError(
            f"expected {name} to have shape {tuple(shape)} like {other_name}, but got {shape_of(tensor)}"
        )


def check_device(
    name: str, tensor: Tensor | Csr | torch.Generator, other_name: str, other: Tensor | Csr
) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"expected {name} to be on {other.device} like {other_name}, but got {tensor.device}"
        )


def check_target(
    target: Tensor | Csr, other_name: str, other: Tensor, is_checked: bool = False
) -> int | None:
    """Returns how many draws the other, a parameter, has of each sample: None where it has target's shape."""
    if not is_checked:
        _check_dense("target", target, _TARGETS)
    draws = None
    # Tuples of unequal length are compared element by element, too: draws with an exported batch of any size.
    if target.ndim != other.ndim or target.shape != other.shape:
        if not has_draws(other, target):
            check_shape("target", target, other_name, other.shape)
        draws = other.shape[0]
    if target.device != other.device:
        check_device("target", target, other_name, other)
    return draws


def has_draws(param: Tensor, target: Tensor | Csr) -> bool:
    """Whether it is (draws, batch, ...) to a target (batch, ...), or broadcasts to that after its first dim."""
    return param.ndim == target.ndim + 1 > 1 and _broadcasts(param.shape[1:], target.shape)


def _broadcasts(shape: Sequence[int], full: Sequence[int]) -> bool:
    return len(shape) <= len(full) and all(
        n == m or n == 1 for n, m in zip(shape[::-1], full[::-1], strict=False)
    )


def check_target_type(name: str, target: Tensor | Csr, of_counts: bool = False) -> None:
    """of_counts: it may be sparse."""
    if not (of_counts and check_csr(target, name)):
        _check_dense(name, target, _TARGETS)


def check_csr(target: Tensor | Csr, name: str = "target") -> TypeIs[Csr]:
    """Of a target of counts: whether it is sparse, and then all its checks."""
    if isinstance(target, Tensor) and target.layout is torch.strided:
        return False
    if not isinstance(target, Csr):
        check_is_tensor(name, target)
        if target.layout is not torch.sparse_csr:
            raise TypeError(
                f"expected {name} to be a dense tensor or to have layout torch.sparse_csr ({name}.to_sparse_csr(), "
                f"say), but got layout {target.layout}"
            )
        if target.ndim != 2 or target.dense_dim():
            raise ValueError(f"expected {name} to have shape (batch, features), but got {shape_of(target)}")
    if target.dtype not in _COUNTS:
        raise TypeError(f"expected {name} to have dtype {any_of(_COUNTS)}, but got {target.dtype}")
    if not isinstance(target, Csr):
        return True
    for part, dtypes in (("crow", _INDICES), ("col", _INDICES), ("values", _COUNTS)):
        tensor = getattr(target, part)
        _check_dense(f"{name}.{part}", tensor, dtypes)
        if tensor.ndim != 1:
            raise ValueError(f"expected {name}.{part} to have one dim, but got shape {shape_of(tensor)}")
        check_device(f"{name}.{part}", tensor, f"{name}.values", target.values)
    if target.crow.dtype != target.col.dtype:
        raise TypeError(
            f"expected {name}.col to have dtype {target.crow.dtype} like {name}.crow, but got {target.col.dtype}"
        )
    if target.crow.shape[0] == 0:
        raise ValueError(f"expected {name}.crow to have batch + 1 elements, but got none")
    check_shape(f"{name}.col", target.col, f"{name}.values", target.values.shape)
    return True


def check_broadcast(name: str, tensor: Tensor, other_name: str, other: Tensor | Csr) -> None:
    _check_dense(name, tensor, FLOATS)
    if tensor.ndim != other.ndim or tensor.shape != other.shape:
        _check_broadcast_to(name, tensor, other_name, other.shape)
    if tensor.device != other.device:
        check_device(name, tensor, other_name, other)


def _check_broadcast_to(name: str, tensor: Tensor, other_name: str, full: Sequence[int]) -> None:
    if not _broadcasts(tensor.shape, full):
        raise ValueError(
            f"expected {name} to broadcast to the shape {tuple(full)} of {other_name}, but got {shape_of(tensor)}"
        )


def check_prior(
    prior: tuple[Tensor, Tensor] | Tensor | None, mu: Tensor, dim: int = 1
) -> tuple[Tensor, Tensor] | Tensor | None:
    if prior is None:
        return None
    if isinstance(prior, Tensor):
        return _check_packed_prior(prior, mu, dim)
    if not isinstance(prior, (tuple, list)):
        raise TypeError(
            f"expected prior to be a pair of tensors (mu_p, logvar_p), but got {type(prior).__name__}"
        )
    if len(prior) != 2:
        raise TypeError(
            f"expected prior to be a pair of tensors (mu_p, logvar_p), but got {len(prior)} element(s)"
        )
    prior_mu, prior_logvar = prior
    check_broadcast("prior mu", prior_mu, "mu", mu)
    check_broadcast("prior logvar", prior_logvar, "mu", mu)
    return prior_mu, prior_logvar


def _check_packed_prior(prior: Tensor, mu: Tensor, dim: int) -> Tensor:
    _check_dense("prior", prior, FLOATS)
    place = dim - mu.ndim if dim >= 0 else dim  # from the end, as it broadcasts
    size, full = prior.shape, mu.shape
    fits = mu.ndim > 1 and -place <= prior.ndim <= mu.ndim and size[place] in (2, 2 * full[place])
    if not fits or any(size[d] not in (1, full[d]) for d in range(-prior.ndim, 0) if d != place):
        raise TypeError(
            "expected prior to be a pair of tensors (mu_p, logvar_p), but got Tensor of shape "
            f"{shape_of(prior)}, which is not [mu_p | raw_p] along dim {dim} for mu of shape {shape_of(mu)}"
        )
    check_device("prior", prior, "mu", mu)
    return prior


def check_parametrization(
    parametrization: str, epsilon: float, soft_clamp: float | None, clamp: tuple[float, float] | None
) -> tuple[str, float, float | None]:
    if parametrization not in PARAMETRIZATIONS:
        *most, last = (f'"{name}"' for name in PARAMETRIZATIONS)
        raise ValueError(
            f"expected parametrization to be {', '.join(most)} or {last}, but got {parametrization!r}"
        )
    offset, limit = number_of(epsilon), number_of(soft_clamp)
    if offset is None:
        raise TypeError(f"expected epsilon to be a number, but got {epsilon!r}")
    if not 0 <= offset < math.inf:
        raise ValueError(f"expected epsilon to be finite and at least 0, but got {offset}")
    if soft_clamp is None:
        return parametrization, float(offset), None
    if limit is None:
        raise TypeError(f"expected soft_clamp to be a number, but got {soft_clamp!r}")
    if not 0 < limit < math.inf:
        raise ValueError(f"expected soft_clamp to be finite and larger than 0, but got {limit}")
    if clamp is not None:
        raise ValueError("expected at most one of clamp and soft_clamp, but got both")
    return parametrization, float(offset), float(limit)


def check_constant(name: str, constant: Tensor | float | None, mu: Tensor) -> Tensor | None:
    """Of shift or scale: it, as a tensor that broadcasts to mu."""
    if constant is None:
        return None
    if isinstance(constant, Tensor) and constant.requires_grad:
        raise ValueError(
            f"expected {name} to be a constant ({name}.detach(), say), but got a tensor that requires grad"
        )
    return check_parameter(name, constant, "mu", mu)


def check_clamp(clamp: Sequence[float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    try:
        lo, hi = clamp
        if isinstance(lo, str) or isinstance(hi, str):
            raise TypeError
        lo, hi = float(lo), float(hi)
    except (TypeError, ValueError):
        raise TypeError(f"expected clamp to be a pair of numbers (lo, hi), but got {clamp!r}") from None
    if not lo <= hi:
        raise ValueError(f"expected clamp to have lo <= hi, but got ({lo}, {hi})")
    return lo, hi


def resolve_rng_state(
    mu: Tensor,
    shape: torch.Size,
    num_samples: int | None,
    generator: Generators,
    rng_state: Tensor | None,
    noise: Tensor | None,
) -> Tensor | None:
    """Checks what the noise comes from, and returns the rng_state to use. None: the noise is given, or ONNX's."""
    if num_samples is not None:
        check_num_samples(num_samples)
    if (noise is not None) + (rng_state is not None) + (generator is not None) > 1:
        sources = {"noise": noise, "rng_state": rng_state, "generator": generator}
        given = " and ".join(name for name, source in sources.items() if source is not None)
        raise ValueError(
            f"expected the noise to come from at most one of noise, rng_state and generator, but got {given}"
        )
    if noise is not None:
        check_tensor("noise", noise)
        check_shape("noise", noise, "z", shape if num_samples is None else (num_samples, *shape))
        if noise.requires_grad:
            raise ValueError(
                "expected noise to be a constant (noise.detach(), say), but got a tensor that requires grad"
            )
        check_device("noise", noise, "mu", mu)
        return None
    is_traced = is_compiling()
    if not is_traced and mu.numel() * (num_samples or 1) >= 2**32:
        check_counters("mu", shape, num_samples)
    if rng_state is not None:
        rng_state = check_rng_state(rng_state, shape[0], num_samples)
        check_device("rng_state", rng_state, "mu", mu)
        return rng_state
    if is_traced and generator is None and in_onnx_export():
        return None
    return fresh_rng_state("mu", mu, num_samples, generator)


def fresh_rng_state(name: str, like: Tensor, num_samples: int | None, generator: Generators) -> Tensor:
    """That of torch's generator of the device, or of those given; several processes have their own rows of it."""
    generator = check_generator(generator, name, like)
    if generator is not None or (place := noise_group.rank_and_size()) is None:
        return draw_rng_state(like.device, generator)
    if hasattr(like, "device_mesh"):  # a DTensor: its batch is that of all ranks already
        return draw_rng_state(like.device)
    check_counters(name, (place[1] * like.shape[0], *like.shape[1:]), num_samples)
    return draw_rng_state(like.device, batch=like.shape[0])


def check_rng_state(rng_state: Tensor, batch: int, num_samples: int | None = None) -> Tensor:
    """It, as int64. A key of torch.func._random is the same pair in uint64."""
    check_is_tensor("rng_state", rng_state, "an int64 tensor")
    if rng_state.dtype is torch.uint64:
        rng_state = rng_state.view(torch.int64)
    if rng_state.dtype != torch.int64:
        raise TypeError(f"expected rng_state to have dtype int64, but got {rng_state.dtype}")
    if rng_state.ndim == 1 and rng_state.shape[0] == 4:
        _check_rows(rng_state, batch, num_samples or 1)
    elif rng_state.shape != ((2,) if rng_state.ndim == 1 else (batch, 2)):
        raise ValueError(
            f"expected rng_state to have shape (2,), (4,) or (batch, 2) = ({batch}, 2), but got {shape_of(rng_state)}"
        )
    return rng_state


def _check_rows(rng_state: Tensor, batch: int, draws: int) -> None:
    """Of (seed, offset, first_row, rows), where they can be read without waiting for a device."""
    if not rng_state.is_cpu or is_compiling() or type(rng_state) is not Tensor:
        return
    if _is_wrapped(rng_state) or _get_tracing_state() is not None or _len_dispatch_stack() > 0:
        return
    first_row, rows = rng_state[2:].tolist()
    if not 0 <= first_row <= rows - batch:
        raise ValueError(
            f"expected rng_state to hold first_row and rows with 0 <= first_row and first_row + batch <= rows for a "
            f"batch of {batch}, but got first_row {first_row} and rows {rows}"
        )
    if rows * draws > 2**32:
        raise ValueError(
            f"expected rng_state to hold rows of at most 2**32 for all draws, but got {rows} for each of {draws}"
        )


def check_num_samples(num_samples: int) -> int:
    """It, as a Python int."""
    if not isinstance(num_samples, (int, numbers.Integral, torch.SymInt)) or isinstance(num_samples, bool):
        raise TypeError(f"expected num_samples to be an int, but got {type(num_samples).__name__}")
    if num_samples < 1:
        raise ValueError(f"expected num_samples to be at least 1, but got {num_samples}")
    return num_samples if isinstance(num_samples, (int, torch.SymInt)) else int(num_samples)


def check_first_draw(first_draw: int, noise: Tensor | None) -> None:
    if not isinstance(first_draw, torch.SymInt):
        check_int("first_draw", first_draw)
    if noise is not None:
        raise ValueError("expected noise to be of these draws alone, without first_draw")


def check_counters(name: str, shape: Sequence[int], num_samples: int | None) -> None:
    """The noise counts elements of a sample and rows in 32 bits each (four elements a count).

    While a graph is traced nothing is compared: it would not take larger batches than this one. The library op looks
    when it runs.
    """
    if is_compiling():
        return
    size = math.prod(shape[1:])
    if size >= 2**34:
        raise ValueError(
            f"expected {name} to have fewer than 2**34 elements per sample for the noise, but got {size}"
        )
    samples = shape[0] * (num_samples or 1)
    if samples >= 2**32:
        raise ValueError(
            f"expected {name} to have fewer than 2**32 samples (draws included) for the noise, but got {samples}"
        )


def check_parameter(
    name: str,
    parameter: Tensor | float | None,
    other_name: str,
    other: Tensor | Csr,
    optional: bool = False,
    may_draw: bool = False,
) -> Tensor:
    """A likelihood's second parameter, as a tensor: a number becomes one, and so does None (0) where it is optional.

    may_draw: it may have draws, though the other has none.
    """
    if isinstance(parameter, Tensor):
        # Like `other`, which was checked: nothing to broadcast.
        is_alike = parameter.dtype is other.dtype and parameter.ndim == other.ndim
        is_alike = is_alike and parameter.shape == other.shape
        if not (is_alike and parameter.layout is torch.strided and parameter.device == other.device):
            like = other
            if may_draw and isinstance(other, Tensor) and has_draws(parameter, other):
                like = other.expand(parameter.shape[0], *other.shape)
            check_broadcast(name, parameter, other_name, like)
        return parameter
    if isinstance(parameter, (int, float, numbers.Real)) or (optional and parameter is None):
        dtype = torch.float64 if other.dtype is torch.float64 else torch.float32
        return torch.full((), parameter or 0.0, dtype=dtype, device=other.device)
    takes = "a tensor, a number or None" if optional else "a tensor or a number"
    raise TypeError(f"expected {name} to be {takes}, but got {type(parameter).__name__}")


def check_mask(
    mask: Tensor, target: Tensor | Csr, other_name: str = "target", shape: Sequence[int] | None = None
) -> None:
    """Of the elements of target, or of what it has in `shape`."""
    check_is_tensor("mask", mask, "a bool tensor")
    if mask.dtype is not torch.bool:
        raise TypeError(f"expected mask to have dtype bool, but got {mask.dtype}")
    _check_broadcast_to("mask", mask, other_name, target.shape if shape is None else shape)
    check_device("mask", mask, "target", target)


def check_reduction(reduction: str) -> bool:
    """Whether a loss is wanted of each element, and not of each sample."""
    if reduction not in ("sample", "none"):
        raise ValueError(f'expected reduction to be "sample" or "none", but got {reduction!r}')
    return reduction == "none"


def check_per_sample(
    name: str, tensor: Tensor | None, target: Tensor | Csr, draws: int | None = None
) -> None:
    """Of a number for each sample of target, or for each of its draws, if it is given."""
    if tensor is None:
        return
    check_is_tensor(name, tensor, "a tensor (batch,)")
    _check_dense(name, tensor, FLOATS)
    if tensor.shape != target.shape[:1] and (draws is None or tensor.shape != (draws, target.shape[0])):
        raise ValueError(
            f"expected {name} to have shape (batch,) = ({target.shape[0]},), but got {shape_of(tensor)}"
        )
    check_device(name, tensor, "target", target)


def resolve_bits_state(
    target: Tensor, binarize: bool, generator: Generators, rng_state: Tensor | None
) -> Tensor:
    """Checks where the bits of a target come from, and returns the rng_state to use."""
    if not isinstance(binarize, bool):
        raise TypeError(f"expected binarize to be a bool, but got {type(binarize).__name__}")
    if not binarize:
        raise ValueError("rng_state and generator take binarize=True: without it nothing is drawn")
    if rng_state is not None and generator is not None:
        raise ValueError(
            "expected the bits to come from at most one of rng_state and generator, but got both"
        )
    if target.requires_grad:
        raise ValueError(
            "expected target to be a constant (target.detach(), say) for binarize, "
            "but got a tensor that requires grad"
        )
    check_counters("target", target.shape, None)
    if rng_state is not None:
        rng_state = check_rng_state(rng_state, target.shape[0])
        check_device("rng_state", rng_state, "target", target)
        return rng_state
    return fresh_rng_state("target", target, None, generator)


def check_generator(generator: Generators, other_name: str, other: Tensor) -> Generators:
    if generator is None:
        return None
    generators = generator if isinstance(generator, (list, tuple)) else None
    for one in (generator,) if generators is None else generators:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"expected generator to be a torch.Generator, but got {type(one).__name__}")
        check_device("generator", one, other_name, other)
    if generators is not None:
        check_generator_count(generators, other.shape[0])
    return generator


def check_generator_count(generators: Sequence[torch.Generator], batch: int) -> None:
    if len(generators) != batch:
        raise ValueError(  # in the words of diffusers
            f"You have passed a list of generators of length {len(generators)}, but requested an effective batch "
            f"size of {batch}. Make sure the batch size matches the length of the generators."
        )


def check_logits(logits: Tensor) -> None:
    """Of a softmax over the last dim."""
    check_tensor("logits", logits)
    if logits.ndim < 2 or logits.shape[-1] == 0:
        raise ValueError(
            f"expected logits to have shape (batch, ..., classes) with at least one class, but got {shape_of(logits)}"
        )


def check_class_type(name: str, target: Tensor | Csr) -> None:
    _check_dense(name, target, _CLASSES, " (class numbers)")


def check_classes(target: Tensor, logits: Tensor) -> int | None:
    """Returns how many draws the logits have of each sample; None where they have target's shape, and classes."""
    check_class_type("target", target)
    has_draws = logits.ndim == target.ndim + 2 > 2 and target.shape == logits.shape[1:-1]
    if not has_draws and target.shape != logits.shape[:-1]:
        raise ValueError(
            f"expected target to have shape {shape_of(logits)[:-1]} for logits of shape {shape_of(logits)}, "
            f"but got {shape_of(target)}"
        )
    check_device("target", target, "logits", logits)
    return logits.shape[0] if has_draws else None


def check_counts(target: Tensor | Csr, logits: Tensor, is_checked: bool = False) -> int | None:
    """Likewise, for target's numbers of every class."""
    draws = check_target(target, "logits", logits, is_checked)
    if draws is not None and target.shape != logits.shape[1:]:
        check_shape("target", target, "logits", logits.shape)
    return draws


def check_mixture(params: Tensor, target: Tensor) -> int | None:
    """Returns how many draws the params have of each sample; None where they have target's shape, but for dim 1."""
    check_tensor("params", params)
    check_target_type("target", target)
    if params.ndim < 2:
        raise ValueError(f"expected params to have shape (batch, P, ...), but got {shape_of(params)}")
    channels = target.shape[1] if target.ndim > 1 else 0
    draws, (batch, size, *image) = None, params.shape
    if channels in (1, 3) and params.ndim > target.ndim and target.shape == (size, channels, *image[1:]):
        draws, batch, size, image = batch, size, image[0], image[1:]
    if channels not in (1, 3) or target.shape != (batch, channels, *image):
        takes = ", ".join(map(str, (batch, "1 or 3", *image)))
        raise ValueError(
            f"expected target to have shape ({takes}) for params of shape {shape_of(params)}, "
            f"but got {shape_of(target)}"
        )
    each = 3 if channels == 1 else 10
    if size < each or size % each:
        raise ValueError(
            f"expected params to have a multiple of {each} along dim 1 for target of {channels} channel(s), "
            f"but got shape {shape_of(params)}"
        )
    check_device("target", target, "params", params)
    return draws
