"""examples/research: every script runs on small made-up data, a run resumes to the bit, the gap and rates are right."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import load

FOLDER = Path(__file__).parent.parent / "examples" / "research"
pytestmark = pytest.mark.no_poison


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The layout that common.py describes: blobs whose place is their label."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("t10k", 60)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (n, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 10:18] = 250
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / f"mnist/{part}-{name}-ubyte.gz"
            path.parent.mkdir(exist_ok=True)
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            path.write_bytes(gzip.compress(header + array.tobytes()))
    bits = {part: np.packbits(rng.random((150, 784)) < 0.2, axis=1) for part in ("train", "valid", "test")}
    for name, arrays in (
        ("binarized_mnist/binarized_mnist_bits", bits),
        ("frey/freyfaces", {"data": rng.integers(0, 256, (1965, 560), np.uint8)}),
    ):
        (tmp_path / name).parent.mkdir()
        np.savez(tmp_path / name, **arrays)
    return tmp_path


@pytest.fixture
def run(data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name: str, **options: Any) -> Any:
        options = {"data": data, "out": data / "out", **options}
        return load(FOLDER / f"{name}.py").main([f"--{key}={value}" for key, value in options.items()])

    return run


def test_mean_field(run: Any) -> None:
    found = run("mean_field", epochs=5, draws=20)
    assert -784 * np.log(2) < found.elbo < -found.nll < -300  # 0.5 nats a pixel is the bits' entropy


def test_iwae(run: Any) -> None:
    nlls = {k: run("iwae", k=k, epochs=2, draws=50, images=40) for k in (1, 5)}
    assert all(100 < nll < 543 for nll in nlls.values())
    rate = load(FOLDER / "iwae.py").rate
    ends = [1, 4, 13, 40, 121, 364, 1093]
    assert [rate(0), *map(rate, ends)] == pytest.approx(
        [1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4]
    )
    assert rate(3279) == rate(1093) < rate(1092)


def test_resume(run: Any, data: Path) -> None:
    """Two epochs, and one and then another, give the same weights."""
    states = []
    for out, epochs in (("whole", (2,)), ("resumed", (1, 2))):
        for n in epochs:
            run("iwae", k=3, epochs=n, draws=2, images=2, out=data / out)
        states.append(torch.load(data / out / "iwae_3" / "state.pt"))
    assert states[0]["epochs"] == states[1]["epochs"] == 2
    for key, want in states[0]["model"].items():
        assert torch.equal(states[1]["model"][key], want)


def test_frey(run: Any, data: Path) -> None:
    found = run("frey", epochs=2, side=3)
    assert all(np.isfinite(value) for value in found.values())
    names = {path.name for path in (data / "out/frey_2").glob("*.png")}
    assert names == {"elbo.png", "samples.png", "manifold.png"}


def test_models_of_mnist(run: Any) -> None:
    """representation.py takes the models that conv.py has trained."""
    found = run("conv", epochs=2, draws=5)
    assert set(found) == {"mlp", "conv"} and all(each.samples == 60 for each in found.values())
    accuracy = run("representation", epochs=2)
    assert set(accuracy) == {"PCA", "mlp", "conv"} and accuracy["PCA"] > 0.9


def test_anomaly(run: Any) -> None:
    found = run("anomaly", epochs=2, draws=3, digits="9")
    assert set(found) == {9}
    assert all(0 <= value <= 1 for value in found[9].values())
    assert found[9]["-log p(x)"] > 0.5  # a place that no other label has


def test_imputation(run: Any) -> None:
    found = run("imputation", epochs=40, images=20, draws=10)
    for mask in ("upper half", "third"):
        assert found[mask, "whole image"] < found[mask, "mean image"]
        assert all(0 < found[mask, 10, steps] < 0.5 for steps in (0, 3, 10, 30))


def test_mutual_information_gap(run: Any) -> None:
    """1 for a latent of its own for each factor, 0 for each factor twice."""
    module = load(FOLDER / "disentangle.py")
    x, factors = module.images()
    assert x.shape == (3000, 32, 32) and len(torch.unique(x.flatten(1), dim=0)) > 2800
    torch.manual_seed(0)
    mu = torch.cat([factors, torch.zeros(3000, 1)], 1).float()
    tight = torch.full_like(mu, -8.0)
    assert module.mutual_information_gap(mu, tight, factors).min() > 0.98
    assert module.mutual_information_gap(mu.repeat(1, 2), tight.repeat(1, 2), factors).abs().max() < 0.01
    found = run("disentangle", epochs=1, seeds=1)
    assert set(found) == {"beta", "beta_tc"}


def test_bound(run: Any) -> None:
    assert run("bound", images=20, draws=20) > 0


def test_default_recipe(run: Any) -> None:
    found = run("default_recipe", **{"epochs": 2, "plain-epochs": 2})
    for elbo, seconds in found.values():
        assert -784 * np.log(2) < elbo < -50
        assert seconds > 0
