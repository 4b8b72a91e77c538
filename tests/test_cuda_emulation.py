"""The CUDA sources themselves, run on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer.

cuda_emulation/checks_*.py hold the checks, which need a process of their own; this says what came of each.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cuda_emulation import build

HERE = Path(__file__).parent
CHECKS = sorted((HERE / "cuda_emulation").glob("checks_*.py"))
NAMES = [
    f"{path.stem}.{n.name}"
    for path in CHECKS
    for n in ast.parse(path.read_text()).body
    if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.no_poison,
    pytest.mark.skipif(sys.platform != "linux", reason="the emulation switches stacks as Linux does"),
    pytest.mark.skipif(build.preload() is None, reason=f"{build.COMPILER[0]} has no AddressSanitizer"),
]

# (file, text, planted instead, the kernel that is built with it, the checks that must see it)
DEFECTS = {
    "load out of bounds, of a value that nobody uses": (
        "cuda/memory.h",
        "word[i] = i < count ?",
        "word[i] = i <= count ?",
        "likelihood",
        "checks_likelihood and test_likelihood and dense",
    ),
    "store out of bounds": (
        "cuda/memory.h",
        "if (i < count) reinterpret_cast<T*>(data)[at[i]]",
        "if (i <= count) reinterpret_cast<T*>(data)[at[i]]",
        "noise",
        "checks_latent and test_noise and dense",
    ),
    "wide access of what is not aligned": (
        "cuda/access.h",
        "% alignment == 0 && (rows <= 1",
        "% 1 == 0 && (rows <= 1",
        "noise",
        "checks_latent and test_noise and odd_address",
    ),
    "a part of a batch with the noise of the first part": (
        "cuda/noise.h",
        "state.first_row + static_cast",
        "0 * state.first_row + static_cast",
        "noise",
        "checks_latent and test_noise_of_a_part_of_a_batch",
    ),
    "wrong lane": (
        "cuda/reduce.h",
        "value, offset);",
        "value, offset / 2);",
        "likelihood",
        "checks_likelihood and test_likelihood and dense",
    ),
    "shuffle in a branch": (
        "cuda/reduce.h",
        "value += __shfl_xor_sync(",
        "if (threadIdx.x % 4) value += __shfl_xor_sync(",
        "likelihood",
        "checks_likelihood and test_likelihood and dense",
    ),
    "no barrier between writing and reading the warps' sums": (
        "cuda/reduce.h",
        "warps[threadIdx.x / kWarp] = value;\n  __syncthreads();",
        "warps[threadIdx.x / kWarp] = value;",
        "likelihood",
        "checks_likelihood and test_likelihood and dense",
    ),
    "no barrier before the ticket": (
        "cuda/reduce.h",
        "__threadfence();\n  __syncthreads();\n  if",
        "__threadfence();\n  if",
        "likelihood",
        "order_of_blocks",
    ),
    "no barrier after the ticket": (
        "cuda/reduce.h",
        "== blocks - 1;\n  __syncthreads();",
        "== blocks - 1;",
        "likelihood",
        "order_of_blocks",
    ),
    "no barrier in the sum over rows": (
        "cuda/reduce.h",
        "half /= 2) {\n    __syncthreads();",
        "half /= 2) {",
        "likelihood",
        "checks_likelihood and test_shared_variance and per_feature",
    ),
    "no barrier between two sums over rows": (
        "cuda/reduce.h",
        "__syncthreads();  // the sum before this one has been read\n#pragma unroll",
        "#pragma unroll",
        "latent",
        "checks_latent and test_prior and per_feature",
    ),
    "no barrier between two sums over a block": (
        "cuda/reduce.h",
        "__syncthreads();  // the sum before this one has been read\n  if",
        "if",
        "latent",
        "checks_latent and test_prior and constant",
    ),
    "a barrier that not all come to": (
        "cuda/reduce.h",
        "half /= 2) {\n    __syncthreads();\n    if (static_cast<int>(threadIdx.x) < half)",
        "half /= 2) {\n    if (static_cast<int>(threadIdx.x) >= half) break;\n    __syncthreads();",
        "likelihood",
        "checks_likelihood and test_shared_variance and per_feature",
    ),
    "a mask that backward forgets": (
        "cuda/likelihood.cu",
        "= kept ? upstream[0] * value(by[p]) : 0.0f;",
        "= kept || !kept ? upstream[0] * value(by[p]) : 0.0f;",
        "likelihood",
        "checks_likelihood and test_mask",
    ),
    "no barrier between writing and reading the warps' terms": (
        "cuda/categorical.cu",
        "warps[threadIdx.x / kWarp] = terms;\n  __syncthreads();",
        "warps[threadIdx.x / kWarp] = terms;",
        "categorical",
        "checks_categorical and order_of_blocks",
    ),
    "terms that meet in one direction only": (
        "cuda/categorical.cu",
        "    other.raise(top);\n",
        "",
        "categorical",
        "checks_categorical and test_layouts and dense",
    ),
    "a store past the last parameter": (
        "cuda/mixture.cu",
        "p < MixtureLayout<C>::per_component * components",
        "p <= MixtureLayout<C>::per_component * components",
        "mixture",
        "checks_mixture and masks",
    ),
    "the first block taken for the last": (
        "cuda/reduce.h",
        "static_cast<unsigned>(blocks - 1)) == blocks - 1",
        "static_cast<unsigned>(blocks - 1)) == 0",
        "likelihood",
        "checks_likelihood and test_likelihood and dense",
    ),
}


def run(*arguments: str, module: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "LD_PRELOAD": build.preload() or "",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "VAE_FAST_CUDA_EMULATION": str(module),
        "VAE_FAST_CUDA_FLAGS": " ".join(build.FLAGS),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    environment.pop("VAE_FAST_BACKEND", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=HERE.parent, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each check the messages of its failures; an empty list if all is well."""
    folder, module = tmp_path_factory.mktemp("cuda_emulation"), build.build()
    outcomes: dict[str, list[str]] = {name: [] for name in NAMES}
    seen = set()

    def check(half: int) -> tuple[Path, str]:
        """A part of the checks, in a process of their own: its report and its output."""
        report, files = folder / f"report{half}.xml", map(str, CHECKS[half::2])
        options = ("-q", "-p", "no:cacheprovider", f"--junitxml={report}")
        done = run("-m", "pytest", *files, *options, module=module)
        return report, (done.stdout + done.stderr)[-6000:]

    with ThreadPoolExecutor(2) as pool:
        for report, output in pool.map(check, range(2)):
            if not report.exists():  # a sanitizer ended the process
                return {name: [output] for name in NAMES}
            for case in ET.parse(report).iter("testcase"):
                name = (
                    f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name', '').partition('[')[0]}"
                )
                seen.add(name)
                outcomes[name] += [
                    f"{case.get('name')}: {bad.text}"
                    for kind in ("failure", "error", "skipped")
                    for bad in case.iter(kind)
                ]
    for name in NAMES:
        if name not in seen:
            outcomes[name] = ["did not run"]
    return outcomes


@pytest.mark.parametrize("check", NAMES)
def test_emulated_kernels(outcomes: dict[str, list[str]], check: str) -> None:
    assert not outcomes[check], "\n".join(outcomes[check])


def test_planted_defects_are_seen() -> None:
    def status(some: list[tuple[str, str, str, str, str]]) -> list[str]:
        arguments = []
        for file, text, other, kernel, checks in some:
            arguments += [str(build.build((file, text, other), kernel)), checks]
        done = run("-m", "cuda_emulation.defects", *arguments)
        found = [
            line.removeprefix("status ") for line in done.stdout.splitlines() if line.startswith("status ")
        ]
        assert len(found) == len(some), done.stdout + done.stderr
        return found

    build.build()
    defects = list(DEFECTS.items())
    with ThreadPoolExecutor(2) as pool:
        halves = [defects[0::2], defects[1::2]]
        found = list(pool.map(status, [[defect for _, defect in half] for half in halves]))
    missed = {
        name: line
        for half, lines in zip(halves, found, strict=True)
        for (name, _), line in zip(half, lines, strict=True)
        if line.startswith("0 ") or "nothing" in line
    }
    assert not missed
