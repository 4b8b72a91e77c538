"""Builds the native engines and names the packages. Everything else about the package is in pyproject.toml.

The extensions know nothing of torch, so a build needs a C++17 compiler and pybind11, takes seconds, and one build
serves every torch version. A build that fails leaves the package installable: the reference backend serves, and
`vae-fast doctor` shows the reason. Environment:

    VAE_FAST_CPU=0            leave the CPU engine out (1: fail if it cannot be built; default: try)
    VAE_FAST_CUDA=0           leave the CUDA engine out (1: fail if it cannot be built; default: build it where nvcc is
                              and a GPU, its driver or TORCH_CUDA_ARCH_LIST says that it is wanted)
    TORCH_CUDA_ARCH_LIST      GPU architectures, as "8.0;9.0+PTX" (default: 8.0;9.0;10.0+PTX)
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"

# Strict floating point: the compiler neither fuses nor reorders, so every instruction set gives the same bits.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-DNDEBUG",  # else pybind11 asks for the GIL at every reference it counts
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]

# One translation unit an op (its kernels are named NAME_...), compiled once per instruction set; never -march=native in
# a package.
_KERNELS = re.findall(r"^VAE_FAST_KERNEL\((\w+?)_", (CSRC / "api" / "ops.def").read_text(), re.MULTILINE)
OPS = list(dict.fromkeys(_KERNELS))
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] += ["-Wno-uninitialized"]  # GCC 12 warns of its own headers' minimum and maximum


# No fast math and no fusing of its own either: approximations are chosen by name (csrc/math/approximate.h), and what
# takes none has the bits of the CPU engine.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "--fmad=false",
    "-Xfatbin=-compress-all",  # machine code too, a sixth of its size
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unknown-pragmas",
]
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    at_home = Path(home) / "bin" / "nvcc" if home else None
    return str(at_home) if at_home and at_home.exists() else shutil.which("nvcc")


def cuda_wanted() -> bool:
    """Whether a plain build makes the CUDA engine: nvcc is here, and somebody has a GPU or says for which."""
    driver = shutil.which("nvidia-smi") or ctypes.util.find_library("cuda")
    return find_nvcc() is not None and bool(driver or os.environ.get("TORCH_CUDA_ARCH_LIST"))


def parse_architectures(text: str) -> list[str]:
    """ "8.0;9.0+PTX" as torch writes it, commas and spaces too -> ["80", "90+PTX"]."""
    found = re.findall(r"[^;, ]+", text)
    for name in found:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise ValueError(f"TORCH_CUDA_ARCH_LIST has {name!r}, it takes numbers as in '8.0;9.0;10.0+PTX'")
    return [name.replace(".", "", 1) for name in found]


def gencode(architectures: list[str]) -> list[str]:
    """Every architecture's code from the PTX of the oldest: nothing here needs a newer one, and the slower half of the
    compiler runs once. "+PTX" keeps that PTX, for GPUs to come.
    """
    numbers = [name.removesuffix("+PTX") for name in architectures]
    oldest = min(int(number.rstrip("af")) for number in numbers)
    code = [f"sm_{number}" for number in numbers]
    if numbers != architectures:
        code.append(f"compute_{oldest}")
    return ["-gencode", f"arch=compute_{oldest},code=[{','.join(code)}]"]


class Build(build_ext):
    """Compiles the CPU engine's objects side by side, then links them; `python setup.py build_ext --inplace`."""

    def build_extension(self, ext: Extension) -> None:
        cuda = ext.name.endswith("_cuda")
        name, variable = ("CUDA", "VAE_FAST_CUDA") if cuda else ("CPU", "VAE_FAST_CPU")
        wish = os.environ.get(variable, "auto")
        if wish == "0" or (cuda and wish != "1" and not cuda_wanted()):
            print(f"vae_fast: {name} engine left out ({variable}={wish})", file=sys.stderr)
            return
        try:
            self.build_cuda(ext) if cuda else self.build_cpu(ext)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            if wish == "1":
                raise
            server = "Triton" if cuda else "the reference backend"
            print(
                f"vae_fast: the {name} engine could not be built, {server} serves: {error}", file=sys.stderr
            )

    def build_cpu(self, ext: Extension) -> None:
        import pybind11

        compiler = os.environ.get("CXX", "c++").split()
        openmp = ["-fopenmp"] if self.accepts(compiler, "-fopenmp") else []
        objects = Path(self.build_temp).absolute() / "cpu"
        objects.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{p}" for p in (pybind11.get_include(), *self.compiler.include_dirs)]
        jobs: list[tuple[Path, Path, list[str]]] = [
            (CSRC / "cpu" / f"{op}.cpp", objects / f"{op}.{isa}.o", [f"-DVAE_FAST_ISA={isa}", *flags])
            for op in OPS
            for isa, flags in ISA_FLAGS.items()
        ]
        jobs += [
            (CSRC / "cpu" / f"{name}.cpp", objects / f"{name}.o", openmp)
            for name in ("dispatch", "engine", "pool")
        ]
        jobs += [(CSRC / "bindings" / "cpu.cpp", objects / "bindings.o", includes)]
        extra = os.environ.get("CXXFLAGS", "").split()

        def compile_one(job: tuple[Path, Path, list[str]]) -> None:
            source, target, flags = job
            subprocess.run(
                [*compiler, *FLAGS, *WARNINGS, *extra, *flags, "-c", str(source), "-o", str(target)],
                check=True,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, jobs))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        link = [
            *compiler,
            "-shared",
            *openmp,
            *undefined,
            *extra,
            *(str(o) for _, o, _ in jobs),
            "-o",
            str(target),
        ]
        subprocess.run(link, check=True)

    def build_cuda(self, ext: Extension) -> None:
        import pybind11

        nvcc = find_nvcc()
        if nvcc is None:
            raise OSError("nvcc was not found, neither in CUDA_HOME nor on PATH")
        architectures = parse_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES)
        release = re.search(r"release ([0-9.]+)", subprocess.check_output([nvcc, "--version"], text=True))
        host = ["-ccbin", os.environ["CXX"].split()[0]] if os.environ.get("CXX") else []
        defines = [
            f'-DVAE_FAST_CUDA_ARCHITECTURES="{" ".join(architectures)}"',
            f'-DVAE_FAST_CUDA_TOOLKIT="{release[1] if release else "unknown"}"',
        ]
        objects = Path(self.build_temp).absolute() / "cuda"
        objects.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        common = [nvcc, *host, *NVCC_FLAGS, *defines]
        commands = [
            [
                *common,
                *gencode(architectures),
                "-c",
                str(CSRC / "cuda" / f"{op}.cu"),
                "-o",
                str(objects / f"{op}.o"),
            ]
            for op in OPS
        ]
        includes = [f"-I{p}" for p in (pybind11.get_include(), *self.compiler.include_dirs)]
        bindings = [
            *common,
            *includes,
            "-c",
            str(CSRC / "bindings" / "cuda.cpp"),
            "-o",
            str(objects / "bindings.o"),
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: subprocess.run(command, check=True), [*commands, bindings]))
        parts = [str(objects / f"{name}.o") for name in (*OPS, "bindings")]
        # The runtime is linked in: nothing to find and nothing to clash with the one that torch brings.
        subprocess.run([nvcc, *host, "-shared", "-cudart", "static", *parts, "-o", str(target)], check=True)

    def accepts(self, compiler: list[str], flag: str) -> bool:
        probe = subprocess.run(
            [*compiler, flag, "-x", "c++", "-", "-shared", "-fPIC", "-o", os.devnull],
            input=b"",
            capture_output=True,
        )
        return probe.returncode == 0


setup(
    license="MIT",
    packages=[*find_packages(include=["vae_fast", "vae_fast.*"]), "vae_fast_benchmarks"],
    package_dir={"vae_fast_benchmarks": "benchmarks"},
    ext_modules=[
        Extension("vae_fast.backends.native._cpu", sources=[], optional=True),
        Extension("vae_fast.backends.native._cuda", sources=[], optional=True),
    ],
    cmdclass={"build_ext": Build},
)
