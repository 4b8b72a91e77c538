"""The command, end to end on tiny data: what it writes, what it prints, and one line for what goes wrong."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vae_fast

pytest.importorskip("typer")
pytest.importorskip("accelerate")

import typer.main

import command
from vae_fast import cli
from vae_fast.cli import train as train_command
from vae_fast.cli.app import app
from vae_fast.training import checkpoint
from vae_fast.training import data as data_module

Capture = pytest.CaptureFixture[str]
QUICK = command.QUICK


@pytest.fixture(autouse=True)
def ordinary_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from command.ordinary_process(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return command.save_images(tmp_path)


@pytest.fixture
def run(data: Path) -> Path:
    """A folder with a finished run."""
    assert cli.run(["train", "--data", str(data), "--out", str(data.parent / "run"), *QUICK]) == 0
    return data.parent / "run"


def test_train_then_generate_and_reconstruct(data: Path, capsys: Capture) -> None:
    run = data.parent / "run"
    assert cli.run(["train", "--data", str(data), "--out", str(run), *QUICK]) == 0
    names = ["config.json", "config.toml", "loss.png", "metrics.csv", "model.safetensors"]
    names += ["reconstructions.png", "samples.png", "training.safetensors"]
    assert sorted(path.name for path in run.iterdir()) == names
    printed = capsys.readouterr().out
    assert re.search(r"tiny: 32 to train, 8 to test, 6x5", printed)
    assert re.search(r"test ELBO +-\d+\.\d\d nats/image", printed)
    assert re.search(r"speed +[\d,]+ images/s", printed)
    if vae_fast.info()["used"]["cpu"] != "reference":
        assert re.search(r"fused ops +[\d.]+x the reference backend.*[\d.]+x the plain PyTorch", printed)
    for name in ("loss.png", "samples.png", "reconstructions.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")

    assert cli.run(["generate", str(run), "-n", "9"]) == 0
    assert cli.run(["reconstruct", str(run), "-n", "5"]) == 0
    assert capsys.readouterr().out.split() == [str(run / "generated.png"), str(run / "reconstructed.png")]
    assert (run / "generated.png").exists()
    assert (run / "reconstructed.png").exists()


def test_values_of_generate_and_reconstruct(run: Path, data: Path) -> None:
    model = checkpoint.load_model(run)
    for seed in ("3", "3", "4"):
        assert (
            cli.run(["generate", str(run), "-n", "7", "--seed", seed, "--out", str(run / f"{seed}.npy")]) == 0
        )
        want = model.generate(7, generator=torch.Generator().manual_seed(int(seed))).numpy()
        np.testing.assert_array_equal(np.load(run / f"{seed}.npy"), want)
    assert np.abs(np.load(run / "3.npy") - np.load(run / "4.npy")).max() > 0
    images = np.load(data)[:20]
    np.savez(run / "other.npz", train=images, test=images)
    arguments = ["--data", str(run / "other.npz"), "-n", "20", "--out", str(run / "r.npy")]
    assert cli.run(["reconstruct", str(run), *arguments]) == 0
    np.testing.assert_allclose(
        np.load(run / "r.npy"), model.reconstruct(torch.from_numpy(images)).numpy(), rtol=1e-5
    )


def test_the_same_seed_gives_the_same_files(data: Path) -> None:
    for name in ("a", "b", "c"):
        seed = "7" if name == "c" else "6"
        out = str(data.parent / name)
        assert cli.run(["train", "--data", str(data), "--out", out, "--seed", seed, *QUICK]) == 0
    one, two, other = (data.parent / name for name in "abc")
    for file in ("model.safetensors", "config.json", "samples.png", "reconstructions.png"):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_resume_is_as_never_interrupted(data: Path, capsys: Capture) -> None:
    whole, parts = data.parent / "whole", data.parent / "parts"
    options = ["--data", str(data), *QUICK[2:], "--evaluate-every", "1", "--likelihood", "gaussian"]
    options += ["--variance", "learned", "--clamp", "-20,10"]
    assert cli.run(["train", *options, "--out", str(whole), "--epochs", "5"]) == 0
    assert cli.run(["train", *options, "--out", str(parts), "--epochs", "2"]) == 0
    capsys.readouterr()
    assert cli.run(["train", "--resume", "--out", str(parts), "--epochs", "5"]) == 0
    assert "resumes from epoch 2 of 5" in capsys.readouterr().out
    for file in ("model.safetensors", "config.json", "samples.png"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
    assert cli.run(["train", "--resume", "--out", str(parts), "--latent", "9"]) == 1
    assert (
        capsys.readouterr().err == f"vae-fast: expected --latent to be 3 like the run in {parts}, but got 9\n"
    )


def test_flat_data_is_read_as_images(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.random.default_rng(0).random((20, 30)))
    common = ["train", "--data", str(tmp_path / "flat.npy"), *QUICK]
    assert cli.run([*common, "--out", str(tmp_path / "flat")]) == 0
    assert cli.run(["generate", str(tmp_path / "flat")]) == 0  # as curves
    assert cli.run([*common, "--out", str(tmp_path / "images"), "--shape", "6x5"]) == 0
    assert (tmp_path / "images" / "samples.png").exists()
    conv = [
        "--architecture",
        "conv",
        "--hidden",
        "4,6",
        "--shape",
        "6,5",
        "--num-samples",
        "2",
        "--beta",
        "0.5",
    ]
    assert cli.run([*common, "--out", str(tmp_path / "conv"), *conv]) == 0
    assert checkpoint.load_model(tmp_path / "conv").config["hidden"] == [4, 6]


COUNTS = ["poisson", "negative_binomial", "zero_inflated_negative_binomial", "multinomial"]


@pytest.mark.parametrize("likelihood", COUNTS)
def test_counts(tmp_path: Path, capsys: Capture, likelihood: str) -> None:
    """Trained on, never drawn; generated values are written."""
    counts = np.random.default_rng(0).poisson(3.0, (40, 16)).astype(np.uint8)
    np.save(tmp_path / "counts.npy", counts)
    out = str(tmp_path / "run")
    arguments = ["train", "--data", str(tmp_path / "counts.npy"), "--out", out, *QUICK]
    assert cli.run([*arguments, "--likelihood", likelihood]) == 0
    assert "nats/sample" in capsys.readouterr().out
    assert not (tmp_path / "run" / "samples.png").exists()
    assert cli.run(["generate", out]) == 1
    assert capsys.readouterr().err == "vae-fast: counts are no images: give --out a name that ends in .npy\n"
    assert cli.run(["reconstruct", out, "-n", "8", "--out", str(tmp_path / "r.npy")]) == 0
    model = checkpoint.load_model(tmp_path / "run")
    assert next(iter(model.encoder)).__class__.__name__ == "Log1p"
    if (
        likelihood != "zero_inflated_negative_binomial"
    ):  # the library is the sample's own: uint8 are no 255ths
        totals = np.load(tmp_path / "r.npy").sum(1)
        test = data_module.load(str(tmp_path / "counts.npy")).test.numpy()
        np.testing.assert_allclose(totals, test.sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["bernoulli", "--binarize", "dynamic"],
        ["laplace", "--scale", "feature"],
        ["discretized_logistic", "--scale", "decoder"],
        ["discretized_logistic_mixture", "--components", "2", "--architecture", "conv", "--hidden", "4"],
    ],
    ids=lambda options: options[0],
)
def test_likelihoods_of_images(data: Path, capsys: Capture, options: list[str]) -> None:
    out = data.parent / "run"
    assert cli.run(["train", "--data", str(data), "--out", str(out), *QUICK, "--likelihood", *options]) == 0
    assert ("bits a value" in capsys.readouterr().out) == options[0].startswith("discretized")
    assert (out / "samples.png").exists()
    assert cli.run(["reconstruct", str(out), "-n", "3"]) == 0  # from the checkpoint and the recipe


def test_reference_backend_can_be_asked_for(data: Path, capsys: Capture) -> None:
    arguments = ["train", "--data", str(data), "--out", str(data.parent / "run"), *QUICK]
    assert cli.run([*arguments, "--backend", "reference"]) == 0
    assert "the reference backend was used" in capsys.readouterr().out


def test_help_has_every_text_whole(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the texts hold, square brackets say, and however narrow the terminal is."""
    root = typer.main.get_command(app)
    assert cli.run([]) == 0
    listed = _squeezed(capsys.readouterr().out)
    for name, entry in root.commands.items():  # type: ignore[attr-defined]
        assert f"{name} {entry.get_short_help_str(80)}" in listed
        for columns in ("60", "200"):
            monkeypatch.setenv("COLUMNS", columns)
            assert cli.run([name, "--help"]) == 0
            shown = _squeezed(capsys.readouterr().out).replace(" ", "")
            if name == "bench":  # whose texts are the benchmarks' own
                entry = typer.main.get_command(importlib.import_module("vae_fast_benchmarks.command").app)
            texts = [entry.help, *(option.help for option in entry.params)]
            assert len(texts) > 1 or name == "doctor"
            for text in texts:
                assert text
                assert _squeezed(text).replace(" ", "") in shown, text
            for option in entry.params:
                assert all(flag in shown for flag in option.opts), option.opts


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _file_as_folder(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["train", "--data", str(folder / "tiny.npy"), "--out", str(folder / "file" / "run"), *QUICK]


def _bad_checkpoint(folder: Path) -> list[str]:
    (folder / "model.safetensors").write_bytes(b"hello, this is no safetensors file")
    return ["generate", str(folder)]


def _bad_state(folder: Path) -> list[str]:
    (folder / "training.safetensors").write_bytes(b"hello, this is no safetensors file")
    return ["train", "--resume", "--out", str(folder)]


def _nan(folder: Path) -> list[str]:
    np.save(folder / "nan.npy", np.full((5, 4), np.nan))
    return ["train", "--data", str(folder / "nan.npy"), "--out", str(folder / "run")]


def _negative(folder: Path) -> list[str]:
    np.save(folder / "negative.npy", np.arange(-4, 16).reshape(5, 4))
    source = str(folder / "negative.npy")
    return ["train", "--data", source, "--out", str(folder / "run"), "--likelihood", "poisson"]


def _train(*options: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        "train",
        "--data",
        str(folder / "tiny.npy"),
        "--out",
        str(folder / "run"),
        *QUICK,
        *options,
    ]


BAD: dict[str, tuple[Callable[[Path], list[str]], str, int]] = {
    "command": (lambda _: ["tarin"], "tarin", 2),
    "option": (_train("--latnet", "3"), "--latnet", 2),
    "option's type": (_train("--latent", "x"), "--latent", 2),
    "option's range": (_train("--latent", "0"), "--latent", 2),
    "sizes": (_train("--hidden", "1,b"), "1,b", 2),
    "bounds": (_train("--clamp", "1"), "two numbers", 2),
    "variance": (_train("--variance", "big"), "big", 2),
    "scale": (_train("--likelihood", "laplace", "--scale", "big"), "big", 2),
    "binarize of gaussian": (
        _train("--likelihood", "gaussian", "--binarize", "static"),
        "does not take --binarize",
        1,
    ),
    "link": (_train("--likelihood", "poisson", "--link", "log"), "log", 2),
    "negative counts": (
        _negative,
        "expected counts, whole numbers of at least 0, for the poisson likelihood",
        1,
    ),
    "variance of bernoulli": (_train("--variance", "2"), "does not take --variance", 1),
    "likelihood": (_train("--likelihood", "cauchy"), "cauchy", 2),
    "learning rate": (_train("--lr", "0"), "expected --lr to be a finite number above 0, but got 0.0", 1),
    "no data": (lambda folder: ["train", "--data", str(folder / "nothing")], "no such file", 1),
    "bad data": (_nan, "NaN or infinite", 1),
    "shape": (_train("--shape", "7,7"), "cannot be read as", 1),
    "out": (_file_as_folder, "cannot be written", 1),
    "nothing to resume": (lambda folder: ["train", "--resume", "--out", str(folder)], "no such file", 1),
    "bad state": (_bad_state, "truncated or damaged", 1),
    "no checkpoint": (lambda folder: ["generate", str(folder)], "holds no model.safetensors", 1),
    "no folder": (lambda folder: ["reconstruct", str(folder / "nothing")], "no such folder", 1),
    "bad checkpoint": (_bad_checkpoint, "truncated or damaged", 1),
    "kind of output": (
        lambda folder: ["generate", str(folder), "--out", "a.jpeg"],
        "ends in .png or .npy",
        1,
    ),
    "backend": (_train("--backend", "cuda"), "backend 'cuda' is not available", 1),
}


@pytest.mark.parametrize(("arguments", "match", "status"), BAD.values(), ids=BAD)
def test_errors_are_one_line(
    data: Path, capsys: Capture, arguments: Callable[[Path], list[str]], match: str, status: int
) -> None:
    if match.startswith("backend 'cuda'") and vae_fast.info()["backends"]["cuda"]["available"]:
        pytest.skip("it is available here")
    assert cli.run(arguments(data.parent)) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("vae-fast: ")
    assert captured.err.count("\n") == 1
    assert match in captured.err
    assert "Traceback" not in captured.out


HUGE = str(2**63)
OUT_OF_RANGE: dict[tuple[str, ...], str] = {
    ("--seed", str(2**64)): "18446744073709551615",
    ("--seed", "-1"): "--seed",
    ("--lr", "-1"): "expected --lr to be a finite number above 0, but got -1.0",
    ("--lr", "nan"): "expected --lr to be a finite number above 0, but got nan",
    ("--lr", "inf"): "expected --lr to be a finite number above 0, but got inf",
    ("--lr", "1e-400"): "expected --lr to be a finite number above 0, but got 0.0",
    ("--beta", "-1"): "--beta",
    ("--beta", "nan"): "beta",
    ("--beta", "inf"): "expected --beta to be a number from 0 to 1e+38, but got inf",
    ("--beta", "1e300"): "expected --beta to be a number from 0 to 1e+38, but got 1e+300",
    ("--clamp", "nan,1"): "expected --clamp to have lo <= hi, but got (nan, 1.0)",
    ("--clamp", "1,0"): "expected --clamp to have lo <= hi, but got (1.0, 0.0)",
    ("--hidden", "0"): "expected --hidden to have sizes from 1 to 2147483647, but got (0,)",
    ("--hidden", "4,-4"): "expected --hidden to have sizes from 1 to 2147483647, but got (4, -4)",
    ("--hidden", HUGE): f"expected --hidden to have sizes from 1 to 2147483647, but got ({HUGE},)",
    ("--shape", "-6,-5"): "expected --shape to have sizes from 1 to 2147483647, but got (-6, -5)",
    ("--latent", HUGE): f"expected --latent to be from 1 to 2147483647, but got {HUGE}",
    ("--batch-size", HUGE): f"expected --batch-size to be from 1 to 2147483647, but got {HUGE}",
    ("--epochs", HUGE): f"expected --epochs to be from 1 to 2147483647, but got {HUGE}",
    ("--evaluate-every", HUGE): f"expected --evaluate-every to be from 1 to 2147483647, but got {HUGE}",
    ("--num-samples", HUGE): f"expected --num-samples to be from 1 to 2147483647, but got {HUGE}",
    ("--num-samples", "1000000000"): "fewer than 2**32 for the noise, but got 16000000000",
    (
        "--likelihood",
        "discretized_logistic_mixture",
        "--components",
        HUGE,
    ): f"expected --components to be from 1 to 2147483647, but got {HUGE}",
    (
        "--likelihood",
        "gaussian",
        "--variance",
        "0",
    ): "expected --variance to be a number from 1e-38 to 1e+38, but got 0.0",
    (
        "--likelihood",
        "gaussian",
        "--variance",
        "inf",
    ): "expected --variance to be a number from 1e-38 to 1e+38, but got inf",
    (
        "--likelihood",
        "gaussian",
        "--variance",
        "1e-320",
    ): "expected --variance to be a number from 1e-38 to 1e+38, but got 1e-320",
    (
        "--likelihood",
        "laplace",
        "--scale",
        "nan",
    ): "expected --scale to be a number from 1e-38 to 1e+38, but got nan",
    (
        "--likelihood",
        "negative_binomial",
        "--theta",
        "-1",
    ): "expected --theta to be a number from 1e-38 to 1e+38, but got -1.0",
}
GENERATE_OUT_OF_RANGE: dict[tuple[str, ...], str] = {
    ("-n", "0"): "-n",
    ("-n", HUGE): "2147483647",
    ("--seed", str(2**64)): "18446744073709551615",
}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        *(
            (["train", "--data", "tiny.npy", *QUICK, *options], match)
            for options, match in OUT_OF_RANGE.items()
        ),
        *((["generate", ".", *options], match) for options, match in GENERATE_OUT_OF_RANGE.items()),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_out_of_range_is_one_line_and_early(
    arguments: list[str], match: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any data are read."""
    monkeypatch.setattr(data_module, "load", lambda source: pytest.fail("the data were read"))
    assert cli.run(arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.startswith("vae-fast: ")
    assert captured.err.count("\n") == 1
    assert match in captured.err, captured.err


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", str(2**64 - 1)],
        ["--lr", "1e-300"],
        ["--beta", "0"],
        ["--clamp=-inf,inf"],
        ["--clamp", "0,0"],
        ["--latent", "1", "--hidden", "1", "--batch-size", "1"],
        ["--evaluate-every", "2147483647"],
        ["--num-samples", "3"],
        ["--likelihood", "gaussian", "--variance", "1e38"],
    ],
    ids=" ".join,
)
def test_ends_of_the_ranges(options: list[str], data: Path) -> None:
    assert cli.run(_train(*options)(data.parent)) == 0


@pytest.mark.parametrize(("n", "rows"), [(None, 8), ("1", 1), ("7", 7), ("8", 8)])
def test_as_many_reconstructions_as_there_are(n: str | None, rows: int, run: Path, capsys: Capture) -> None:
    """Eight samples; all values are written and 48 samples shown if nothing is said."""
    arguments = ["reconstruct", str(run), *(["-n", n] if n else [])]
    assert cli.run([*arguments, "--out", str(run / "r.npy")]) == 0
    assert np.load(run / "r.npy").shape == (rows, 6, 5)
    assert cli.run(arguments) == 0
    images = np.load(run.parent / "tiny.npy")[np.r_[0:40, 0:20]]
    np.savez(run / "more.npz", train=images, test=images)
    assert cli.run([*arguments, "--data", str(run / "more.npz"), "--out", str(run / "r.npy")]) == 0
    assert np.load(run / "r.npy").shape == (int(n or 60), 6, 5)


def test_more_reconstructions_than_data(run: Path, capsys: Capture) -> None:
    assert cli.run(["reconstruct", str(run), "-n", "100"]) == 1
    assert "expected -n to be at most 8, the samples of the test part, but got 100" in capsys.readouterr().err


def test_data_of_another_shape(run: Path, capsys: Capture) -> None:
    np.save(run / "other.npy", np.zeros((5, 3, 3)))
    assert cli.run(["reconstruct", str(run), "--data", str(run / "other.npy"), "-n", "1"]) == 1
    assert "(3, 3)" in capsys.readouterr().err


def test_no_memory(data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(train_command.Trainer, "fit", fail)
    assert cli.run(_train()(data.parent)) == 1
    assert capsys.readouterr().err == "vae-fast: out of memory: a smaller --batch-size may help\n"
