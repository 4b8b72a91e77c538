"""TensorBoard, Weights & Biases and MLflow, through Accelerate."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import filter_trackers

from ..nn.pretrained import first_line
from .callbacks import Callback
from .errors import TrainingError

if TYPE_CHECKING:
    from .loop import Trainer

PROJECT = "vae_fast"  # W&B's project, MLflow's experiment, the folder of TensorBoard's files
_PIP = {"tensorboard": "'vae_fast[tensorboard]'"}


def check_installed(names: tuple[str, ...]) -> None:
    """TrainingError for a tracker that is not installed, which Accelerate would leave out without a word."""
    for name in names:
        if find_spec(name) is None:
            raise TrainingError(f"{name} is not installed: pip install {_PIP.get(name, name)}")


class Tracking(Callback):
    """Tells the trackers of the recipe (`track`) each evaluation, by the optimizer's steps.

    folder: the run's. TensorBoard's files go there: tensorboard --logdir FOLDER.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def on_start(self, trainer: Trainer) -> None:
        names = trainer.recipe.track
        check_installed(names)
        if not names:
            return
        accelerator, name = trainer.accelerator, self._folder.resolve().name
        accelerator.project_configuration.set_directories(str(self._folder))
        accelerator.log_with = filter_trackers(list(names), self._folder)
        # A run that is resumed, or that replaces one, tells some steps anew: TensorBoard is to forget the old ones.
        options: dict[str, Any] = {
            "tensorboard": {"purge_step": trainer.steps + 1},
            "wandb": {"name": name, "dir": str(self._folder)},
            "mlflow": {"run_name": name},
        }
        recipe = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in trainer.recipe.to_dict().items()
            if value is not None
        }
        is_new = trainer.steps == 0
        try:
            accelerator.init_trackers(PROJECT, recipe if is_new else None, options)
        except Exception as error:  # of each tracker's own: no key, no server, no disk
            raise TrainingError(f"{' or '.join(names)} cannot start: {first_line(error)}") from None

    def on_evaluate(self, trainer: Trainer) -> None:
        row = {name: value for name, value in trainer.history[-1].items() if name != "step"}
        trainer.accelerator.log(row, step=trainer.steps)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.monitor == "valid":  # else it is one of the evaluations
            trainer.accelerator.log(trainer.test, step=trainer.steps)
