"""Checkpoints without pickle: config.json, model.safetensors and, to resume a run, training.safetensors.

Each file is whole by itself and is replaced in one step (write, fsync, rename), so that whenever the process is killed
the last good one is there. The weights carry their config: a config.json of another run cannot be taken for theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import nn
from ..nn import files, pretrained
from . import sharding
from .errors import CheckpointError
from .model import HubVAE

CONFIG, MODEL = pretrained.CONFIG, pretrained.MODEL
STATE, METRICS, RECIPE = "training.safetensors", "metrics.csv", "config.toml"
EPOCH = "epoch-"  # and a number: a folder with the weights of that epoch
# What the commands draw of the model beside them.
PICTURES = (
    *("samples.png", "reconstructions.png", "loss.png", "generated.png", "reconstructed.png"),
    *("interpolation.png", "traversal.png", "steered.png", "manifold.png", "embedding.png", "roc.png"),
)
TABLES = tuple(str(Path(name).with_suffix(".csv")) for name in PICTURES)  # of a model of a table
TEXTS = tuple(str(Path(name).with_suffix(".txt")) for name in PICTURES)  # of a model of text
SCORES, LATENTS = "scores.csv", "latents.npz"
OUTPUTS = (*PICTURES, *TABLES, *TEXTS, SCORES, LATENTS)
FILES = (CONFIG, MODEL, STATE, METRICS, RECIPE, *OUTPUTS)


def remove_leftovers(folder: Path) -> None:
    """What a killed run was about to write."""
    for name in FILES:
        files.new_name(folder / name).unlink(missing_ok=True)


def remove_pictures(folder: Path) -> None:
    """Those of a model that is being replaced, and its tables, texts and sounds."""
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
        remove_sounds(folder / Path(name).stem)


def remove_sounds(folder: Path) -> None:
    """The sounds that a command wrote beside a picture of its name, with their folder."""
    if folder.is_dir():
        for file in folder.glob("[0-9]*.wav"):
            file.unlink()
        with suppress(OSError):  # what else is there stays
            folder.rmdir()


def remove_epochs(folder: Path, after: int) -> None:
    """The folders of weights of later epochs, if they hold nothing else."""
    for path in folder.glob(f"{EPOCH}*"):
        number = path.name.removeprefix(EPOCH)
        if number.isdecimal() and int(number) > after:
            for name in (CONFIG, MODEL):
                (path / name).unlink(missing_ok=True)
            with suppress(OSError):
                path.rmdir()


def save_model(
    model: nn.VAE, folder: Path | str, config: dict[str, Any] | None = None, *, is_writer: bool = True
) -> None:
    """config.json and model.safetensors, in a folder that exists. `config`: what `config_of` gave. Of a sharded model
    all processes call this, and one is the writer. Raises CheckpointError."""
    folder, state = Path(folder), model.state_dict()
    if isinstance(model, HubVAE):  # its config has the KL's last weight, whatever the schedule was
        state = {name: t for name, t in state.items() if not name.startswith("objective.beta.")}
    state = sharding.whole(state, is_writer)
    if not is_writer:
        return
    with _errors_of(folder):
        pretrained.write(folder, state, config_of(model) if config is None else config)


def config_of(model: nn.VAE) -> dict[str, Any]:
    """What config.json holds: as `save_pretrained` writes it, but that parts which have no description are the user's:
    `nn.VAE.from_pretrained(folder, encoder=...)` is given them. Of a class that has none the weights are all there is.
    """
    return model.config if isinstance(model, HubVAE) else pretrained.config_of_known_parts(model)


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> HubVAE:
    """The model of a run's folder, in eval mode. Raises CheckpointError."""
    folder = Path(folder)
    with _errors_of(folder):
        return HubVAE.from_pretrained(folder, device=device)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """`files.replace_file`. Raises CheckpointError."""
    try:
        files.replace_file(path, write)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None


def replace_bytes(path: Path, content: bytes) -> None:
    """A file of this content. Raises CheckpointError."""

    def write(new: Path) -> None:
        new.write_bytes(content)

    replace_file(path, write)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with _errors_of(path):
        pretrained.save_tensors(path, tensors, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises CheckpointError."""
    with _errors_of(path):
        return pretrained.load_tensors(path)


def save_state(
    folder: Path,
    model: nn.VAE,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    others: Mapping[str, Module] | None = None,
    *,
    is_writer: bool = True,
) -> None:
    """All that a run needs to go on: weights, the optimizer's moments, `progress` (anything JSON takes), and the
    weights of `others` by a name. Of a sharded model all processes call this, and one is the writer."""
    modules = {"model": model, **(others or {})}
    tensors = {f"{of}/{name}": t for of, module in modules.items() for name, t in module.state_dict().items()}
    stateless = []  # frozen, not used in the loss, or the optimizer has none
    [group] = optimizer.param_groups
    for (name, _), parameter in zip(model.named_parameters(), group["params"], strict=True):
        state = optimizer.state.get(parameter)
        if not state:
            stateless.append(name)
            continue
        for key, value in state.items():
            if isinstance(value, Tensor):  # else None: SGD's momentum
                tensors[f"optimizer/{name}/{key}"] = value
    if stateless:
        progress = {**progress, "stateless": stateless}
    tensors = sharding.whole(tensors, is_writer)
    if is_writer:
        save_tensors(folder / STATE, tensors, {"progress": json.dumps(progress)})


def read_progress(folder: Path) -> dict[str, Any]:
    """What save_state was given as `progress`. Raises CheckpointError."""
    path = folder / STATE
    try:
        progress = json.loads(load_tensors(path)[1]["progress"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: holds no training state") from None
    if not isinstance(progress, dict):
        raise CheckpointError(f"{path}: holds no training state")
    return progress


def load_state(
    folder: Path,
    model: nn.VAE,
    optimizer: torch.optim.Optimizer,
    others: Mapping[str, Module] | None = None,
) -> None:
    """Fills a new model, its optimizer and the others. Raises CheckpointError."""
    path = folder / STATE
    tensors, _ = load_tensors(path)
    stateless = read_progress(folder).get("stateless", ())
    for of, module in {"model": model, **(others or {})}.items():
        weights = _below(tensors, f"{of}/")
        if not weights:
            raise CheckpointError(f"{path}: holds no {of} weights")
        with _errors_of(path):
            pretrained.fill(module, sharding.parts_like(weights, module.state_dict()), path)
    state: dict[int, dict[str, Tensor]] = {}
    [group] = optimizer.param_groups
    for i, (name, _) in enumerate(model.named_parameters()):
        found = _below(tensors, f"optimizer/{name}/")
        if found:
            state[i] = found
        elif name not in stateless:
            raise CheckpointError(f"{path}: holds no optimizer state of {name}")
    state = sharding.state_parts(state, group["params"])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """CheckpointError for what is the file's or the disk's fault."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        reason = error.strerror or pretrained.first_line(error)
        raise CheckpointError(
            f"{error.filename or path}: cannot be written ({reason}); what was there before is unchanged"
        ) from None
