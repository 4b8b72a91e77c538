"""Every CUDA kernel compiled by nvcc for sm_80, sm_90 and sm_100 with PTX; ptxas's report and the SASS are read.

No GPU and no driver is needed. Objects are kept in the temporary directory, named by the hash of all that goes into
them, so that only what has changed is compiled.
"""

from __future__ import annotations

import ast
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cuda_emulation.build import OPS

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CACHE = Path(tempfile.gettempdir()) / f"vae_fast-cuda-compile-{getpass.getuser()}"
HOME = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
NVCC = shutil.which("nvcc", path=f"{HOME}/bin") if HOME else shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
PTX = "compute_80"
LIKELIHOODS = re.findall(r"VAE_FAST_LIKELIHOOD\(\w+, (\w+),", (CSRC / "api/likelihoods.def").read_text())
LIGHT = [
    name
    for file in (CSRC / "formulas/likelihoods").glob("*.h")
    for name in re.findall(r"struct (\w+) \{(?:(?!struct )[^}])*is_light = true;", file.read_text())
]


def expected() -> dict[str, set[str]]:
    """The kernels there should be, as csrc/cuda/access.h says it: those with a prior, with sums over the batch or with
    long arithmetic have no form of 8 elements."""
    narrow = ("float32", "narrow", "any")
    access = (*narrow, "bfloat16", "float16", "wide")
    latent = {f"latent_forward {a} 0" for a in access} | {f"latent_forward {a} 1" for a in narrow}
    latent |= {f"latent_backward {a} 0 0" for a in access}
    latent |= {f"latent_backward {a} 1 {sums}" for a in narrow for sums in "01"}
    likelihood = set()
    for name in LIKELIHOODS:
        forms = access if name in LIGHT else narrow
        likelihood |= {f"likelihood_forward {a} {name}" for a in forms}
        likelihood |= {f"likelihood_backward {a} {name} 0" for a in forms}
        likelihood |= {f"likelihood_backward {a} {name} 1" for a in narrow}
    ways, counts = ("forward", "backward"), "01"
    return {
        "latent": latent,
        "likelihood": likelihood,
        "categorical": {f"categorical_{way} {a} {c}" for way in ways for a in access for c in counts},
        "mixture": {f"mixture_{way} {channels}" for way in ways for channels in "13"},
        "noise": {f"noise_fill {a}" for a in access},
    }


# Access<size, dense, dtype>, mangled
ACCESS = {
    "4ELb1ELNS_5DTypeE0": "float32", "8ELb1ELNS_5DTypeE1": "bfloat16", "8ELb1ELNS_5DTypeE2": "float16",
    "8ELb1ELNS_5DTypeEn1": "wide", "4ELb1ELNS_5DTypeEn1": "narrow", "4ELb0ELNS_5DTypeEn1": "any",
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")]

# What the kernels are made of, one Philox call for four normals, and nothing around it.
PROBE = """
#include "math/approximate.h"
#include "math/philox.h"
using namespace vae_fast;
__global__ void normals(float4* out, RngState state, int calls) {
  const unsigned i = threadIdx.x;
#pragma unroll 1
  for (int c = 0; c < calls; ++c) {  // 8 normals, as a thread of the kernels makes them
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const Words w = state.words(2 * c + g, i);
      const NormalPair<float> a = approximate_box_muller(w.w0, w.w1), b = approximate_box_muller(w.w2, w.w3);
      out[2 * c + g] = make_float4(a.first, a.second, b.first, b.second);
    }
    state.key0 += i, state.key1 += i;  // new round keys each time
  }
}
"""


def flags() -> list[str]:
    """NVCC_FLAGS of setup.py, which cannot be imported."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "NVCC_FLAGS":
            return list(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no NVCC_FLAGS")


def sass_tool() -> str | None:
    """cuobjdump of CUDA, or the one that triton brings."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return shutil.which("cuobjdump") or (str(bundled) if bundled.exists() else None)


FLAGS = (
    flags()
)  # here, where one thread reads them: ast.parse of Python 3.11 fails at random where several do


def compiled(source: Path) -> tuple[Path, str]:
    """The object for all architectures, and what ptxas says about it."""
    assert NVCC is not None
    gencode = f"-gencode=arch={PTX},code=[{','.join((*ARCHITECTURES, PTX))}]"  # as setup.py
    command = [NVCC, *FLAGS, gencode, "-Xptxas", "-v", f"-I{CSRC}"]
    key = hashlib.sha256(repr(command).encode() + subprocess.check_output([NVCC, "--version"]))
    for path in [source, *sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.def")])]:
        key.update(path.name.encode() + path.read_bytes())
    target = CACHE / f"{source.stem}-{key.hexdigest()[:20]}.o"
    report = target.with_suffix(".txt")
    if not report.exists():
        CACHE.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.o")
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(partial)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr, done.stderr
        partial.rename(target)
        report.write_text(done.stdout + done.stderr)
    return target, report.read_text()


@pytest.fixture(scope="module")
def objects() -> dict[str, tuple[Path, str]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(compiled, [CSRC / "cuda" / f"{k}.cu" for k in OPS])
    return dict(zip(OPS, found, strict=True))


def readable(mangled: str) -> str:
    """Kernel<Access, ...> of a mangled name: `latent_forward wide 0`, `likelihood_backward float32 Gaussian 1`."""
    found = re.search(
        r"(latent|likelihood|categorical|mixture|noise)_(forward|backward|fill)I(.*)E[vE]", mangled
    )
    assert found, mangled
    rest = found[3]
    words = [f"{found[1]}_{found[2]}"]
    for code, name in ACCESS.items():
        if f"6AccessILi{code}EE" in rest:
            words.append(name)
            rest = rest.replace(f"6AccessILi{code}EE", "")
    words += re.findall(rf"\d({'|'.join(LIKELIHOODS)})E", rest)
    return " ".join(words + re.findall(r"L[bi](\d)E", rest))


def entries(report: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(architecture, kernel, numbers) for every kernel that ptxas compiled."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    for name, architecture, *numbers in re.findall(pattern, report, re.DOTALL):
        values = dict(
            zip(("stack", "spill stores", "spill loads", "registers"), map(int, numbers), strict=True)
        )
        yield architecture, name, values


def sass(target: Path, architecture: str) -> dict[str, list[tuple[int, str]]]:
    """The instructions of each kernel: address and text, without predicates."""
    tool = sass_tool()
    if tool is None:
        pytest.skip("neither CUDA's nor triton's cuobjdump is here")
    command = [tool, "-sass", "-arch", architecture, str(target)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[tuple[int, str]]] = {}
    for line in text.splitlines():
        if name := re.search(r"Function : (\w+)", line):
            functions[name[1]] = current = []
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][^;]*);", line):
            current.append((int(found[1], 16), found[2]))
    return functions


def test_the_library_is_small(objects: dict[str, tuple[Path, str]]) -> None:
    """Under 25 MB for three architectures and PTX; linking adds the runtime's 1 MB."""
    sizes = {kernel: path.stat().st_size / 1e6 for kernel, (path, _) in objects.items()}
    print({kernel: round(size, 2) for kernel, size in sizes.items()})
    assert sum(sizes.values()) < 20


@pytest.mark.parametrize("kernel", OPS)
def test_nothing_spills(objects: dict[str, tuple[Path, str]], kernel: str) -> None:
    found = list(entries(objects[kernel][1]))
    for architecture in ARCHITECTURES:
        names = [readable(name) for where, name, _ in found if where == architecture]
        assert sorted(names) == sorted(expected()[kernel])
    for architecture, name, numbers in found:
        registers = numbers.pop("registers")
        print(f"{architecture:7} {readable(name):40} {registers:4} registers")
        assert not any(numbers.values()), (architecture, readable(name), numbers)
        # Its five sums and two negative binomials leave room for one block (csrc/cuda/likelihood.cu).
        is_large = readable(name).endswith("NegativeBinomialMixture 1")
        assert registers <= (255 if is_large else 128), "two blocks must fit a processor"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", OPS)
def test_dense_accesses_are_128_bits_wide(
    objects: dict[str, tuple[Path, str]], kernel: str, architecture: str
) -> None:
    functions = sass(objects[kernel][0], architecture)
    assert {readable(name) for name in functions} == expected()[kernel]
    for name, instructions in functions.items():
        used = Counter(text.split()[0] for _, text in instructions)
        what = f"{readable(name)}: {dict(used.most_common(8))}"
        assert not any(op.startswith(("LDL", "STL")) for op in used), what
        if not set(ACCESS.values()) - {"any"} & set(readable(name).split()):
            continue  # one by one: any strides, and a mixture's pixels, side by side in the threads of a warp
        if "noise" not in readable(name):
            assert any(re.match(r"LDG\.E\S*\.128", op) for op in used), what
        if not readable(name).startswith(("likelihood_forward", "categorical_forward")):
            assert any(re.match(r"STG\.E\S*\.128", op) for op in used), what


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instructions_per_normal(architecture: str, tmp_path: Path) -> None:
    """What bounds the latent kernels in 16 bits is this number, not the memory: csrc/cuda/noise.h."""
    probe = tmp_path / "probe.cu"
    probe.write_text(PROBE)
    (instructions,) = sass(compiled(probe)[0], architecture).values()
    loops = []
    for address, text in instructions:
        target = re.search(r"^BRA\S* .*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append([t.split()[0] for a, t in instructions if int(target[1], 16) <= a <= address])
    (loop,) = loops
    print(f"{architecture}: {len(loop) / 8:.1f} instructions a normal, {Counter(loop).most_common(8)}")
    assert len(loop) / 8 < 30
    slow_paths = [text for _, text in instructions if text.startswith("RET")]
    assert not slow_paths, "square root and division need no subroutine here"
