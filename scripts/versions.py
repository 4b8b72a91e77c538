#!/usr/bin/env python3
"""Tries Pythons, releases of torch and of Triton, and writes docs/versions.md.

    scripts/versions.py                               Python 3.11 to 3.14 and torch 2.11 to the newest: what pip finds
    scripts/versions.py --interpreter env/bin/python  also this interpreter, with the torch that it has

Each pair gets an environment of its own in .venv-versions, with torch's CPU build, pytest and no numpy; vae_fast is
built there, and CHECKS run. What is not at hand is written as not tried, never as passing.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv-versions"
TABLE = ROOT / "docs" / "versions.md"
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OLDEST_TORCH, OLDEST_TRITON = (2, 11), (3, 6)
CHECKS = ("import", "backends", "noise", "latent", "likelihood", "nn", "tools", "compile")
NUMPY = ("nn",)  # whose tests take numpy
NOT_TRIED = "not tried here"
LOADS = """
import importlib.machinery, importlib.util, pathlib, sys
(path,) = pathlib.Path(sys.argv[1]).rglob(f"_cpu*{importlib.machinery.EXTENSION_SUFFIXES[0]}")
spec = importlib.util.spec_from_file_location("_cpu", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.isa())
"""


class Row(NamedTuple):
    python: str
    torch: str
    numpy: str
    result: str


def run(command: Sequence[str | Path], folder: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    everything = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    return subprocess.run(
        [str(c) for c in command], env=everything, cwd=folder, capture_output=True, text=True, timeout=3600
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "FAILED", "E  "))]
    return (errors or lines or ["no output"])[-1].strip()[:200]


def pip(interpreter: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet"]
    return run([*command, "--retries", "0", "--timeout", "15", *arguments])


def releases(package: str, oldest: tuple[int, int]) -> list[str]:
    """What pip finds, from the oldest on; of several with one minor version the newest."""
    found = run([sys.executable, "-m", "pip", "index", "versions", package]).stdout
    newest: dict[tuple[int, int], str] = {}
    for version in re.findall(r"\b\d+\.\d+\.\d+\b", found.partition("versions:")[2].partition("\n")[0]):
        minor = tuple(map(int, version.split(".")[:2]))
        if minor >= oldest:
            newest.setdefault((minor[0], minor[1]), version)
    return sorted(newest.values(), key=lambda v: [int(n) for n in v.split(".")])


def find_python(version: str) -> Path | None:
    """On the PATH or under pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which(f"python{version}")
    for candidate in (*([Path(on_path)] if on_path else []), *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        if run([candidate, "-c", "import ssl"]).returncode == 0:
            return candidate
    return None


def make_environment(python: Path, name: str) -> Path:
    folder = ENVIRONMENTS / name
    if not folder.exists():
        run([python, "-m", "venv", "--without-pip", folder]).check_returncode()
    return folder / "bin" / "python"


def build(interpreter: Path) -> str | None:
    """Builds and installs the package. What went wrong, if something did."""
    done = pip(interpreter, "--no-deps", "--force-reinstall", ROOT)
    return None if done.returncode == 0 else f"does not build: {last_line(done)}"


def try_alone(python: Path, version: str) -> str:
    """What can be seen without torch: the package builds, and its engine loads."""
    folder = ENVIRONMENTS / f"{version}-alone"
    interpreter = make_environment(python, folder.name)
    if (problem := build(interpreter)) is not None:
        return problem
    done = run([interpreter, "-c", LOADS, folder])
    if done.returncode:
        return f"the C++ engine does not load: {last_line(done)}"
    return f"{NOT_TRIED} but for the build: the C++ engine loads ({done.stdout.strip()})"


def check(interpreter: Path, numpy: bool) -> Row:
    """The checks with the torch that the interpreter has."""
    about = run(
        [interpreter, "-c", "import platform, torch; print(platform.python_version(), torch.__version__)"]
    )
    if about.returncode:
        return Row(str(interpreter), "none", "none", f"fails: {last_line(about)}")
    python, torch = about.stdout.split()[-2:]
    needed = ["pytest>=8", "pytest-xdist>=3", *(["numpy"] if numpy else [])]
    done = pip(interpreter, *needed)
    problem = f"fails: {last_line(done)}" if done.returncode else build(interpreter)
    found = run([interpreter, "-c", "import numpy; print(numpy.__version__)"]).stdout.strip() or "none"
    if problem is None:
        files = [ROOT / "tests" / f"test_{name}.py" for name in CHECKS if numpy or name not in NUMPY]
        options = ["-q", "-n", str(min(4, os.cpu_count() or 1)), "-m", "not slow", "-p", "no:cacheprovider"]
        # From another folder, so that the package that was built is imported, not the checkout's.
        done = run([interpreter, "-W", "ignore", "-m", "pytest", *options, *files], ENVIRONMENTS)
        counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", done.stdout.rstrip().splitlines()[-1])
        problem = f"fails: {last_line(done)}" if done.returncode else ", ".join(counts)
    return Row(python, torch, found, problem)


def try_torch(pythons: Iterable[str], torches: Sequence[str]) -> list[Row]:
    rows = []
    for version in pythons:
        python = find_python(version)
        if python is None:
            rows.append(Row(version, "", "", f"{NOT_TRIED}: no such Python at hand"))
            continue
        missing = []
        for torch in torches:
            interpreter = make_environment(python, f"{version}-{torch}")
            done = pip(interpreter, "--extra-index-url", TORCH_INDEX, f"torch=={torch}+cpu")
            if done.returncode:
                missing.append(torch)
            else:
                rows.append(check(interpreter, numpy=False))
        if missing:
            result = f"{NOT_TRIED}: no CPU build at hand"
            if len(missing) == len(torches):
                result = try_alone(python, version)
            rows.append(Row(version, ", ".join(missing), "", result))
    return rows


def try_triton(versions: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for version in versions:
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-n", "2", "tests/test_triton_versions.py"]
        done = run(command, VAE_FAST_TRITON_VERSIONS=version)
        counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", done.stdout.rstrip().splitlines()[-1])
        result = f"fails: {last_line(done)}" if done.returncode else ", ".join(counts)
        rows.append((version, f"{NOT_TRIED}: pip has none" if "skipped" in result else result))
    return rows


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", nargs="*", default=PYTHONS, metavar="X.Y")
    parser.add_argument("--torch", nargs="*", metavar="VERSION", help="default: what pip finds")
    parser.add_argument("--triton", nargs="*", metavar="VERSION", help="default: what pip finds")
    parser.add_argument("--interpreter", nargs="*", type=Path, default=[], metavar="PATH")
    options = parser.parse_args()
    torches = options.torch if options.torch is not None else releases("torch", OLDEST_TORCH)
    tritons = options.triton if options.triton is not None else releases("triton", OLDEST_TRITON)
    ENVIRONMENTS.mkdir(exist_ok=True)
    rows = try_torch(options.python, torches) + [check(path, numpy=True) for path in options.interpreter]
    text = [
        "# Versions",
        "",
        "Made by `scripts/versions.py`, which tries what pip finds: a CPU build of torch, no GPU. "
        f"{platform.system()} {platform.machine()}.",
        "",
        f"The checks: {', '.join(f'`test_{name}`' for name in CHECKS)} on the package as it was "
        "built there; without numpy all but `test_nn`.",
        "",
        *table(("Python", "torch", "numpy", "result"), rows),
        "",
        "Triton, the kernels of `tests/test_triton_versions.py`: in its interpreter, forward and backward against "
        "float64, and compiled for sm_90 (never run on a GPU).",
        "",
        *table(("Triton", "result"), try_triton(tritons)),
        "",
    ]
    TABLE.write_text("\n".join(text))
    print("\n".join(text))
    if any("fails" in row[-1] or "does not" in row[-1] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
