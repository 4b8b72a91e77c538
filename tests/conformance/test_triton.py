"""The same in Triton's interpreter: TRITON_INTERPRET is read when triton is imported, so in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HANG

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is that process")
def test_interpreted() -> None:
    file = Path(__file__).with_name("test_conformance.py")
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(file)]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=env, cwd=file.parents[2], capture_output=True, text=True, timeout=HANG)
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-2000:]
