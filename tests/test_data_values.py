"""What numbers mean: bits, levels, ranges, signals. Each message's advice is followed, and works."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState

from vae_fast import cli
from vae_fast.cli import train as train_command
from vae_fast.training import (
    DataError,
    Dataset,
    HubVAE,
    Recipe,
    Trainer,
    labels,
    load,
    load_model,
    pictures,
    tables,
)

Capture = pytest.CaptureFixture[str]
RNG = np.random.default_rng(0)
UNIT = RNG.random((20, 6, 5)) * np.linspace(0, 1, 30).reshape(6, 5)  # floats in 0 to 1, and its ends
UNIT[0], UNIT[1] = 0, 1
BITS = UNIT > 0.3
TINY = Recipe(epochs=1, batch_size=16, hidden=(8,), latent=2)


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(train_command, "set_up_process", lambda: True)  # the tests keep their malloc
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def loaded(folder: Path, **arrays: np.ndarray) -> Dataset:
    np.savez(folder / "a.npz", **arrays)
    return load(str(folder / "a.npz"))


def trained(dataset: Dataset, likelihood: str, **options: Any) -> float:
    trainer = Trainer(replace(TINY, likelihood=likelihood, **options), dataset)
    trainer.fit()
    return trainer.history[-1]["test_elbo"]


# name: (the parts' arrays, the dtype they are read as, their largest value in it, what is noted)
MEANINGS: dict[str, tuple[list[np.ndarray], torch.dtype, float, str]] = {
    "uint8 bits": ([BITS.astype(np.uint8)], torch.bool, 1, "the values are bits, 0 and 1"),
    "bool": ([BITS], torch.bool, 1, "the values are bits, 0 and 1"),
    "bits of one part": ([BITS.astype(np.uint8), BITS * np.uint8(255)], torch.uint8, 255, ""),
    "bits in two dtypes": ([BITS, BITS.astype(np.uint8)], torch.bool, 1, "bits"),
    "bytes of bits": ([BITS * np.uint8(255)], torch.uint8, 255, ""),
    "levels": ([(UNIT * 255).astype(np.uint8)], torch.uint8, 255, ""),
    "16 levels": ([(UNIT * 16).astype(np.uint8)], torch.uint8, 16, "uint8 values up to 16 are 255ths"),
    "int64 bits": ([BITS.astype(np.int64)], torch.float32, 1, ""),
    "floats": ([UNIT], torch.float32, 1, ""),
    "float16": ([UNIT.astype(np.float16)], torch.float32, 1, ""),
    "float levels": ([np.round(UNIT * 255)], torch.float32, 255, ""),
    "uint16": ([np.round(UNIT * 65535).astype(np.uint16)], torch.float32, 65535, ""),
    "large": ([np.full((5, 3), 2**24 + 1)], torch.float32, 2**24, "above 16,777,216 are rounded to float32"),
    "channels last": ([UNIT[..., None]], torch.float32, 1, "channels, last in the file, are read first"),
}


@pytest.mark.parametrize(("parts", "dtype", "largest", "note"), MEANINGS.values(), ids=MEANINGS)
def test_what_numbers_are_read_as(tmp_path: Path, parts: Any, dtype: Any, largest: float, note: str) -> None:
    data = loaded(tmp_path, **dict(zip(("train", "test"), parts, strict=False)))
    assert data.train.dtype == data.test.dtype == dtype
    assert max(data.train.max().item(), data.test.max().item()) == largest
    assert re.search(note, "; ".join(data.notes)) if note else data.notes == ()


def test_bits_are_no_255ths(tmp_path: Path) -> None:
    """Each of 30 fair bits costs 0.69 nats; as 255ths, nearly all black, they would soon cost nothing."""
    fair = RNG.integers(0, 2, (200, 6, 5)).astype(np.uint8)
    assert trained(loaded(tmp_path, data=fair), "bernoulli") < -15
    both = [trained(loaded(tmp_path, data=a), "gaussian") for a in (fair, fair.astype(np.float32))]
    assert both[0] == both[1]


RANGES = [
    (0, 255),
    (-1, 1),
    (0, 254.7),
    (0, 16),
    (0, 65535),
    (-0.5, 0.5),
    (-3.14159, 2.71828),
    (0, 1.0000001),
]
RANGES += [(-1e-9, 1), (0, 1e30), (-255, -200), (271.3, 303.7), (0, 1.3)]
OTHERS = [(*r, name) for r in RANGES[:2] for name in ("continuous_bernoulli", "discretized_logistic")]


@pytest.mark.parametrize(("lo", "hi", "likelihood"), [(*r, "bernoulli") for r in RANGES] + OTHERS, ids=str)
@pytest.mark.filterwarnings("ignore:.*between the 256 levels")
def test_the_advice_on_a_range_works(tmp_path: Path, lo: float, hi: float, likelihood: str) -> None:
    x = UNIT * (hi - lo) + lo if hi not in (16, 255, 65535) else np.round(UNIT * hi)
    with pytest.raises(
        DataError, match=f"expected values from 0 to 1 .* for the {likelihood} likelihood"
    ) as caught:
        trained(loaded(tmp_path, data=x), likelihood)
    message = str(caught.value)
    ways = [way.partition(": ")[2] for way in message.partition("; ")[2].split(", or ") if ": " in way]
    assert len(ways) == (2 if hi == 255 else 1), message
    for way in ways:
        assert np.isfinite(trained(loaded(tmp_path, data=eval(way, {"x": x, "numpy": np})), likelihood)), way
    if "take --likelihood gaussian" in message:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isfinite(trained(loaded(tmp_path, data=x), "gaussian"))
    assert ("gaussian" in message) == (max(-lo, hi) <= 50)


@pytest.mark.parametrize(("lo", "hi"), [(0, 255), (-1000, 1000), (271.3, 303.7), (0, 65535)], ids=str)
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
def test_values_far_from_0_are_warned_of(tmp_path: Path, lo: float, hi: float, likelihood: str) -> None:
    x = UNIT * (hi - lo) + lo
    with pytest.warns(UserWarning, match="are far from 0") as caught:
        Trainer(replace(TINY, likelihood=likelihood), loaded(tmp_path, data=x))
    (way,) = re.findall(r"scale them: (.*)$", str(caught[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(trained(loaded(tmp_path, data=eval(way, {"x": x})), likelihood))


def test_counts_take_what_the_message_says(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected counts, .* for the poisson likelihood, but got values from -1 to 1"
    ):
        trained(loaded(tmp_path, data=2 * UNIT - 1), "poisson")
    trained(loaded(tmp_path, data=np.round(UNIT * 255)), "poisson")


def test_discretized_likelihoods_are_of_levels(tmp_path: Path) -> None:
    levels = np.round(UNIT * 255) / 255
    with pytest.warns(UserWarning, match="between the 256 levels k/255"):
        Trainer(replace(TINY, likelihood="discretized_logistic"), loaded(tmp_path, data=UNIT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (levels, levels.astype(np.float16), np.round(UNIT * 255).astype(np.uint8), BITS):
            Trainer(replace(TINY, likelihood="discretized_logistic"), loaded(tmp_path, data=x))


def test_a_part_in_other_units_is_refused(tmp_path: Path) -> None:
    levels = np.round(UNIT * 255)
    with pytest.raises(DataError, match="values from 0 to 255"):
        trained(loaded(tmp_path, train=levels.astype(np.uint8), test=levels), "bernoulli")


SIGNALS: list[tuple[tuple[int, ...], Any, str]] = [
    ((1024,), np.float32, "1024 values a sample are read as a signal; --shape 32x32 reads them as images"),
    ((784,), np.uint8, "--shape 28x28 reads them as images"),
    ((3072,), np.uint8, "--shape 3x32x32 reads them as images"),
    ((98,), np.uint8, "98 bytes a sample are read as numbers; --shape 28x28 reads them as packed bits"),
    ((98,), np.float32, ""),
    ((1000,), np.float32, ""),
    ((9,), np.float32, ""),
    ((28, 28), np.uint8, ""),
]


@pytest.mark.parametrize(("shape", "dtype", "note"), SIGNALS, ids=str)
def test_flat_samples_and_what_else_they_could_be(tmp_path: Path, shape: Any, dtype: Any, note: str) -> None:
    data = loaded(tmp_path, data=np.resize(np.arange(3, 250), (6, *shape)).astype(dtype))
    assert (note in data.notes[0]) if note else data.notes == ()
    if note:  # the advice
        (size,) = re.findall(r"--shape (\S+) reads", note)
        images = data.reshaped(tuple(map(int, size.split("x"))))
        assert pictures.image_shape(images.shape) == images.shape
        assert not any("--shape" in n for n in images.notes)


@pytest.mark.parametrize("shape", [(28, 28), (784,), (10, 10), (1, 3, 5)], ids=str)
def test_packed_bits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bits = RNG.integers(0, 2, (2, 9, *shape)).astype(bool)
    train, test = (np.packbits(part.reshape(9, -1), axis=1) for part in bits)
    data = loaded(tmp_path, train=train, valid=test, test=test).reshaped(shape)
    assert np.array_equal(data.train.numpy(), bits[0])
    assert np.array_equal(data.test.numpy(), bits[1])
    assert data.valid is not None and np.array_equal(data.valid.numpy(), bits[1])
    assert "packed bits" in data.notes[-1]


def test_what_is_no_packed_bits(tmp_path: Path) -> None:
    data = loaded(tmp_path, data=np.full((5, 13), 255, np.uint8))
    with pytest.raises(DataError, match="13 bytes are not 100 packed bits"):
        data.reshaped((10, 10))
    for other in (replace(data, test=data.test.float()), data.reshaped((13, 1))):
        with pytest.raises(DataError, match="cannot be read as"):
            other.reshaped((13, 8))


@pytest.mark.parametrize("other", [(30,), (1, 6, 5), (6, 5), (30, 1)], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (30,)], ids=str)
def test_shapes_of_the_same_order(tmp_path: Path, shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    data = loaded(tmp_path, data=np.arange(240).reshape(8, *shape))
    assert torch.equal(data.reshaped(other).train.flatten(1), data.train.flatten(1))


@pytest.mark.parametrize("other", [(5, 6), (3, 10), (3, 2, 5), (6, 4)], ids=str)
def test_images_are_not_cut_into_others(tmp_path: Path, other: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=re.escape(f"shape (6, 5), which cannot be read as {other}")):
        loaded(tmp_path, data=UNIT).reshaped(other)


def image(path: Path) -> np.ndarray:
    return np.asarray(pytest.importorskip("PIL.Image").open(path).convert("L")).astype(float) / 255


@pytest.mark.parametrize("shape", [(120,), (1, 120), (5000,)], ids=str)
def test_signals_are_drawn_as_curves(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A rising line, a falling one, nothing: the ink follows."""
    line = torch.linspace(-7, 5, shape[-1]).expand(shape)
    pictures.save_grid(tmp_path / "a.png", torch.stack([line, -line - 2, line * torch.nan]), 3, "three")
    ink = 1 - image(tmp_path / "a.png")
    tiles = [ink[40:100, 15 + 124 * i : 135 + 124 * i] for i in range(3)]
    assert tiles[2].max() == 0
    for tile, wanted in ((tiles[0], np.arange(60)[::-1]), (tiles[1], np.arange(60))):
        rows = (tile * np.arange(60)[:, None]).sum(0)[2:-2] / tile.sum(0)[2:-2]
        np.testing.assert_allclose(rows, np.repeat(wanted, 2)[2:-2], atol=2)


@pytest.mark.parametrize(
    ("lo", "hi", "black", "white"), [(-1, 1, -1, 1), (-1.2, 0.9, -1, 1), (0, 255, 0, 255)]
)
def test_images_beyond_0_and_1_are_drawn_whole(
    tmp_path: Path, lo: float, hi: float, black: float, white: float
) -> None:
    images = torch.linspace(lo, hi, 60 * 60).reshape(1, 60, 60)
    pictures.save_grid(tmp_path / "a.png", images, 1, "one")
    shown = torch.from_numpy(image(tmp_path / "a.png")[40:100, 15:75]).float()
    wanted = ((images[0] - black) / (white - black)).clamp(0, 1)
    torch.testing.assert_close(shown, wanted, rtol=0, atol=2 / 255)


@pytest.mark.parametrize(
    ("shape", "likelihood", "noun"),
    [((6, 5), "bernoulli", "image"), ((64,), "gaussian", "sample"), ((6, 5), "poisson", "sample")],
)
def test_samples_are_called_what_they_are(shape: Any, likelihood: str, noun: str) -> None:
    assert pictures.noun(HubVAE(shape, hidden=(4,), latent=2, likelihood=likelihood)) == noun


def test_the_start_says_how_data_were_read(tmp_path: Path, capsys: Capture) -> None:
    bits = np.packbits(RNG.integers(0, 2, (20, 64), np.uint8), axis=1)
    np.savez(tmp_path / "a.npz", **{"train": bits, "test": bits, "valid": bits, "[bold]": bits})
    command = ["train", "--data", str(tmp_path / "a.npz"), "--epochs", "1", "--hidden", "4", "--latent", "2"]
    assert cli.run([*command, "--out", str(tmp_path / "flat")]) == 0
    flat = capsys.readouterr().out
    assert "note: not trained on: [bold]\n" in flat
    assert (
        "nats/sample" in flat
        and "samples/s" in flat
        and "image" not in flat.replace("reads them as images", "")
    )
    assert (tmp_path / "flat" / "samples.png").exists()
    (option,) = re.findall(r"(--shape \S+) reads", flat)
    assert cli.run([*command, "--out", str(tmp_path / "images"), *option.split()]) == 0
    said = capsys.readouterr().out
    assert "8 bytes a sample are read as 64 packed bits\n" in said and "nats/image" in said
    model = ["reconstruct", str(tmp_path / "images"), "-n", "3", "--out", str(tmp_path / "r.npy")]
    assert cli.run(model) == 0
    assert np.load(tmp_path / "r.npy").shape == (3, 8, 8)


def test_static_binarization(tmp_path: Path, capsys: Capture) -> None:
    """Each grey value is drawn once: by the seed, the same for training and for every command after it."""
    grey = (RNG.random((400, 6, 5)) * 255).astype(np.uint8)
    np.savez(tmp_path / "a.npz", train=grey, test=grey[:300])
    data, other = load(str(tmp_path / "a.npz")), load(str(tmp_path / "a.npz"))
    bits = data.binarized(1)
    assert bits.train.dtype == torch.bool and torch.equal(bits.train, other.binarized(1).train)
    assert not torch.equal(bits.train, data.binarized(2).train)
    assert not torch.equal(bits.train[:300], bits.test)  # each part has draws of its own
    error = np.abs(bits.train.numpy().mean(0) - grey.mean(0) / 255).mean()
    assert error < 2 * (1 / 6 / 400) ** 0.5  # the mean of p (1 - p) over p is 1/6
    run = str(tmp_path / "run")
    train = ["train", "--data", str(tmp_path / "a.npz"), "--epochs", "1", "--hidden", "8", "--latent", "2"]
    assert cli.run([*train, "--binarize", "static", "--seed", "3", "--out", run, "--cpu"]) == 0
    seed = Recipe(binarize="static", seed=3).static_seed
    assert seed is not None
    drawn = data.binarized(seed).test
    assert "drawn once as 0 or 1" in capsys.readouterr().out
    assert cli.run(["encode", run, "--out", str(tmp_path / "mu.npy"), "--cpu"]) == 0
    mu = load_model(run).encode(drawn)[0].detach().numpy()
    assert np.allclose(np.load(tmp_path / "mu.npy"), mu, atol=1e-5)
    assert cli.run(["encode", run, "--data", train[2], "--out", str(tmp_path / "b.npy"), "--cpu"]) == 0
    assert (tmp_path / "mu.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    for wrong, message in (
        (replace(data, train=data.train.float()), "expected values from 0 to 1"),
        (replace(data, columns=(tables.Column("a", "gaussian"),)), "expected images"),
    ):
        with pytest.raises(DataError, match=message):
            wrong.binarized(0)
    assert Recipe.from_dict({"binarize": True}).binarize == "dynamic"  # of a run before there was "static"
    assert Recipe.from_dict({"binarize": False}).binarize is None
    assert Recipe(binarize="dynamic").model_config((5,))["binarize"] is True
    assert Recipe(binarize="static").model_config((5,))["binarize"] is None


def test_split_seed(tmp_path: Path) -> None:
    """Which samples are held out, and their labels with them; a source with parts of its own says so."""
    x = np.arange(100, dtype=np.float32).reshape(50, 2) / 100
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(50))
    source = str(tmp_path / "a.npz")
    sets = {seed: load(source, split_seed=seed) for seed in (0, 1)}
    assert torch.equal(sets[0].test, load(source).test) and not torch.equal(sets[0].test, sets[1].test)
    for data in sets.values():
        for part in ("train", "test"):
            found = labels.find(data, source, part)
            assert found is not None
            assert found.astype(int).tolist() == (data.part(part)[:, 0] * 50).round().int().tolist()
    np.savez(tmp_path / "b.npz", train=x, test=x)
    assert load(str(tmp_path / "b.npz"), split_seed=1).notes[-1].endswith("--split-seed changes nothing")
    np.save(tmp_path / "y.npy", np.arange(100))
    found = labels.find(load(str(tmp_path / "b.npz")), str(tmp_path / "b.npz"), "test", tmp_path / "y.npy")
    assert found is not None and found.tolist() == [str(i) for i in range(50, 100)]
