"""`vae-fast doctor`, and the command where a package is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch

import vae_fast

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from vae_fast import cli

Capture = pytest.CaptureFixture[str]
TRAIN = ["train", "--epochs", "1", "--hidden", "4"]  # never gets so far


def _run_without(
    packages: Sequence[str], *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command where these packages cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(packages)!r}))\n"
        f"from vae_fast import cli; sys.exit(cli.run({list(arguments)!r}))"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_doctor(capsys: Capture) -> None:
    assert cli.run(["doctor"]) == 0
    printed = capsys.readouterr().out
    info = vae_fast.info()
    assert f"vae_fast {vae_fast.__version__}, torch {torch.__version__}" in printed
    assert f"cpu tensors are served by: {info['used']['cpu']}" in printed
    for name, entry in info["backends"].items():
        state = "available" if entry["available"] else f"missing: {entry['reason']}"
        assert re.search(rf"^{name} +{re.escape(state)}", printed, re.MULTILINE), name


@pytest.mark.parametrize("package", ["typer", "accelerate", "matplotlib"])
def test_missing_packages_are_named(package: str) -> None:
    run = _run_without([package], *TRAIN)
    assert run.returncode == 1
    assert run.stderr == (
        f"vae-fast: {package} is not installed; the command takes: pip install 'vae_fast[train]'\n"
    )


def test_doctor_with_torch_alone() -> None:
    """It is there for those who miss something; the other commands say what to install."""
    run = _run_without(sorted(cli._EXTRA), "doctor")
    assert run.returncode == 0
    assert "Traceback" not in run.stderr
    assert f"vae_fast {vae_fast.__version__}, torch {torch.__version__}" in run.stdout
    assert f"cpu tensors are served by: {vae_fast.info()['used']['cpu']}" in run.stdout
    for name in ("cpu", "cuda", "triton", "reference"):
        assert re.search(rf"^{name} +(available|missing: )", run.stdout, re.MULTILINE), name
    line = r"vae-fast: \w+ is not installed; the command takes: pip install 'vae_fast\[train\]'\n"
    for arguments in (TRAIN, ["generate"], []):
        run = _run_without(sorted(cli._EXTRA), *arguments)
        assert (run.returncode, run.stdout) == (1, "")
        assert re.search(rf"^{line}\Z", run.stderr, re.MULTILINE), run.stderr  # torch may warn before it
        assert "Traceback" not in run.stderr


def test_doctor_names_what_is_missing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the line to install it, whose extra holds it."""
    assert cli.run(["doctor"]) == 0
    assert "pip install" not in capsys.readouterr().out
    version = metadata.version

    def no_rich(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(metadata, "version", no_rich)
    assert cli.run(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "rich (none)" in printed
    assert "pip install 'vae_fast[train]'" in printed


def test_the_extra_holds_what_the_command_imports() -> None:
    distributions = metadata.packages_distributions()
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extra = tomllib.loads(text)["project"]["optional-dependencies"]["train"]
    names = {re.split(r"[><=]", line)[0].replace("-", "_").lower() for line in extra}
    for package in cli._EXTRA - {"click"}:  # typer's
        assert names & {name.replace("-", "_").lower() for name in distributions[package]}, package


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("VAE_FAST_BACKEND", "tritn", "nothing is computed: 'tritn' is forced, which is none"),
        ("VAE_FAST_BACKEND", "cuda", "nothing is computed: 'cuda' is forced, which is missing"),
        ("VAE_FAST_CPU_ISA", "mmx", "no backend: CPU instruction set 'mmx' is not available here"),
    ],
)
def test_doctor_says_what_the_environment_breaks(variable: str, value: str, line: str) -> None:
    if value == "cuda" and vae_fast.info()["backends"]["cuda"]["available"]:
        pytest.skip("it is available here")
    if value == "mmx" and not vae_fast.info()["backends"]["cpu"]["available"]:
        pytest.skip("no native CPU engine")
    run = _run_without([], "doctor", **{variable: value})
    assert run.returncode == 1
    assert line in run.stdout
    assert f"{variable}={value}" in run.stdout
    run = _run_without([], *TRAIN, **{variable: value})
    assert run.returncode == 1
    assert re.fullmatch(rf"vae-fast: .*'{value}'.*\n", run.stderr), run.stderr
