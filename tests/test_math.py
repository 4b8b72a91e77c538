"""Every function of csrc/math is as exact as its comment says, on every instruction set that this machine has.

A comment of csrc/math reads `Error of NAME: ARGUMENT in [LOW, HIGH], ...; BOUND UNIT, BOUND without FMA`, and ranges
and bounds stand nowhere else; math_cases.py gives the C++ expression and the true value of each NAME. The expressions
are compiled over one float, a vector and a pair of vectors, which must agree to the bit.
"""

from __future__ import annotations

import ast
import ctypes
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mpmath import mp, mpf

from math_cases import CASES, Array

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX", "c++").split()
COUNT, EXACT_COUNT = 1 << 18, 1 << 11  # inputs of a function whose true values numpy knows, or mpmath alone
WIDTHS = ("float", "vf32", "VectorPair<vf32>")

SOURCE = """
#include "csrc/cpu/simd/vector_pair.h"
#include "csrc/math/normal.h"
#include "csrc/math/philox.h"
#include "csrc/math/special.h"

#define EXPORTED extern "C" __attribute__((visibility("default"))) void

namespace vae_fast {

template <class F> F power_of(F k) {  // 2^k of an integer k
  return bit_cast<F>((bit_cast<u32_of<F>>(k + splat<F>(12582912.0f)) << 23) + 0x3F800000u);
}

template <class F, class Function> void map(const float* a, const float* b, float* out, std::int64_t n, Function f) {
  for (std::int64_t i = 0; i < n; i += sizeof(F) / sizeof(float)) {
    F x, y;
    memcpy(&x, a + i, sizeof(F));
    memcpy(&y, b + i, sizeof(F));
    const F result = f(x, y);
    memcpy(out + i, &result, sizeof(F));
  }
}

}  // namespace vae_fast
"""
FUNCTION = """
namespace vae_fast {{
template <class F> struct of_{name} {{ static F call(F x, F y) {{ return (void)x, (void)y, {expression}; }} }};
}}
EXPORTED test_{name}(int width, const float* a, const float* b, float* out, std::int64_t n) {{
  using namespace vae_fast;
  if (width == 0) vae_fast::map<float>(a, b, out, n, of_{name}<float>::call);
  if (width == 1) vae_fast::map<vf32>(a, b, out, n, of_{name}<vf32>::call);
  if (width == 2) vae_fast::map<VectorPair<vf32>>(a, b, out, n, of_{name}<VectorPair<vf32>>::call);
}}
"""


class Bound(NamedTuple):
    ranges: list[tuple[float, float] | None]  # of each argument; None for any bits
    unit: str
    with_fma: float
    without_fma: float


def parse_bounds() -> dict[str, Bound]:
    found = {}
    for path in sorted((ROOT / "csrc" / "math").glob("*.h")):
        for name, rest in re.findall(r"// Error of (\w+): (.*)", path.read_text()):
            ranges, _, bounds = rest.partition("; ")
            edges = re.findall(r"in (?:\[(\S+), (\S+)\]|words)", ranges)
            match = re.fullmatch(r"(\S+) (\w+[^,]*?)(?:, (\S+) without FMA)?", bounds)
            assert match and name not in found, f"{path.name}: {name}: {rest}"
            with_fma, unit, without = match.groups()
            parsed = [(to_number(a), to_number(b)) if a else None for a, b in edges]
            found[name] = Bound(parsed, unit, float(with_fma), float(without or with_fma))
    return found


def to_number(text: str) -> float:
    """A number, or a power as 2^-126."""
    base, _, power = text.partition("^")
    return float(base) ** int(power) if power else float(text)


BOUNDS = parse_bounds()


def read_flags() -> tuple[list[str], dict[str, list[str]]]:
    """The compiler's flags in setup.py: the common ones, and those of the instruction sets that this machine has."""
    lists = re.findall(
        r"^ *(?:ISA_)?FLAGS(?:\[.(\w+).\])? = (\[[^]]*\])", (ROOT / "setup.py").read_text(), re.MULTILINE
    )
    flags = {isa: ast.literal_eval(text) for isa, text in lists}
    cpuinfo = Path("/proc/cpuinfo")
    here = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    common = flags.pop("")
    isas = {isa: own for isa, own in flags.items() if {flag.removeprefix("-m") for flag in own} <= here}
    return common, {"baseline": [], **isas}


COMMON_FLAGS, ISA_FLAGS = read_flags()


def has_fma(isa: str) -> bool:
    return "-mfma" in ISA_FLAGS[isa] or platform.machine() in ("aarch64", "arm64")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("math")
    source = folder / "functions.cpp"
    functions = (FUNCTION.format(name=name, expression=case.expression) for name, case in CASES.items())
    source.write_text(SOURCE + "".join(functions))

    def compile_one(isa: str) -> ctypes.CDLL:
        target = folder / f"{isa}.so"
        flags = [*COMMON_FLAGS, *ISA_FLAGS[isa], "-O1", "-w", "-shared", f"-I{ROOT}"]
        command = [*COMPILER, *flags, str(source), "-o", str(target)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        return ctypes.CDLL(str(target))

    try:
        subprocess.run([*COMPILER, "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip(f"no compiler: {COMPILER[0]}")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ISA_FLAGS, pool.map(compile_one, ISA_FLAGS), strict=True))


def sample(bounds: tuple[float, float] | None, count: int, seed: int) -> Array:
    """float32 numbers: a third by their magnitude, the others evenly and evenly in [-2, 2], and edges."""
    rng = np.random.default_rng(seed)
    if bounds is None:
        edges = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**30, 3 * 2**30, 2**24], np.uint32)
        pairs = np.stack([np.repeat(edges, len(edges)), np.tile(edges, len(edges))])[seed]
        random = rng.integers(0, 2**32, count - len(pairs), np.uint32)
        random[::2] >>= rng.integers(0, 32, len(random[::2]), np.uint32)  # small ones, too
        return np.concatenate([pairs, random]).view(np.float32)
    low, high = bounds
    least = min(abs(low), abs(high)) if low * high > 0 else 2.0**-149
    size = np.exp(rng.uniform(np.log(least), np.log(max(abs(low), abs(high))), count // 3))
    signs = rng.choice([s for s in (-1, 1) if s * low > 0 or s * high > 0], len(size))
    special = [low, high, 0, 1, -1, 0.5, -0.5, 2, 2**-126, 2**-149, 2**-24, 0.5**0.5, 2**0.5]
    edges = np.array(special, np.float32)
    with np.errstate(over="ignore"):
        edges = np.concatenate([edges, *(np.nextafter(edges, np.float32(to)) for to in (-np.inf, np.inf))])
    middle = rng.uniform(np.clip(low, -2, 2), np.clip(high, -2, 2), count // 3)
    even = rng.uniform(low, high, count - len(size) - len(middle) - len(edges))
    x = np.concatenate([edges, signs * size, middle, even]).astype(np.float32)
    return rng.permutation(np.clip(x, np.float32(low), np.float32(high)))


def inputs(name: str) -> tuple[Array, Array, Array, Array]:
    """x, y, the true values, and the unit in which errors count."""
    case, bound = CASES[name], BOUNDS[name]
    count = EXACT_COUNT if case.exact else COUNT
    args = [sample(bounds, count, seed) for seed, bounds in enumerate(bound.ranges)]
    if case.prepare is not None:
        args = [np.ascontiguousarray(a, np.float32) for a in case.prepare(*args)]
    wide = [a if bound.ranges[0] is None else a.astype(np.float64) for a in args]
    with np.errstate(all="ignore"):
        if case.exact:
            points = zip(*(map(mpf, a.tolist()) for a in wide), strict=True)
            true = np.array([float(case.true(*point)) for point in points])
        else:
            true = np.asarray(case.true(*wide), np.float64)
        scale = true if case.scale is None else case.scale(*wide)
    unit = np.ones_like(true)
    if bound.unit.startswith("ulp"):
        unit = np.ldexp(1.0, np.maximum(np.frexp(scale)[1] - 1, -126) - 23)
    return args[0], args[-1], true, unit


def call(library: ctypes.CDLL, name: str, width: int, x: Array, y: Array) -> Array:
    out = np.empty_like(x)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, y, out)]
    getattr(library, f"test_{name}")(width, *pointers, ctypes.c_int64(len(x)))
    return out


def largest_error(got: Array, true: Array, unit: Array) -> tuple[float, int]:
    """In units, and where: of what fits float32."""
    fits = np.abs(true) <= float(np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        error = np.where(fits, np.abs(got.astype(np.float64) - true) / unit, 0.0)
    error = np.where(np.isnan(error), np.inf, error)
    worst = int(np.argmax(error))
    return float(error[worst]), worst


def test_every_comment_has_a_case() -> None:
    assert set(BOUNDS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_error(name: str, libraries: dict[str, ctypes.CDLL]) -> None:
    bound = BOUNDS[name]
    with mp.workdps(100):  # of which Stirling's error of a large number takes most
        x, y, true, unit = inputs(name)
    by_fma: dict[bool, Array] = {}
    for isa, library in libraries.items():
        of_width = [call(library, name, width, x, y) for width in range(len(WIDTHS))]
        allowed = bound.with_fma if has_fma(isa) else bound.without_fma
        error, i = largest_error(of_width[0], true, unit)
        assert error >= allowed / 3, f"{isa}: {name}'s comment allows {allowed}, of which {error:.3g} is used"
        assert error <= allowed, (
            f"{isa}: {name}({x[i]!r}, {y[i]!r}) = {of_width[0][i]!r}, not {true[i]!r}: {error:.3g}"
        )
        for kind, other in zip(WIDTHS[1:], of_width[1:], strict=True):
            assert (of_width[0].view(np.int32) == other.view(np.int32)).all(), f"{isa}: {kind}"
        same = by_fma.setdefault(has_fma(isa), of_width[0])
        assert (same.view(np.int32) == of_width[0].view(np.int32)).all(), f"{isa} is not like the others"


def test_coefficients_are_those_of_the_fits() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fit_polynomials.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
