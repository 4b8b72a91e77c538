"""scripts/compatibility.py and versions.py: what they write of tests that fail, are skipped or are not there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conftest import load

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"test_a[x-1]": "passed", "test_a[y]": "failed", "test_b": "passed"}, "passes (2 tests)"),
        ({"test_a[x-1]": "passed", "test_a[x-2]": "failed", "test_b": "passed"}, "fails: 1 of 3 tests"),
        ({"test_a[x-1]": "skipped", "test_b": "skipped"}, "not tried here"),
        ({"test_a[x-1]": "passed"}, "fails: no test fits folder/name::test_b"),
    ],
)
def test_result_of_a_feature(results: dict[str, str], expected: str) -> None:
    compatibility = load(SCRIPTS / "compatibility.py")
    feature = compatibility.feature("what", "folder/name::test_a[x*]", "folder/name::test_b")
    found = {("tests/folder/test_name.py", name): result for name, result in results.items()}
    assert compatibility.judge(feature, found) == expected


def test_every_feature_names_a_file_that_is_there() -> None:
    compatibility = load(SCRIPTS / "compatibility.py")
    tests = [t for group in compatibility.FEATURES.values() for f in group for t in f.tests]
    assert all((SCRIPTS.parent / compatibility.split(test)[0]).exists() for test in tests)


def test_a_version_that_fails_says_so(tmp_path: Path) -> None:
    """An interpreter without torch."""
    versions = load(SCRIPTS / "versions.py")
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    empty.chmod(0o755)
    row = versions.check(empty, numpy=False)
    assert row.result == "fails: ModuleNotFoundError: No module named 'torch'"
    done = subprocess.CompletedProcess(
        "", 1, stdout="...\nFAILED tests/test_nn.py::test_a - assert 0\n2 failed", stderr=""
    )
    assert versions.last_line(done).startswith("FAILED tests/test_nn.py::test_a")
