"""`vae-fast generate` and `vae-fast reconstruct`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..training import checkpoint, data, pictures
from ..training.errors import CheckpointError, DataError, TrainingError
from ..training.model import HubVAE


def run_generate(folder: Path, n: int, out: Path, seed: int, cpu: bool) -> None:
    _check_out(out)
    model = _load(folder, cpu)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same samples on every device
    if out.suffix == ".npy":
        _save_array(out, model.generate(n, generator=generator))
    else:
        _check_image(model, out)
        pictures.save_samples(out, model, n, generator=generator)
    print(out)


def run_reconstruct(folder: Path, source: str | None, n: int, out: Path, cpu: bool) -> None:
    _check_out(out)
    model = _load(folder, cpu)
    if source is None:
        source = checkpoint.read_progress(folder).get("recipe", {}).get("data", data.DIGITS)
    dataset = data.load(data.resolve(source))
    if dataset.shape != model.shape:
        dataset = dataset.reshaped(model.shape)
    x = dataset.test[:n].to(next(model.parameters()).device)
    if len(x) < n:
        raise DataError(f"{source}: the test part has {len(x)} samples, -n is {n}")
    if out.suffix == ".npy":
        _save_array(out, model.reconstruct(x))
    else:
        _check_image(model, out)
        pictures.save_reconstructions(out, model, x)
    print(out)


def _load(folder: Path, cpu: bool) -> HubVAE:
    return checkpoint.load_model(folder, "cuda" if torch.cuda.is_available() and not cpu else "cpu")


def _check_out(out: Path) -> None:
    if out.suffix not in (".png", ".npy"):
        raise TrainingError(f"--out is {out}, it takes a name that ends in .png or .npy")


def _check_image(model: HubVAE, out: Path) -> None:
    if not pictures.can_draw(model):
        what = "counts" if model.likelihood.support == "counts" else f"samples of shape {model.shape}"
        raise TrainingError(f"{what} are no images: give --out a name that ends in .npy")


def _save_array(path: Path, values: Tensor) -> None:
    def write(new: Path) -> None:
        with new.open("wb") as file:
            np.save(file, values.float().cpu().numpy())

    try:
        checkpoint.replace_file(path, write)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None
