"""`vae-fast train`."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

import vae_fast

from .. import backends
from ..nn import DiscretizedLogistic, DiscretizedLogisticMixture
from ..training import callbacks, checkpoint, data, recipe_file, speedup, text, tracking
from ..training.callbacks import Checkpoints, ProgressBar
from ..training.config import Recipe
from ..training.errors import TrainingError, is_lost_process
from ..training.loop import Trainer, make_accelerator
from ..training.malloc import set_up_process
from . import flags, runs

DEFAULTS = {"epochs": 20, "batch_size": 1024}
DIGITS = {"epochs": 600, "batch_size": 4096}  # 1438 images: a batch takes each about three times
# Of Adam, at the batch size beside it. MNIST's test ELBO after 20 epochs of 1024: 1e-3 -108.9; from the mean image on
# 2e-3 -105.1, 3e-3 -104.3, 4e-3 -104.1: 3e-3 keeps a margin. Falling to 0 as a cosine is worse, -108.9 for -106.3
# without the mean image (2026-11-30): 20 epochs need their last steps. 3e-3 beats 1e-3 in short runs of a
# convolutional, a Gaussian, a negative binomial (cells) and a multinomial model (clicks), too.
LR, LR_BATCH = 3e-3, 1024
UNUSED = 1.0  # nats of KL: below, reconstructions of text have nothing of their originals


def run_training(
    options: dict[str, Any],
    given: set[str],
    *,
    config: Path | None = None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    backend: str,
    cpu: bool,
) -> None:
    """Trains by the options, of which `given` names those that the user wrote; the others are as `config` has them."""
    if resume and overwrite:
        raise TrainingError("--resume goes on with a run, --overwrite replaces it: give one of them")
    read: dict[str, Any] = {}
    if config is not None:
        if resume:
            raise TrainingError("--resume goes on by the run's own recipe: leave --config out")
        read = {name: v for name, v in recipe_file.read(config).items() if name not in given}
        backend, cpu = read.pop("backend", backend), read.pop("cpu", cpu)
    options, named = {**options, **read}, given | read.keys()
    set_up_process()
    options = {**options, "data": data.resolve(options["data"])}
    name = data.name_of(options["data"])
    is_chosen = out is not None
    with flags.naming(read, config), choose_backend(backend):
        if resume:
            out = out or runs.newest(checkpoint.STATE, name if "data" in given else None)
            recipe = resumed_recipe(out, options, given)
        else:
            if overwrite:
                out = out or runs.RUNS / name
            elif out is not None:
                runs.check_free(out)  # before the data are read, which may take a while
            recipe = new_recipe(options)
        tracking.check_installed(recipe.track)
        dataset = data.load(recipe.data, **recipe.reading())
        if dataset.columns and not resume and "likelihood" in given:
            raise TrainingError(
                f"{recipe.data}: a table takes no --likelihood: --columns NAME:KIND is of one column"
            )
        if dataset.vocabulary and not resume:
            recipe = _of_text(recipe, named)
        if recipe.shape is not None:
            dataset = dataset.reshaped(recipe.shape)
        if dataset.sound and not resume:
            recipe = _of_sound(recipe, named)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        progress = ProgressBar(console)
        accelerator = make_accelerator(recipe, cpu)
        _check_device(accelerator.device)
        with _folder(accelerator, out, name, is_new=not (resume or overwrite)) as folder:
            before = None if resume else _written(folder)
            extra = {"backend": None if backend == "auto" else backend, "cpu": cpu or None}
            kept = Checkpoints(folder, config=extra)
            told = (progress, tracking.Tracking(folder), kept)
            trainer = Trainer(recipe, dataset, callbacks=told, accelerator=accelerator)
            if resume:
                trainer.resume(folder)
            if trainer.is_main:
                _warn_of_launcher(accelerator)
                console.print(_place(folder, name, resume, is_chosen))
                _print_start(console, trainer)
            try:
                trainer.fit()
                drawn = callbacks.draw(trainer, folder) if trainer.is_main else []
            except KeyboardInterrupt:
                raise TrainingError(_interrupted(folder, before, recipe)) from None
            except TrainingError as error:
                raise TrainingError(f"{error}; {_on_disk(folder, before)}") from None
            except RuntimeError as error:
                if not is_lost_process(error):
                    raise
                raise TrainingError(
                    f"another process of this run has ended; {_way_on(folder, before, recipe)}"
                ) from None
            finally:
                progress.stop()
            if trainer.is_main:
                _print_end(console, trainer, folder, drawn)
        trainer.close()


def new_recipe(options: dict[str, Any]) -> Recipe:
    defaults: dict[str, Any] = DIGITS if options["data"] == data.DIGITS else DEFAULTS
    defaults = {**defaults, "lr": default_lr(options["batch_size"] or defaults["batch_size"])}
    launched = {"mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no")}
    missing = {name: v for name, v in (defaults | launched).items() if options[name] is None}
    return Recipe(**options | missing)


def default_lr(batch_size: int) -> float:
    """In proportion to the root of the batch size (Malladi et al., "On the SDEs and scaling rules for adaptive gradient
    algorithms", 2022): 1.06e-3 at 128. Not above LR."""
    return LR * math.sqrt(min(1.0, batch_size / LR_BATCH))


def resumed_recipe(folder: Path, options: dict[str, Any], given: set[str]) -> Recipe:
    """The recipe that the run was started with. Options that would make it another run are refused."""
    progress = checkpoint.read_progress(folder)
    recipe = Recipe.from_dict(progress.get("recipe", {}))
    asked = {name: options[name] for name in given & options.keys()}
    free = _free(recipe)
    for name in sorted(asked.keys() - free):
        before = getattr(recipe, name)
        if asked[name] != before:
            raise TrainingError(
                f"expected {name} to be {before} like the run in {folder}, but got {asked[name]}"
            )
    recipe = replace(recipe, **{name: asked[name] for name in asked.keys() & free})
    if recipe.epochs < progress.get("epoch", 0):
        raise TrainingError(
            f"expected epochs to be at least {progress['epoch']}, which the run in {folder} has done, "
            f"but got {recipe.epochs}"
        )
    return recipe


def _of_text(recipe: Recipe, named: set[str]) -> Recipe:
    found = recipe.of_text()
    for name in ("likelihood", "architecture"):
        if name in named and getattr(recipe, name) != (only := getattr(found, name)):
            raise TrainingError(
                f"{recipe.data}: expected {name} to be left out for lines of text, where it is {only}, "
                f"but got {getattr(recipe, name)}"
            )
    return found


def _of_sound(recipe: Recipe, named: set[str]) -> Recipe:
    """With what spectrograms take where the user has not said otherwise."""
    if "likelihood" in named:
        return recipe
    return replace(recipe, likelihood="gaussian", variance=recipe.variance or "learned")


def _free(recipe: Recipe) -> set[str]:
    """What may change when a run goes on."""
    free = {"epochs", "evaluate_every", "patience", "save_every", "track", "fsdp"}
    if recipe.lr_schedule != "constant":  # ends with the epochs, or goes by evaluations: they set how many
        free.remove("epochs")
    if recipe.best or recipe.patience is not None or recipe.lr_schedule == "plateau":  # evaluations choose
        free.remove("evaluate_every")
    return free


def choose_backend(name: str) -> AbstractContextManager[Any]:
    """Forces a backend; "auto" leaves what the environment says. TrainingError if it is missing."""
    try:
        if name == "auto":
            name = vae_fast.info()["forced"] or "auto"
        return vae_fast.backend(name)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(str(error)) from None


def _check_device(device: torch.device) -> None:
    """TrainingError where the backend that is forced does not take the device's tensors."""
    try:
        backends.serving("latent", device.type)
    except RuntimeError as error:
        raise TrainingError(str(error)) from None


@contextmanager
def _folder(accelerator: Accelerator, out: Path | None, name: str, *, is_new: bool) -> Iterator[Path]:
    """The run's folder, which the main process claims for all."""
    is_main = accelerator.is_main_process
    with runs.claimed(out, name, is_new=is_new) if is_main else nullcontext() as claimed:
        [folder] = broadcast_object_list([claimed])
        yield folder


def _place(folder: Path, name: str, resume: bool, is_chosen: bool) -> str:
    if resume:
        return f"the run in {folder}/{'' if is_chosen else ', the newest'}"
    if (folder / checkpoint.MODEL).exists():
        return f"a new run in {folder}/, in place of the one that is there"
    taken = runs.RUNS / name
    return f"a new run in {folder}/{'' if is_chosen or folder == taken else f', {taken}/ is taken'}"


def _warn_of_launcher(accelerator: Accelerator) -> None:
    """Says so where a launcher was asked for more processes than train together."""
    variables = (
        "WORLD_SIZE",
        "OMPI_COMM_WORLD_SIZE",
        "PMI_SIZE",
        "MV2_COMM_WORLD_SIZE",
        "SLURM_STEP_NUM_TASKS",
    )
    sizes = [int(size) for name in variables if (size := os.environ.get(name, "")).isdecimal()]
    asked, number = str(max(sizes, default=1)), str(max(sizes, default=1))
    # `accelerate launch` starts one process where there is no GPU, and then only tells it the main process' address.
    if not sizes and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys():
        asked, number = "several", "N"
    if accelerator.num_processes == 1 and asked != "1":
        print(
            f"vae-fast: warning: {asked} processes were asked for, this one trains alone; "
            f"torchrun --nproc-per-node {number} -m vae_fast.cli train ... starts {number} that train together",
            file=sys.stderr,
        )


def _interrupted(folder: Path, before: int | None, recipe: Recipe) -> str:
    if _saved_epoch(folder, before) is None:
        return f"interrupted before the first checkpoint; {_on_disk(folder, before)}"
    return f"interrupted; {_way_on(folder, before, recipe)}"


def _way_on(folder: Path, before: int | None, recipe: Recipe) -> str:
    epoch = _saved_epoch(folder, before)
    if epoch is None:
        return _on_disk(folder, before)
    return f"--resume --out {shlex.quote(str(folder))} resumes from epoch {epoch} of {recipe.epochs}"


def _on_disk(folder: Path, before: int | None) -> str:
    epoch = _saved_epoch(folder, before)
    if epoch is not None:
        return f"{folder}/ holds the checkpoint of epoch {epoch}"
    if (folder / checkpoint.MODEL).exists():
        return f"{folder}/ still holds the run that was to be replaced"
    return "nothing was saved"


def _saved_epoch(folder: Path, before: int | None) -> int | None:
    """The epoch of the run's checkpoint; None if there is none but that of `before`."""
    if _written(folder) in (None, before):
        return None
    return int(checkpoint.read_progress(folder)["epoch"])


def _written(folder: Path) -> int | None:
    """When the training state in the folder was written."""
    state = folder / checkpoint.STATE
    return state.stat().st_mtime_ns if state.exists() else None


def _print_start(console: Console, trainer: Trainer) -> None:
    recipe, dataset, accelerator = trainer.recipe, trainer.dataset, trainer.accelerator
    shape = "x".join(map(str, dataset.shape))
    if dataset.conditions:
        shape += f", {len(dataset.conditions)} of {recipe.batch_key}"
    count = sum(p.numel() for p in trainer.model.parameters())
    device, world = accelerator.device.type, accelerator.num_processes
    processes = f", {world} processes{', sharded' if recipe.fsdp else ''}" if world > 1 else ""
    precision = "" if recipe.mixed_precision == "no" else f", {recipe.mixed_precision}"
    used = vae_fast.info()["used"].get(device, "reference")
    console.print(
        f"{dataset.name}: {len(dataset.train):,} to train, {len(dataset.test):,} to test, {shape}; "
        f"{recipe.architecture} VAE, {count:,} parameters, {recipe.likelihood}; batch {recipe.batch_size:,}; "
        f"{device}{processes}{precision}; fused ops: {used}"
    )
    for note in dataset.notes:
        console.print(f"note: {note}", markup=False)
    if recipe.fsdp and world == 1:
        console.print("note: --fsdp shards over several processes: this one has all of the weights")
    if dataset.valid is not None:
        console.print(
            f"note: {len(dataset.valid):,} to validate: the test part is looked at in the end alone"
        )
    if trainer.epoch:
        console.print(f"resumes from epoch {trainer.epoch} of {recipe.epochs}")


def _print_end(console: Console, trainer: Trainer, folder: Path, drawn: list[str]) -> None:
    row, likelihood = trainer.test, trainer.model.likelihood
    kind = callbacks.noun(trainer)
    bits = ""
    if isinstance(likelihood, (DiscretizedLogistic, DiscretizedLogisticMixture)):  # as papers on images count
        per_value = -row["test_elbo"] / math.log(2) / math.prod(trainer.dataset.shape)
        bits = f", {per_value:.3f} bits a value"
    if trainer.dataset.vocabulary and isinstance(trainer.dataset.test, torch.Tensor):
        bits = f", {text.bits(-row['test_elbo'], trainer.dataset.test):.3f} bits a character"
    if trainer.is_stopped:
        console.print(
            f"stopped       after epoch {trainer.epoch} of {trainer.recipe.epochs}: "
            f"no {trainer.monitor} ELBO above that of epoch {trainer.best_row['epoch']}"
        )
    if trainer.recipe.best:
        console.print(f"kept          epoch {trainer.best_row['epoch']}, the best")
    console.print(
        f"test ELBO     {row['test_elbo']:.2f} nats/{kind} "
        f"(NLL {row['test_nll']:.2f}, KL {row['test_kl']:.2f}{bits})"
    )
    if kind == "line" and row["test_kl"] < UNUSED:
        console.print(
            "latents       hardly used, the decoder does without z: --objective free_bits keeps them"
        )
    console.print(
        f"speed         {trainer.images / trainer.seconds:,.0f} {kind}s/s over {trainer.seconds:.1f} s of training"
    )
    batch = trainer.sample_batch()
    measured = speedup.measure(trainer.result, batch["x"], batch.get("condition"))
    if measured.backend == "reference":
        why = "as asked" if vae_fast.info()["forced"] else "vae-fast doctor says why"
        console.print(f"fused ops     none here: the reference backend was used ({why})")
    else:
        plain = ""
        if "plain" in measured.seconds:
            plain = f", {measured.times_faster_than('plain'):.1f}x the plain PyTorch lines'"
        console.print(
            f"fused ops     {measured.times_faster_than('reference'):.1f}x the reference backend's speed{plain} "
            f"({measured.seconds['fused'] * 1e3:.2f} ms forward and backward at batch {measured.batch:,})"
        )
    names = ", ".join([*drawn, checkpoint.METRICS, checkpoint.CONFIG, checkpoint.MODEL, checkpoint.RECIPE])
    console.print(f"written       {folder}/: {names}")
