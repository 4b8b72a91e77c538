"""What ends a training run: a loss that is not finite, whose cause is named with advice that works when it is followed;
what is too large for the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState

from vae_fast.training import Recipe, Trainer, TrainingError, divergence
from vae_fast.training.callbacks import Checkpoints
from vae_fast.training.config import MOST
from vae_fast.training.data import Dataset

TINY = Recipe(epochs=1, batch_size=16, hidden=(24,), latent=3, likelihood="gaussian")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision and processes for good."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def split(x: Tensor) -> Dataset:
    end = len(x) * 4 // 5
    return Dataset("made", x[:end], x[end:])


def train(recipe: Recipe, dataset: Dataset, **kwargs: Any) -> Trainer:
    trainer = Trainer(recipe, dataset, **kwargs)
    trainer.fit()
    return trainer


NORMAL = torch.randn((48, 30), generator=torch.Generator().manual_seed(0))
COUNTS = torch.poisson(NORMAL.abs() * 10, generator=torch.Generator().manual_seed(0))
OUTLIER = NORMAL.index_fill(0, torch.tensor([3]), 1e4)
HOLES = NORMAL.index_fill(0, torch.tensor([3]), math.nan)
GAUSSIAN, LAPLACE = {"likelihood": "gaussian"}, {"likelihood": "laplace"}
FAR = r"values from \S+ to \S+ are far from 0: scale them to -1 to 1"
SAME = "all training samples are the same, where --{0} {1} has no lower bound: give --{0} a number"
# Data, the recipe's changes, the message, and data and changes that follow it.
ADVICE: dict[str, tuple[Tensor, dict[str, Any], str, Tensor, dict[str, Any]]] = {
    "lr": (NORMAL, {**GAUSSIAN, "lr": 1e6}, "a smaller --lr may help", NORMAL, {**GAUSSIAN, "lr": 1e-3}),
    "clamp": (
        NORMAL,
        {**GAUSSIAN, "clamp": (100.0, 200.0)},
        "a smaller --lr or --clamp=-20,10 may help",
        NORMAL,
        {**GAUSSIAN, "clamp": (-20.0, 10.0)},
    ),
    "variance": (
        NORMAL,
        {**GAUSSIAN, "variance": 1e-38},
        "--variance is 1e-38: a larger one may help",
        NORMAL,
        {**GAUSSIAN, "variance": 1e-2},
    ),
    "scale": (
        NORMAL,
        {**LAPLACE, "scale": 1e-38},
        "--scale is 1e-38: a larger one may help",
        NORMAL,
        {**LAPLACE, "scale": 1e-2},
    ),
    "beta": (
        NORMAL * 3,
        {**GAUSSIAN, "beta": 1e38, "latent": 200},
        "a smaller --beta may help",
        NORMAL * 3,
        {**GAUSSIAN, "beta": 10.0, "latent": 200},
    ),
    "0..255": (
        NORMAL.sigmoid() * 255,
        {**GAUSSIAN, "variance": "decoder"},
        FAR,
        NORMAL.sigmoid() * 2 - 1,
        {**GAUSSIAN, "variance": "decoder"},
    ),
    "1e5": (NORMAL * 1e5, LAPLACE, FAR, NORMAL / 4, LAPLACE),
    "1e38": (NORMAL * 5e37, GAUSSIAN, FAR, NORMAL / 4, GAUSSIAN),
    "offset": (NORMAL + 1e4, {**GAUSSIAN, "variance": "learned"}, FAR, NORMAL / 4, GAUSSIAN),
    "outlier": (OUTLIER, GAUSSIAN, FAR, OUTLIER / 1e4, GAUSSIAN),
    "far, and a large lr": (
        NORMAL * 1e5,
        {**GAUSSIAN, "lr": 1e6},
        f"{FAR}; a smaller --lr may help",
        NORMAL / 4,
        {**GAUSSIAN, "lr": 1e-3},
    ),
    "NaN": (HOLES, GAUSSIAN, "hold NaN or infinite values, leave those samples out", HOLES[4:], GAUSSIAN),
    "infinite": (
        HOLES.nan_to_num(math.inf),
        LAPLACE,
        "hold NaN or infinite values, leave those samples out",
        HOLES[4:],
        LAPLACE,
    ),
    "large counts": (
        COUNTS * 1e20,
        {"likelihood": "poisson"},
        r"counts up to \S+ are too large: count in larger units",
        COUNTS,
        {"likelihood": "poisson"},
    ),
}


@pytest.mark.parametrize(("x", "changes", "match", "mended", "followed"), ADVICE.values(), ids=ADVICE)
def test_divergence_names_a_cause_and_its_advice_works(
    x: Tensor, changes: dict[str, Any], match: str, mended: Tensor, followed: dict[str, Any]
) -> None:
    recipe = replace(TINY, lr=1e-3, epochs=20, evaluate_every=1)
    with pytest.raises(TrainingError, match=match):
        train(replace(recipe, **changes), split(x))
    trainer = train(replace(recipe, **followed), split(mended))
    first, last = trainer.history[0], trainer.history[-1]
    assert last["train_loss"] < first["train_loss"]


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@pytest.mark.parametrize("value", [0.0, 0.5, 7.0])
@pytest.mark.parametrize("spread", ["learned", "feature"])
def test_samples_that_are_all_alike(likelihood: str, value: float, spread: str) -> None:
    """A learned spread falls towards 0 there. Whether training ends for that reason or not: if it does, the cause is
    named, and what is advised works."""
    option = "variance" if likelihood == "gaussian" else "scale"
    x = torch.full((48, 30), value)
    dataset = split(x)
    recipe = replace(TINY, lr=1e-3, epochs=60, evaluate_every=1, likelihood=likelihood)
    reason = divergence.explain(replace(recipe, **{option: spread}), dataset)
    assert reason == SAME.format(option, spread)
    raised = ""
    try:
        trainer = train(replace(recipe, **{option: spread}), dataset)
    except TrainingError as error:
        raised = str(error)
        trainer = train(replace(recipe, **{option: 0.1}), dataset)
    assert not raised or raised.endswith(reason)
    assert trainer.history[-1]["test_elbo"] > trainer.history[0]["test_elbo"]


def test_values_that_never_change_are_counted() -> None:
    x = NORMAL.clone()
    x[:, 3] = 1
    x[:, 5] = 1 + NORMAL[:, 5] * 1e-8
    recipes = {
        spread: replace(TINY, **GAUSSIAN, variance=spread) for spread in ("learned", "feature", "decoder")
    }
    reasons = {name: divergence.explain(r, split(x)) for name, r in recipes.items()}
    assert reasons["learned"] == "a smaller --lr or --clamp=-20,10 may help"
    assert reasons["feature"].startswith("2 of 30 values are in all training samples the same")
    assert reasons["decoder"].startswith("2 of 30 values are in all training samples the same")


def test_an_infinite_test_loss_is_not_saved(tmp_path: Path) -> None:
    """The training loss of the epoch is finite: its last step, or the test part, makes the other infinite."""
    dataset = Dataset("made", NORMAL[:40], NORMAL[40:] * 1e30)
    recipe = replace(TINY, **GAUSSIAN, epochs=2, evaluate_every=1)
    train(recipe, split(NORMAL), callbacks=[Checkpoints(tmp_path, 0.0)])
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=f"the test loss is (inf|nan) by epoch 1: the data's {FAR}"):
        train(replace(recipe, seed=9), dataset, callbacks=[Checkpoints(tmp_path, 0.0)])
    assert (tmp_path / "model.safetensors").read_bytes() == before


NETWORKS = "the networks do not fit in memory: a smaller --hidden or --latent may help"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden": (MOST,)}, NETWORKS),
        ({"latent": MOST, "hidden": (MOST,)}, NETWORKS),
        ({"batch_size": MOST}, "2,147,483,647 samples do not fit in memory: a smaller --batch-size may help"),
        ({"mixed_precision": "fp16"}, "mixed precision is fp16, which takes a GPU; bf16 runs on a CPU, too"),
    ],
    ids=["hidden", "latent", "batch", "fp16"],
)
def test_what_the_machine_cannot_do_is_said_before_training(changes: dict[str, Any], match: str) -> None:
    """With sizes that no address has enough bits for. What is advised works."""
    if "mixed_precision" in changes and torch.accelerator.is_available():
        pytest.skip("a GPU is here")
    wide = split(NORMAL.repeat(1, 2000))
    with pytest.raises(TrainingError, match=match):
        Trainer(replace(TINY, **changes), wide)
    train(replace(TINY, mixed_precision="bf16" if "mixed_precision" in changes else "no"), wide)


@pytest.mark.parametrize(
    ("epochs", "every", "evaluated"),
    [
        (3, None, [1, 2, 3]),
        (250, None, range(2, 251, 2)),
        (1_000_000, None, range(100, 1_000_001, 100)),
        (10, 4, [4, 8, 10]),
        (1000, 400, [400, 800, 1000]),
    ],
)
def test_no_run_goes_on_for_long_without_an_evaluation(
    epochs: int, every: int | None, evaluated: Sequence[int]
) -> None:
    """And so without a checkpoint."""
    recipe = Recipe(epochs=epochs, evaluate_every=every)
    assert [e for e in range(1, epochs + 1) if recipe.is_evaluated(e)] == list(evaluated)
