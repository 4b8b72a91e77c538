"""Tells the command how far the run is: a line of JSON for each event, in a file that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .settings import EVENTS


def _tell(**event: Any) -> None:
    if EVENTS:
        with Path(EVENTS).open("a") as file:
            file.write(json.dumps(event) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    _tell(event="collected", count=len(session.items))


def pytest_runtest_logstart(nodeid: str) -> None:
    _tell(event="start", name=nodeid.rpartition("::")[2])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        name = report.nodeid.rpartition("::")[2]
        crash = getattr(report.longrepr, "reprcrash", None)
        error = crash.message if crash else str(report.longrepr or "")
        _tell(event="end", name=name, outcome=report.outcome, table=report.capstdout.strip(), error=error)
