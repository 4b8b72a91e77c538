"""The example with Lightning."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning")

from test_examples import check_resume

pytestmark = pytest.mark.no_poison


def test_resume(tmp_path: Path) -> None:
    check_resume(
        "train_lightning", tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
