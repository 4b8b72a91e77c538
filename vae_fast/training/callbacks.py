"""What happens beside training: progress, metrics, checkpoints. Only the main process shows or writes anything."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..nn import VAE
from . import checkpoint, outputs, pictures, recipe_file
from .model import HubVAE

if TYPE_CHECKING:
    from .loop import Trainer


class Callback:
    """A base whose events do nothing."""

    def on_start(self, trainer: Trainer) -> None: ...
    def on_step(self, trainer: Trainer) -> None: ...
    def on_evaluate(self, trainer: Trainer) -> None: ...
    def on_epoch(self, trainer: Trainer) -> None: ...
    def on_end(self, trainer: Trainer) -> None: ...


class ProgressBar(Callback):
    """A bar on a terminal; elsewhere a line at every tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_start(self, trainer: Trainer) -> None:
        self._tenth = 10 * trainer.epoch // trainer.recipe.epochs
        if trainer.is_main:
            self._task = self._progress.add_task(
                "training",
                total=trainer.recipe.epochs,
                completed=trainer.epoch,
                numbers=self._numbers(trainer),
            )
            self._progress.start()

    def on_evaluate(self, trainer: Trainer) -> None:
        if not trainer.is_main:
            return
        self._progress.update(self._task, completed=trainer.epoch, numbers=self._numbers(trainer))
        tenth = 10 * trainer.epoch // trainer.recipe.epochs
        if not self._console.is_terminal and tenth > self._tenth:
            self._tenth = tenth
            epochs = f"epoch {trainer.epoch} of {trainer.recipe.epochs}"
            self._console.print(f"{epochs}: {self._numbers(trainer)}", highlight=False)

    def on_end(self, trainer: Trainer) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves the terminal as it was; also after an error."""
        self._progress.stop()

    @staticmethod
    def _numbers(trainer: Trainer) -> str:
        if not trainer.history:
            return ""
        row = trainer.history[-1]
        speed = trainer.images / max(trainer.seconds, 1e-9)
        elbo = f"{trainer.monitor} ELBO {row[f'{trainer.monitor}_elbo']:.2f}"
        is_constant = trainer.recipe.lr_schedule == "constant"
        rate = "" if is_constant else f"  lr {float(trainer.optimizer.param_groups[0]['lr']):.2g}"
        return f"loss {row['train_loss']:.2f}  {elbo}{rate}  {speed:,.0f} {noun(trainer)}s/s"


class Checkpoints(Callback):
    """Saves model, training state and metrics.csv after an evaluation, when the last save is some seconds old.
    The first save removes the pictures of the model that it replaces. After every `save_every` epochs of the recipe
    the weights are kept in epoch-N/, too.

    config: what config.toml is to hold beside the recipe; None: there is to be none."""

    def __init__(
        self, folder: Path, seconds: float = 5.0, *, config: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._seconds, self._config = Path(folder), seconds, config
        self._saved_at, self._saved_epoch = time.perf_counter(), -1
        self._started_at = 0

    def on_start(self, trainer: Trainer) -> None:
        self._saved_at, self._started_at = time.perf_counter(), trainer.epoch
        if trainer.is_main:
            self._folder.mkdir(parents=True, exist_ok=True)

    def on_evaluate(self, trainer: Trainer) -> None:
        if trainer.all_as_main(time.perf_counter() - self._saved_at >= self._seconds):
            self._save(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        every = trainer.recipe.save_every
        if every is not None and trainer.epoch % every == 0:
            folder = self._folder / f"{checkpoint.EPOCH}{trainer.epoch}"
            if trainer.is_main:
                self._remove_old(trainer)
                folder.mkdir(exist_ok=True)
            trainer.save_weights(folder)

    def on_end(self, trainer: Trainer) -> None:
        if self._saved_epoch != trainer.epoch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save(self._folder)
        if trainer.is_main:
            write_metrics(self._folder / checkpoint.METRICS, trainer.history)
            if self._config is not None:
                text = recipe_file.text(trainer.recipe, self._config)
                checkpoint.replace_bytes(self._folder / checkpoint.RECIPE, text.encode())
            self._remove_old(trainer)
        self._saved_at, self._saved_epoch = time.perf_counter(), trainer.epoch

    def _remove_old(self, trainer: Trainer) -> None:
        """Once: what belongs to a model that is being replaced, or to epochs that are trained anew."""
        if self._started_at >= 0:
            checkpoint.remove_pictures(self._folder)
            checkpoint.remove_epochs(self._folder, after=self._started_at)
            self._started_at = -1


class Pictures(Callback):
    """At the end the loss curve and, of images and signals, samples and reconstructions: see `draw`."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.is_main:
            draw(trainer, self._folder)


def draw(trainer: Trainer, folder: Path) -> list[str]:
    """Writes the pictures of a run and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures.save_curve(folder / "loss.png", trainer.history, noun(trainer))
    model, dataset, drawn = trainer.result, trainer.dataset, ["loss.png"]
    if isinstance(model, HubVAE) and model.vocabulary:
        return [*_write_lines(model, trainer, folder), *drawn]
    if not pictures.can_draw(model, dataset.shape):
        return drawn
    was_training, n = model.training, 64
    model.eval()
    if model.latent_shape is not None:
        generator = torch.Generator().manual_seed(trainer.recipe.seed)
        condition = _condition(model, trainer, n)
        pictures.save_samples(folder / "samples.png", model, n, condition=condition, generator=generator)
        drawn.insert(0, "samples.png")
    pictures.save_reconstructions(
        folder / "reconstructions.png", model, **dataset.test_part(dataset.shown(48))
    )
    drawn.insert(-1, "reconstructions.png")
    model.train(was_training)
    return drawn


def _write_lines(model: HubVAE, trainer: Trainer, folder: Path) -> list[str]:
    was_training, n = model.training, 64
    model.eval()
    generator = torch.Generator().manual_seed(trainer.recipe.seed)
    tokens = model.generate_tokens(n, condition=model.each_condition(n), generator=generator)
    shown = trainer.dataset.test_part(trainer.dataset.shown(48))
    outputs.save_lines(folder / "samples.txt", model, tokens)
    outputs.save_pairs(folder / "reconstructions.txt", model, shown["x"], model.reconstruct(**shown))
    model.train(was_training)
    return ["samples.txt", "reconstructions.txt"]


def noun(trainer: Trainer) -> str:
    """What a sample of its data is called."""
    return pictures.noun(trainer.model, trainer.dataset.shape)


def _condition(model: VAE, trainer: Trainer, n: int) -> torch.Tensor | None:
    """Of n samples: each label in turn, or those of the test part, again and again."""
    if isinstance(model, HubVAE):
        return model.each_condition(n)
    labels = trainer.dataset.test_labels
    return None if labels is None else labels[torch.arange(n, device=labels.device) % len(labels)]


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """The history as CSV, a row for each evaluation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]) if history else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    checkpoint.replace_bytes(path, text.getvalue().encode())
