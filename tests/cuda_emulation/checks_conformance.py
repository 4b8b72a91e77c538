"""The tables of edges of tests/conformance through the CUDA kernels, a backend like another here, of CPU tensors.

Every element by itself, as a sample; masks and weights, and all elements in one sample, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import vae_fast
from conformance import cases, edges, known
from vae_fast import backends

from .emulated import DTYPES, schedule

__all__ = ["schedule"]
backends._HOMES["emulated"] = "native.cuda"
backends._reasons["emulated"] = None
F32 = torch.float32


def check(table: cases.Table, ways: Sequence[str] = tuple(cases.WAYS)) -> None:
    wrong = []
    for way in ways if table.case.dtype == F32 else ways[:1]:
        with vae_fast.backend("emulated"):
            outcome = cases.WAYS[way](table)
        wrong.append(cases.differences("cuda, emulated", table, outcome, way))
    report = "\n".join(filter(None, wrong))
    if (
        report and known.reasons(report) is None
    ):  # what is known passes: an expected failure would count as one
        pytest.fail(report, pytrace=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_elements(name: str, dtype: torch.dtype) -> None:
    check(cases.table(cases.elementwise, name, dtype))


@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_targets_of_integers(name: str) -> None:
    check(cases.table(cases.with_integers, name, F32), ("samples",))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", edges.CLASSES)
@pytest.mark.parametrize("build", [cases.categorical, cases.multinomial])
def test_classes(build: Any, classes: int, dtype: torch.dtype) -> None:
    check(cases.table(build, classes, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "components"), cases.MIXTURES)
def test_mixtures(channels: int, components: int, dtype: torch.dtype) -> None:
    check(cases.table(cases.mixture, channels, components, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clamp", [None, *edges.CLAMPS])
@pytest.mark.parametrize("kind", cases.LATENT)
def test_latent(kind: str, clamp: tuple[float, float] | None, dtype: torch.dtype) -> None:
    check(cases.table(cases.latent, kind, clamp, dtype), ("samples", "one sample"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prior", "path", "clamp"), cases.IMPORTANCE)
def test_importance(prior: bool, path: bool, clamp: tuple[float, float] | None, dtype: torch.dtype) -> None:
    check(cases.table(cases.importance, prior, path, clamp, dtype), ("samples", "one sample"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("build", cases.PAIRS)
def test_pairs(build: Any, dtype: torch.dtype) -> None:
    check(cases.table(build, dtype), ("samples",))


@pytest.mark.parametrize("head", cases.HEADS)
def test_linear_heads(head: str) -> None:
    check(cases.table(cases.linear, head, F32), ("samples", "masked"))


@pytest.mark.parametrize("kind", ["categorical", "multinomial"])
def test_linear_classes(kind: str) -> None:
    check(cases.table(cases.linear_classes, kind, F32), ("samples", "masked"))
