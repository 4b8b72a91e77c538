"""What a Trainer does beyond the plain run: models of the user's own, every option of the recipe, TOML files, trackers;
and that a run which is interrupted or repeated with all of them is the same, bit for bit."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")
pytest.importorskip("typer")

from rich.console import Console

from command import ordinary_process, save_images
from vae_fast import cli, nn
from vae_fast.cli import train as train_command
from vae_fast.training import (
    DataError,
    Dataset,
    Recipe,
    Trainer,
    TrainingError,
    callbacks,
    checkpoint,
    config,
    inference,
    load_model,
    recipe_file,
    tracking,
)
from vae_fast.training.data import batches, count_batches
from vae_fast.training.loop import make_accelerator
from vae_fast.training.optimization import top_lr

LATENT, FEATURES = 3, 12
RECIPE = Recipe(epochs=3, batch_size=16, lr=1e-2, seed=5, evaluate_every=1)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts in an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield from ordinary_process(monkeypatch)


class Encoder(torch.nn.Module):
    """Somebody's own, which no config describes."""

    latent_shape = (LATENT,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OwnVAE(nn.VAE):
    pass


def own(kind: type[nn.VAE] = nn.VAE, seed: int = 0) -> nn.VAE:
    torch.manual_seed(seed)
    decoder = torch.nn.Sequential(torch.nn.Linear(LATENT, 8), torch.nn.Tanh(), torch.nn.Linear(8, FEATURES))
    prior, objective = nn.MixturePrior(4, LATENT), nn.FreeBits(0.1, per="sample", beta=nn.LinearSchedule(6))
    return kind(Encoder(), decoder, prior=prior, objective=objective)


def data(with_valid: bool = False) -> Dataset:
    torch.manual_seed(1)
    x = (torch.rand(60, 1) + 0.3 * torch.rand(60, FEATURES)).clamp(0, 1)
    return Dataset.of(x[:40], x[40:50], x[50:] if with_valid else None)


def trained(recipe: Recipe = RECIPE, dataset: Dataset | None = None, **options: Any) -> Trainer:
    trainer = Trainer(recipe, dataset or data(), **options)
    trainer.fit()
    return trainer


def assert_same(one: nn.VAE, two: nn.VAE) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def by_hand(model: nn.VAE, dataset: Dataset) -> list[float]:
    """What the Trainer is to do with it, as one writes it; returns the mean loss of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.lr, fused=True)
    losses = []
    for epoch in range(RECIPE.epochs):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(RECIPE.seed_of(epoch)))
        torch.manual_seed(RECIPE.seed_of(epoch, 0, 1))
        total = 0.0
        for rows in order.split(16):
            loss = model(dataset.train[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        losses.append(total / 40)
    return losses


def test_every_part_has_its_labels() -> None:
    x, labels = torch.arange(6.0).view(6, 1), torch.arange(6)
    parts = {"train": slice(0, 3), "test": slice(3, 5), "valid": slice(5, 6)}
    of_parts = {f"{name}_labels": labels[part] for name, part in parts.items()}
    dataset = Dataset.of(*(x[part] for part in parts.values()), **of_parts)
    for name, part in {**parts, "all": slice(0, 6)}.items():
        [batch] = inference.batches(dataset, name)
        assert torch.equal(batch["x"], x[part]) and torch.equal(batch["condition"], labels[part])


@pytest.mark.parametrize("kind", [nn.VAE, OwnVAE])
def test_a_model_of_own_networks(kind: type[nn.VAE], tmp_path: Path) -> None:
    """It is what a loop written by hand makes of it; checkpoint, pictures and resume are those of any run."""
    dataset, model = data(), own(kind)
    losses = by_hand(model, dataset)
    told = (callbacks.Checkpoints(tmp_path), callbacks.Pictures(tmp_path))
    first = trained(replace(RECIPE, epochs=2), model=own(kind), callbacks=told)
    second = Trainer(RECIPE, dataset, model=own(kind, seed=9))
    second.resume(tmp_path)
    assert_same(first.model, second.model)
    second.fit()
    assert_same(model, second.model)
    assert [row["train_loss"] for row in second.history] == pytest.approx(losses, rel=1e-5)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {*checkpoint.FILES[:4], *checkpoint.PICTURES[:3]}
    if kind is nn.VAE:
        assert_same(first.model, nn.VAE.from_pretrained(tmp_path, encoder=Encoder()))
        match = r"expected encoder to be given, a Encoder"
    else:
        match = "one of vae_fast's, but got 'OwnVAE'"
    with pytest.raises(ValueError, match=match):
        nn.VAE.from_pretrained(tmp_path)


def test_a_part_of_the_data_that_chooses() -> None:
    """With a validation part each evaluation is of it, and the test part is looked at in the end."""
    trainer = trained(dataset=data(with_valid=True))
    row = trainer.history[-1]
    assert (row["valid_nll"], row["valid_kl"]) == trainer.evaluate("valid")
    assert (trainer.test["test_nll"], trainer.test["test_kl"]) == trainer.evaluate("test")
    assert not any(name.startswith("test") for name in row)
    assert trained().test["test_elbo"] == trained().history[-1]["test_elbo"]


def test_tied_weights_are_saved_under_each_name(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self, layer: torch.nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, z: Tensor) -> Tensor:
            return z @ self.layer.weight[:LATENT]

    def tied() -> nn.VAE:
        layer = torch.nn.Linear(FEATURES, 2 * LATENT)
        return nn.VAE(layer, Tied(layer), latent_shape=(LATENT,))

    trainer = trained(replace(RECIPE, epochs=1, best=True), model=tied())
    trainer.save(tmp_path)
    model = nn.VAE.from_pretrained(tmp_path, decoder=Tied(torch.nn.Linear(FEATURES, 2 * LATENT)))
    assert_same(trainer.model, model)
    other = Trainer(replace(RECIPE, epochs=1, best=True), data(), model=tied())
    other.resume(tmp_path)
    assert other.model.encoder.weight is other.model.decoder.layer.weight
    assert_same(trainer.model, other.model)


X = torch.rand(6, 4)
BAD_DATA: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((X, [1]), {}, r"expected the test part to be a tensor \(samples, ...\), but got list"),
    ((X, X[:0]), {}, r"expected the test part to be a tensor"),
    (
        (X, X[:, :3]),
        {},
        r"expected test samples to be torch.float32 \(4,\) like train samples, but got .* \(3,\)",
    ),
    ((X, X, X.double()), {}, r"expected valid samples to be torch.float32 .* but got torch.float64"),
    ((X, X), {"train_labels": torch.arange(6)}, "expected labels for each of the 6 samples of the test part"),
    (
        (X, X),
        {"train_labels": X[:3], "test_labels": X},
        "expected labels for each of the 6 samples of the train",
    ),
]


@pytest.mark.parametrize(("parts", "options", "match"), BAD_DATA, ids=range(len(BAD_DATA)))
def test_bad_tensors_are_one_line(parts: tuple[Any, ...], options: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=f"data: {match}"):
        Dataset.of(*parts, **options)


class Square(torch.nn.Module):
    """An objective of the user's own: of the whole batch."""

    def forward(self, posterior: nn.Posterior) -> nn.VAEOutput:
        z, kl = posterior.sample()
        nll = posterior.mean_nll(z)
        return nn.VAEOutput(nll.mean() + kl.mean().square(), nll, kl, z)


@pytest.mark.parametrize(
    "objective", [nn.FreeBits(), nn.Capacity(), nn.BetaTC(), Square()], ids=lambda o: type(o).__name__
)
def test_a_loss_of_the_whole_batch_is_not_cut(objective: torch.nn.Module) -> None:
    model = nn.VAE(Encoder(), torch.nn.Linear(LATENT, FEATURES), objective=objective)
    with pytest.raises(
        TrainingError, match=r"with accumulate=2, but got \w+: it takes the whole batch at once"
    ):
        Trainer(replace(RECIPE, accumulate=2), data(), model=model)
    trained(replace(RECIPE, epochs=1), model=model)


SMALL = replace(RECIPE, hidden=(8,), latent=LATENT)


def test_accumulated_parts_are_the_whole_batch() -> None:
    """To rounding: draws, bits, the KL's weight, which counts steps, and a last batch of 8, in parts of 2 and 3."""
    recipe = replace(SMALL, num_samples=2, binarize="dynamic", kl_warmup=2, clip_grad=0.5)
    whole, parts = (trained(replace(recipe, accumulate=n)) for n in (1, 3))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert a == pytest.approx({**b, "seconds": a["seconds"]}, rel=1e-5)
    assert whole.model.beta.step == parts.model.beta.step == whole.steps == 9
    assert whole.history[0]["train_loss"] < whole.history[0]["train_nll"] + 0.5 * whole.history[0]["train_kl"]


def test_gradients_are_clipped() -> None:
    norms: list[float] = []

    class Norms(callbacks.Callback):
        def on_start(self, trainer: Trainer) -> None:
            step = trainer.optimizer.step

            def measured(*args: Any, **kwargs: Any) -> Any:
                grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
                norms.append(torch.nn.utils.get_total_norm(grads).item())
                return step(*args, **kwargs)

            trainer.optimizer.step = measured  # type: ignore[method-assign]

    trained(replace(SMALL, clip_grad=0.25, epochs=1), callbacks=[Norms()])
    assert norms == pytest.approx([0.25] * 3, rel=1e-3)


def test_averaged_weights_are_evaluated_and_saved(tmp_path: Path) -> None:
    averages: list[list[Tensor]] = []

    class ByHand(callbacks.Callback):
        def on_step(self, trainer: Trainer) -> None:
            new = [p.detach().clone() for p in trainer.model.parameters()]
            old = averages[-1] if averages else new
            averages.append([0.75 * a + 0.25 * b for a, b in zip(old, new, strict=True)])

    told = [ByHand(), callbacks.Checkpoints(tmp_path)]
    trainer = trained(replace(SMALL, ema=0.75), callbacks=told)
    for p, want in zip(trainer.result.parameters(), averages[-1], strict=True):
        torch.testing.assert_close(p, want)
    nll, kl = trainer.evaluate("test", trainer.result)
    assert trainer.history[-1]["test_elbo"] == -(nll + kl) != -sum(trainer.evaluate("test", trainer.model))
    assert_same(trainer.result, load_model(tmp_path))


def test_the_best_is_kept_and_patience_ends(tmp_path: Path) -> None:
    """With a learning rate at which the ELBO goes up and down."""
    recipe = replace(SMALL, lr=0.2, epochs=30, save_every=2)
    elbos = [row["test_elbo"] for row in trained(recipe).history]
    waits = [n - max(range(n + 1), key=lambda i: elbos[i]) for n in range(30)]
    stop = waits.index(4)
    best = max(elbos[: stop + 1])
    told = [callbacks.Checkpoints(tmp_path)]
    trainer = trained(replace(recipe, patience=4, best=True), callbacks=told)
    assert trainer.epoch == stop + 1 < 30 and trainer.is_stopped
    assert [row["test_elbo"] for row in trainer.history] == elbos[: stop + 1]
    assert best == trainer.test["test_elbo"] == -sum(trainer.evaluate("test", load_model(tmp_path)))
    assert best > elbos[stop] == -sum(trainer.evaluate())
    kept = {path.name for path in tmp_path.glob("epoch-*")}
    assert kept == {f"epoch-{n}" for n in range(2, stop + 2, 2)}
    assert -sum(trainer.evaluate("test", load_model(tmp_path / "epoch-4"))) == elbos[3]


@pytest.mark.parametrize(
    ("n", "size", "least"), [(40, 16, 1), (40, 16, 9), (40, 13, 2), (32, 16, 4), (5, 16, 4)]
)
def test_batches_are_counted_without_being_made(n: int, size: int, least: int) -> None:
    order = torch.Generator().manual_seed(0)
    pools = None if n > 32 else [torch.arange(n)]
    assert count_batches(n, size, least) == len([*batches(n, size, order, pools, least)])


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_learning_rates_are_those_of_torch(name: str) -> None:
    rates: list[float] = []

    class Rates(callbacks.Callback):
        def on_step(self, trainer: Trainer) -> None:
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    trained(replace(SMALL, lr_schedule=name, lr_warmup=1, epochs=4), callbacks=[Rates()])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    schedules = torch.optim.lr_scheduler
    after = {
        "constant": schedules.ConstantLR(optimizer, 1.0),
        "cosine": schedules.CosineAnnealingLR(optimizer, 9),
        "linear": schedules.LinearLR(optimizer, 1.0, 0.0, 9),
    }[name]
    want = []
    for _ in range(9):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        after.step()
    assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, *want], rel=1e-6)


class EpochRates(callbacks.Callback):
    """The learning rate of each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_epoch(self, trainer: Trainer) -> None:
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])


def reduced(elbos: list[float], lr: float, factor: float, patience: int) -> list[float]:
    """torch's own rates after each evaluation."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor, patience, threshold=0.0)
    rates = []
    for elbo in elbos:
        schedule.step(elbo)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("factor", "patience"), [(0.1, 10), (0.5, 1), (0.0, 3), (1e-3, 2)])
def test_rate_on_a_plateau_is_that_of_torch(factor: float, patience: int) -> None:
    """Exactly, on ELBOs of either sign that rise, stay, fall and are as high as the best again."""
    generator = torch.Generator().manual_seed(0)
    recipe = replace(SMALL, lr_schedule="plateau", lr_factor=factor, lr_patience=patience)
    for shift in (-1000, 0, 1000):
        drawn = torch.randint(0, 4, (60,), generator=generator) + torch.arange(60) // 20 + shift
        elbos = (drawn.double() / 8).tolist()
        want = reduced(elbos, recipe.lr, factor, patience)
        assert [top_lr(recipe, elbos[: n + 1]) for n in range(60)] == want
        assert len(set(want)) > 1


def test_rate_falls_on_a_plateau_and_goes_on_where_it_was() -> None:
    """Bit for bit where the run is interrupted between two falls."""
    recipe = replace(SMALL, lr=0.2, epochs=16, lr_schedule="plateau", lr_factor=0.5, lr_patience=1)
    printed = io.StringIO()
    whole = trained(
        recipe, callbacks=[rates := EpochRates(), callbacks.ProgressBar(Console(file=printed, width=200))]
    )
    want = reduced([row["test_elbo"] for row in whole.history], 0.2, 0.5, 1)
    assert rates.rates == [0.2, *want[:-1]]
    said = re.findall(r"epoch (\d+) of 16: .* lr ([\d.e-]+) ", printed.getvalue())
    assert said == [(n, f"{rates.rates[int(n) - 1]:.2g}") for n, _ in said] and len(said) == 10
    falls = [n for n in range(1, 16) if want[n] < want[n - 1]]
    assert len(falls) > 1
    first = Trainer(recipe, data(), callbacks=[Ends(at := falls[1])])
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = Trainer(recipe, data(), callbacks=[rates := EpochRates()])
    second.resume(Path.cwd())
    second.fit()
    assert second.history[:at] == first.history
    assert rates.rates == [0.2, *want[:-1]][at:]
    assert_same(whole.model, second.model)


class Ends(callbacks.Callback):
    """Saves and interrupts the run after so many epochs."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch == self.after:
            trainer.save(Path.cwd())
            raise KeyboardInterrupt


def test_every_optimizer_goes_on_where_it_was(tmp_path: Path) -> None:
    found = set()
    for name, kind in config.OPTIMIZERS.items():
        recipe = replace(SMALL, optimizer=name, weight_decay=0.1, epochs=2)
        whole, first = trained(recipe), trained(replace(recipe, epochs=1))
        assert type(whole.optimizer).__name__ == kind
        first.save(tmp_path)
        second = Trainer(recipe, data())
        second.resume(tmp_path)
        second.fit()
        assert_same(whole.model, second.model)
        found.add(whole.history[-1]["train_loss"])
    assert len(found) == len(config.OPTIMIZERS) == 6


def test_the_scale_of_gradients_goes_on_where_it_was(tmp_path: Path) -> None:
    """That of fp16, which Accelerate has on GPUs alone: a scaler of torch's for the CPU is in its place."""

    def scaled(epochs: int) -> Trainer:
        recipe = replace(SMALL, epochs=epochs, accumulate=2)
        accelerator = make_accelerator(recipe)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        return Trainer(recipe, data(), accelerator=accelerator)

    whole, first, second = scaled(2), scaled(1), scaled(2)
    whole.fit()
    first.fit()
    first.save(tmp_path)
    second.resume(tmp_path)
    second.fit()
    assert_same(whole.model, second.model)
    assert whole.accelerator.scaler.state_dict() == second.accelerator.scaler.state_dict()
    assert whole.accelerator.scaler.get_scale() == 64.0 * 2**3  # after 2, 4 and 6 of 6 steps
    plain = trained(replace(SMALL, epochs=2, accumulate=2))
    for a, b in zip(whole.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimizer": "lion"}, "expected optimizer to be one of adam, adamw, .* but got 'lion'"),
        (
            {"lr_schedule": "step"},
            "expected lr_schedule to be one of constant, cosine, linear, plateau, but got 'step'",
        ),
        (
            {"objective": "vae"},
            "expected objective to be one of elbo, free_bits, capacity, beta_tc, iwae, but got 'vae'",
        ),
        ({"likelihood": "cauchy"}, "expected likelihood to be one of (?!.*categorical).* but got 'cauchy'"),
        ({"objective": "kl_balance"}, "expected an objective for the prior N\\(0, 1\\)"),
        ({"objective": "iwae"}, "expected num_samples to be given for the objective iwae"),
        (
            {"objective": "capacity", "beta": 2.0},
            "the objective capacity has no weight of the KL, but got beta=2.0",
        ),
        ({"objective": "iwae", "num_samples": 2, "kl_warmup": 1}, "the objective iwae has no .* kl_warmup=1"),
        (
            {"objective": "beta_tc", "num_samples": 2},
            "expected num_samples to be left out for .* beta_tc, but got 2",
        ),
        ({"lr_factor": 0.5}, "expected lr_schedule to be plateau for lr_factor, but got 'constant'"),
        (
            {"lr_schedule": "cosine", "lr_patience": 3},
            "expected lr_schedule to be plateau for lr_patience, but got 'cosine'",
        ),
        ({"lr_schedule": "plateau", "lr_factor": 1.0}, "expected lr_factor to be a number from 0 to below 1"),
        (
            {"lr_schedule": "plateau", "patience": 10},
            "expected patience to be above lr_patience 10, .* but got 10",
        ),
        ({"lr_warmup": 4}, "expected lr_warmup to be from 0 to the 3 epochs, but got 4"),
        ({"kl_warmup": -1}, "expected kl_warmup to be from 0 to the 3 epochs, but got -1"),
        ({"weight_decay": -1.0}, "expected weight_decay to be a number from 0 to .* but got -1.0"),
        ({"clip_grad": 0.0}, "expected clip_grad to be a number above 0 .* but got 0.0"),
        ({"ema": 1.0}, "expected ema to be a number from 0 to below 1, but got 1.0"),
        (
            {"accumulate": 17, "batch_size": 16},
            "expected accumulate to be at most the batch size 16, but got 17",
        ),
        ({"accumulate": 0}, "expected accumulate to be from 1 to .* but got 0"),
        ({"patience": 0}, "expected patience to be from 1 to .* but got 0"),
        ({"track": ("visdom",)}, "expected track to be some of tensorboard, wandb, mlflow, but got 'visdom'"),
        ({"objective": "free_bits", "accumulate": 2}, "with accumulate=2, but got FreeBits"),
        ({"fsdp": True, "cuda_graph": True}, "expected cuda_graph to be off for fsdp, but got True"),
        ({"free_bits": 2.0}, "the objective elbo does not take free_bits: free_bits does"),
        (
            {"gamma": 2.0, "objective": "free_bits"},
            "the objective free_bits does not take gamma: capacity and beta_tc do",
        ),
        (
            {"objective": "free_bits", "free_bits": -1.0},
            "expected free_bits to be a number from 0 to .* got -1.0",
        ),
        (
            {"objective": "free_bits", "free_bits_per": "batch"},
            "expected free_bits_per to be one of dimension, element, sample, but got 'batch'",
        ),
        (
            {"objective": "capacity", "capacity_steps": 0},
            "expected capacity_steps to be from 1 to .* but got 0",
        ),
    ],
    ids=str,
)
def test_bad_recipe_is_one_line(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(TrainingError, match=match) as caught:
        Trainer(replace(SMALL, **changes), data())
    assert "\n" not in str(caught.value)


def test_what_a_given_model_has_is_not_in_the_recipe() -> None:
    with pytest.raises(
        TrainingError, match="expected latent to be left out where a model is given, but got 7"
    ):
        Trainer(replace(RECIPE, latent=7), data(), model=own())
    with pytest.raises(TrainingError, match="a model whose beta is a schedule already"):
        Trainer(replace(RECIPE, kl_warmup=1), data(), model=own())


def test_one_process_has_nothing_to_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is the same; it goes on with or without. Accelerate's own way is refused, where --fsdp is named."""
    trainer = trained(replace(SMALL, fsdp=True))
    assert_same(trainer.result, trained(SMALL).result)
    trainer.save(tmp_path)
    for fsdp in (True, False):
        recipe = train_command.resumed_recipe(tmp_path, {"fsdp": fsdp}, {"fsdp"})
        assert recipe == replace(SMALL, fsdp=fsdp, stream=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match=r"accelerate launch without --use_fsdp.*: --fsdp, .* shards"):
        Trainer(SMALL, data())


# The options of a recipe; what its model's objective then is, as it describes itself.
OBJECTIVES: list[tuple[dict[str, Any], str]] = [
    (
        {"objective": "free_bits", "free_bits": 8.0, "free_bits_per": "sample", "beta": 0.5},
        'FreeBits(8, per="sample") 0.5',
    ),
    ({"objective": "free_bits", "free_bits": 0.0}, 'FreeBits(0, per="dimension") 1.0'),
    ({"objective": "capacity", "capacity": 3.0, "capacity_steps": 50, "gamma": 10.0}, "gamma=10 50, 0, 3"),
    ({"objective": "capacity", "capacity": 3.0}, "gamma=1000 100000, 0, 3"),
    ({"objective": "capacity", "capacity_steps": 7}, "gamma=1000 7, 0, 25"),
    ({"objective": "beta_tc", "alpha": 0.5, "beta": 6.0, "gamma": 2.0}, "0.5 6.0 2.0"),
    ({"objective": "iwae", "num_samples": 2, "iwae_gradient": "dreg"}, 'IWAE(None, gradient="dreg")'),
]


def objective_of(model: nn.VAE) -> str:
    found = model.objective
    if isinstance(found, nn.FreeBits):
        return f"{found} {found.beta}"
    if isinstance(found, nn.Capacity):
        assert isinstance(found.capacity, nn.Schedule)
        return f"{found.extra_repr()} {found.capacity.extra_repr()}"
    return f"{found.alpha} {found.beta} {found.gamma}" if isinstance(found, nn.BetaTC) else str(found)


@pytest.mark.parametrize(
    ("options", "objective"), OBJECTIVES, ids=lambda x: str(x) if isinstance(x, str) else ""
)
def test_options_of_the_objective(options: dict[str, Any], objective: str) -> None:
    """They come to the model, are kept in its config and in the options' file, and train."""
    trainer = trained(replace(SMALL, **options, epochs=1))
    assert objective_of(trainer.model) == objective
    Path("run").mkdir()
    trainer.save(Path("run"))
    assert objective_of(checkpoint.load_model(Path("run"))) == objective
    Path("kept.toml").write_text(recipe_file.text(trainer.recipe, {}))
    assert Recipe(**recipe_file.read(Path("kept.toml"))) == trainer.recipe


EVERYTHING = {
    "data": "tiny.npy",
    "epochs": 40,
    "batch_size": 12,
    "lr": 0.05,
    "lr_schedule": "cosine",
    "lr_warmup": 1.5,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "clip_grad": 1,
    "accumulate": 2,
    "ema": 0.8,
    "hidden": [8],
    "latent": 3,
    "likelihood": "gaussian",
    "variance": "learned",
    "kl_warmup": 2,
    "num_samples": 2,
    "batch_norm": True,
    "dropout": 0.2,
    "mixed_precision": "bf16",
    "evaluate_every": 1,
    "patience": 4,
    "best": True,
    "save_every": 3,
    "track": ["tensorboard"],
}


def run(*arguments: str, status: int = 0) -> None:
    assert cli.run(["train", *arguments]) == status, arguments


def test_interrupted_or_repeated_with_everything_it_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: a whole run; one that ends while it saves, and is resumed; one from the first's config.toml."""
    save_images(Path.cwd())
    lines = [f"{name} = {json.dumps(value)}" for name, value in EVERYTHING.items()]
    Path("all.toml").write_text("\n".join(lines))
    monkeypatch.setattr(train_command.Checkpoints.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(train_command.callbacks, "draw", lambda *_: [])
    monkeypatch.setattr(train_command, "_print_end", lambda *_: None)
    run("--config", "all.toml", "--out", "whole")
    progress = checkpoint.read_progress(Path("whole"))
    last, best = progress["epoch"], max(progress["history"], key=lambda row: row["test_elbo"])["epoch"]
    assert best + 4 == last < 40  # early stopping

    def ends(self: Any, folder: Path) -> None:
        if self.epoch == last - 1:
            raise KeyboardInterrupt
        save(self, folder)

    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", ends)
    run("--config", "all.toml", "--out", "parts", status=1)
    assert checkpoint.read_progress(Path("parts"))["epoch"] == last - 2
    monkeypatch.setattr(Trainer, "save", save)
    run("--resume", "--out", "parts")
    run("--config", "whole/config.toml", "--out", "again")

    (want, _), rows = checkpoint.load_tensors(Path("whole", checkpoint.STATE)), table("whole")
    weights = sorted(path.relative_to("whole") for path in Path("whole").glob("**/model.safetensors"))
    assert len(weights) == 1 + last // 3
    for folder in ("parts", "again"):
        state, _ = checkpoint.load_tensors(Path(folder, checkpoint.STATE))
        assert state.keys() == want.keys() and all(torch.equal(state[name], want[name]) for name in want)
        assert table(folder) == rows
        for path in (*weights, Path(checkpoint.RECIPE)):
            assert Path(folder, path).read_bytes() == Path("whole", path).read_bytes(), path
        assert events(folder) == rows
    assert {name.partition("/")[0] for name in want} == {"model", "optimizer", "averaged", "best"}
    kept = tomllib.loads(Path("whole/config.toml").read_text())
    assert kept == {**kept, **EVERYTHING, "data": str(Path("tiny.npy").resolve())}


def table(folder: str) -> dict[str, list[tuple[int, float]]]:
    """The columns of metrics.csv but the seconds, each as (step, value) of float32."""
    with Path(folder, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() - {"seconds", "step"}
    return {name: [(int(row["step"]), float32(row[name])) for row in rows] for name in sorted(names)}


def events(folder: str) -> dict[str, list[tuple[int, float]]]:
    """The same of TensorBoard's files, as it reads them: what was told twice is told once."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(Path(folder, "vae_fast")), size_guidance={"scalars": 0})
    found.Reload()
    names = sorted(set(found.Tags()["scalars"]) - {"seconds"})
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in names}


def float32(text: str) -> float:
    return torch.tensor(float(text), dtype=torch.float32).item()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("epochs = ", r"bad.toml: is not TOML \(Invalid value .*\)"),
        ("epoch = 3", "bad.toml: epoch is no option of vae-fast train, is epochs meant\\?"),
        ('out = "runs/a"', "bad.toml: out is of one call: give --out in the command"),
        ("[train]\nepochs = 3", r"bad.toml: train is no option of vae-fast train.*"),
        ("epochs = 3.5", "bad.toml: expected epochs to be a whole number, but got 3.5"),
        ("epochs = true", "bad.toml: expected epochs to be a whole number, but got true"),
        ('best = "yes"', 'bad.toml: expected best to be a boolean \\(true or false\\), but got "yes"'),
        (
            "hidden = [4, 'x']",
            r'bad.toml: expected hidden to be an array of whole numbers, but got \[4, "x"\]',
        ),
        ("clamp = [1]", r"bad.toml: expected clamp to be an array of 2 numbers, but got \[1\]"),
        ("variance = []", r"bad.toml: expected variance to be a number or a string, but got \[\]"),
        ("lr = 1979-05-27", "bad.toml: expected lr to be a number, but got 1979-05-27"),
        ("latent = 0", "bad.toml: expected latent to be from 1 to .* but got 0"),
        ("optimizer = 'lion'", "bad.toml: expected optimizer to be one of .* but got 'lion'"),
        ("backend = 'tpu'", "expected backend to be one of .* but got 'tpu'"),
        (None, r"bad.toml: cannot be read \(No such file or directory\)"),
    ],
)
def test_bad_file_is_one_line(content: str | None, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("bad.toml").write_text(content)
    run("--config", "bad.toml", "--cpu", status=1)
    assert re.fullmatch(f"vae-fast: {line}\n", capsys.readouterr().err)
    assert not Path("runs").exists()


def test_options_count_before_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    save_images(Path.cwd())
    text = "data = 'tiny.npy'\nepochs = 9\nhidden = [8]\nlatent = 3\nbackend = 'reference'\nlikelihood = 'gaussian'"
    Path("mine.toml").write_text(text)
    run("--config", "mine.toml", "--epochs", "1", "--likelihood", "bernoulli", "--out", "mine")
    assert "fused ops: reference" in capsys.readouterr().out
    kept = tomllib.loads(Path("mine/config.toml").read_text())
    assert (kept["epochs"], kept["likelihood"], kept["hidden"], kept["backend"]) == (
        1,
        "bernoulli",
        [8],
        "reference",
    )
    run("--resume", "--out", "mine", "--config", "mine.toml", status=1)
    assert (
        capsys.readouterr().err == "vae-fast: --resume goes on by the run's own recipe: leave --config out\n"
    )


def test_a_tracker_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    run("--track", "tensorboard", status=1)
    line = "vae-fast: tensorboard is not installed: pip install 'vae_fast[tensorboard]'\n"
    assert capsys.readouterr().err == line


def test_a_tracker_that_cannot_start(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    save_images(Path.cwd())
    Path("mine").mkdir()
    Path("mine/vae_fast").write_text("somebody's")
    run("--data", "tiny.npy", "--track", "tensorboard", "--out", "mine", status=1)
    line = "vae-fast: tensorboard cannot start: .*; nothing was saved\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_text_file_holds_every_string() -> None:
    odd = 'a\x7f"\\\n\t\u00e9\U0001f600'
    recipe = Recipe(data=odd, clamp=(-math.inf, 1e-30), columns=("a:skip",), seed=2**64 - 1)
    Path("odd.toml").write_text(recipe_file.text(recipe, {}), encoding="utf-8")
    assert Recipe(**recipe_file.read(Path("odd.toml"))) == recipe
