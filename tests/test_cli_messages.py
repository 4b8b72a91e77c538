"""Messages that advise something: here the advice is followed, and works. (Of folders: test_cli_runs.py. Of a loss that
is not finite, and of what the machine cannot do: test_divergence.py. Of data: test_data_values.py.)"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import vae_fast

pytest.importorskip("typer")
pytest.importorskip("accelerate")

import command
from vae_fast import backends, cli
from vae_fast.cli import inference
from vae_fast.training import checkpoint

Capture = pytest.CaptureFixture[str]
TRAIN = ["train", "--data", "tiny.npy", *command.QUICK]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts in an empty folder with tiny.npy."""
    monkeypatch.chdir(tmp_path)
    command.save_images(tmp_path)
    yield from command.ordinary_process(monkeypatch)


def run(*arguments: str) -> None:
    assert cli.run(list(arguments)) == 0, arguments


def _trained() -> None:
    run(*TRAIN)


def _of_counts() -> None:
    np.save("counts.npy", np.random.default_rng(0).poisson(3.0, (40, 16)))
    run("train", "--data", "counts.npy", *command.QUICK, "--likelihood", "poisson")


def _from_the_hub() -> None:
    """A folder of weights and config alone."""
    _trained()
    Path("runs/tiny", checkpoint.STATE).unlink()


def _wide() -> None:
    np.save("wide.npy", np.zeros((40, 60_000), np.float32))


BATCH = ["train", "--data", "wide.npy", "--epochs", "1", "--hidden", "2", "--latent", "1", "--batch-size"]
# What is there before; what fails; its line; what the line advises.
ADVICE: dict[str, tuple[Callable[[], None], list[str], str, list[str]]] = {
    "kind of output": (
        _trained,
        ["generate", "--out", "a.jpeg"],
        "expected --out to be a name that ends in .png or .npy (.csv, .tsv, .parquet for a table, .txt for text; "
        "a .png of sounds has a folder of them beside it), but got a.jpeg",
        ["generate", "--out", "a.PNG"],
    ),
    "counts": (
        _of_counts,
        ["generate"],
        "counts are no images: give --out a name that ends in .npy",
        ["generate", "--out", "a.npy"],
    ),
    "too many for a picture": (
        _trained,
        ["generate", "-n", "200000"],
        "expected -n to be at most 19531 for a picture, but got 200000: give --out a name that ends in .npy for more",
        ["generate", "-n", "200000", "--out", "a.npy"],
    ),
    "no data named": (
        _from_the_hub,
        ["reconstruct"],
        "runs/tiny: holds no training.safetensors, which names the data: give --data",
        ["reconstruct", "--data", "tiny.npy"],
    ),
    "too few to reconstruct": (
        _trained,
        ["reconstruct", "-n", "9"],
        "tiny: expected -n to be at most 8, the samples of the test part, but got 9",
        ["reconstruct", "-n", "8"],
    ),
    "batch": (
        _wide,
        [*BATCH, "2147483647"],
        "2,147,483,647 samples do not fit in memory: a smaller --batch-size may help",
        [*BATCH, "16"],
    ),
    "samples": (
        _trained,
        ["generate", "-n", "2147483647", "--out", "a.npy"],
        "out of memory: a smaller -n may help",
        ["generate", "-n", "200", "--out", "a.npy"],
    ),
}


@pytest.mark.parametrize(("before", "failing", "line", "followed"), ADVICE.values(), ids=ADVICE)
def test_advice_works(
    before: Callable[[], None],
    failing: list[str],
    line: str,
    followed: list[str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate = inference.HubVAE.generate

    def small(model: inference.HubVAE, n: int, **options: Any) -> Tensor:
        if n > 1_000_000:  # as torch says so, without a machine that is small enough
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
            )
        return generate(model, n, **options)

    monkeypatch.setattr(inference.HubVAE, "generate", small)
    before()
    capsys.readouterr()
    assert cli.run(failing) == 1
    assert capsys.readouterr().err == f"vae-fast: {line}\n"
    run(*followed)


def test_largest_picture_that_is_allowed(capsys: Capture) -> None:
    """Of reconstructions: their rows are the limit."""
    np.savez("many.npz", train=np.load("tiny.npy"), test=np.zeros((20_000, 6, 5), np.uint8))
    _trained()
    assert cli.run(["reconstruct", "--data", "many.npz", "-n", "20000"]) == 1
    found = re.search(
        r"expected -n to be at most (\d+) for a picture, but got 20000: give --out", capsys.readouterr().err
    )
    assert found
    run("reconstruct", "--data", "many.npz", "-n", found[1])


@pytest.mark.parametrize("arguments", [["tarin"], ["train", "--latnet", "3"], ["generate", "-n", "x"]])
def test_usage_errors_name_a_help_that_is_there(arguments: list[str], capsys: Capture) -> None:
    assert cli.run(arguments) == 2
    found = re.search(r"\(vae-fast(.*) --help\)$", capsys.readouterr().err.strip())
    assert found
    run(*found[1].split(), "--help")
    assert "Usage: vae-fast" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:vae_fast uses the slow reference")
def test_reference_backend_says_why_it_was_used(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*TRAIN, "--backend", "reference")
    assert "the reference backend was used (as asked)" in capsys.readouterr().out
    monkeypatch.setitem(backends._reasons, "cpu", "the moon is full")
    monkeypatch.setattr(backends, "_resolved", {})
    run(*TRAIN)
    assert "the reference backend was used (vae-fast doctor says why)" in capsys.readouterr().out
    run("doctor")
    assert "the moon is full" in capsys.readouterr().out


def test_backend_that_does_not_take_the_device(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is found before training, whatever the device is."""
    for name in ("cuda", "triton"):
        monkeypatch.setitem(backends._reasons, name, None)
    if vae_fast.info()["backends"]["triton"]["available"]:
        pytest.skip("Triton takes CPU tensors here, in its interpreter")
    monkeypatch.setattr(backends, "_resolved", {})
    assert cli.run([*TRAIN, "--cpu", "--backend", "cuda"]) == 1
    assert capsys.readouterr().err == "vae-fast: backend 'cuda' does not take cpu tensors\n"
    assert not Path("runs").exists()


def test_warnings_are_one_line_without_a_place() -> None:
    code = "from vae_fast import cli; cli.main()"
    np.save("halves.npy", np.full((40, 4), 0.5))
    arguments = ["train", "--data", "halves.npy", *command.QUICK, "--likelihood", "poisson"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert process.returncode == 0
    assert re.fullmatch(r"vae-fast: warning: halves: holds fractions, .*\n", process.stderr), process.stderr


NAMED: dict[str, tuple[str, list[str], str]] = {
    "of the command": (
        "",
        ["--clip-grad", "0"],
        "expected --clip-grad to be a number above 0 and at most 1e+38, but got 0.0",
    ),
    "of a file": ("clip_grad = 0", [], "o.toml: expected clip_grad to be a number above 0 and at most 1e+38"),
    "of the command beside a file": (
        "ema = 0.5",
        ["--clip-grad", "0"],
        "expected --clip-grad to be a number",
    ),
    "of both": (
        f"batch_size = {2**31 - 1}",
        ["--num-samples", "3"],
        "o.toml: expected batch_size times --num-samples, the draws of z in a batch, to be fewer",
    ),
    "a list": (
        "",
        ["--likelihood", "poisson", "--components", "3", "--variance", "2"],
        "likelihood 'poisson' does not take --variance, --components (it takes --link, ",
    ),
    "a list for another": (
        "",
        ["--architecture", "conv", "--batch-norm"],
        "expected --architecture to be 'mlp' for --batch-norm, but got 'conv'",
    ),
    "with its value": (
        "",
        ["--objective", "beta_tc", "--accumulate", "2"],
        "(is_mean_of_samples = True) with --accumulate 2, but got BetaTC",
    ),
    "its value in a file": (
        "accumulate = 2",
        ["--objective", "beta_tc"],
        "with accumulate=2, but got BetaTC",
    ),
    "an option of an objective": (
        "",
        ["--free-bits", "2"],
        "the objective elbo does not take --free-bits: free_bits does",
    ),
    "a weight": ("", ["--objective", "iwae", "--num-samples", "2", "--beta", "2"], "but got --beta 2.0"),
    "a value of a field's name": (
        "",
        ["--optimizer", "clip_grad"],
        "expected --optimizer to be one of adam, adamw, nadam, radam, rmsprop, sgd, but got 'clip_grad'",
    ),
    "a path of a field's name": (
        "",
        ["--data", "latent/seed to batch_size.npy"],
        "/latent/seed to batch_size.npy: no",
    ),
}


@pytest.mark.parametrize(("file", "options", "line"), NAMED.values(), ids=NAMED)
def test_options_are_named_as_they_were_given(
    file: str, options: list[str], line: str, capsys: Capture
) -> None:
    Path("o.toml").write_text(file)
    data = [] if "--data" in options else ["--data", "tiny.npy"]
    arguments = ["train", *data, "--epochs", "1", "--hidden", "4", "--latent", "2", *options]
    assert cli.run([*arguments, *(["--config", "o.toml"] if file else [])]) == 1
    error = capsys.readouterr().err
    assert line in error
    assert error.startswith("vae-fast: o.toml: ") == bool(file and "--clip" not in line)
