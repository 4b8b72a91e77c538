"""Every public function on its table of edges, on each backend, element by element.

`TRITON_INTERPRET=1 pytest tests/conformance` runs the Triton backend alone, as test_triton.py does in its own process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

import vae_fast
from conftest import DTYPES, TRITON, needs_native
from vae_fast.backends.native import cpu
from vae_fast.ops import _common

from . import cases, edges, known
from .cases import Table, differences, table


class Engine(NamedTuple):
    name: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.name}-{str(self.dtype)[6:]}"


# Tensors of float64 are the reference's on every backend: its expressions, and its closed forms in the library ops.
LOW = [d for d in DTYPES if d != torch.float64]
ENGINES = [
    *(pytest.param(Engine("reference", d), id=f"reference-{d}") for d in DTYPES),
    *(pytest.param(Engine("twin", d), id=f"closed forms-{d}") for d in DTYPES),
    *(pytest.param(Engine("cpu", d), id=f"cpu-{d}", marks=needs_native) for d in LOW),
]
if TRITON:
    ENGINES = [pytest.param(Engine("triton", d), id=f"triton-{d}") for d in LOW]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if request.param == Engine("twin", torch.float64):
        monkeypatch.setattr(_common, "dispatch", lambda *arguments: None)
    with vae_fast.backend(request.param.name):
        yield request.param


WAYS = pytest.mark.parametrize("way", cases.WAYS)


def check(engine: Engine, table: Table, way: str = "samples") -> None:
    """On the CPU with every instruction set of this machine; the same bits are judged once."""
    seen: list[cases.Results] = []
    wrong = []
    for isa in isas(engine, table):
        outcome = cases.WAYS[way](table)
        if not any(same_bits(outcome[0], other) for other in seen):
            wrong.append(differences(f"{engine.name} {isa}".strip(), table, outcome))
        seen.append(outcome[0])
    known.judge("\n".join(filter(None, wrong)))


def isas(engine: Engine, table: Table) -> Iterator[str]:
    """Linear heads share their kernels with the likelihoods: one instruction set is enough."""
    if engine.name != "cpu" or table.case.together:
        yield ""
        return
    before = cpu._cpu.isa()
    try:
        for isa in cpu._cpu.available_isas():
            cpu._cpu.use_isa(isa)
            yield isa
    finally:
        cpu._cpu.use_isa(before)


def same_bits(a: cases.Results, b: cases.Results) -> bool:
    return all(torch.equal(a[k].nan_to_num(1.2345), b[k].nan_to_num(1.2345)) for k in a)


@WAYS
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_elements(engine: Engine, name: str, way: str) -> None:
    check(engine, table(cases.elementwise, name, engine.dtype), way)


@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_targets_of_integers(engine: Engine, name: str) -> None:
    check(engine, table(cases.with_integers, name, engine.dtype))


@WAYS
@pytest.mark.parametrize("classes", edges.CLASSES)
@pytest.mark.parametrize("build", [cases.categorical, cases.multinomial])
def test_classes(engine: Engine, build: Any, classes: int, way: str) -> None:
    check(engine, table(build, classes, engine.dtype), way)


@WAYS
@pytest.mark.parametrize(("channels", "components"), [(1, 1), (1, 3), (3, 2)])
def test_mixtures(engine: Engine, channels: int, components: int, way: str) -> None:
    check(engine, table(cases.mixture, channels, components, engine.dtype), way)


@pytest.mark.parametrize("way", ["samples", "one sample"])
@pytest.mark.parametrize("clamp", [None, *edges.CLAMPS])
@pytest.mark.parametrize("kind", ["kl", "prior", "sample", "both"])
def test_latent(engine: Engine, kind: str, clamp: tuple[float, float] | None, way: str) -> None:
    check(engine, table(cases.latent, kind, clamp, engine.dtype), way)


@pytest.mark.parametrize("way", ["samples", "masked"])
@pytest.mark.parametrize("head", cases.HEADS)
def test_linear_heads(engine: Engine, head: str, way: str) -> None:
    of_float32(engine)
    check(engine, table(cases.linear, head, engine.dtype), way)


@pytest.mark.parametrize("way", ["samples", "masked"])
@pytest.mark.parametrize("kind", ["categorical", "multinomial"])
def test_linear_classes(engine: Engine, kind: str, way: str) -> None:
    of_float32(engine)
    check(engine, table(cases.linear_classes, kind, engine.dtype), way)


def of_float32(engine: Engine) -> None:
    if engine == Engine("twin", torch.float64):
        pytest.skip("fused heads compute in float32: those of float64 are the reference's")
