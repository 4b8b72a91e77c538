"""What a Trainer does beyond the plain run: models of the user's own, every option of the recipe, TOML files, trackers;
and that a run which is interrupted or repeated with all of them is the same, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState

from vae_fast import nn
from vae_fast.training import DataError, Dataset, Recipe, Trainer, TrainingError, callbacks, checkpoint

LATENT, FEATURES = 3, 12
RECIPE = Recipe(epochs=3, batch_size=16, lr=1e-2, seed=5, evaluate_every=1)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision and processes for good."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


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
