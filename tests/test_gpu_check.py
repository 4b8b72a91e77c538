"""scripts/gpu_check.sh as far as a CPU goes: every stage runs, the record is whole, and a failed stage is told."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HANG, needs_native

ROOT = Path(__file__).parents[1]
STAGES = ["build", "tests_cuda", "tests_triton", "tests_large", "sanitizers", "bench"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils' timeout"),
]


def dry_run(out: Path, python: str | Path) -> tuple[subprocess.CompletedProcess[str], dict]:
    """The script and its record; OUT has to be flat, small and plainly named."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_FAST_", "TRITON_"))}
    command = [ROOT / "scripts" / "gpu_check.sh", "--dry-run", out]
    run = subprocess.run(
        command, env=env | {"PYTHON": str(python)}, capture_output=True, text=True, timeout=HANG
    )
    files = list(out.iterdir())
    assert len(files) <= 8 and all(f.is_file() and f.stat().st_size < 16e6 for f in files)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", f.name) for f in files)
    return run, json.loads((out / "record.json").read_text())


@needs_native
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(importlib.util.find_spec("pybind11") is None, reason="pybind11 is not installed")
def test_dry_run_passes(tmp_path: Path) -> None:
    run, record = dry_run(tmp_path / "out", sys.executable)
    assert run.returncode == 0, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    assert last == record["verdict"] == "PASS (dry run: no GPU was used)"
    assert [(s["name"], s["result"]) for s in record["stages"]] == [(name, "pass") for name in STAGES]
    for key in ("machine", "device", "versions", "targets", "benchmarks"):
        assert record[key], key
    rows = [row for row in record["benchmarks"] if row["provider"] != "eager"]
    cases = {(row["op"], row["dtype"], row["direction"]) for row in rows}
    assert len(cases) == 6 * 2 * 3  # ops, dtypes, directions
    for row in rows:
        low, high = row["quartiles_s"]
        assert 0 < low <= row["median_s"] <= high and row["of_copy"] > 0
    latent = {row["direction"]: row for row in rows if (row["op"], row["dtype"]) == ("latent", "float32")}
    n = latent["both"]["rows"] * latent["both"]["features"]
    assert latent["forward"]["bytes"] == 3 * n * 4 + 4 * latent["both"]["rows"]
    assert latent["both"]["bytes"] == latent["forward"]["bytes"] + latent["backward"]["bytes"]
    assert (tmp_path / "out" / "summary.txt").read_text().strip() in run.stdout
    assert all(target["met"] is None for target in record["targets"])  # a CPU proves no speed


def test_a_failed_stage_fails_the_run_and_stops_no_other(tmp_path: Path) -> None:
    """An interpreter that can write the record and nothing else."""
    broken = tmp_path / "python"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *gpu_record*) exec "{sys.executable}" "$@";; esac\n'
        'case "$*" in *small_run*) echo "3 checks passed"; exit 0;; esac\necho "broken on purpose"; exit 3\n'
    )
    broken.chmod(0o755)
    run, record = dry_run(tmp_path / "out", broken)
    assert run.returncode == 1 and run.stdout.splitlines()[-1] == record["verdict"]
    assert record["verdict"].startswith("FAIL")
    results = {s["name"]: s["result"] for s in record["stages"]}
    assert results == {name: "pass" if name == "sanitizers" else "fail" for name in STAGES}
    assert record["stages"][-1]["exit"] == 3 and record["stages"][-1]["note"] == "broken on purpose"


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_it_fails_at_once(tmp_path: Path) -> None:
    command = [ROOT / "scripts" / "gpu_check.sh", tmp_path / "out"]
    env = os.environ | {"PYTHON": sys.executable}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG)
    assert run.returncode == 1 and run.stdout.splitlines()[-1] == "FAIL"
    assert "torch finds no CUDA device" in run.stderr


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target is met when every figure of its case is there and good enough."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gpu_record

    def rows(tensor_bytes: int, forward: float, compiled: float, eager: float) -> list[dict]:
        case = {"op": "latent", "dtype": "float32", "rows": 8, "features": 4, "tensor_bytes": tensor_bytes}
        ours = [
            case | {"direction": d, "provider": "triton", "median_s": 1.0, "host_s": 1.0, "of_copy": share}
            for d, share in (("forward", forward), ("backward", 0.95), ("both", 0.94))
        ]
        others = [("torch.compile", compiled), ("eager", eager)]
        theirs = [
            case | {"direction": "both", "provider": name, "median_s": t, "host_s": t, "of_copy": 0.5}
            for name, t in others
        ]
        return [*ours, *theirs]

    large = 256 << 20
    for tensor_bytes, forward, compiled, eager, met in (
        (large, 0.93, 1.4, 6.5, True),
        (large, 0.91, 1.4, 6.5, False),
        (large, 0.93, 1.2, 6.5, False),
        (large, 0.93, 1.4, 5.5, False),
        (10, 0.1, 1.0, 0.5, True),
        (10, 0.1, 0.9, 0.5, False),
    ):
        (target,) = gpu_record.judge(rows(tensor_bytes, forward, compiled, eager))
        assert target["met"] is met and target["over_compile"] == compiled
    (target,) = gpu_record.judge(rows(large, 0.93, 1.4, 6.5)[:3])
    assert target["met"] is False  # nothing to compare with
