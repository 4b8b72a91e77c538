"""On a GPU, with both engines: the tests of extremes and the tables of tests/conformance once more.

As in test_gpu, whose environment variables hold here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import test_counts
import test_draws
import test_extreme_values
import test_gpu
import test_likelihood_extremes
import test_negative_binomial_mixture
import test_parametrization
import test_reduction
from conformance import cases, edges, known
from test_gpu import DEVICE, OnDevice

pytestmark = test_gpu.pytestmark
backend, kernels, on_device = test_gpu.backend, test_gpu.kernels, test_gpu.on_device
globals().update(
    test_gpu.taken_along(
        test_counts,
        test_draws,
        test_extreme_values,
        test_likelihood_extremes,
        test_negative_binomial_mixture,
        test_parametrization,
        test_reduction,
    )
)
F32 = torch.float32
DTYPES = [F32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def extremes_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """mpmath's truth is kept for the session, with its inputs on the CPU."""
    exact = test_extreme_values.truth

    def moved(*arguments: Any) -> tuple[list[Tensor], Any]:
        inputs, rows = exact(*arguments)
        return [t.to(DEVICE) for t in inputs], rows

    monkeypatch.setattr(test_extreme_values, "truth", moved)


def on_the_device(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with its tensors moved there and its results back, and their gradients likewise."""

    def moved(**tensors: Any) -> Any:
        with OnDevice():
            out = call(**{k: t.to(DEVICE) if isinstance(t, Tensor) else t for k, t in tensors.items()})
        return tuple(t.cpu() for t in out) if isinstance(out, tuple) else out.cpu()

    return moved


def check(backend: str, table: cases.Table, ways: Sequence[str] = tuple(cases.WAYS)) -> None:
    table = replace(table, case=replace(table.case, call=on_the_device(table.case.call)))
    # 16-bit inputs differ from float32 where they are read and written alone.
    ways = ways if table.case.dtype == F32 else ways[:1]
    wrong = [cases.differences(backend, table, cases.WAYS[way](table), way) for way in ways]
    known.judge("\n".join(filter(None, wrong)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_elements(backend: str, name: str, dtype: torch.dtype) -> None:
    check(backend, cases.table(cases.elementwise, name, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_targets_of_integers(backend: str, name: str, dtype: torch.dtype) -> None:
    check(backend, cases.table(cases.with_integers, name, dtype), ["samples"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", edges.CLASSES)
@pytest.mark.parametrize("build", [cases.categorical, cases.multinomial])
def test_classes(backend: str, build: Any, classes: int, dtype: torch.dtype) -> None:
    check(backend, cases.table(build, classes, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "components"), cases.MIXTURES)
def test_mixtures(backend: str, channels: int, components: int, dtype: torch.dtype) -> None:
    check(backend, cases.table(cases.mixture, channels, components, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [None, *edges.CLAMPS])
@pytest.mark.parametrize("kind", cases.LATENT)
def test_latent(backend: str, kind: str, clamp: tuple[float, float] | None, dtype: torch.dtype) -> None:
    check(backend, cases.table(cases.latent, kind, clamp, dtype), ["samples", "one sample"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prior", "path", "clamp"), cases.IMPORTANCE)
def test_importance(
    backend: str, prior: bool, path: bool, clamp: tuple[float, float] | None, dtype: torch.dtype
) -> None:
    check(backend, cases.table(cases.importance, prior, path, clamp, dtype), ["samples", "one sample"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("build", cases.PAIRS)
def test_pairs(backend: str, build: Any, dtype: torch.dtype) -> None:
    check(backend, cases.table(build, dtype), ["samples"])


@pytest.mark.parametrize("head", cases.HEADS)
def test_linear_heads(backend: str, head: str) -> None:
    check(backend, cases.table(cases.linear, head, F32), ["samples", "masked"])


@pytest.mark.parametrize("kind", ["categorical", "multinomial"])
def test_linear_classes(backend: str, kind: str) -> None:
    check(backend, cases.table(cases.linear_classes, kind, F32), ["samples", "masked"])
