"""Training with sharded weights by two gloo processes, and the same by one, for test_processes.py: fsdp_processes.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from processes import run_world
from vae_fast.nn import (
    VAE,
    Categorical,
    GRUDecoder,
    GRUEncoder,
    HierarchicalVAE,
    MLPDecoder,
    MLPEncoder,
    VampPrior,
)
from vae_fast.training import Dataset, Recipe, Trainer, TrainingError, callbacks, sharding
from vae_fast.training.checkpoint import load_model
from vae_fast.training.loop import make_accelerator

LATENT, FEATURES = 3, 13
# Batches of 15 of 46 samples, and a last one of 1: a process has none.
BASE = Recipe(epochs=1, batch_size=15, lr=1e-2, clip_grad=0.5, evaluate_every=1)
MLP: dict[str, Any] = {"hidden": (17, 9), "latent": LATENT}
LEARNED = {**MLP, "likelihood": "gaussian", "variance": "learned"}  # of shape ()
# Every option. A last batch of 3, in parts: one process has one, the other two.
ALL = replace(BASE, epochs=4, batch_size=43, num_samples=2, accumulate=4, **LEARNED)
ALL = replace(ALL, ema=0.5, best=True, kl_warmup=2, lr_warmup=1, lr_schedule="cosine")
OPTIMIZERS = ("sgd", "adamw", "nadam", "radam", "rmsprop")


class Encoder(nn.Module):
    """Somebody's own, that has no shape () alone."""

    latent_shape = (LATENT,)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(FEATURES, 2 * LATENT), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = (self.layer(x) * self.scale).chunk(2, dim=1)
        return mu, logvar


class Tied(nn.Module):
    """Reads the weight of a layer of the encoder's."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.frozen = layer, nn.Linear(FEATURES, FEATURES).requires_grad_(False)

    def forward(self, z: Tensor) -> Tensor:
        return self.frozen(z @ self.layer.weight[:LATENT])


def tied() -> VAE:
    encoder = Encoder()
    return VAE(encoder, Tied(encoder.layer), prior=VampPrior(torch.rand(5, FEATURES)))


def vamp() -> VAE:
    encoder, decoder = MLPEncoder(FEATURES, (17,), LATENT), MLPDecoder(LATENT, (17,), FEATURES)
    return VAE(encoder, decoder, "gaussian", variance="feature", prior=VampPrior(torch.rand(5, FEATURES)))


def hierarchy() -> VAE:
    encoder = MLPEncoder(FEATURES, (17,), LATENT, conditions=2)
    bottom = VAE(encoder, MLPDecoder(LATENT, (17,), FEATURES, conditions=2))
    return HierarchicalVAE(MLPEncoder(FEATURES, 8, 2), bottom)


def text() -> VAE:
    return VAE(
        GRUEncoder(7, 8, LATENT), GRUDecoder(LATENT, 8, (FEATURES, 7)), Categorical(7), fused_head=True
    )


MODELS = {"tied": tied, "vamp": vamp, "hierarchy": hierarchy, "text": text}


def data(kind: str = "") -> Dataset:
    torch.manual_seed(1)
    x = (torch.rand(52, 1) + 0.3 * torch.rand(52, FEATURES)).clamp(0, 1)
    x = (6 * x).long() if kind == "text" else x
    return Dataset.of(x[:46], x[46:])


class Alone(callbacks.Callback):
    """Runs the model on the main process, as pictures do; between evaluations there is none to run."""

    seen = 0

    def on_step(self, trainer: Trainer) -> None:
        if trainer.recipe.fsdp and trainer.accelerator.num_processes > 1:
            with pytest.raises(TrainingError, match="result is not there now"):
                trainer.result.generate(2)

    def on_evaluate(self, trainer: Trainer) -> None:
        if trainer.is_main:
            model = trainer.result
            was_training = model.training
            model.eval()  # else batch norm would count these samples
            assert model.generate(2).shape == (2, FEATURES)
            model.train(was_training)
            self.seen += 1


class SaveAt(callbacks.Callback):
    def __init__(self, epoch: int, folder: Path) -> None:
        self.epoch, self.folder = epoch, folder

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch == self.epoch:
            self.folder.mkdir(exist_ok=True)
            trainer.save(self.folder)


def run(
    name: str,
    recipe: Recipe,
    start: str | None = None,
    at: int = 0,
    model: VAE | None = None,
    scale: float | None = None,
) -> None:
    """A run that is saved in folder `name`, and after epoch `at` in `name`-`at`; resumed from folder `start`."""
    AcceleratorState._reset_state()  # the precision may be another run's
    alone = Alone()
    told = (alone, SaveAt(at, Path(f"{name}-{at}")), SaveAt(recipe.epochs, Path(name)))
    accelerator = make_accelerator(recipe)
    if scale is not None:  # fp16's, which Accelerate has on GPUs alone
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=0.1)
    trainer = Trainer(
        recipe, data(name.partition("-")[0]), model=model, callbacks=told, accelerator=accelerator
    )
    if start is not None:
        trainer.resume(Path(start))
    first, dtypes = trainer.epoch, set[torch.dtype]()
    if recipe.mixed_precision == "bf16":
        trainer.model.encoder.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer.fit()
    assert dtypes == ({torch.bfloat16} if recipe.mixed_precision == "bf16" else set())
    assert alone.seen == (recipe.epochs - first) * trainer.is_main
    if model is None:  # every process has the model that is saved
        torch.distributed.barrier() if trainer.accelerator.num_processes > 1 else None
        for a, b in zip(trainer.result.parameters(), load_model(name).parameters(), strict=True):
            assert torch.equal(a, b)


def work(rank: int, size: int) -> None:
    sharding.UNIT = 100  # the hidden layers are units of their own
    sharded = replace(ALL, fsdp=True)
    if size == 2:
        run("all-2", sharded, at=2)
        run("again-2", sharded, start="all-2-2")
        run("turn-2", ALL, start="all-2-2", at=3)
        run("turned-2", sharded, start="turn-2-3")
        for name, fsdp in (("ddp", False), ("fsdp", True)):
            recipe = replace(BASE, optimizer="sgd", fsdp=fsdp, **MLP)
            run(f"statistics-{name}", replace(recipe, batch_norm=True, epochs=2))
            run(f"precision-{name}", replace(recipe, mixed_precision="bf16"))
    else:
        run("all-1", ALL)
        run("turned-1", sharded, start="all-2-2")
    for name in OPTIMIZERS:
        run(f"{name}-{size}", replace(BASE, optimizer=name, lr=1e-3, clip_grad=None, fsdp=True, **LEARNED))
    # Of the first step's gradients some are infinite, in the shards of one process: all leave the step out.
    run(f"scaled-{size}", replace(BASE, clip_grad=None, fsdp=True, **LEARNED), scale=1e38)
    for name, make in MODELS.items():
        torch.manual_seed(rank)  # process 0 has the weights that count
        run(f"{name}-{size}", replace(BASE, fsdp=True, ema=0.5), model=make())


if __name__ == "__main__":
    import torch._dynamo

    exits = [run_world(size, work) for size in (2, 1)]
    assert not any(map(any, exits)), exits
