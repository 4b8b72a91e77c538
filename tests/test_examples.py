"""examples/: a run that was resumed is, bit for bit, the run that was never interrupted, and it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import load

FOLDER = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.no_poison


@pytest.fixture
def accelerate_state() -> Iterator[None]:
    """Accelerate keeps the first Accelerator's precision for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def check_resume(name: str, folder: Path, **options: Any) -> None:
    example = load(FOLDER / f"{name}.py")
    whole = example.train(4, folder / "whole", **options)
    half = example.train(2, folder / "resumed", **options)
    torch.manual_seed(99)
    resumed = example.train(4, folder / "resumed", **options)
    states = [model.state_dict() for model in (whole, half, resumed)]
    assert any(not torch.equal(states[1][key], states[0][key]) for key in states[0])
    for key, want in states[0].items():
        assert torch.equal(states[2][key], want)
    with torch.no_grad():
        x = torch.tensor(example.load_digits().data / 16, dtype=torch.float32)
        elbos = [model.elbo(x).mean() for model in (half, resumed)]
    assert elbos[1] > elbos[0] > -50  # -64 log 2 = -44 is a decoder of nothing but 1/2


@pytest.mark.usefixtures("accelerate_state")
@pytest.mark.parametrize("name", ["train_pytorch", "train_accelerate"])
def test_resume(name: str, tmp_path: Path) -> None:
    check_resume(name, tmp_path)


def test_examples_are_short() -> None:
    """One screen each."""
    examples = list(FOLDER.glob("*.py"))
    assert len(examples) == 5
    for path in examples:
        assert len(path.read_text().splitlines()) < 60


def test_recommender() -> None:
    """Metrics by hand: hits at ranks 1 and 4 of two held out, at 2 and 4 of three. It beats popularity."""
    example = load(FOLDER / "train_multvae.py")
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    held_out = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0]])
    found = example.metrics(scores, held_out, ks=(1, 2), n=4)
    assert found["Recall@1"] == 0.5 and found["Recall@2"] == 0.5
    log = [1 / math.log2(rank + 1) for rank in range(1, 5)]
    ndcg = (log[0] + log[3]) / sum(log[:2]), (log[1] + log[3]) / sum(log[:3])
    assert found["NDCG@4"] == pytest.approx(sum(ndcg) / 2)
    vae, popular = example.train(60, 1000, 200)
    assert all(vae[name] > 1.2 * popular[name] for name in vae)


def test_mixed_table() -> None:
    """Gaps are filled better than by the columns' means, and odd rows and columns are found."""
    found = load(FOLDER / "mixed_table.py").train(150, 1000)
    for error in ("error of numbers", "error of counts", "wrong classes"):
        assert found[f"VAE: {error}"] < 0.9 * found[f"column mean: {error}"]
    assert found["odd rows: AUROC"] > 0.52
    assert found["odd rows: column found"] > 0.25  # by chance 1 of 8
