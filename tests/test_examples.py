"""examples/: a run that was resumed is, bit for bit, the run that was never interrupted, and it learns."""

from __future__ import annotations

import math
import wave
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
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
    assert len(examples) == 13
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


def test_single_cell() -> None:
    """A model that is told the batch leaves it out of z; one that is not groups the cells by it."""
    example = load(FOLDER / "single_cell.py")
    counts, kind, batch = example.simulate(1000, 150)
    told, not_told = (
        example.clusters(example.train(counts, batch, is_told, 300), kind, batch) for is_told in (True, False)
    )
    assert told[0] > 0.7 and abs(told[1]) < 0.05
    assert not_told[1] > 0.4 and not_told[0] < 0.4


def test_mixed_table() -> None:
    """Gaps are filled better than by the columns' means, and odd rows and columns are found."""
    found = load(FOLDER / "mixed_table.py").train(150, 1000)
    for error in ("error of numbers", "error of counts", "wrong classes"):
        assert found[f"VAE: {error}"] < 0.9 * found[f"column mean: {error}"]
    assert found["odd rows: AUROC"] > 0.52
    assert found["odd rows: column found"] > 0.25  # by chance 1 of 8


def test_images(tmp_path: Path) -> None:
    example = load(FOLDER / "conv_vae.py")
    x, test = example.read()
    assert x.shape[1:] == (28, 28) and x.min() >= 0 and x.max() == 1
    model, figures = example.train(x[:640], test[:50], "resnet", 4, (8, 16), 8, 32)
    assert figures["-ELBO"] < 0.9 * figures["mean image"] and figures["KL"] > 5
    example.draw(model, test, tmp_path / "picture.png")
    assert plt.imread(tmp_path / "picture.png").shape[:2] == (3 * 28, 10 * 28)


def test_sounds(tmp_path: Path) -> None:
    """Tones in place of espeak-ng's digits: a digit is a pitch, a voice how loud it is."""
    example = load(FOLDER / "audio_vae.py")
    time = torch.arange(22050) / 22050
    for digit, accent, (i, voice) in product(
        range(4), ("en-gb", "en-029"), enumerate(("m1", "f1", "m7", "f5"))
    ):
        tone = torch.sin(2 * math.pi * 700 * (digit + 1) * time) * (time < 0.4)
        with wave.open(str(tmp_path / f"{digit}_{accent}_{voice}_140_50.wav"), "wb") as file:
            file.setparams((1, 2, 22050, 0, "NONE", ""))
            file.writeframes((tone * 2 ** (14 - 0.2 * i)).to(torch.int16).numpy().tobytes())
    x, digits, test, answers = example.read(tmp_path)
    assert (len(x), test.shape) == (8, (8, 64, 80)) and answers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    bands = x.mean(2).argmax(1) * 22050 / 2 / 64  # Hz, of the loudest
    assert torch.all((bands / 700 - 1 - digits).abs() < 0.4)
    _, figures = example.train(x, digits, test, answers, steps=120, channels=(16, 16), latent=4)
    assert figures["error"] < 0.8 * figures["of the mean"] and figures["same digit by mu"] > 0.6


def test_words() -> None:
    """By hand: of "ab" and "a", END is 2 letters of 5, a 2, and after a comes b or END."""
    example = load(FOLDER / "text_vae.py")
    x = example.to_tokens(["ab", "a", "ca"])
    assert example.to_words(x) == ["ab", "a", "ca"] and x[1, 2] == example.NOTHING
    found = example.ngrams(x[:2].repeat(20000, 1), x[:2])
    assert found["unigram"] == pytest.approx((4 * math.log2(5 / 2) + math.log2(5)) / 5, abs=1e-2)
    assert found["bigram"] == pytest.approx(2 / 5, abs=1e-2)  # what comes after a, one bit in each word
    words = [a + b + c + d for a, b, c, d in product("bdgk", "ae", "bdgk", "ae")] * 12
    model, figures = example.train(words, example.nn.FreeBits(4.0, per="sample"), 120, 24, 4, 5)
    assert figures["bits"] < 0.8 * figures["unigram"] and figures["KL"] > 2
    assert set(example.to_words(model.generate(20))) - {""}


def test_vectors() -> None:
    """Above what noise alone would give, and never above the exact density but for the 2,000 rows' spread."""
    found = load(FOLDER / "mlp_vae.py").train(400, hidden=128)
    assert found["ELBO"] < found["log p(x), importance sampling"] < found["log p(x), exact"]
    assert found["log p(x), importance sampling"] > found["log p(x), exact"] - 45
    assert 0.4 < found["noise"] < 1.2


def test_variance_of_its_own() -> None:
    found = load(FOLDER / "gaussian_vae.py").train(400)
    assert found["log p(x), decoder"] > found["log p(x), learned"] + 2
    assert all(0.7 < q < 1.5 for q in found["sigma / true, quartiles"])


def test_condition(tmp_path: Path) -> None:
    example = load(FOLDER / "conditional_vae.py")
    model, found = example.train(25)
    assert found["-log p(x | label)"] < found["-log p(x | another label)"] - 10
    assert found["made, share of the label asked for"] > 0.4  # by chance 0.1
    example.draw(model, tmp_path / "picture.png")
    assert plt.imread(tmp_path / "picture.png").shape[:2] == (4 * 10 * 8, 4 * 12 * 8)


def test_two_levels(tmp_path: Path) -> None:
    example = load(FOLDER / "hierarchical_vae.py")
    for levels in (1, 2):
        model, found = example.train(levels, 15)
        assert found["-log p(x)"] < found["-ELBO"] < 26.8  # of the mean image
    example.draw(model, tmp_path / "picture.png")
    assert plt.imread(tmp_path / "picture.png").shape[:2] == (4 * 8 * 8, 4 * 10 * 8)
