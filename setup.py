"""Builds the native engines. Everything about the package itself is in pyproject.toml.

The extensions know nothing of torch, so a build needs a C++17 compiler and pybind11, takes seconds, and one build
serves every torch version. A build that fails leaves the package installable: the reference backend serves, and
`vae-fast doctor` shows the reason. Environment:

    VAE_FAST_CPU=0            leave the CPU engine out (1: fail if it cannot be built; default: try)
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"

# Strict floating point: the compiler neither fuses nor reorders, so every instruction set gives the same bits.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]

# One translation unit a kernel, compiled once per instruction set; never -march=native in a package.
KERNELS = ["latent", "likelihood", "noise"]
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]


class Build(build_ext):
    """Compiles the CPU engine's objects side by side, then links them; `python setup.py build_ext --inplace`."""

    def build_extension(self, ext: Extension) -> None:
        wish = os.environ.get("VAE_FAST_CPU", "auto")
        if wish == "0":
            print("vae_fast: CPU engine left out (VAE_FAST_CPU=0)", file=sys.stderr)
            return
        try:
            self.build_cpu(ext)
        except (OSError, subprocess.CalledProcessError) as error:
            if wish == "1":
                raise
            print(f"vae_fast: the CPU engine could not be built, the reference backend serves: {error}", file=sys.stderr)

    def build_cpu(self, ext: Extension) -> None:
        import pybind11

        compiler = os.environ.get("CXX", "c++").split()
        openmp = ["-fopenmp"] if self.accepts(compiler, "-fopenmp") else []
        objects = Path(self.build_temp).absolute() / "cpu"
        objects.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{p}" for p in (pybind11.get_include(), *self.compiler.include_dirs)]
        jobs: list[tuple[Path, Path, list[str]]] = [
            (CSRC / "cpu" / f"{kernel}.cpp", objects / f"{kernel}.{isa}.o", [f"-DVAE_FAST_ISA={isa}", *flags])
            for kernel in KERNELS
            for isa, flags in ISA_FLAGS.items()
        ]
        jobs += [(CSRC / "cpu" / f"{name}.cpp", objects / f"{name}.o", openmp) for name in ("dispatch", "engine", "pool")]
        jobs += [(CSRC / "bindings" / "cpu.cpp", objects / "bindings.o", includes)]
        extra = os.environ.get("CXXFLAGS", "").split()

        def compile_one(job: tuple[Path, Path, list[str]]) -> None:
            source, target, flags = job
            subprocess.run([*compiler, *FLAGS, *WARNINGS, *extra, *flags, "-c", str(source), "-o", str(target)], check=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, jobs))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        link = [*compiler, "-shared", *openmp, *undefined, *extra, *(str(o) for _, o, _ in jobs), "-o", str(target)]
        subprocess.run(link, check=True)

    def accepts(self, compiler: list[str], flag: str) -> bool:
        probe = subprocess.run([*compiler, flag, "-x", "c++", "-", "-shared", "-fPIC", "-o", os.devnull], input=b"", capture_output=True)
        return probe.returncode == 0


setup(
    ext_modules=[Extension("vae_fast.backends.native._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": Build},
)
