"""Every public function on its table of edges, on each backend of this process, element by element."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import DTYPES

from . import cases, edges
from .cases import differences, table

WAYS = pytest.mark.parametrize("way", cases.WAYS)
EVERY = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check(backend: str, table: cases.Table, way: str = "samples") -> None:
    wrong = differences(backend, table, way)
    if wrong:
        pytest.fail(wrong, pytrace=False)


@EVERY
@WAYS
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_elements(backend: str, name: str, way: str, dtype: torch.dtype) -> None:
    check(backend, table(cases.elementwise, name, dtype), way)


@EVERY
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_targets_of_integers(backend: str, name: str, dtype: torch.dtype) -> None:
    check(backend, table(cases.with_integers, name, dtype))


@EVERY
@WAYS
@pytest.mark.parametrize("classes", edges.CLASSES)
@pytest.mark.parametrize("build", [cases.categorical, cases.multinomial])
def test_classes(backend: str, build: Any, classes: int, way: str, dtype: torch.dtype) -> None:
    check(backend, table(build, classes, dtype), way)


@EVERY
@WAYS
@pytest.mark.parametrize(("channels", "components"), [(1, 1), (1, 3), (3, 2)])
def test_mixtures(backend: str, channels: int, components: int, way: str, dtype: torch.dtype) -> None:
    check(backend, table(cases.mixture, channels, components, dtype), way)


@EVERY
@pytest.mark.parametrize("way", ["samples", "one sample"])
@pytest.mark.parametrize("clamp", [None, *edges.CLAMPS])
@pytest.mark.parametrize("kind", ["kl", "prior", "sample", "both"])
def test_latent(
    backend: str, kind: str, clamp: tuple[float, float] | None, way: str, dtype: torch.dtype
) -> None:
    check(backend, table(cases.latent, kind, clamp, dtype), way)
