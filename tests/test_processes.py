"""Several processes and one: the same noise, the same losses and gradients, the same runs; one process is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("typer")
pytest.importorskip("accelerate")

import processes
from command import save_images
from conftest import HANG
from processes import WORLDS
from vae_fast.training import checkpoint

if not torch.distributed.is_available() or sys.platform == "win32":
    pytest.skip("no torch.distributed, or no fork", allow_module_level=True)


def run(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, processes.__file__, what], cwd=folder, capture_output=True, text=True, timeout=HANG
    )


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each world found."""
    folder = tmp_path_factory.mktemp("ops")
    process = run("ops", folder)
    assert process.returncode == 0, process.stderr
    return {n: [torch.load(folder / f"{n}-{rank}.pt") for rank in range(n)] for n in WORLDS}


def together(ranks: list[dict[str, Any]], name: str) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*(rank[name] for rank in ranks), strict=True)]


@pytest.mark.parametrize("name", ["eager", "reference", "compiled"])
def test_processes_draw_what_one_draws(ops: dict[int, list[dict[str, Any]]], name: str) -> None:
    """Bit for bit, step by step: samples, draws, packed ones, bits; seeded alike."""
    for n in [2] if name == "compiled" else WORLDS[1:]:
        for got, want in zip(
            together(ops[n], name), ops[1][0][name.replace("compiled", "eager")], strict=True
        ):
            assert torch.equal(got, want), n


def test_ranks_share_no_noise(ops: dict[int, list[dict[str, Any]]]) -> None:
    """Seeded alike, or each for itself; a generator that all are given is used as it is."""
    for n in WORLDS[1:]:
        for name in ("eager", "own seeds"):
            samples = torch.cat([rank[name][0] if name == "eager" else rank[name] for rank in ops[n]])
            assert len(samples.unique(dim=0)) == len(samples)
        first, *others = (rank["own generators"] for rank in ops[n])
        assert all(torch.equal(first, other) for other in others)


def test_tensor_parallel_ranks_draw_the_same(ops: dict[int, list[dict[str, Any]]]) -> None:
    a, b, c, d = (rank["two by two"] for rank in ops[4])
    assert torch.equal(a, b) and torch.equal(c, d) and not torch.equal(a, c)


def test_first_batches_that_differ_are_told(ops: dict[int, list[dict[str, Any]]]) -> None:
    """Once, by the rank that draws last."""
    for n in WORLDS[1:]:
        assert not any(rank["warnings"][0] for rank in ops[n])
        [warning] = [w for rank in ops[n] for w in rank["warnings"][1]]
        assert "equal batches" in warning


def test_ddp_with_fused_heads_equals_one_process(ops: dict[int, list[dict[str, Any]]]) -> None:
    """Loss and gradients, without giving the noise."""
    one = ops[1][0]["ddp"]
    for n in WORLDS[1:]:
        for rank in ops[n]:
            assert rank["ddp"].keys() == one.keys()
            for name, got in rank["ddp"].items():
                torch.testing.assert_close(
                    got, one[name], rtol=1e-5, atol=1e-6, msg=lambda m, k=name: f"{k}: {m}"
                )


@pytest.mark.parametrize("estimator", ["mss", "mws", "mss_columns"])
def test_aggregate_posterior_of_all_ranks(ops: dict[int, list[dict[str, Any]]], estimator: str) -> None:
    """Each rank's rows with every rank's columns: the terms of one process, and the gradients of the ranks' sum."""
    one = ops[1][0]["aggregate posterior"][estimator]
    for n in WORLDS[1:]:
        parts = zip(*(rank["aggregate posterior"][estimator] for rank in ops[n]), strict=True)
        for got, want in zip((torch.cat(p) for p in parts), one, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    save_images(folder)
    process = run("train", folder)
    assert process.returncode == 0, process.stderr
    return folder / "runs"


def losses(folder: Path) -> Tensor:
    names = ("train_nll", "train_kl", "test_nll", "test_kl")
    return torch.tensor([[row[k] for k in names] for row in checkpoint.read_progress(folder)["history"]])


@pytest.mark.parametrize("name", ["2", "4", "resumed"])
def test_train_on_several_processes_equals_one(trained: Path, name: str) -> None:
    """Of one --batch-size. The resumed run is of two, one of which was killed; one process goes on with it."""
    one, other = checkpoint.read_progress(trained / "1"), checkpoint.read_progress(trained / name)
    assert one["recipe"] == other["recipe"] and one["steps"] == other["steps"] == 12
    torch.testing.assert_close(losses(trained / name), losses(trained / "1"), rtol=2e-6, atol=2e-6)
    (a, _), (b, _) = (checkpoint.load_tensors(trained / n / checkpoint.STATE) for n in ("1", name))
    assert {k: (t.shape, t.dtype) for k, t in a.items()} == {k: (t.shape, t.dtype) for k, t in b.items()}


def test_a_killed_process_ends_the_other(trained: Path) -> None:
    """By SIGKILL, within a minute (tests/processes.py), in one line that says how to go on; the run goes on."""
    epoch = checkpoint.read_progress(trained / "killed")["epoch"]
    way = f"--resume --out runs/killed resumes from epoch {epoch} of 50"
    assert epoch < 3
    errors = (trained.parent / "error-0").read_text().splitlines()
    assert errors[-1] == f"vae-fast: another process of this run has ended; {way}", errors
