"""Every public function on its table of edges, on each backend of this process, element by element."""

from __future__ import annotations

import pytest
import torch

from conftest import DTYPES

from . import cases
from .cases import differences, table


def check(backend: str, table: cases.Table) -> None:
    wrong = differences(backend, table)
    if wrong:
        pytest.fail(wrong, pytrace=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases.PARAMETERS)
def test_elements(backend: str, name: str, dtype: torch.dtype) -> None:
    check(backend, table(cases.elementwise, name, dtype))
