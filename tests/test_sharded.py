"""Models and tensors on two gloo processes equal one process: FSDP2, DDP, ZeRO, DTensor and tensor parallelism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torch.distributed", reason="no torch.distributed")
if not torch.distributed.is_available():
    pytest.skip("no torch.distributed", allow_module_level=True)

from sharded_checks import CHECKS, WORLD, run


@pytest.fixture(scope="module")
def problems(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, list[str]]:
    """What went wrong in each check, by process. One start for all: it takes longer than they do."""
    names = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    folder = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(run, (str(folder), names), nprocs=WORLD)
    return {name: [read(folder / f"{i}-{rank}") for rank in range(WORLD)] for i, name in enumerate(names)}


def read(file: Path) -> str:
    return file.read_text() if file.exists() else "not run: a check before it failed"


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(name: str, problems: dict[str, list[str]]) -> None:
    for rank, problem in enumerate(problems[name]):
        assert not problem, f"process {rank}: {problem}"
