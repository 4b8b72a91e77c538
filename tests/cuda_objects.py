"""The CUDA kernels compiled by nvcc for ARCHITECTURES with PTX, ptxas's report and the SASS.

No GPU and no driver is needed. Objects are kept in the temporary directory, named by the hash of all that goes into
them, so that only what has changed is compiled. They hold the device's code alone: the same sources' host code is
compiled by cuda_emulation, with every warning an error.
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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cuda_emulation.build import OPS

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CACHE = Path(tempfile.gettempdir()) / f"vae_fast-cuda-compile-{getpass.getuser()}"
HOME = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
NVCC = shutil.which("nvcc", path=f"{HOME}/bin") if HOME else shutil.which("nvcc")
# sm_100 as well takes a third more of the compiler's time: by the environment, after a change to the kernels.
ARCHITECTURES = tuple(os.environ.get("VAE_FAST_TEST_ARCHITECTURES", "sm_80 sm_90").split())
PTX = "compute_80"
COUNTS = re.findall(r"VAE_FAST_LIKELIHOOD\(\w+, (\w+), true\)", (CSRC / "api/likelihoods.def").read_text())
LIKELIHOODS = re.findall(r"VAE_FAST_LIKELIHOOD\(\w+, (\w+),", (CSRC / "api/likelihoods.def").read_text())

# Access<size, dense, dtype>, mangled
ACCESS = {
    "4ELb1ELNS_5DTypeE0": "float32", "8ELb1ELNS_5DTypeE1": "bfloat16", "8ELb1ELNS_5DTypeE2": "float16",
    "8ELb1ELNS_5DTypeEn1": "wide", "4ELb1ELNS_5DTypeEn1": "narrow", "4ELb0ELNS_5DTypeEn1": "any",
}  # fmt: skip


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


SASS_TOOL = sass_tool()
FLAGS = (
    flags()
)  # here, where one thread reads them: ast.parse of Python 3.11 fails at random where several do


def compiled(source: Path) -> tuple[Path, str]:
    """The object for all architectures, and what ptxas says about it."""
    assert NVCC is not None
    gencode = f"-gencode=arch={PTX},code=[{','.join((*ARCHITECTURES, PTX))}]"  # as setup.py
    command = [NVCC, *FLAGS, gencode, "-Xptxas", "-v", f"-I{CSRC}", "-fatbin"]
    key = hashlib.sha256(repr(command).encode() + subprocess.check_output([NVCC, "--version"]))
    for path in [source, *sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.def")])]:
        key.update(path.name.encode() + path.read_bytes())
    target = CACHE / f"{source.stem}-{key.hexdigest()[:20]}.fatbin"
    report = target.with_suffix(".txt")
    if not report.exists():
        CACHE.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.fatbin")
        done = subprocess.run([*command, str(source), "-o", str(partial)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr, done.stderr
        partial.rename(target)
        report.write_text(done.stdout + done.stderr)
    return target, report.read_text()


def compile_ops(ops: Iterable[str] = OPS) -> dict[str, tuple[Path, str]]:
    """compiled() of each op's source."""
    ops = list(ops)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ops, pool.map(compiled, [CSRC / "cuda" / f"{op}.cu" for op in ops]), strict=True))


def readable(mangled: str) -> str:
    """Kernel<Access, ...> of a mangled name: `latent_forward wide 0`, `likelihood_backward float32 Gaussian 1`."""
    if found := re.search(r"\d(pairwise_[a-z_]+)E", mangled):  # no template
        return found[1]
    found = re.search(
        r"(latent|importance|likelihood|categorical|mixture|noise)_((?:form_)?(?:forward|backward|fill))I(.*)E[vE]",
        mangled,
    )
    assert found, mangled
    rest = found[3]
    words = [f"{found[1]}_{found[2]}"]
    for code, name in ACCESS.items():
        if f"6AccessILi{code}EE" in rest:
            words.append(name)
            rest = rest.replace(f"6AccessILi{code}EE", "")
    if "12SparseTarget" in rest:
        words.append("sparse")
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


def registers(target: Path) -> int:
    """Of the kernel in a cubin."""
    command = [SASS_TOOL or "cuobjdump", "-res-usage", str(target)]
    found = re.search(
        r"REG:(\d+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    assert found
    return int(found[1])


class Instruction(NamedTuple):
    address: int
    predicate: str  # "@!P0", or nothing
    text: str


def sass(target: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel of an object or a cubin. Those of an object are kept beside it."""
    kept = target.with_suffix(f".{architecture}.sass")
    if not kept.exists():
        command = [SASS_TOOL or "cuobjdump", "-sass", "-arch", architecture, str(target)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = re.findall(r"Function : \w+|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?[A-Z][^;]*;", text)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text("\n".join(lines))
        partial.rename(kept)
    functions: dict[str, list[Instruction]] = {}
    for line in kept.read_text().splitlines():
        if line.startswith("Function"):
            functions[line.split()[-1]] = current = []
        else:
            address, predicate, text = re.match(r"/\*(\w+)\*/\s+(@\S+ )?(.*?)\s*;", line).groups()  # type: ignore[union-attr]
            current.append(Instruction(int(address, 16), (predicate or "").strip(), text))
    return functions
