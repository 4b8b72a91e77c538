"""The training loop: the same seed gives the same bits, resuming changes nothing, and models learn."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState

from vae_fast import nn
from vae_fast.training import DataError, HubVAE, Recipe, Trainer, TrainingError, load_model, pictures, speedup
from vae_fast.training.callbacks import Callback, Checkpoints
from vae_fast.training.data import Dataset

TINY = Recipe(epochs=4, batch_size=16, hidden=(24,), latent=3, lr=1e-2, seed=5)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision and processes for good."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def blobs(n: int = 60, side: int = 6) -> Dataset:
    """Images of one bright spot, as uint8."""
    at = torch.rand((n, 2, 1), generator=torch.Generator().manual_seed(0)) * (side - 1)
    grid = torch.arange(side, dtype=torch.float32)
    rows, columns = (torch.exp(-((grid - at[:, i]) ** 2)) for i in (0, 1))
    images = (rows[:, :, None] * columns[:, None, :] * 255).to(torch.uint8)
    return Dataset("blobs", images[: n * 4 // 5], images[n * 4 // 5 :])


def floats(dataset: Dataset) -> Dataset:
    return replace(dataset, train=dataset.train / 255, test=dataset.test / 255)


def train(recipe: Recipe = TINY, dataset: Dataset | None = None, **kwargs: Any) -> Trainer:
    trainer = Trainer(recipe, dataset or blobs(), **kwargs)
    trainer.fit()
    return trainer


def assert_same_run(one: Trainer, two: Trainer) -> None:
    for (name, a), (_, b) in zip(one.model.state_dict().items(), two.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        for key, value in one.optimizer.state[p].items():
            assert torch.equal(value, two.optimizer.state[q][key]), key
    assert [{**row, "seconds": 0} for row in one.history] == [{**row, "seconds": 0} for row in two.history]


def is_same_model(one: Trainer, two: Trainer) -> bool:
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"likelihood": "gaussian", "variance": "learned"},
        {"architecture": "conv", "hidden": (4, 6)},
        {"mixed_precision": "bf16"},
        {"num_samples": 3, "batch_size": 100},
    ],
    ids=["mlp", "gaussian", "conv", "bf16", "draws"],
)
def test_the_same_seed_gives_the_same_bits(changes: dict[str, Any]) -> None:
    recipe = replace(TINY, **changes)
    one = train(recipe)
    torch.rand(3)  # what happened before has no say
    assert_same_run(one, train(recipe))


def test_another_seed_gives_another_run() -> None:
    assert not is_same_model(train(), train(replace(TINY, seed=6)))


def test_evaluation_leaves_training_alone() -> None:
    assert is_same_model(train(replace(TINY, evaluate_every=1)), train(replace(TINY, evaluate_every=4)))
    trainer = train()
    assert trainer.evaluate() == trainer.evaluate()


def test_each_epoch_has_noise_and_order_of_its_own() -> None:
    trainer = Trainer(replace(TINY, batch_size=48, lr=1e-30), blobs())
    for p in trainer.model.parameters():
        torch.nn.init.zeros_(p)
    noise: list[Tensor] = []  # z itself, where mu and the log-variance are 0
    trainer.model.register_forward_hook(lambda _module, _inputs, output: noise.append(output.z.detach()))
    for epoch in (0, 1, 0):
        trainer._train_epoch(epoch, trainer._totals())
    torch.testing.assert_close(noise[0], noise[2])
    assert (noise[0] - noise[1]).abs().max() > 1
    orders = [torch.cat(list(trainer._batches(epoch))) for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    seeds = {
        trainer.recipe.seed_of(epoch, *rest) for epoch in range(5) for rest in ((), (0, 1), (1, 1), (0, 2))
    }
    assert len(seeds) == 20


def test_floats_train_as_their_bytes_do() -> None:
    one, two = train(), train(dataset=floats(blobs()))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"mixed_precision": "bf16", "likelihood": "gaussian", "variance": "learned"}]
)
def test_resumed_is_as_never_interrupted(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = replace(TINY, epochs=6, evaluate_every=1, **changes)
    whole = train(recipe)
    first = Trainer(replace(recipe, epochs=3), blobs())
    first.fit()
    first.save(tmp_path)
    torch.rand(3)
    second = Trainer(recipe, blobs())
    second.resume(tmp_path)
    assert second.epoch == 3
    second.fit()
    assert_same_run(whole, second)
    assert whole.steps == second.steps == 18
    assert whole.images == second.images == 6 * 48


@pytest.mark.parametrize(
    ("changes", "nats"),
    [
        ({}, 2.5),  # from the mean image on
        ({"likelihood": "gaussian", "variance": "decoder"}, 50.0),
        ({"likelihood": "gaussian", "variance": 0.05}, 2.0),
        ({"architecture": "conv", "hidden": (8, 16), "epochs": 30}, 5.0),
        ({"mixed_precision": "bf16"}, 2.5),
        ({"batch_size": 500, "epochs": 400}, 2.5),
    ],
    ids=["mlp", "decoder", "fixed", "conv", "bf16", "repeats"],
)
def test_models_learn(changes: dict[str, Any], nats: float) -> None:
    """The test part's ELBO rises by as many nats, and the posterior tells where the spot is."""
    trainer = train(replace(TINY, **{"epochs": 60, **changes}), blobs(300, 10))
    first, last = trainer.history[0], trainer.history[-1]
    assert last["test_elbo"] > first["test_elbo"] + nats
    assert last["test_kl"] > 0.4
    assert last["test_elbo"] == pytest.approx(-(last["test_nll"] + last["test_kl"]))
    assert last["train_loss"] == pytest.approx(last["train_nll"] + last["train_kl"])


def test_a_learned_variance_follows_the_error() -> None:
    recipe = replace(TINY, likelihood="gaussian", variance="learned", epochs=200)
    trainer = Trainer(recipe, blobs(300, 10))
    model, x = trainer.model, trainer.dataset.train
    start = (
        (x / 255).sub((x / 255).mean(0)).pow(2).mean().log().item()
    )  # as if the decoder knew the mean alone
    assert model.likelihood.logvar.item() == pytest.approx(start, abs=1e-4)
    trainer.fit()
    error = (model.reconstruct(x) - x / 255).pow(2).mean().log().item()
    assert error < -3
    assert model.likelihood.logvar.item() == pytest.approx(error, abs=0.3)


def test_history_counts_what_was_done() -> None:
    """48 samples in batches of 16; with a learning rate of nothing the averages are the model's own."""
    trainer = train(replace(TINY, evaluate_every=2, lr=1e-30, beta=2.0))
    assert [(row["epoch"], row["step"]) for row in trainer.history] == [(2, 6), (4, 12)]
    x = trainer.dataset.train.repeat(200, *(1,) * 2)
    output = trainer.model(x)
    row = trainer.history[0]
    assert row["train_kl"] == pytest.approx(output.kl.mean().item(), rel=1e-5)
    assert row["train_nll"] == pytest.approx(output.nll.mean().item(), rel=0.01)
    assert row["train_loss"] == pytest.approx(row["train_nll"] + 2 * row["train_kl"])


def test_callbacks_are_called_in_order() -> None:
    events: list[str] = []

    class Recorder(Callback):
        def on_start(self, trainer: Trainer) -> None:
            events.append("start")

        def on_step(self, trainer: Trainer) -> None:
            events.append(f"step {trainer.steps}")

        def on_evaluate(self, trainer: Trainer) -> None:
            events.append(f"evaluate {trainer.epoch}")

        def on_end(self, trainer: Trainer) -> None:
            events.append("end")

    train(replace(TINY, epochs=2, batch_size=40, evaluate_every=1), callbacks=[Recorder()])
    assert events == ["start", "step 1", "step 2", "evaluate 1", "step 3", "step 4", "evaluate 2", "end"]


def test_checkpoints_hold_the_last_state(tmp_path: Path) -> None:
    trainer = train(replace(TINY, evaluate_every=1), callbacks=[Checkpoints(tmp_path, 1000.0)])
    model = load_model(tmp_path)
    for a, b in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == trainer.history
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "training.safetensors", "metrics.csv"}


def test_divergence_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    dataset = floats(blobs())
    recipe = replace(TINY, likelihood="gaussian", epochs=2, evaluate_every=1)
    train(recipe, dataset, callbacks=[Checkpoints(tmp_path, 0.0)])
    before = (tmp_path / "model.safetensors").read_bytes()
    bad = replace(dataset, train=dataset.train * 1e30)
    with pytest.raises(TrainingError, match=r"the loss is (inf|nan) by epoch 1"):
        train(recipe, bad, callbacks=[Checkpoints(tmp_path, 0.0)])
    assert (tmp_path / "model.safetensors").read_bytes() == before


BAD_RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "expected epochs to be .* got 0"),
    ({"batch_size": 0}, "expected batch_size to be .* got 0"),
    ({"latent": -1}, "expected latent to be .* got -1"),
    ({"hidden": (4, 0)}, r"expected hidden to have .* got \(4, 0\)"),
    ({"hidden": ()}, r"expected hidden to have .* got \(\)"),
    ({"lr": 0.0}, "expected lr to be .* got 0.0"),
    ({"lr": math.nan}, "expected lr to be .* got nan"),
    ({"beta": -1.0}, "expected beta to be .* got -1.0"),
    ({"seed": -1}, "expected seed to be .* got -1"),
    ({"seed": 2**64}, "expected seed to be from 0 to .* got 18446744073709551616"),
    ({"latent": 2**31}, "expected latent to be from 1 to .* got 2147483648"),
    ({"lr": math.inf}, "expected lr to be a finite number .* got inf"),
    ({"beta": math.inf}, "expected beta to be a number from 0 to .* got inf"),
    ({"batch_size": 2**31 - 1, "num_samples": 3}, r"fewer than 2\*\*32"),
    ({"mixed_precision": "fp8"}, "expected mixed_precision to be .* got fp8"),
    ({"architecture": "rnn"}, "expected architecture to be one of .* got 'rnn'"),
    ({"likelihood": "cauchy"}, "expected likelihood to be one of .* got 'cauchy'"),
    ({"variance": 1.0}, "does not take variance"),
    ({"likelihood": "gaussian", "variance": -1.0}, "expected variance to be .* got -1.0"),
    ({"clamp": (3.0, -3.0)}, r"expected clamp to have lo <= hi, but got \(3.0, -3.0\)"),
]


@pytest.mark.parametrize(("changes", "match"), BAD_RECIPES, ids=[str(b[0]) for b in BAD_RECIPES])
def test_bad_recipe_is_one_line(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(TrainingError, match=match) as caught:
        Trainer(replace(TINY, **changes), blobs())
    assert "\n" not in str(caught.value)


def test_convolutions_take_images_alone() -> None:
    flat = blobs().reshaped((36,))
    with pytest.raises(TrainingError, match=r"expected shape to be .* got \(36,\)"):
        Trainer(replace(TINY, architecture="conv", hidden=(4,)), flat)


@pytest.mark.parametrize("scale", [2.0, -1.0])
def test_bernoulli_takes_0_to_1(scale: float) -> None:
    dataset = floats(blobs())
    outside = replace(dataset, test=dataset.test * scale)
    with pytest.raises(DataError, match=r"expected values from 0 to 1 .* for the bernoulli likelihood"):
        Trainer(TINY, outside)
    Trainer(replace(TINY, likelihood="gaussian"), outside)


def test_fractions_are_no_counts() -> None:
    recipe = replace(TINY, likelihood="poisson")
    with pytest.warns(UserWarning, match="blobs: holds fractions"):
        Trainer(recipe, floats(blobs()))


def image(path: Path) -> np.ndarray:
    return np.asarray(pytest.importorskip("PIL.Image").open(path).convert("RGB")).astype(float) / 255


@pytest.mark.parametrize("shape", [(60, 57), (3, 60, 57)], ids=["grey", "colour"])
def test_grid_shows_the_very_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = torch.rand((5, *shape))
    pictures.save_grid(tmp_path / "a.png", images, 3, "five")
    shown = image(tmp_path / "a.png")
    for i, want in enumerate(images):
        top, left = 40 + i // 3 * (60 + 4), 15 + i % 3 * (57 + 4)
        got = torch.from_numpy(shown[top : top + 60, left : left + 57]).movedim(-1, 0)
        torch.testing.assert_close(got, want.double().expand(3, 60, 57), rtol=0, atol=2 / 255)


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((784,), None),
        ((1, 784), None),
        ((28, 20), (28, 20)),
        ((1, 8, 9), (8, 9)),
        ((3, 8, 9), (3, 8, 9)),
        ((4, 8, 9), None),
        ((2, 3, 8, 9), None),
    ],
)
def test_what_can_be_drawn(shape: tuple[int, ...], drawn: tuple[int, ...] | None) -> None:
    assert pictures.image_shape(shape) == drawn


def test_few_values_far_away_do_not_make_the_others_grey(tmp_path: Path) -> None:
    samples = torch.rand(4, 20, 20, generator=torch.Generator().manual_seed(0))
    samples[0, 0, :8] = torch.tensor([-3.0, 9.0]).repeat(4)  # half a percent
    pictures.save_grid(tmp_path / "a.png", samples, 2, "samples")
    pictures.save_grid(tmp_path / "b.png", samples.clamp(0, 1), 2, "samples")
    assert (image(tmp_path / "a.png") == image(tmp_path / "b.png")).all()


def test_pictures_of_a_model(tmp_path: Path) -> None:
    model = HubVAE((6, 6), hidden=(8,), latent=2)
    pictures.save_samples(tmp_path / "a.png", model, 7)
    pictures.save_reconstructions(tmp_path / "b.png", model, blobs().train[:15])
    pictures.save_curve(tmp_path / "c.png", train(replace(TINY, epochs=1)).history)
    for name in "abc":
        shown = image(tmp_path / f"{name}.png")
        assert shown.min() < 0.5 < shown.max()
    original = (
        blobs().train[0] / 255
    )  # the first tile of b, enlarged ten times, has its bright spot in its place
    tile = torch.from_numpy(image(tmp_path / "b.png")[40:100, 15:75, 0])
    means = tile.unfold(0, 10, 10).unfold(1, 10, 10).mean((2, 3)).float()
    assert means.argmax() == original.argmax()
    torch.testing.assert_close(means, original, rtol=0, atol=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": name}
        for name in nn.LIKELIHOODS
        if name
        not in (
            "categorical",
            "discretized_logistic_mixture",
            "zero_inflated_negative_binomial",
            "negative_binomial_mixture",
        )
    ]
    + [{"likelihood": "gaussian", "variance": "decoder"}],
    ids=str,
)
def test_speed_measures_three_ways(options: dict[str, Any]) -> None:
    model = HubVAE((6, 6), hidden=(8,), latent=2, **options)
    before = [p.clone() for p in model.parameters()]
    measured = speedup.measure(model, blobs().train, seconds=0.01)
    assert measured.batch == 48
    plain = set() if options["likelihood"] == "discretized_logistic" else {"plain"}  # torch has none
    assert measured.seconds.keys() == {"fused", "reference"} | plain
    assert all(s > 0 for s in measured.seconds.values())
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


PAGE_FAULTS = """
import resource, sys, torch
from vae_fast.training.malloc import set_up_process
assert not sys.argv[1:] or set_up_process()
def step():
    tensors = [torch.ones(1 << 23) for _ in range(4)]  # 32 MB each
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_process_keeps_its_memory() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", PAGE_FAULTS, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    plain, kept = faults(), faults("set up")
    if plain < 1000:
        pytest.skip("this system gives huge pages of itself")
    assert kept < plain / 4  # the heap may still grow once


def test_loss_waits_for_nothing_between_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is read on the host in a step: each would be a wait for a GPU."""
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, _original: Any = original, _name: str = name) -> Any:
            if self.is_floating_point():
                reads.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(Tensor, name, read)
    trainer = Trainer(replace(TINY, evaluate_every=4), blobs())
    reads.clear()
    for epoch in range(3):
        trainer._train_epoch(epoch, trainer._totals())
    assert reads == []
