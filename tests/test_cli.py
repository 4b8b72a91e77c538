"""The command, end to end on tiny data: what it writes, what it prints, and one line for what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vae_fast
from conftest import HANG

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState

from vae_fast import cli
from vae_fast.cli import train as train_command
from vae_fast.training import checkpoint
from vae_fast.training import data as data_module

Capture = pytest.CaptureFixture[str]
COMMAND = [sys.executable, "-m", "vae_fast.cli"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--hidden", "12", "--latent", "3"]


@pytest.fixture(autouse=True)
def ordinary_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(train_command, "set_up_process", lambda: True)  # the tests keep their malloc
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)
    np.save(tmp_path / "tiny.npy", images)
    return tmp_path / "tiny.npy"


@pytest.fixture
def run(data: Path) -> Path:
    """A folder with a finished run."""
    assert cli.run(["train", "--data", str(data), "--out", str(data.parent / "run"), *QUICK]) == 0
    return data.parent / "run"


def test_train_then_generate_and_reconstruct(data: Path, capsys: Capture) -> None:
    run = data.parent / "run"
    assert cli.run(["train", "--data", str(data), "--out", str(run), *QUICK]) == 0
    names = ["config.json", "loss.png", "metrics.csv", "model.safetensors"]
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
    assert "goes on from epoch 2 of 5" in capsys.readouterr().out
    for file in ("model.safetensors", "config.json", "samples.png"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
    assert cli.run(["train", "--resume", "--out", str(parts), "--latent", "9"]) == 1
    assert capsys.readouterr().err == f"vae-fast: --latent is 9, the run in {parts} has 3\n"


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
        ["bernoulli", "--binarize"],
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


def test_doctor(capsys: Capture) -> None:
    assert cli.run(["doctor"]) == 0
    printed = capsys.readouterr().out
    info = vae_fast.info()
    assert f"vae_fast {vae_fast.__version__}, torch {torch.__version__}" in printed
    assert f"cpu tensors are served by: {info['used']['cpu']}" in printed
    for name, entry in info["backends"].items():
        state = "available" if entry["available"] else f"missing: {entry['reason']}"
        assert re.search(rf"^{name} +{re.escape(state)}", printed, re.MULTILINE), name


def test_help_and_no_command(capsys: Capture) -> None:
    assert cli.run([]) == 0
    assert "doctor" in capsys.readouterr().out
    for command in ("train", "generate", "reconstruct", "doctor"):
        assert cli.run([command, "--help"]) == 0
        assert command in capsys.readouterr().out


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
    "binarize of gaussian": (_train("--likelihood", "gaussian", "--binarize"), "does not take binarize", 1),
    "link": (_train("--likelihood", "poisson", "--link", "log"), "log", 2),
    "negative counts": (_negative, "poisson likelihood takes counts", 1),
    "variance of bernoulli": (_train("--variance", "2"), "does not take variance", 1),
    "likelihood": (_train("--likelihood", "cauchy"), "cauchy", 2),
    "learning rate": (_train("--lr", "0"), "lr is 0.0", 1),
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


def test_more_reconstructions_than_data(run: Path, capsys: Capture) -> None:
    assert cli.run(["reconstruct", str(run), "-n", "100"]) == 1
    assert "has 8 samples, -n is 100" in capsys.readouterr().err


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


@pytest.mark.parametrize("package", ["typer", "accelerate", "matplotlib"])
def test_missing_packages_are_named(data: Path, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from vae_fast import cli\n"
        f"sys.exit(cli.run({_train()(data.parent)!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == (
        f"vae-fast: {package} is not installed; the command takes: pip install 'vae_fast[train]'\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_run_says_how_to_go_on(data: Path) -> None:
    out = data.parent / "run"
    arguments = [
        "train",
        "--data",
        str(data),
        "--out",
        str(out),
        *QUICK,
        "--epochs",
        "1000000",
        "--evaluate-every",
        "9",
    ]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and all their children, ignore it otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + HANG
    while not (out / checkpoint.METRICS).exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=HANG)
    assert process.returncode == 1
    line = rf"vae-fast: interrupted; --resume --out {out} goes on from epoch (\d+) of 1000000\n"
    assert re.fullmatch(line, error), error


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_two_processes_train_one_model(data: Path) -> None:
    out = data.parent / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    arguments = ["train", "--cpu", "--data", str(data), "--out", str(out), *QUICK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launch, "-m", "vae_fast.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("test ELBO  ") == 1
    progress = checkpoint.read_progress(out)
    assert (progress["epoch"], progress["steps"]) == (2, 2)  # 32 samples in batches of 2 x 16
    checkpoint.load_model(out)
