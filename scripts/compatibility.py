#!/usr/bin/env python3
"""Tries what README and the documentation say of PyTorch's tools, and writes docs/compatibility.md.

    scripts/compatibility.py                                                     in this environment
    scripts/compatibility.py --integrations .venv-integrations/bin/python        and, there, ONNX and Lightning

A feature is tried by tests, which `FEATURES` names: a file, a test, or those of its cases that a pattern fits. It
passes if one ran and none failed. The table is written either way; a feature that fails ends in exit status 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "compatibility.md"
Results = dict[tuple[str, str], str]  # {(file, name): what the test did}
PACKAGES = ("torch", "triton", "numpy", "accelerate", "lightning", "onnx", "onnxscript", "onnxruntime")


class Feature(NamedTuple):
    name: str
    tests: tuple[str, ...]  # tests/test_NAME.py, without the ends; [pattern] of a case's name
    is_integration: bool = False  # takes what tests/integrations/requirements.txt installs


def feature(name: str, *tests: str, is_integration: bool = False) -> Feature:
    return Feature(name, tests, is_integration)


FEATURES: dict[str, list[Feature]] = {
    "Compilers and exporters": [
        feature("torch.compile, whole graphs, dynamic shapes", "compile::test_whole_graph*", "compile::test_inductor"),
        feature("torch.compile, one graph for every batch", "dynamic_shapes::test_one_graph_of_a_vae_for_all_batches"),
        feature("torch.export, a batch without bound", "dynamic_shapes::test_export_bounds_no_batch"),
        feature("torch.export, saved and loaded elsewhere", "dynamic_shapes::test_exported_vaes_in_another_process"),
        feature("AOTInductor, every batch", "tools::test_aot_inductor_takes_every_batch"),
        feature("compiled autograd of an eager model", "tools::test_compiled_autograd_is_one_graph_for_every_batch"),
        feature("torch.jit.trace, saved and loaded", "tools::test_a_traced_vae_is_saved_and_takes_other_batches"),
        feature("torch.library.opcheck", "compile::test_opcheck_*", "linear_likelihood::test_library_op"),
        feature("fake and meta tensors, dispatch modes", "compile::test_meta_*", "compile::test_dispatch_*"),
        feature("ONNX, encode and decode", "integrations/onnx::test_equal_numbers[*code]", is_integration=True),
        feature(
            "ONNX, a sampling encoder: noise as an input, rng_state as an input, ONNX's own random op",
            "integrations/onnx::test_equal_numbers[s*]",
            "integrations/onnx::test_a_sampling_encoder_*",
            is_integration=True,
        ),
    ],
    "Tools": [
        feature("torch.func: grad, jvp, vmap", "compile::test_functorch", "compile::test_a_tensor_that_escaped_*"),
        feature("forward-mode AD", "compile::test_forward_mode"),
        feature("activation checkpointing", "latent::test_checkpointing_makes_the_same_noise"),
        feature("autocast", "nn::test_autocast", "nn::test_encoder_under_autocast"),
        feature("FlopCounterMode", "tools::test_*flop*"),
        feature("stateless keys (torch.func._random) as rng_state", "tools::test_a_key_of_torch_is_a_state"),
        feature(
            "resizing, pickling and sharing of large outputs, within the limit below",
            "tools::test_a_large_output_*",
            "native_cpu::test_without_the_cache_outputs_are_resized",
            "native_cpu::test_sharding_and_offloading_take_large_outputs",
        ),
        feature("CUDA graphs", "gpu::test_*graph*"),
    ],
    "Several processes (gloo, on one machine)": [
        feature("one process and many draw the same", "processes::test_*draw*"),
        feature("ranks share no noise", "processes::test_ranks_*"),
        feature("DDP with fused heads", "processes::test_ddp_*", "sharded::test_two_processes[ddp]"),
        feature("FSDP2: forward, encode, elbo, generate, reconstruct", "sharded::test_two_processes[fsdp-[!a]*]"),
        feature("FSDP2 by vae-fast train --fsdp: one process, 2; resumed", "processes::test_sharded_*"),
        feature("ZeRO", "sharded::test_two_processes[zero]"),
        feature("DTensor batches through every op", "sharded::test_two_processes[op-*]"),
        feature("fused heads on a sharded weight", "sharded::test_two_processes[head-*]"),
        feature("tensor parallelism, also with FSDP2", "sharded::test_two_processes[*tensor-parallel*]"),
        feature("vae-fast train: 1, 2 and 4 processes; resumed", "processes::test_train_on_several_*"),
        feature("a process is killed: the other stops, the checkpoint resumes", "processes::test_a_killed_*"),
    ],
    "Training frameworks": [
        feature("plain PyTorch: examples/train_pytorch.py", "examples::test_resume[train_pytorch]"),
        feature("Accelerate: examples/train_accelerate.py", "examples::test_resume[train_accelerate]"),
        feature("Lightning: examples/train_lightning.py", "integrations/lightning::test_resume", is_integration=True),
    ],
}  # fmt: skip
LIMITS = """## Limits

- Outputs of 1 MiB and more on a CPU lie in memory that vae_fast keeps for the next ones, as fresh pages cost
  a third more time. To torch they are as a tensor over a numpy array: `resize_` to more, `out=` that has to
  grow and `untyped_storage().resize_` raise "not resizable". FSDP, FSDP2 and activation offloading resize
  none of these. `VAE_FAST_CACHE_MB=0` leaves all memory to torch.
- The kernels have no second derivative; `vae_fast.backend("reference")` has.
- FlopCounterMode counts matrix products, as it does for torch's own ops. Of a fused head it counts those of a
  loss that is a sum or a mean over samples.
- ONNX: give `torch.onnx.export(..., dynamo=True)` the module, not an exported program, and neither a
  generator. With nothing given the noise is ONNX's own; with `rng_state` it is vae_fast's.
- `torch.jit.trace` and AOTInductor keep what grad mode was when they traced: in a model that was traced with
  gradients, fused heads take theirs in every forward pass.

How two processes compare with one in time, and what more would move: [scaling.md](scaling.md). Pythons, torch
and Triton: [versions.md](versions.md). GPUs: [gpu.md](gpu.md).
"""


def split(test: str) -> tuple[str, str, str]:
    """The file, and patterns of the function's name and of the case's."""
    path, _, function = test.partition("::")
    folder, _, name = path.rpartition("/")
    function, _, case = function.partition("[")
    return f"tests/{folder and folder + '/'}test_{name}.py", function or "*", case[:-1] if case else "*"


def fits(test: str, path: str, name: str) -> bool:
    own_path, function, case = split(test)
    own_function, _, own_case = name.partition("[")
    return path == own_path and fnmatchcase(own_function, function) and fnmatchcase(own_case[:-1], case)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Where this file is a plugin of pytest: only the tests of features are run."""
    tests = [t for group in FEATURES.values() for f in group for t in f.tests]
    items[:] = [i for i in items if any(fits(t, *i.nodeid.split("::", 1)) for t in tests)]


def run(interpreter: str, features: Sequence[Feature], jobs: int) -> Results:
    files = sorted({split(test)[0] for f in features for test in f.tests})
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "scripts", "tests"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            interpreter,
            "-W",
            "ignore",
            "-m",
            "pytest",
            "-q",
            "-p",
            "compatibility",
            f"--junitxml={report}",
        ]
        command += ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
        subprocess.run([*command, *files], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False)
        if not report.exists():
            raise SystemExit(f"pytest did not start with {interpreter}")
        results = {}
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            result = (
                "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            )
            results[case.attrib["classname"].replace(".", "/") + ".py", case.attrib["name"]] = result
    return results


def judge(feature: Feature, results: Results) -> str:
    for test in feature.tests:
        if not any(fits(test, *key) for key in results):
            return f"fails: no test fits {test}"
    found = [result for key, result in results.items() if any(fits(test, *key) for test in feature.tests)]
    passed, failed = found.count("passed"), found.count("failed")
    if failed:
        return f"fails: {failed} of {len(found)} tests"
    return f"passes ({passed} test{'s' if passed > 1 else ''})" if passed else "not tried here"


def describe(feature: Feature) -> str:
    names = []
    for test in feature.tests:
        path, function, case = split(test)
        case = "" if case == "*" else f"[{case}]"
        names.append(f"`{path.removeprefix('tests/')}{'' if function == '*' else '::' + function}{case}`")
    return ", ".join(names)


def versions(interpreter: str) -> str:
    code = (
        "import importlib.metadata as m, platform, sys\nfound = ['Python ' + platform.python_version()]\n"
        "for name in sys.argv[1:]:\n"
        "    try: found.append(name + ' ' + m.version(name))\n"
        "    except m.PackageNotFoundError: pass\nprint(', '.join(found))"
    )
    done = subprocess.run([interpreter, "-c", code, *PACKAGES], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--integrations", metavar="PYTHON", nargs="+", default=[], help="have lightning, onnxruntime"
    )
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    features = [f for group in FEATURES.values() for f in group]
    results = run(sys.executable, [f for f in features if not f.is_integration], options.jobs)
    for interpreter in options.integrations:
        found = run(interpreter, [f for f in features if f.is_integration], 1)
        results |= {key: result for key, result in found.items() if results.get(key) != "passed"}
    lines = [
        "# What works with what",
        "",
        "Made by `scripts/compatibility.py`, which runs the tests named. A GPU is not tried.",
        "",
        *(f"- {versions(interpreter)}" for interpreter in (sys.executable, *options.integrations)),
        f"- {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "",
    ]
    failed = False
    for title, group in FEATURES.items():
        lines += [
            f"## {title}",
            "",
            "| feature | result | how it was tried, in tests/ |",
            "| --- | --- | --- |",
        ]
        for f in group:
            known = results if not f.is_integration or options.integrations else {}
            result = judge(f, known) if known else "not tried here"
            failed |= result.startswith("fails")
            lines.append(f"| {f.name} | {result} | {describe(f)} |")
        lines.append("")
    text = "\n".join([*lines, LIMITS])
    TABLE.write_text(text)
    print(text)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
