"""examples/: a run that was resumed is, bit for bit, the run that was never interrupted, and it learns."""

from __future__ import annotations

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
    assert len(examples) == 3
    for path in examples:
        assert len(path.read_text().splitlines()) < 60
