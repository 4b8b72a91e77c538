"""`vae-fast train`."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

import vae_fast

from ..nn import DiscretizedLogistic, DiscretizedLogisticMixture
from ..training import checkpoint, data, pictures, speed
from ..training.callbacks import Checkpoints, ProgressBar
from ..training.errors import CheckpointError, TrainingError
from ..training.loop import Trainer
from ..training.process import set_up_process
from ..training.recipe import Recipe

DEFAULTS = {"epochs": 20, "batch_size": 1024, "lr": 1e-3}
DIGITS = {"epochs": 600, "batch_size": 4096, "lr": 3e-3}  # 1438 images: a batch takes each about three times
_FREE = {"epochs", "evaluate_every"}  # what may change when a run goes on


def run_training(
    options: dict[str, Any], given: set[str], *, out: Path | None, resume: bool, backend: str, cpu: bool
) -> None:
    """Trains by the options, of which `given` names those that the user wrote."""
    set_up_process()
    options = {**options, "data": data.resolve(options["data"])}
    folder = out or Path("runs") / data.name_of(options["data"])
    with choose_backend(backend):
        recipe = resumed_recipe(folder, options, given) if resume else new_recipe(options)
        dataset = data.load(recipe.data)
        if recipe.shape is not None:
            dataset = dataset.reshaped(recipe.shape)
        console = Console(highlight=False, soft_wrap=True)
        progress = ProgressBar(console)
        accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=cpu)
        trainer = Trainer(recipe, dataset, callbacks=(progress, Checkpoints(folder)), accelerator=accelerator)
        if resume:
            trainer.resume(folder)
        if trainer.is_main:
            _prepare(folder)
            _print_start(console, trainer)
        try:
            trainer.fit()
        except KeyboardInterrupt:
            raise TrainingError(_interrupted(folder, recipe)) from None
        finally:
            progress.stop()
        if trainer.is_main:
            _print_end(console, trainer, folder, _draw(trainer, folder))
        accelerator.end_training()


def new_recipe(options: dict[str, Any]) -> Recipe:
    defaults = DIGITS if options["data"] == data.DIGITS else DEFAULTS
    return Recipe(**options | {name: v for name, v in defaults.items() if options[name] is None})


def resumed_recipe(folder: Path, options: dict[str, Any], given: set[str]) -> Recipe:
    """The recipe that the run was started with. Options that would make it another run are refused."""
    recipe = Recipe.from_dict(checkpoint.read_progress(folder).get("recipe", {}))
    asked = {name: options[name] for name in given & options.keys()}
    for name in sorted(asked.keys() - _FREE):
        before = getattr(recipe, name)
        if asked[name] != before:
            raise TrainingError(
                f"--{name.replace('_', '-')} is {asked[name]}, the run in {folder} has {before}"
            )
    return replace(recipe, **{name: asked[name] for name in asked.keys() & _FREE})


def choose_backend(name: str) -> AbstractContextManager[Any]:
    """Forces a backend; "auto" leaves what the environment says. TrainingError if it is missing."""
    if name == "auto":
        name = vae_fast.info()["forced"] or "auto"
    try:
        return vae_fast.backend(name)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(str(error)) from None


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_leftovers(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from None


def _interrupted(folder: Path, recipe: Recipe) -> str:
    try:
        epoch = checkpoint.read_progress(folder)["epoch"]
    except (CheckpointError, KeyError):
        return "interrupted before the first checkpoint"
    return f"interrupted; --resume --out {folder} goes on from epoch {epoch} of {recipe.epochs}"


def _draw(trainer: Trainer, folder: Path) -> list[str]:
    """Writes the pictures and returns their names."""
    pictures.save_curve(folder / "loss.png", trainer.history, pictures.noun(trainer.model))
    if not pictures.can_draw(trainer.model):
        return ["loss.png"]
    generator = torch.Generator().manual_seed(trainer.recipe.seed)
    model = trainer.model.eval()
    pictures.save_samples(folder / "samples.png", model, generator=generator)
    pictures.save_reconstructions(folder / "reconstructions.png", model, trainer.dataset.test[:48])
    return ["samples.png", "reconstructions.png", "loss.png"]


def _print_start(console: Console, trainer: Trainer) -> None:
    recipe, dataset, accelerator = trainer.recipe, trainer.dataset, trainer.accelerator
    shape = "x".join(map(str, dataset.shape))
    count = sum(p.numel() for p in trainer.model.parameters())
    device, world = accelerator.device.type, accelerator.num_processes
    used = vae_fast.info()["used"].get(device, "reference")
    console.print(
        f"{dataset.name}: {len(dataset.train):,} to train, {len(dataset.test):,} to test, {shape}; "
        f"{recipe.architecture} VAE, {count:,} parameters, {recipe.likelihood}; batch {recipe.batch_size:,}; "
        f"{device}{f', {world} processes' if world > 1 else ''}; fused ops: {used}"
    )
    for note in dataset.notes:
        console.print(f"note: {note}", markup=False)
    if trainer.epoch:
        console.print(f"goes on from epoch {trainer.epoch} of {recipe.epochs}")


def _print_end(console: Console, trainer: Trainer, folder: Path, drawn: list[str]) -> None:
    row, likelihood = trainer.history[-1], trainer.model.likelihood
    kind = pictures.noun(trainer.model)
    bits = ""
    if isinstance(likelihood, (DiscretizedLogistic, DiscretizedLogisticMixture)):  # as papers on images count
        per_value = -row["test_elbo"] / math.log(2) / math.prod(trainer.model.shape)
        bits = f", {per_value:.3f} bits a value"
    console.print(
        f"test ELBO     {row['test_elbo']:.2f} nats/{kind} "
        f"(NLL {row['test_nll']:.2f}, KL {row['test_kl']:.2f}{bits})"
    )
    console.print(
        f"speed         {trainer.images / trainer.seconds:,.0f} {kind}s/s over {trainer.seconds:.1f} s of training"
    )
    measured = speed.measure(trainer.model, trainer.sample_batch())
    if measured.backend == "reference":
        console.print("fused ops     none here: the reference backend was used (vae-fast doctor says why)")
    else:
        plain = ""
        if "plain" in measured.seconds:
            plain = f", {measured.times_faster_than('plain'):.1f}x the plain PyTorch lines'"
        console.print(
            f"fused ops     {measured.times_faster_than('reference'):.1f}x the reference backend's speed{plain} "
            f"({measured.seconds['fused'] * 1e3:.2f} ms forward and backward at batch {measured.batch:,})"
        )
    names = ", ".join([*drawn, checkpoint.METRICS, checkpoint.CONFIG, checkpoint.MODEL])
    console.print(f"written       {folder}/: {names}")
