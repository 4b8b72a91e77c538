"""What the tests of the command share: tiny data, quick options, a process that stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState

from vae_fast.cli import train
from vae_fast.training import Recipe, Trainer, data
from vae_fast.training.loop import make_accelerator

COMMAND = [sys.executable, "-m", "vae_fast.cli"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--hidden", "12", "--latent", "3"]


def ordinary_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The body of a fixture: malloc stays as it is, and Accelerate forgets its precision and processes."""
    monkeypatch.setattr(train, "set_up_process", lambda: True)
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def save_images(folder: Path, name: str = "tiny") -> Path:
    """40 grey images of 6 x 5 pixels."""
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)
    np.save(folder / f"{name}.npy", images)
    return folder / f"{name}.npy"


def save_digits_run(folder: Path) -> None:
    """A run on digits with two latents."""
    recipe = Recipe(epochs=6, batch_size=128, lr=5e-3, hidden=(32,), latent=2, beta=0.1)
    trainer = Trainer(recipe, data.load("digits"), accelerator=make_accelerator(recipe, cpu=True))
    trainer.fit()
    trainer.save(folder)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
