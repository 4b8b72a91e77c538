"""What happens beside training: progress, metrics, checkpoints. Only the main process shows or writes anything."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import checkpoint
from .pictures import noun

if TYPE_CHECKING:
    from .loop import Trainer


class Callback:
    """A base whose events do nothing."""

    def on_start(self, trainer: Trainer) -> None: ...
    def on_step(self, trainer: Trainer) -> None: ...
    def on_evaluate(self, trainer: Trainer) -> None: ...
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
        return f"loss {row['train_loss']:.2f}  test ELBO {row['test_elbo']:.2f}  {speed:,.0f} {noun(trainer.model)}s/s"


class Checkpoints(Callback):
    """Saves model, training state and metrics.csv after an evaluation, when the last save is some seconds old.
    The first save removes the pictures of the model that it replaces."""

    def __init__(self, folder: Path, seconds: float = 5.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._saved_at, self._saved_epoch = time.perf_counter(), -1

    def on_start(self, trainer: Trainer) -> None:
        self._saved_at = time.perf_counter()

    def on_evaluate(self, trainer: Trainer) -> None:
        if time.perf_counter() - self._saved_at >= self._seconds:
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self._saved_epoch != trainer.epoch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_main:
            trainer.save(self._folder)
            write_metrics(self._folder / checkpoint.METRICS, trainer.history)
            if self._saved_epoch < 0:
                checkpoint.remove_pictures(self._folder)
        self._saved_at, self._saved_epoch = time.perf_counter(), trainer.epoch


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """The history as CSV, a row for each evaluation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]) if history else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    checkpoint.replace_bytes(path, text.getvalue().encode())
