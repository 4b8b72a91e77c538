"""Every public function on its table of edges, on each backend, element by element.

`TRITON_INTERPRET=1 pytest tests/conformance` runs the Triton backend alone, as test_triton.py does in its own process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def check(engine: Engine, table: Table, ways: Sequence[str] = tuple(cases.WAYS)) -> None:
    """On the CPU with every instruction set of this machine; the same bits are judged once."""
    wrong = []
    if engine.name == "triton":
        table, ways = interpreted(engine, table, ways)
    for way in ways:
        seen: list[cases.Results] = []
        for isa in isas(engine, table):
            outcome = cases.WAYS[way](table)
            if not any(same_bits(outcome[0], other) for other in seen):
                wrong.append(differences(f"{engine.name} {isa}".strip(), table, outcome, way))
            seen.append(outcome[0])
    known.judge("\n".join(filter(None, wrong)))


def interpreted(engine: Engine, table: Table, ways: Sequence[str]) -> tuple[Table, Sequence[str]]:
    """What is quick enough in the interpreter, where every program takes milliseconds: every sample of a mixture or of
    a head is one."""
    if table.case.together:
        return cases.some(table, alone=6, step=3), ways[:1]
    if "params" in table.case.inputs:
        return cases.some(table, alone=1, step=8), ["samples", "one sample"]
    if table.case.by_row:
        return cases.some(table, alone=1, step=12), ways
    if table.case.function == "log_weights":
        return cases.some(table, alone=1, step=8), ways if engine.dtype == torch.float32 else ways[:1]
    # 16-bit inputs differ from float32 where they are read and written alone.
    return table, ways if engine.dtype == torch.float32 else ways[:1]


def isas(engine: Engine, table: Table) -> Iterator[str]:
    """Linear heads share their kernels with the likelihoods: one instruction set is enough."""
    if engine.name != "cpu" or table.case.together:
        yield ""
        return
    before = cpu.extension.isa()
    try:
        for isa in cpu.extension.available_isas():
            cpu.extension.use_isa(isa)
            yield isa
    finally:
        cpu.extension.use_isa(before)


def same_bits(a: cases.Results, b: cases.Results) -> bool:
    return all(torch.allclose(a[k], b[k], rtol=0, atol=0, equal_nan=True) for k in a)


@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_elements(engine: Engine, name: str) -> None:
    check(engine, table(cases.elementwise, name, engine.dtype))


@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_targets_of_integers(engine: Engine, name: str) -> None:
    check(engine, table(cases.with_integers, name, engine.dtype), ["samples"])


@pytest.mark.parametrize("classes", edges.CLASSES)
@pytest.mark.parametrize("build", [cases.categorical, cases.multinomial])
def test_classes(engine: Engine, build: Any, classes: int) -> None:
    check(engine, table(build, classes, engine.dtype))


@pytest.mark.parametrize(("channels", "components"), cases.MIXTURES)
def test_mixtures(engine: Engine, channels: int, components: int) -> None:
    check(engine, table(cases.mixture, channels, components, engine.dtype))


@pytest.mark.parametrize("clamp", [None, *edges.CLAMPS])
@pytest.mark.parametrize("kind", cases.LATENT)
def test_latent(engine: Engine, kind: str, clamp: tuple[float, float] | None) -> None:
    check(engine, table(cases.latent, kind, clamp, engine.dtype), ["samples", "one sample"])


@pytest.mark.parametrize(("prior", "path", "clamp"), cases.IMPORTANCE)
def test_importance(engine: Engine, prior: bool, path: bool, clamp: tuple[float, float] | None) -> None:
    check(engine, table(cases.importance, prior, path, clamp, engine.dtype), ["samples", "one sample"])


@pytest.mark.parametrize("build", cases.PAIRS)
def test_pairs(engine: Engine, build: Any) -> None:
    check(engine, table(build, engine.dtype), ["samples"])


# Fused heads compute in float32: those of float64 are the reference's.
OF_HEADS = pytest.mark.parametrize(
    "engine", [e for e in ENGINES if e.values != (Engine("twin", torch.float64),)], indirect=True
)


@OF_HEADS
@pytest.mark.parametrize("head", cases.HEADS)
def test_linear_heads(engine: Engine, head: str) -> None:
    check(engine, table(cases.linear, head, engine.dtype), ["samples", "masked"])


@OF_HEADS
@pytest.mark.parametrize("kind", ["categorical", "multinomial"])
def test_linear_classes(engine: Engine, kind: str) -> None:
    check(engine, table(cases.linear_classes, kind, engine.dtype), ["samples", "masked"])
