"""Every GPU kernel held to its instructions an element (instruction_counts.json), so that none gets heavier unseen.

After a change that is meant to cost or save instructions: `scripts/count_instructions.py --update`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from conftest import HANG
from cuda_objects import NVCC, ROOT, SASS_TOOL, Instruction

sys.path.insert(0, str(ROOT / "scripts"))
from sass import Code, pipe

SCRIPT = ROOT / "scripts/count_instructions.py"
RECORD = json.loads((ROOT / "tests/instruction_counts.json").read_text())


def missing(engine: str) -> str | None:
    if SASS_TOOL is None:
        return "neither CUDA's nor Triton's cuobjdump is here"
    if engine == "cuda":
        return None if NVCC else "nvcc is not installed"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    return None


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the script counts, by engine, in processes side by side: here Triton's kernels may be the interpreter's."""
    folder = tmp_path_factory.mktemp("counts")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    runs = {}
    for engine in ("cuda", "triton"):
        if missing(engine) is None:
            command = [sys.executable, str(SCRIPT), "--engine", engine, "--json", str(folder / engine)]
            runs[engine] = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
    found = {}
    for engine, run in runs.items():
        output, _ = run.communicate(timeout=HANG)
        assert run.returncode == 0, output[-4000:]
        found[engine] = json.loads((folder / engine).read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("key", RECORD["kernels"])
def test_no_kernel_gets_heavier(counted: dict[str, dict[str, Any]], key: str) -> None:
    engine = key.split()[0]
    if (reason := missing(engine)) is not None:
        pytest.skip(reason)
    versions, now = counted[engine]["compilers"], counted[engine]["kernels"]
    for what, figure in RECORD["kernels"][key].items():
        print(f"{key}: {now[key][what]} {what} an element, {figure} recorded")
        if versions[engine] == RECORD["compilers"][engine]:
            assert now[key][what] <= 1.02 * figure + 0.5, f"{what}: heavier than recorded"
            assert figure <= 1.1 * now[key][what] + 0.5, f"{what}: the record is out of date"


def test_every_kernel_has_a_figure(counted: dict[str, dict[str, Any]]) -> None:
    for engine, found in counted.items():
        assert set(found["kernels"]) == {key for key in RECORD["kernels"] if key.startswith(f"{engine} ")}


# A loop over rows: a branch to a slow path, and an inner loop that itself has a long and a short way.
LOOP = """
    MOV R0, c
 a: LDG.E.128 R4, [R2]
    @P0 BRA slow
    FFMA R4, R4, R5, R6
 b: @P1 BRA short
    MUFU.LG2 R7, R8
    IMAD.WIDE.U32 R8, R9, R10, R11
 short: FADD R4, R4, R7
    @P2 BRA b
    STG.E.128 [R2], R4
    @P3 BRA a
    EXIT
 slow: FFMA R4, R4, R5, R6
    FFMA R4, R4, R5, R6
    BRA b
    EXIT
"""


def assembled(text: str) -> list[Instruction]:
    lines = [line.strip() for line in text.strip().splitlines()]
    labels = {line.split(":")[0]: 16 * i for i, line in enumerate(lines) if ":" in line}
    code = []
    for i, line in enumerate(lines):
        words = line.split(": ")[-1].split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        code.append(
            Instruction(
                16 * i, predicate, " ".join(f"{labels.get(w, w):#x}" if w in labels else w for w in words)
            )
        )
    return code


def test_hot_path() -> None:
    seen = []

    def trips(once: Any) -> float:
        seen.append(once.total())
        return 4

    code = Code(assembled(LOOP), trips=trips)
    path = code.loop({"LDG": 1, "STG": 1})
    assert path is not None
    # Four rounds of two instructions around the inner loop's short way: its branch, the sum and the branch back.
    assert seen[-1] == 3 and path.total() == 3 + 4 * 3 + 2
    assert path.ops == Counter({"LDG.E.128": 1, "BRA": 1 + 4 * 2 + 1, "FFMA": 1, "FADD": 4, "STG.E.128": 1})
    assert Code(assembled(LOOP)).loop({"LDG": 2}) is None, "no round has two"

    long = Code(assembled(LOOP), trips=trips, inner_need={"MUFU": 1}).loop({"LDG": 1, "MUFU": 1})
    assert long is not None and long.pipes()["xu"] == 4 and long.pipes()["wide multiplier"] == 4

    slow = Code(assembled(LOOP), forbidden="MUFU").loop({"FFMA": 2})
    assert slow is not None and slow.count("FFMA") == 2 and slow.count("MUFU") == 0
    whole = Code(assembled(LOOP)).whole({"STG": 1})
    assert whole is not None and whole.count("MOV") == 1 and whole.count("EXIT") == 1


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("IMAD.WIDE.U32", "wide multiplier"),
        ("IMAD.MOV.U32", "multiplier"),
        ("FSEL", "alu"),
        ("F2FP.BF16.PACK_AB", "alu"),
        ("F2F.F64.F32", "xu"),
        ("LDGSTS.E", "lsu"),
        ("FADD.FTZ", "fma"),
    ],
)
def test_pipes(op: str, expected: str) -> None:
    assert pipe(op) == expected


def test_prediction() -> None:
    """The memory's limit without arithmetic; both limits where an element takes what copy speed leaves of a pipe."""
    import count_instructions as ci

    gpu = ci.GPUS["H100"]
    clocks = 12 / (gpu.copy / gpu.processors / gpu.clock)

    def count(instructions: float, registers: int = 32) -> Any:
        return ci.Count("", "", "", 12, ci.HotPath(Counter({"NOP": instructions})), 1, registers, 256)

    assert count(0).predicted(gpu) == pytest.approx(0.95, abs=1e-4)
    assert count(128 * clocks).predicted(gpu) == pytest.approx((0.95**-5 + 0.9**-5) ** (-1 / 5))
    assert count(1000 * 128 * clocks).predicted(gpu) == pytest.approx(0.9 / 1000, rel=1e-3)
    assert count(0, registers=128).resident == 512 and count(0, registers=128).predicted(gpu) < 0.93
