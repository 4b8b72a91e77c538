"""Parts of a model as JSON: a class of vae_fast's (or one of a few of torch's) by its name, and its arguments. What is
made from JSON is one of these classes and nothing else: no name is imported, no code is run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import python_value

_CLASSES: dict[str, type] = {}  # ours, by name
_ATTRIBUTE = object()  # an argument that the object has as an attribute of the same name: a module, a tensor

# Modules of torch, with the arguments that their attributes tell.
_CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
)
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_TORCH: dict[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features", "bias"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx"),
    **{f"Conv{d}d": (*_CONVOLUTION, "padding_mode") for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": (*_CONVOLUTION, "output_padding") for d in (1, 2, 3)},
    **{f"BatchNorm{d}d": _NORM for d in (1, 2, 3)},
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine", "bias"),
    "Dropout": ("p",),
    "Flatten": ("start_dim", "end_dim"),
    "Unflatten": ("dim", "unflattened_size"),
    "Identity": (),
    "ReLU": (),
    "Tanh": (),
    "Sigmoid": (),
    "SiLU": (),
    "GELU": ("approximate",),
    "ELU": ("alpha",),
    "LeakyReLU": ("negative_slope",),
    "Softplus": ("beta", "threshold"),
}


class NotDescribed(ValueError):
    """A part that has no description. `path` leads to it from the model: "prior.network"."""

    def __init__(self, path: str, value: Any) -> None:
        kind = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
        self.path = path
        super().__init__(f"{path or 'the model'} is {kind.__module__}.{kind.__qualname__}")


class Described:
    """A mixin for modules: the constructor's arguments are kept, so that `describe` can tell them. Of subclasses, those
    of vae_fast alone are known by name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.partition(".")[0] == "vae_fast":
            _CLASSES.setdefault(cls.__name__, cls)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _keeping_arguments(vars(cls)["__init__"]))  # noqa: B010

    def arguments(self) -> dict[str, Any]:
        """Those that make the object again, as it is now."""
        kept: dict[str, Any] = vars(self).get("_arguments") or {}
        return {name: getattr(self, name) if v is _ATTRIBUTE else v for name, v in kept.items()}


def _keeping_arguments(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @wraps(init)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        is_whole = "_arguments" not in vars(self)  # not a base class's part of the construction
        if is_whole:
            vars(self)["_arguments"] = None
        init(self, *args, **kwargs)
        if is_whole:
            bound = signature.bind(self, *args, **kwargs).arguments
            bound.pop(next(iter(signature.parameters)))
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    bound.update(bound.pop(parameter.name, {}))
            vars(self)["_arguments"] = {
                name: _ATTRIBUTE if isinstance(v, (Tensor, nn.Module)) else v for name, v in bound.items()
            }

    return keeping


def describe(value: Any, path: str = "", omitted: Sequence[str] = ()) -> Any:
    """The value as JSON has it. `omitted`: paths of parts that are left out. Raises NotDescribed."""
    value = value if isinstance(value, Tensor) else python_value(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):  # its values are among the model's tensors, or it is a number
        made: dict[str, Any] = {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return {**made, "value": value.item()} if value.ndim == 0 else made
    if isinstance(value, (tuple, list)):
        return [describe(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(name): describe(v, _join(path, name)) for name, v in value.items()}
    kind = type(value)
    if isinstance(value, Described) and _CLASSES.get(kind.__name__) is kind:
        if isinstance(value, nn.Sequential) and kind.__init__ is nn.Sequential.__init__:
            return {"class": kind.__name__, "layers": _layers(value, path)}
        arguments = {
            name: {"omitted": type(v).__qualname__}
            if (at := _join(path, name)) in omitted
            else describe(v, at)
            for name, v in value.arguments().items()
        }
        return {"class": kind.__name__, "arguments": arguments}
    if kind is nn.Sequential:
        return {"class": "Sequential", "layers": _layers(value, path)}
    if kind.__name__ in _TORCH and kind is getattr(nn, kind.__name__):
        read = {name: getattr(value, name) for name in _TORCH[kind.__name__]}
        if "bias" in read:
            read["bias"] = read["bias"] is not None
        return {"class": kind.__name__, "arguments": describe(read, path)}
    if isinstance(value, type) or inspect.isroutine(value):  # an activation
        name = value.__name__
        if _CLASSES.get(name) is value or (name in _TORCH and getattr(nn, name) is value):
            return {"callable": name}
        if FUNCTIONS.get(name) is value:
            return {"callable": name}
    raise NotDescribed(path, value)


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {}  # that give a module: the default of `activation`


def make(config: Any, path: str = "", given: Mapping[str, Any] | None = None) -> Any:
    """What `describe` was given. `given`: arguments of it that are not made. Raises ValueError, TypeError."""
    if isinstance(config, list):
        return tuple(make(c, f"{path}[{i}]") for i, c in enumerate(config))
    if not isinstance(config, dict):
        return config
    if "omitted" in config:
        raise ValueError(
            f"expected {path} to be given, a {config['omitted']}: it was left out when it was saved"
        )
    if "tensor" in config:
        dtype = getattr(torch, str(config["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"expected dtype to be one of torch's, but got {config['dtype']!r}")
        shape = config["tensor"]
        # NaN until the model's tensors are loaded: of no range that a module checks. A number can be asked for, on the
        # meta device too.
        empty = math.nan if dtype.is_floating_point else 0
        return torch.full(shape, config.get("value", empty), dtype=dtype, device=None if shape else "cpu")
    if "callable" in config:
        return FUNCTIONS.get(str(config["callable"])) or _class_of(config["callable"])
    if "class" not in config:
        return {name: make(c, _join(path, name)) for name, c in config.items()}
    kind = _class_of(config["class"])
    if "layers" in config:
        return kind(*make(config["layers"], path))
    given = given or {}
    return kind(
        **{
            name: given[name] if name in given else make(c, _join(path, name))
            for name, c in config["arguments"].items()
        }
    )


def is_known(name: str) -> bool:
    """Whether a class of vae_fast's of this name was imported."""
    return name in _CLASSES


def _class_of(name: Any) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    if name == "Sequential" or name in _TORCH:
        return getattr(nn, name)
    raise ValueError(f"expected class to be one of vae_fast's, but got {name!r}")


def _layers(value: nn.Sequential, path: str) -> list[Any]:
    return [describe(layer, f"{path}[{i}]") for i, layer in enumerate(value)]


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
