"""The record of scripts/gpu_check.sh: record.json, and the table that it prints last. Exit code 0 is PASS.

Written anew whenever a stage ends. What an earlier call with the same sources left in OUT stays in it. Passing is about
being right: the speeds are compared with the targets, and a missed target is said, not failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .comparison import compact
from .machine import describe_machine, version_of
from .settings import ROOT

# The targets for tensors of LARGE bytes and more. A likelihood of elements moves the same bytes as Inductor's kernel.
OF_COPY = {"float32": 0.92, "bfloat16": 0.85}
OVER_COMPILE, OVER_EAGER = {"latent": 1.2}, {"latent": 5.0}
AS_FAST = 0.98
LARGE = 256 << 20
TARGETED = ("latent", "bernoulli", "gaussian", "gaussian with logvar")  # the others are shown
NVIDIA_SMI = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
)
MET = {True: "met", False: "missed", None: "not judged"}
Row = dict[str, Any]


def output_of(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() or None


def describe_device() -> dict[str, Any]:
    import torch

    smi = output_of("nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader")
    device: dict[str, Any] = {
        "nvidia-smi": dict(zip(NVIDIA_SMI.split(","), smi.splitlines()[0].split(", "), strict=False))
        if smi
        else None
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "processors": properties.multi_processor_count,
            "devices": torch.cuda.device_count(),
        }
    return device


def versions() -> dict[str, str | None]:
    import torch

    nvcc = output_of("nvcc", "--version")
    found: dict[str, str | None] = {"torch": torch.__version__, "cuda_of_torch": torch.version.cuda}
    found["nvcc"] = nvcc.splitlines()[-1] if nvcc else None
    return found | {name: version_of(name) for name in ("triton", "pybind11", "pytest", "numpy")}


def source_hash() -> str:
    """Of the sources, for a copy without its history."""
    files = (f for folder in ("csrc", "vae_fast", "benchmarks") for f in (ROOT / folder).rglob("*"))
    digest = hashlib.sha256()
    for f in sorted(f for f in files if f.suffix in (".py", ".h", ".cpp", ".cu")):
        digest.update(f"{f.relative_to(ROOT)}\n".encode() + f.read_bytes())
    return digest.hexdigest()


def read_stages(path: Path) -> list[Row]:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = ("name", "result", "seconds", "exit", "ended", "note")
    stages = [dict(zip(names, line.split("\t"), strict=False)) for line in lines]
    return [stage | {"seconds": int(stage["seconds"]), "exit": int(stage["exit"])} for stage in stages]


def read_earlier(path: Path, source: str) -> Row:
    """The record that is there, if it is of these sources."""
    try:
        earlier: Row = json.loads(path.read_text())
        return earlier if earlier["machine"]["source_sha256"] == source else {}
    except (OSError, ValueError, KeyError):
        return {}


def grouped(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[tuple[str, str], Row]]:
    """{case: {(direction, provider): row}}"""
    groups: dict[tuple[Any, ...], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if "median_s" in row:
            case = (row["op"], row["dtype"], row["rows"], row["features"])
            groups.setdefault(case, {})[row["direction"], row["provider"]] = row
    return groups


def judge(rows: Sequence[Row]) -> list[Row]:
    """Each engine and case against the targets."""
    found = []
    for (op, dtype, batch, features), group in grouped(rows).items():
        for engine in ("cuda", "triton", "cpu"):
            ours = {d: group.get((d, engine)) for d in ("forward", "backward", "both")}
            both = ours["both"]
            if both is None:
                continue

            def over(other: str, key: str, both: Row = both, group: Any = group) -> float | None:
                theirs = group.get(("both", other), {}).get(key)
                return theirs / both[key] if theirs and both.get(key) else None

            large = both["tensor_bytes"] >= LARGE
            entry: Row = {"op": op, "dtype": dtype, "rows": batch, "features": features, "engine": engine}
            entry |= {f"{d}_of_copy": row["of_copy"] if row else None for d, row in ours.items()}
            entry |= {"both_s": both["median_s"], "large": large}
            entry |= {
                "over_compile": over("torch.compile", "median_s"),
                "over_eager": over("eager", "median_s"),
            }
            entry |= {
                "host_over_compile": over("torch.compile", "host_s"),
                "host_over_eager": over("eager", "host_s"),
            }
            compare: list[tuple[Any, float]]
            if large:
                compare = [(entry[f"{d}_of_copy"], OF_COPY[dtype]) for d in ("forward", "backward")]
                compare.append((entry["over_compile"], OVER_COMPILE.get(op, AS_FAST)))
                compare.append((entry["over_eager"], OVER_EAGER.get(op, 1.0)))
            else:
                compare = [(entry["over_compile"], 1.0), (entry["host_over_compile"], 1.0)]
            met = all(value is not None and value >= target for value, target in compare)
            judged = op in TARGETED and (large or "host_s" in both)
            entry["met"] = met if judged else None
            found.append(entry)
    return found


def table(stages: Sequence[Row], targets: Sequence[Row], left_out: Sequence[str]) -> list[str]:
    def number(value: float | None, scale: float = 1, digits: int = 2) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    lines = [f"{s['name']:<13} {s['result']:<5}{s['seconds']:>5} s  {s['note'][:90]}" for s in stages]
    if targets:
        lines += [
            "",
            "forward + backward; % of the bandwidth of a copy; times faster (device time; host time)",
        ]
        lines.append(
            f"{'':<46}{'us':>9}{'fwd %':>7}{'bwd %':>7}{'compile':>9}{'eager':>7}{'host: compile':>15}  targets"
        )
    for t in targets:
        case = f"{t['op']} {t['rows']}x{t['features']} {t['dtype']} {t['engine']}"
        line = f"{case:<46}{number(t['both_s'], 1e6, 1):>9}"
        line += f"{number(t['forward_of_copy'], 100, 0):>7}{number(t['backward_of_copy'], 100, 0):>7}"
        line += (
            f"{number(t['over_compile']):>9}{number(t['over_eager']):>7}{number(t['host_over_compile']):>15}"
        )
        lines.append(f"{line}  {MET[t['met']]}")
    if left_out:
        lines.append(f"not measured, no time: {', '.join(left_out)}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stages", type=Path, required=True, help="a line of each that has ended")
    parser.add_argument("--asked", default="", help="the stages of this call")
    parser.add_argument(
        "--facts", type=Path, required=True, help="where what takes torch to find out is kept"
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    out, source = arguments.out, source_hash()
    earlier, now = read_earlier(out / "record.json", source), read_stages(arguments.stages)
    stages = [*({s["name"]: s for s in earlier.get("stages", [])} | {s["name"]: s for s in now}).values()]
    measured = {"rows": earlier.get("benchmarks", []), "left_out": earlier.get("left_out", [])}
    if (rows := out / "rows.json").exists():  # bench_gpu's, perhaps as far as it came
        measured = json.loads(rows.read_text())
    targets = judge(measured["rows"])
    if arguments.dry_run:  # tiny sizes on a CPU: the columns are real, the numbers mean nothing
        for target in targets:
            target["met"] = None
    missing = [name for name in arguments.asked.split() if name not in {s["name"] for s in now}]
    passed = bool(stages) and not missing and all(stage["result"] != "fail" for stage in stages)
    verdict = ("PASS" if passed else "FAIL") + (" (dry run: no GPU was used)" if arguments.dry_run else "")
    skipped = [s["name"] for s in stages if s["result"] == "skip"]
    verdict += f" (skipped: {', '.join(skipped)})" if skipped else ""
    verdict += f" (not ended: {', '.join(missing)})" if missing else ""
    if not arguments.facts.exists():
        facts = [describe_machine(), describe_device(), versions()]
        arguments.facts.write_text(json.dumps(facts))
    machine, device, found = json.loads(arguments.facts.read_text())
    record = {
        "verdict": verdict,
        "dry_run": arguments.dry_run,
        "machine": machine | {"source_sha256": source},
        "device": device,
        "versions": found,
        "stages": stages,
        "targets": targets,
        "left_out": measured["left_out"],
        "benchmarks": measured["rows"],
    }
    partial = out / "record.json.new"
    partial.write_text(compact(record) + "\n")
    partial.replace(out / "record.json")
    text_of_device = device.get("name", "no GPU")
    head = f"{machine['time']}  {text_of_device}  torch {found['torch']}  commit {machine['commit'][:10] or 'unknown'}"
    text = "\n".join([head, *table(stages, targets, measured["left_out"]), verdict])
    (out / "summary.txt").write_text(text + "\n")
    print(f"\n{text}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
