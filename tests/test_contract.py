"""Every backend has the kernels of contract.py, by the same names and signatures; the C++ registers the same."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import needs_native
from vae_fast.backends import contract, reference
from vae_fast.backends.native import cpu, cuda, engine
from vae_fast.likelihoods import ELEMENTWISE, categorical, counts, discretized_logistic
from vae_fast.ops import _common

CSRC = Path(__file__).parents[1] / "csrc"


def backend_of(name: str) -> Any:
    if name == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
        from vae_fast.backends import triton

        return triton
    return {"cpu": cpu, "cuda": cuda, "reference": reference}[name]


def parameters(kernel: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(kernel).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if p.name != "self"]


@pytest.mark.parametrize("kernel", contract.KERNELS)
@pytest.mark.parametrize("name", ["cpu", "cuda", "triton", "reference"])
def test_signatures(name: str, kernel: str) -> None:
    assert parameters(getattr(backend_of(name), kernel)) == parameters(getattr(contract.Kernels, kernel))


def test_fake_kernels_are_those_of_the_contract() -> None:
    fakes = {name for name in vars(contract.FakeBackend) if not name.startswith("_")}
    assert fakes == set(contract.KERNELS)
    assert contract.FakeBackend.noise_fill(None, rng_state=None) is None


def test_the_library_asks_for_no_other_kernel() -> None:
    """What the ops call on a backend, by the text of the calls."""
    called = set()
    for file in Path(_common.__file__).parent.glob("*.py"):
        called |= set(re.findall(r"\bbackend\.(\w+_(?:forward|backward|fill))\(", file.read_text()))
    assert called == set(contract.KERNELS)


def test_the_extensions_register_the_same_kernels() -> None:
    registered = re.findall(r"^VAE_FAST_KERNEL\((\w+),", (CSRC / "api/ops.def").read_text(), re.MULTILINE)
    assert tuple(registered) == contract.KERNELS


def test_an_extension_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was left behind by an older checkout, say: it has no tables, or other kernels or likelihoods."""
    for stale in (
        SimpleNamespace(),
        SimpleNamespace(kernels=[*contract.KERNELS[:-1], "other"], likelihoods=dict.fromkeys(ELEMENTWISE, 0)),
        SimpleNamespace(kernels=list(contract.KERNELS), likelihoods={"gaussian": 0}),
    ):
        monkeypatch.setitem(sys.modules, "vae_fast.backends.native._cpu", stale)
        loaded = engine.CpuEngine()
        assert loaded.extension is None and loaded.details() == {}
        assert "was built from other sources; install a C++17 compiler" in (loaded.unavailable_reason() or "")


@needs_native
def test_tables_of_the_extension() -> None:
    rows = re.findall(
        r"^VAE_FAST_LIKELIHOOD\((\w+), \w+, (\w+)\)", (CSRC / "api/likelihoods.def").read_text(), re.MULTILINE
    )
    assert tuple(cpu.extension.kernels) == contract.KERNELS
    assert cpu.likelihoods == {name: place for place, (name, _) in enumerate(rows)}
    assert cpu.of_counts == {name for name, counts in rows if counts == "true"}
    assert len(set(cpu.extension.dtypes.values())) == len(cpu.extension.dtypes)


@needs_native
def test_the_extension_has_the_likelihoods_of_the_list() -> None:
    assert set(cpu.likelihoods) == set(ELEMENTWISE)
    assert cpu.of_counts == {name for name, spec in ELEMENTWISE.items() if spec.is_counts}


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("api/arguments.h", "kIgnored", categorical.IGNORED),
        ("formulas/likelihoods/counts.h", "kTiny", counts.EPS),
        ("formulas/likelihoods/counts.h", "kNothing", counts.NOTHING),
        ("formulas/likelihoods/discretized_logistic.h", "kMinLogScale", discretized_logistic.LEAST_LOG_SCALE),
        (
            "formulas/likelihoods/discretized_logistic.h",
            "kMaxLogScale",
            discretized_logistic.NARROW_LOG_SCALE,
        ),
    ],
)
def test_constants_of_the_formulas(file: str, name: str, value: float) -> None:
    """The C++ says the numeric rules once more: in float32 they are those of `vae_fast.likelihoods`."""
    [number] = re.findall(rf"\b{name} = (-?[\d.e-]+)f?;", (CSRC / file).read_text())
    assert torch.tensor(float(number), dtype=torch.float32) == torch.tensor(value, dtype=torch.float32)
