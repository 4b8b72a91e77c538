"""Checkpoints without pickle: config.json, model.safetensors and, to resume a run, training.safetensors.

Each file is whole by itself and is replaced in one step (write, fsync, rename), so that whenever the process is killed
the last good one is there. The weights carry their config: a config.json of another run cannot be taken for theirs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import CheckpointError
from .model import HubVAE

CONFIG, MODEL, STATE, METRICS = "config.json", "model.safetensors", "training.safetensors", "metrics.csv"
# What the commands draw of the model beside them.
PICTURES = ("samples.png", "reconstructions.png", "loss.png", "generated.png", "reconstructed.png")
TABLES = ("generated.csv", "reconstructed.csv")  # of a model of a table
FILES = (CONFIG, MODEL, STATE, METRICS, *PICTURES, *TABLES)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make a new file beside `path`, and puts it in its place in one step. OSError if it cannot."""
    new = _new(path)
    try:
        write(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """What a killed run was about to write."""
    for name in FILES:
        _new(folder / name).unlink(missing_ok=True)


def remove_pictures(folder: Path) -> None:
    """Those of a model that is being replaced, and its tables."""
    for name in (*PICTURES, *TABLES):
        (folder / name).unlink(missing_ok=True)


def replace_bytes(path: Path, content: bytes) -> None:
    replace_file(path, lambda new: _write(new, content))


def save_model(model: HubVAE, folder: Path | str) -> None:
    """config.json and model.safetensors, in a folder that exists. Raises CheckpointError."""
    folder = Path(folder)
    config = json.dumps(model.config)
    save_tensors(folder / MODEL, model.state_dict(), {"config": config})
    try:
        replace_bytes(folder / CONFIG, f"{json.dumps(model.config, indent=2)}\n".encode())
    except OSError as error:
        raise _cannot_write(folder / CONFIG, error) from None


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> HubVAE:
    """The model of a run's folder, in eval mode. Raises CheckpointError."""
    folder = Path(folder)
    path = folder / MODEL
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not path.exists():
        raise CheckpointError(f"{folder}: holds no {MODEL}, so it is not a checkpoint")
    tensors, metadata = load_tensors(path)
    try:
        source, text = (path, metadata["config"]) if "config" in metadata else _read_config(folder)
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError("not an object")
        with torch.device(device):
            model = HubVAE(**config)
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{source}: is not the config of a model ({_first_line(error)})") from None
    fill_model(model, tensors, path)
    return model.eval()


def fill_model(model: HubVAE, tensors: dict[str, Tensor], source: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: the weights do not fit the config ({_mismatch(error)})") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        # save_file has a temporary file of its own, with a name that nobody could clean up after a kill.
        replace_bytes(path, save(tensors, metadata))
    except OSError as error:
        raise _cannot_write(path, error) from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({_first_line(error)})") from None


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
    fill_model(
        model, {k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")}, path
    )
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, _) in enumerate(model.named_parameters()):
        prefix = f"optimizer/{name}/"
        state[i] = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if not state[i]:
            raise CheckpointError(f"{path}: holds no optimizer state of {name}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _read_config(folder: Path) -> tuple[Path, str]:
    path = folder / CONFIG
    try:
        return path, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: holds no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from None


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _cannot_write(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or _first_line(error)
    return CheckpointError(f"{path}: cannot be written ({reason}); what was there before is unchanged")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def _mismatch(error: RuntimeError) -> str:
    """The first complaint of load_state_dict, which comes after its headline."""
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0]).rstrip(". ")
