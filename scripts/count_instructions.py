#!/usr/bin/env python3
"""Counts the machine instructions an element of every GPU kernel, by pipe, and says what they allow of copy bandwidth.

    scripts/count_instructions.py                 the table of both engines, float32 and bfloat16
    scripts/count_instructions.py --only latent   kernels whose name holds this
    scripts/count_instructions.py --json FILE     a record
    scripts/count_instructions.py --update        the figures that tests/test_instruction_counts.py holds the kernels
                                                  to, and the table in docs/gpu-counts.md

No GPU is needed: the kernels are compiled for sm_90 and their SASS is read (sass.py). Of CUDA's kernels the loop over a
row is counted, of Triton's whole programs. Dense tensors, rows of 1024, a mixture of 10 components and 3 channels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from sass import Code
from sass import Path as HotPath

import cuda_objects
from vae_fast.likelihoods import ELEMENTWISE

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "tests/instruction_counts.json"
PAGE = ROOT / "docs/gpu-counts.md"
ARCHITECTURE = "sm_90"
ITEM = {"float32": 4, "bfloat16": 2}
COLUMNS, COMPONENTS, CHANNELS = 1024, 10, 3


class Gpu(NamedTuple):
    processors: int
    clock: float  # Hz, under load
    copy: float  # bytes a second, read and written


GPUS = {"H100": Gpu(132, 1.7e9, 3.0e12), "H200": Gpu(132, 1.7e9, 4.2e12)}
# Lanes that a processor of compute capability 9.0 serves in a clock: the CUDA programming guide's table of throughput,
# but IMAD.WIDE, which is taken to hold the multiplier twice as long as an IMAD.
RATES = {"issue": 128, "alu": 64, "multiplier": 64, "fma": 128, "fp64": 64, "xu": 16, "lsu": 32}
# Of copy bandwidth, the most that a kernel gets whose memory never waits, and of a pipe's rate, whose lanes never do.
MEMORY_LIMIT, PIPE_LIMIT = 0.95, 0.9
# How sharp the bend is between the two: 5 gives 0.8 where both limits are 0.95 and 0.9.
SHARPNESS = 5
FEW_THREADS, FEW_FACTOR = 512, 0.97  # resident threads that leave some latency in sight


class Work(NamedTuple):
    """What a kernel does, the same on both engines: tensors of the dtype that it reads and writes for an element."""

    loads: int
    stores: int
    broadcast: int = 0  # of the loads, those of one row for all samples, which come from the cache

    def bytes(self, item: int) -> int:
        return (self.loads - self.broadcast + self.stores) * item


PER_COMPONENT = 1 + 3 * CHANNELS
PARAMETERS = PER_COMPONENT * COMPONENTS  # of a pixel
WORK = {
    "noise_fill": Work(0, 1),
    "latent_forward": Work(2, 1),
    "latent_backward": Work(3, 2),
    "latent_forward prior": Work(4, 1),
    "latent_backward prior": Work(5, 4),
    "latent_backward shared_prior": Work(5, 2, 2),
    "importance_forward": Work(2, 1),  # of one draw
    "importance_backward": Work(3, 2),
    **{
        f"likelihood_{way} {name}": Work(1 + len(spec.parameters), len(spec.parameters) * (way == "backward"))
        for name, spec in ELEMENTWISE.items()
        for way in ("forward", "backward")
    },
    "likelihood_forward csr": Work(2, 0),  # with a target in CSR form: of what is not stored
    "likelihood_backward csr": Work(2, 2),
    "categorical_forward classes": Work(1, 0),
    "categorical_backward classes": Work(1, 1),
    "categorical_forward counts": Work(2, 0),
    "categorical_backward counts": Work(2, 1),
    "mixture_forward": Work(PARAMETERS, 0),
    "mixture_backward": Work(PARAMETERS, PARAMETERS),
}


@dataclass
class Count:
    """Instructions of an element, of a mixture's pixel."""

    name: str
    engine: str
    dtype: str
    bytes: float
    path: HotPath
    elements: float  # that the path is for
    registers: int
    threads: int  # of a block

    @property
    def key(self) -> str:
        return f"{self.engine} {self.name} {self.dtype}"

    @property
    def instructions(self) -> float:
        return self.path.total() / self.elements

    def of(self, pipe: str) -> float:
        """Lanes of a pipe that an element takes."""
        n = self.path.pipes()
        wide, narrow = n.get("wide multiplier", 0), n.get("multiplier", 0)
        found = {
            "issue": self.path.total(),
            "multiplier": narrow + 2 * wide,
            "fma": n.get("fma", 0) + narrow + 2 * wide,
        }
        return found.get(pipe, n.get(pipe, 0)) / self.elements

    @property
    def mufu(self) -> float:
        return self.path.count("MUFU") / self.elements

    @property
    def resident(self) -> int:
        each = -(-self.registers // 8) * 8
        return min(2048, 65536 // (each * self.threads) * self.threads)

    def ceiling(self, gpu: Gpu, pipe: str) -> float:
        """Copy bandwidth that the pipe keeps up with, as a fraction."""
        clocks = self.bytes / (gpu.copy / gpu.processors / gpu.clock)
        return clocks * RATES[pipe] / max(self.of(pipe), 1e-9)

    def binding(self, gpu: Gpu) -> str:
        return min(RATES, key=lambda pipe: self.ceiling(gpu, pipe))

    def predicted(self, gpu: Gpu) -> float:
        """Of copy bandwidth."""
        lowest = self.ceiling(gpu, self.binding(gpu))
        limits = (MEMORY_LIMIT, PIPE_LIMIT * lowest)
        fraction = sum(limit**-SHARPNESS for limit in limits) ** (-1 / SHARPNESS)
        return fraction * (FEW_FACTOR if self.resident <= FEW_THREADS else 1)

    def record(self) -> dict[str, Any]:
        return {
            "instructions": round(self.instructions, 2),
            "pipes": {pipe: round(self.of(pipe), 2) for pipe in RATES},
            "mufu": round(self.mufu, 2),
            "bytes": self.bytes,
            "registers": self.registers,
            "predicted": {
                name: {"of_copy": round(self.predicted(gpu), 3), "bound_by": self.binding(gpu)}
                for name, gpu in GPUS.items()
            },
        }


# ---- CUDA ----

# MUFU an element that only the long way through a likelihood has, forward in a formula for all elements of a chunk, and
# backward in a loop over them: a whole number above 0, and a theta below 1.
CSR = "negative_binomial"  # the likelihood that is counted with a target in CSR form
COUNTED = {
    "poisson": (3, 1),
    "negative_binomial": (8, 7),
    "zero_inflated_negative_binomial": (10, 10),
    "negative_binomial_mixture": (16, 18),
}
DTYPES = re.findall(r"X\((\w+),", (cuda_objects.CSRC / "api/tensor_view.h").read_text())
STRUCTS = dict(
    re.findall(r"VAE_FAST_LIKELIHOOD\((\w+), (\w+),", (cuda_objects.CSRC / "api/likelihoods.def").read_text())
)


class Template(NamedTuple):
    """Kernel<Access, ...> of a mangled name."""

    kernel: str  # "latent_forward"
    size: int  # elements of a dense access, 0 of others
    dtype: str | None  # the one that the kernel is for
    likelihood: str | None
    flags: tuple[int, ...]  # the other arguments


def template(mangled: str) -> Template:
    found = re.search(
        r"\d((?:latent|importance|likelihood|categorical|mixture|noise)_(?:form_)?(?:forward|backward|fill))I(.*)E[vE]",
        mangled,
    )
    assert found, mangled
    access = re.search(r"6AccessILi(\d)ELb([01])E(?:LNS_5DTypeE(n?\d+)E)?", found[2])
    rest = found[2].replace(access[0], "") if access else found[2]
    dtype = re.search(r"5DTypeE(n?\d+)E", found[2])
    known = dtype is not None and not dtype[1].startswith("n")
    return Template(
        found[1],
        int(access[1]) * int(access[2]) if access else 1,
        DTYPES[int(dtype[1])] if dtype and known else None,
        next((name for name, struct in STRUCTS.items() if re.search(rf"\d{struct}E", rest)), None),
        tuple(int(n) for n in re.findall(r"L[bi](\d)E", rest)),
    )


def flags_of(name: str) -> tuple[int, ...]:
    """The template arguments of a kernel behind its access and likelihood."""
    kernel, _, what = name.partition(" ")
    return {
        "noise_fill": (),
        "latent_forward": (int(what != ""),),
        "latent_backward": (int(what != ""), int(what == "shared_prior")),
        "importance_forward": (0,),
        "importance_backward": (0, 0),
        "likelihood_forward": (),
        "likelihood_backward": (0,),
        "categorical_forward": (int(what == "counts"),),
        "categorical_backward": (int(what == "counts"),),
        "mixture_forward": (CHANNELS,),
        "mixture_backward": (CHANNELS,),
    }[kernel]


def count_cuda(names: Sequence[str], dtypes: Sequence[str] = tuple(ITEM)) -> Iterator[Count]:
    # CUDA's kernel of a CSR target, which is for tensors of any strides and dtypes, is not counted.
    names = [name for name in names if not name.endswith(" csr")]
    objects = cuda_objects.compile_ops({name.partition("_")[0] for name in names})
    code, registers = {}, {}
    for target, report in objects.values():
        code.update(cuda_objects.sass(target, ARCHITECTURE))
        for architecture, mangled, numbers in cuda_objects.entries(report):
            if architecture == ARCHITECTURE:
                registers[mangled] = numbers["registers"]
    templates = {mangled: template(mangled) for mangled in code}
    for name in names:
        kernel, _, what = name.partition(" ")
        for dtype in dtypes:
            found = []
            for mangled, t in templates.items():
                fits = (
                    t.kernel == kernel and t.size and t.dtype in (None, dtype) and t.flags == flags_of(name)
                )
                if fits and (t.likelihood is None or t.likelihood == what):
                    counted = _count_cuda(name, dtype, t, code[mangled])
                    if counted is not None:
                        path, elements = counted
                        found.append(
                            Count(
                                name,
                                "cuda",
                                dtype,
                                bytes_of(name, dtype),
                                path,
                                elements,
                                registers[mangled],
                                256,
                            )
                        )
            assert found, f"no path through {name} of {dtype} on CUDA"
            yield min(found, key=lambda count: count.instructions)


def component_trips(once: HotPath) -> float:
    """Rounds of a loop over a mixture's components, of the largest logit or of all parameters; 0 of one over pixels."""
    loads = once.count("LDG")
    if not once.count("MUFU"):
        return COMPONENTS / loads
    components = loads // PER_COMPONENT
    return 0 if components >= COMPONENTS else COMPONENTS / components


def bytes_of(name: str, dtype: str) -> float:
    return WORK[name].bytes(ITEM[dtype]) + (
        CHANNELS if name.startswith("mixture") else 0
    )  # a target of uint8


def _count_cuda(name: str, dtype: str, t: Template, code: Sequence[Any]) -> tuple[HotPath, float] | None:
    work, kernel = WORK[name], name.partition(" ")[0]
    forbidden = r"HADD2\.F32" if dtype == "bfloat16" else None
    if kernel.startswith("mixture"):
        load = r"LDG\.E(\.U16)?(\.CONSTANT)?$" if dtype == "bfloat16" else r"LDG\.E(\.CONSTANT)?$"
        # The largest logit, four a round; the sums; the gradients.
        need = {load: 5 + PER_COMPONENT * (1 + (work.stores > 0)), "STG": min(work.stores, PER_COMPONENT)}
        path = Code(code, trips=component_trips, inner_need={load: 1}).loop(need)
        return (path, 1.0) if path else None
    if t.size * ITEM[dtype] > 16 and t.dtype is None:
        return None  # such a kernel reads 16 bits at most
    width = 8 * min(16, t.size * ITEM[dtype])
    each = max(1, t.size * ITEM[dtype] // 16)
    # not of partial sums
    load, store = rf"LDG\.E(?!\S*STRONG)\S*\.{width}", rf"STG\.E\S*\.{width}"
    need = {load: each * work.loads, store: each * work.stores}
    if kernel == "noise_fill" or kernel.startswith(("latent", "importance")):
        need[r"MUFU\.(RSQ|SQRT)"] = t.size // 2  # noise is drawn
    if kernel == "categorical_backward":
        need["FFMA|MUFU"] = 2 * t.size  # the class is not ignored
    forward, backward = COUNTED.get(t.likelihood or "", (0, 0))
    need["MUFU"] = backward if kernel.endswith("backward") else forward * t.size
    inner = {pattern: n for pattern, n in need.items() if pattern.startswith("MUFU\\")}  # the loop over draws
    if kernel == "likelihood_backward":
        inner = {"MUFU": backward}
    size = float(t.size)

    def each_element(once: HotPath) -> float:
        return size if t.likelihood and not once.count(load) else 1

    path = Code(code, forbidden=forbidden, trips=each_element, inner_need=inner).loop(need)
    return (path, size * max(1, round(path.count(load) / max(1, each * work.loads)))) if path else None


# ---- Triton ----

SAMPLES = 65536
IMAGES, PIXELS = 4096, 1024


def launch_of(name: str, dtype: torch.dtype) -> Callable[[], None]:
    """A call whose first launch is the kernel."""
    from triton_objects import floats, tensors
    from vae_fast.backends import triton as kernels

    kernel, _, what = name.partition(" ")
    state = torch.empty(2, dtype=torch.int64, device="meta")
    function, each = getattr(kernels, kernel), floats(SAMPLES)
    if kernel == "noise_fill":
        return lambda: function(*tensors(1, 1, SAMPLES, COLUMNS, dtype=dtype), state)
    if kernel.startswith("latent"):
        mu, logvar, *grads = tensors(8, SAMPLES, COLUMNS, dtype=dtype)
        (row,) = tensors(1, COLUMNS, dtype=dtype)
        prior = (
            (row.expand_as(mu), row.expand_as(mu))
            if what == "shared_prior"
            else tuple(grads[4:])
            if what
            else None
        )
        rest = (mu, logvar, prior, state, None, None)
        if kernel == "latent_forward":
            return lambda: function(*rest, z=grads[0], kl=each)
        of_prior = (
            (floats(COLUMNS), floats(COLUMNS))
            if what == "shared_prior"
            else tuple(grads[2:4])
            if what
            else None
        )
        z = tensors(1, SAMPLES, COLUMNS, dtype=dtype)[0]
        return lambda: function(z, each, *rest, grad_mu=grads[0], grad_logvar=grads[1], grad_prior=of_prior)
    if kernel.startswith("importance"):
        mu, logvar = tensors(2, SAMPLES, COLUMNS, dtype=dtype)
        (z,), weights = tensors(1, 1, SAMPLES, COLUMNS, dtype=dtype), floats(1, SAMPLES)
        rest = (mu, logvar, None, state, None, None)
        if kernel == "importance_forward":
            return lambda: function(*rest, z=z, weights=weights)
        return lambda: function(z, weights, *rest, grad_mu=mu, grad_logvar=logvar, grad_prior=None)
    if what == "csr":
        from vae_fast.likelihoods.csr import Csr

        params, stored = tensors(2, SAMPLES, COLUMNS, dtype=dtype), SAMPLES * COLUMNS // 20
        crow, col = (torch.empty(n, dtype=torch.int32, device="meta") for n in (SAMPLES + 1, stored))
        x = Csr(crow, col, torch.empty(stored, dtype=torch.uint16, device="meta"), COLUMNS)
        if kernel == "likelihood_forward":
            return lambda: function(CSR, params, x, None, None, nll=each)
        return lambda: function(CSR, params, x, None, None, each, grads=params)
    if kernel.startswith("likelihood"):
        x, *params = tensors(WORK[f"likelihood_forward {what}"].loads, SAMPLES, COLUMNS, dtype=dtype)
        if kernel == "likelihood_forward":
            return lambda: function(what, params, x, None, None, nll=each)
        return lambda: function(what, params, x, None, None, each, grads=params)
    if kernel.startswith("categorical"):
        (logits,), sums = tensors(1, SAMPLES, 1, COLUMNS, dtype=dtype), tensors(3, SAMPLES, 1)
        target = logits if what == "counts" else torch.empty(SAMPLES, 1, dtype=torch.int64, device="meta")
        if kernel == "categorical_forward":
            return lambda: function(logits, target, **dict(zip(("nll", "lse", "total"), sums, strict=True)))
        return lambda: function(logits, target, *sums, grad_logits=logits)
    (packed,) = tensors(1, IMAGES, PARAMETERS, PIXELS, dtype=dtype)
    (target,) = tensors(1, IMAGES, CHANNELS, PIXELS, dtype=torch.uint8)
    if kernel == "mixture_forward":
        return lambda: function(packed, target, None, nll=floats(IMAGES))
    return lambda: function(packed, target, None, floats(IMAGES), grad_params=packed)


def count_triton(names: Sequence[str], dtypes: Sequence[str] = tuple(ITEM)) -> Iterator[Count]:
    import triton

    from triton_objects import Driver
    from vae_fast.backends.triton import launch

    started: list[tuple[launch.Job, Any]] = []

    def start(job: launch.Job, arguments: Sequence[Any]) -> None:
        started.append((job, launch.compile_for(job, arguments)))

    before = triton.runtime.driver._active, launch.start
    triton.runtime.driver._active, launch.start = Driver(ARCHITECTURE), start
    launch.forget()
    try:
        for name in names:
            for dtype in dtypes:
                started.clear()
                launch_of(name, getattr(torch, dtype))()
                job, compiled = started[0]
                yield _count_triton(name, dtype, job, compiled.asm["cubin"])
    finally:
        triton.runtime.driver._active, launch.start = before
        launch.forget()


def option(job: Any, name: str) -> Any:
    """A constant that the kernel was compiled with."""
    names = job.kernel.arg_names[-len(job.rest) :]
    return job.rest[names.index(name)]


def _count_triton(name: str, dtype: str, job: Any, cubin: bytes) -> Count:
    work = WORK[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        (code,) = cuda_objects.sass(file, ARCHITECTURE).values()
        registers = cuda_objects.registers(file)
    elements = IMAGES * PIXELS if name.startswith("mixture") else SAMPLES * COLUMNS
    each = elements / (job.grid[0] * job.grid[1] * job.threads)

    item, mixture = ITEM[dtype], name.startswith("mixture")

    def trips(once: HotPath) -> float:
        if mixture:
            return component_trips(once) or option(job, "STEPS")
        op, tensors = ("STG", work.stores) if work.stores else ("LDG", work.loads)
        at_once = sum(width // 8 * once.count(rf"{op}\S*\.{width}") for width in (64, 128)) / (item * tensors)
        if at_once:
            return each / at_once
        return (
            1 if name.startswith("importance") else 2
        )  # a draw; the components of the negative binomial mixture

    need = {"LDG": PER_COMPONENT if mixture else work.loads, "STG": min(work.stores, PER_COMPONENT)}
    whole = Code(code, trips=trips)
    if (
        "binomial" in name or "poisson" in name
    ):  # loops of one block are the careful form of an extreme tile's counts
        whole.closed |= {at for at, body in whole.bodies.items() if len(body) == 1}
    path = whole.whole(need)
    assert path is not None, name
    return Count(name, "triton", dtype, bytes_of(name, dtype), path, each, registers, job.threads)


# ---- the report ----

ENGINES = {"cuda": count_cuda, "triton": count_triton}


def versions() -> dict[str, str]:
    """Of the compilers that are here."""
    found = {}
    if cuda_objects.NVCC:
        text = subprocess.run(
            [cuda_objects.NVCC, "--version"], capture_output=True, text=True, check=True
        ).stdout
        found["cuda"] = re.search(r"release ([\d.]+)", text)[1]  # type: ignore[index]
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    return found


def budgets() -> list[str]:
    """What a byte of memory traffic leaves time for, at copy speed."""
    lines = [
        "| GPU | copy, TB/s | processors | GHz | " + " | ".join(f"{pipe} lanes" for pipe in RATES) + " |",
        "| --- |" + " --- |" * (3 + len(RATES)),
    ]
    for name, gpu in GPUS.items():
        clocks = gpu.processors * gpu.clock / gpu.copy
        lanes = " | ".join(f"{clocks * rate:.2f}" for rate in RATES.values())
        lines.append(f"| {name} | {gpu.copy / 1e12:g} | {gpu.processors} | {gpu.clock / 1e9:g} | {lanes} |")
    return lines


def table(counts: Sequence[Count]) -> list[str]:
    pipes = [pipe for pipe in RATES if pipe not in ("issue", "fp64")]
    lines = [
        "| kernel | engine | dtype | bytes | instructions | "
        + " | ".join(pipes)
        + " | MUFU | registers | "
        + " | ".join(f"{name}: predicted, bound by" for name in GPUS)
        + " |",
        "| --- | --- | --- |" + " --- |" * (4 + len(pipes) + len(GPUS)),
    ]
    for c in sorted(counts, key=lambda count: list(WORK).index(count.name)):
        numbers = " | ".join(f"{c.of(pipe):.1f}" for pipe in pipes)
        predictions = " | ".join(
            f"{100 * c.predicted(gpu):.0f}% {c.binding(gpu) if c.ceiling(gpu, c.binding(gpu)) < 1.15 else 'memory'}"
            for gpu in GPUS.values()
        )
        lines.append(
            f"| {c.name} | {c.engine} | {c.dtype} | {c.bytes:g} | {c.instructions:.1f} | {numbers} | {c.mufu:.1f} | "
            f"{c.registers} | {predictions} |"
        )
    return lines


def replace_between(page: str, name: str, lines: Sequence[str]) -> str:
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, rest = page.split(begin)
    return before + begin + "\n".join(lines) + end + rest.split(end)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--only", default="", help="kernels whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--update", action="store_true", help="the figures of the test, and the table of the page"
    )
    args = parser.parse_args()
    names, here = [name for name in WORK if args.only in name], versions()
    engines = args.engine or [engine for engine in ENGINES if engine in here]
    counts = [count for engine in engines for count in ENGINES[engine](names)]
    if args.json:
        record = {"compilers": here, "kernels": {count.key: count.record() for count in counts}}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    else:
        print("\n".join([*budgets(), "", *table(counts)]))
    if args.update:
        old = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"kernels": {}}
        figures = {
            c.key: {"instructions": round(c.instructions, 1), "mufu": round(c.mufu, 1)} for c in counts
        }
        figures = {**old["kernels"], **figures} if args.only or args.engine else figures
        FIGURES.write_text(json.dumps({"compilers": here, "kernels": figures}, indent=1) + "\n")
        if not args.only and not args.engine:
            page = replace_between(PAGE.read_text(), "budgets", budgets())
            PAGE.write_text(replace_between(page, "kernels", table(counts)))


if __name__ == "__main__":
    main()
