"""scripts/gpu_check.sh as far as a CPU goes: every stage runs, the record is whole, a failed stage is told, and a stage
out of time leaves what it wrote and no process."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import vae_fast
from conftest import HANG, needs_native

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
CALL = 540  # seconds, of each of the calls that the script's head names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils' timeout"),
]


def environment(python: str | Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("VAE_FAST_", "TRITON_"))} | {
        "PYTHON": str(python)
    }


def call(*arguments: Any, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    # As in the background, where a shell has SIGINT ignored.
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *(str(a) for a in (SCRIPT, *arguments))]
    return subprocess.run(command, env=environment(python), capture_output=True, text=True, timeout=HANG)


def dry_run(out: Path, *options: str, python: str | Path = sys.executable) -> tuple[Any, dict[str, Any]]:
    """The script and its record; OUT has to be flat, small and plainly named."""
    run = call("--dry-run", *options, out, python=python)
    files = list(out.iterdir())
    assert all(f.is_file() and f.stat().st_size < 16e6 for f in files)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", f.name) for f in files)
    record = json.loads((out / "record.json").read_text())
    logs = {f"{stage['name']}.log" for stage in record["stages"]}
    assert {f.name for f in files} == logs | {"record.json", "summary.txt"}
    return run, record


def stub(path: Path, script: str) -> Path:
    """An interpreter that can write the record, and else runs the shell script."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *gpu_record*) exec "{sys.executable}" "$@";; esac\n{script}\n')
    path.chmod(0o755)
    return path


def stages() -> dict[str, int]:
    """Each stage's seconds."""
    return {name: int(n) for name, n, _ in map(str.split, call("--list").stdout.splitlines())}


def test_three_calls_hold_every_stage() -> None:
    text, seconds = SCRIPT.read_text(), stages()
    calls = [names.split(",") for names in re.findall(r"^#.* --only (\w[\w,]+) OUT$", text, re.MULTILINE)]
    grace = int(re.search(r"^GRACE=(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    assert len(calls) == 3 and {name for names in calls for name in names} == seconds.keys()
    for names in calls:
        assert sum(seconds[name] + grace for name in names) <= CALL, names
        assert len(names) + 2 <= 8, "few files"
        assert {"smoke", "build"} & set(names) or all("triton" in name for name in names), (
            "an engine is missing"
        )
    assert calls[0][0] == "smoke" and seconds["smoke"] <= 90
    assert call("--only", "smok").returncode == 2


@needs_native
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(importlib.util.find_spec("pybind11") is None, reason="pybind11 is not installed")
def test_dry_run_passes(tmp_path: Path) -> None:
    run, record = dry_run(tmp_path / "out")
    assert run.returncode == 0, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    assert last == record["verdict"] == "PASS (dry run: no GPU was used)"
    assert [(s["name"], s["result"]) for s in record["stages"]] == [(name, "pass") for name in stages()]
    for key in ("machine", "device", "versions", "targets", "benchmarks"):
        assert record[key], key
    rows = [row for row in record["benchmarks"] if row["provider"] != "eager"]
    cases = {(row["op"], row["dtype"], row["direction"]) for row in rows}
    assert len(cases) == 9 * 2 * 3  # ops, dtypes, directions
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
    broken = stub(
        tmp_path / "python",
        'case "$*" in *small_run*) echo "all right"; exit 0;; esac\necho "broken on purpose"; exit 3',
    )
    run, record = dry_run(tmp_path / "out", python=broken)
    assert run.returncode == 1 and run.stdout.splitlines()[-1] == record["verdict"]
    assert record["verdict"].startswith("FAIL")
    results = {s["name"]: s for s in record["stages"]}
    right = ("smoke", "sanitizers")
    assert {n: s["result"] for n, s in results.items()} == {
        n: "pass" if n in right else "fail" for n in stages()
    }
    assert results["bench"]["exit"] == 3 and results["bench"]["note"] == "broken on purpose"


def test_a_second_call_adds_to_the_record(tmp_path: Path) -> None:
    python = stub(tmp_path / "python", "echo nothing to do")
    for name in ("large", "build"):
        run, record = dry_run(tmp_path / "out", "--only", name, python=python)
        assert run.returncode == 0, run.stdout
    assert [s["name"] for s in record["stages"]] == ["large", "build"]


def sleepers(seconds: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            found += [process.name] if words[:2] == [b"sleep", seconds.encode()] else []
    return found


def planted(path: Path) -> tuple[Path, str]:
    """An interpreter that sleeps, with a child in its process group, one in a session of its own, and one that ignores
    what a terminal sends; and for how long, which names them."""
    seconds = f"{90_000 + os.getpid() % 9000}.25"
    script = f"""echo begun
sleep {seconds} &
setsid sleep {seconds} &
(trap '' INT TERM HUP; exec sleep {seconds}) &
sleep {seconds}"""
    return stub(path, script), seconds


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_stage_out_of_time_leaves_its_log_its_record_and_no_process(tmp_path: Path) -> None:
    python, seconds = planted(tmp_path / "python")
    run, record = dry_run(tmp_path / "out", "--limit", "2", "--only", "large,bench", python=python)
    assert run.returncode == 1 and run.stdout.splitlines()[-1].startswith("FAIL")
    assert not sleepers(seconds)
    assert [s["name"] for s in record["stages"]] == ["large", "bench"]
    for stage in record["stages"]:
        assert stage["result"] == "fail" and stage["exit"] == 124
        assert stage["note"] == "stopped after 2 s; begun"
        assert (tmp_path / "out" / f"{stage['name']}.log").read_text().startswith("begun")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_stopped_from_outside_it_leaves_the_record_of_what_ended_and_no_process(tmp_path: Path) -> None:
    python, seconds = planted(tmp_path / "python")
    content = python.read_text().replace("echo begun", 'case "$*" in *build_ext*) exit 0;; esac\necho begun')
    python.write_text(content)
    command = [str(a) for a in (SCRIPT, "--dry-run", "--only", "build,large,bench", tmp_path / "out")]
    with subprocess.Popen(command, env=environment(python), stdout=subprocess.DEVNULL) as run:
        end = time.monotonic() + HANG
        while len(sleepers(seconds)) < 4 and time.monotonic() < end:
            time.sleep(0.1)
        run.terminate()
        run.wait(HANG)
    assert not sleepers(seconds)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [(s["name"], s["result"]) for s in record["stages"]] == [("build", "pass")]
    assert record["verdict"] == "FAIL (dry run: no GPU was used) (not ended: large, bench)"
    assert (tmp_path / "out" / "large.log").read_text().startswith("begun")


def test_pytests_report_survives_the_end_of_time(tmp_path: Path) -> None:
    """SIGINT reaches pytest alone, which then tells what had failed."""
    slow = (
        "def test_wrong():\n    assert 1 == 2\n\n\ndef test_slow():\n    import time\n    time.sleep(90000)\n"
    )
    (tmp_path / "test_slow.py").write_text(slow)
    command = (
        f'exec "{sys.executable}" -m pytest -q -p no:cacheprovider -c /dev/null "{tmp_path}/test_slow.py"'
    )
    python = stub(tmp_path / "python", command)
    _, record = dry_run(tmp_path / "out", "--limit", "8", "--only", "tests_cuda", python=python)
    assert record["stages"][0]["exit"] == 124
    log = (tmp_path / "out" / "tests_cuda.log").read_text()
    assert "assert 1 == 2" in log and "1 failed in" in log


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_it_fails_at_once(tmp_path: Path) -> None:
    run = call(tmp_path / "out")
    assert run.returncode == 1 and run.stdout.splitlines()[-1] == "FAIL"
    assert "torch finds no CUDA device" in run.stderr


def test_setuptools_older_than_77_can_read_pyproject() -> None:
    """They refuse a license as a string, and do not know license-files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not isinstance(project.get("license"), str) and "license-files" not in project


@pytest.fixture
def small_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("small_run")


def test_wrong_numbers_are_seen(small_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element that is off, or NaN, in one result of one dtype; an op that raises; a device that is lost."""
    arguments = argparse.Namespace(
        cases="few", dtypes=["float32", "bfloat16"], shapes=["3x7", "2x5"], device="cpu"
    )

    def faulty(raises: str = "", off: float = 0.0) -> Any:
        def build(m: Any) -> Any:
            case = small_run.bernoulli(m)

            def compute(f: Any, logits: Any, x: Any) -> Any:
                nll = case.call(f, logits, x)
                if f is vae_fast.reference or logits.dtype == torch.float32:
                    return nll
                if raises:
                    raise RuntimeError(raises)
                return nll + off * (torch.arange(len(nll)) == 1)

            return case._replace(call=compute)

        return build

    def report(**fault: Any) -> Any:
        monkeypatch.setitem(small_run.CASES, "gaussian, logvar per feature", faulty(**fault))
        return small_run.run("twin", arguments)

    good = report()
    assert not good.failed and good.checks > 90
    assert {dtype for _, dtype, _ in good.worst} == {"float32", "bfloat16"}
    for fault in ({"off": 1e-2}, {"off": math.nan}, {"raises": "no such kernel"}):
        failed = report(**fault).failed
        assert [f[:2] for f in failed] == [("gaussian, logvar per feature", "bfloat16")] * 2, fault
    assert "no such kernel" in failed[0][2] and "FAIL" in report(off=1.0).table("twin", arguments.dtypes)
    lost = report(raises="CUDA error: an illegal memory access")
    assert len(lost.failed) == 2 and "did not run" in lost.failed[1][2] and lost.checks < good.checks


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target is met when every figure of its case is there and good enough."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gpu_record

    def rows(
        tensor_bytes: int,
        forward: float,
        compiled: float,
        eager: float,
        op: str = "latent",
        dtype: str = "float32",
    ) -> list[dict]:
        case = {"op": op, "dtype": dtype, "rows": 8, "features": 4, "tensor_bytes": tensor_bytes}
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
    for met, tensor_bytes, forward, compiled, eager, *case in (
        (True, large, 0.93, 1.3, 5.5),
        (False, large, 0.91, 1.3, 5.5),
        (False, large, 0.93, 1.1, 5.5),
        (False, large, 0.93, 1.3, 4.5),
        (True, large, 0.86, 1.3, 5.5, "latent", "bfloat16"),
        (False, large, 0.84, 1.3, 5.5, "latent", "bfloat16"),
        (True, large, 0.93, 0.99, 3.0, "bernoulli"),
        (False, large, 0.93, 0.97, 3.0, "bernoulli"),
        (True, 10, 0.1, 1.0, 0.5),
        (False, 10, 0.1, 0.9, 0.5),
    ):
        (target,) = gpu_record.judge(rows(tensor_bytes, forward, compiled, eager, *case))
        assert target["met"] is met and target["over_compile"] == compiled
    (target,) = gpu_record.judge(rows(large, 0.93, 1.4, 6.5)[:3])
    assert target["met"] is False  # nothing to compare with
