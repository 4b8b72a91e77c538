"""Checkpoints without pickle: config.json, model.safetensors and, to resume a run, training.safetensors.

Each file is whole by itself and is replaced in one step (write, fsync, rename), so that whenever the process is killed
the last good one is there. The weights carry their config: a config.json of another run cannot be taken for theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn import files, pretrained
from .errors import CheckpointError
from .model import HubVAE

CONFIG, MODEL = pretrained.CONFIG, pretrained.MODEL
STATE, METRICS = "training.safetensors", "metrics.csv"
# What the commands draw of the model beside them.
PICTURES = (
    *("samples.png", "reconstructions.png", "loss.png", "generated.png", "reconstructed.png"),
    *("interpolation.png", "traversal.png", "steered.png", "manifold.png", "embedding.png"),
)
TABLES = ("generated.csv", "reconstructed.csv")  # of a model of a table
TEXTS = tuple(str(Path(name).with_suffix(".txt")) for name in PICTURES)  # of a model of text
OUTPUTS = (*PICTURES, *TABLES, *TEXTS)
FILES = (CONFIG, MODEL, STATE, METRICS, *OUTPUTS)


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


def save_model(model: HubVAE, folder: Path | str) -> None:
    """config.json and model.safetensors, in a folder that exists. Raises CheckpointError."""
    folder = Path(folder)
    with _errors_of(folder):
        pretrained.write(folder, model.state_dict(), model.config)


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
    folder: Path, model: HubVAE, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """All that a run needs to go on: weights, the optimizer's moments, and `progress` (anything JSON takes)."""
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
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


def load_state(folder: Path, model: HubVAE, optimizer: torch.optim.Optimizer) -> None:
    """Fills a new model and its optimizer. Raises CheckpointError."""
    path = folder / STATE
    tensors, _ = load_tensors(path)
    weights = {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}
    with _errors_of(path):
        pretrained.fill(model, weights, path)
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, _) in enumerate(model.named_parameters()):
        prefix = f"optimizer/{name}/"
        state[i] = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if not state[i]:
            raise CheckpointError(f"{path}: holds no optimizer state of {name}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
