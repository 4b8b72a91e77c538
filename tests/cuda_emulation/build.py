"""Compiles csrc/cuda for the CPU: the same sources, the same bindings, under the sanitizers (see cuda_emulation.h).

Objects are kept in the temporary directory, named by the hash of all that goes into them.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"vae_fast-cuda-emulation-{getpass.getuser()}"
COMPILER = os.environ.get("CXX", "g++").split()
_KERNELS = re.findall(r"^VAE_FAST_KERNEL\((\w+?)_", (ROOT / "csrc/api/ops.def").read_text(), re.MULTILINE)
OPS = list(dict.fromkeys(_KERNELS))  # one source each
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# What is inlined into every kernel takes most of the compiler's time, the sanitizers' code along with it.
CALLS = ["-O1", "-fno-inline", "-Dalways_inline=unused"]
FMA = (
    ["-mfma", "-mf16c"]
    if platform.machine() == "x86_64" and " fma " in Path("/proc/cpuinfo").read_text()
    else []
)
FLAGS = [
    "-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", *FMA,
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DVAE_FAST_CUDA_EMULATION", f"-I{HERE}",
    '-DVAE_FAST_CUDA_ARCHITECTURES="emulated"', '-DVAE_FAST_CUDA_TOOLKIT="none"',
]  # fmt: skip


def preload() -> str | None:
    """What must be loaded first in a Python process for the sanitizers: their library, and the C++ one, whose throw
    they replace. None where the compiler has none."""
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        try:
            found = subprocess.run(
                [*COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        paths.append(found.stdout.strip())
    return " ".join(paths) if all(Path(p).is_absolute() for p in paths) else None


def _headers(csrc: Path) -> list[Path]:
    return sorted([*csrc.rglob("*.h"), *csrc.rglob("*.def")])


def _compile(csrc: Path, source: Path, flags: list[str]) -> Path:
    key = hashlib.sha256(repr((COMPILER, FLAGS, flags)).encode())
    for path in [source, *_headers(csrc), *sorted(HERE.glob("*.h"))]:
        key.update(path.name.encode() + path.read_bytes())
    target = CACHE / f"{source.stem}-{key.hexdigest()[:20]}.o"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}-{get_ident()}")
        command = [*COMPILER, *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.rename(target)
    return target


def build(defect: tuple[str, str, str] | None = None, kernel: str = "") -> Path:
    """The extension module. A defect is a (file in csrc, text, other text), planted in a copy that `kernel` is built
    from."""
    import pybind11

    CACHE.mkdir(exist_ok=True)
    includes = [f"-I{p}" for p in (pybind11.get_include(), sysconfig.get_path("include"))]
    csrc = ROOT / "csrc"
    jobs = [(csrc / "cuda" / f"{k}.cu", [*CALLS, *SANITIZERS]) for k in OPS]
    jobs.append((HERE / "emulation.cpp", ["-O2"]))
    jobs.append((csrc / "bindings" / "cuda.cpp", ["-O0", *includes]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(csrc, *job), jobs))
    if defect is not None:
        with tempfile.TemporaryDirectory() as copy:
            objects.insert(0, _compile(*_planted(Path(copy), defect, kernel), [*CALLS, *SANITIZERS]))
        objects.remove(objects[1 + OPS.index(kernel)])
    # The first definition of an inline function is the one that is linked, so a defect in a header counts.
    name = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:20]
    module = CACHE / name / "_cuda.so"
    if not module.exists():
        module.parent.mkdir(exist_ok=True)
        partial = module.with_suffix(f".{os.getpid()}-{get_ident()}")
        link = [*COMPILER, "-shared", *SANITIZERS, *map(str, objects), "-o", str(partial)]
        subprocess.run(link, check=True, capture_output=True, text=True)
        partial.rename(module)
    return module


def _planted(copy: Path, defect: tuple[str, str, str], kernel: str) -> tuple[Path, Path]:
    file, text, other = defect
    csrc = copy / "csrc"
    for path in [*_headers(ROOT / "csrc"), ROOT / "csrc" / "cuda" / f"{kernel}.cu"]:
        target = csrc / path.relative_to(ROOT / "csrc")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    names = csrc / "api" / "likelihoods.def"  # with two of them it compiles in a fraction of the time
    few = [
        line for line in names.read_text().splitlines() if re.search(r", (Bernoulli|Gaussian),|#undef", line)
    ]
    names.write_text("\n".join(few) + "\n")
    content = (csrc / file).read_text()
    assert text in content, f"{file} has no {text!r}"
    (csrc / file).write_text(content.replace(text, other))
    return csrc, csrc / "cuda" / f"{kernel}.cu"
