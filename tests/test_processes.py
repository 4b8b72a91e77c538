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

import fsdp_processes
import processes
from command import save_images
from conftest import HANG
from processes import WORLDS
from vae_fast.training import checkpoint

if not torch.distributed.is_available() or sys.platform == "win32":
    pytest.skip("no torch.distributed, or no fork", allow_module_level=True)


def run(folder: Path, script: Any, *what: str) -> None:
    command = [sys.executable, script.__file__, *what]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each world found."""
    folder = tmp_path_factory.mktemp("ops")
    run(folder, processes, "ops")
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
    run(folder, processes, "train")
    return folder / "runs"


def losses(folder: Path) -> Tensor:
    names = ("train_nll", "train_kl", "test_nll", "test_kl")
    return torch.tensor([[row[k] for k in names] for row in checkpoint.read_progress(folder)["history"]])


@pytest.mark.parametrize("name", ["2", "4", "fsdp", "killed-resumed", "killed-fsdp-resumed"])
def test_train_on_several_processes_equals_one(trained: Path, name: str) -> None:
    """Of one --batch-size. The resumed runs are of two, one of which was killed; one process goes on with them."""
    one, other = checkpoint.read_progress(trained / "1"), checkpoint.read_progress(trained / name)
    assert one["recipe"] == {**other["recipe"], "fsdp": False} and one["steps"] == other["steps"] == 12
    assert other["recipe"]["fsdp"] == ("fsdp" in name)
    torch.testing.assert_close(losses(trained / name), losses(trained / "1"), rtol=2e-6, atol=2e-6)
    assert_same_kinds(state(trained / "1"), state(trained / name))


@pytest.mark.parametrize("name", ["killed", "killed-fsdp"])
def test_a_killed_process_ends_the_other(trained: Path, name: str) -> None:
    """By SIGKILL, within a minute (tests/processes.py), in one line that says how to go on; the run goes on."""
    epoch = checkpoint.read_progress(trained / name)["epoch"]
    way = f"--resume --out runs/{name} resumes from epoch {epoch} of 50"
    assert epoch < 3
    errors = (trained.parent / f"error-{name}").read_text().splitlines()
    assert errors[-1] == f"vae-fast: another process of this run has ended; {way}", errors


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    run(folder, fsdp_processes)
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load_tensors(folder / checkpoint.STATE)[0]


def assert_same_kinds(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert {k: (t.shape, t.dtype) for k, t in one.items()} == {
        k: (t.shape, t.dtype) for k, t in other.items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    """Losses of each epoch, weights, copies of them and moments, to rounding."""
    torch.testing.assert_close(losses(other), losses(one), rtol=5e-6, atol=5e-6)
    want, got = state(one), state(other)
    assert_same_kinds(want, got)
    for name, t in want.items():
        torch.testing.assert_close(got[name], t, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["all", "scaled", *fsdp_processes.OPTIMIZERS, *fsdp_processes.MODELS])
def test_sharded_training_equals_one_process(sharded: Path, name: str) -> None:
    """With every option; with every optimizer; models of one's own, whose weights process 0 has."""
    assert_same_run(sharded / f"{name}-1", sharded / f"{name}-2")


def test_sharded_runs_resume(sharded: Path) -> None:
    """On as many processes bit for bit; on one process, without sharding, and with it after that, to rounding."""
    want, got = state(sharded / "all-2"), state(sharded / "again-2")
    assert want.keys() == got.keys() and all(torch.equal(t, got[name]) for name, t in want.items())
    assert checkpoint.read_progress(sharded / "again-2")["steps"] == 8
    for name in ("turned-1", "turn-2", "turned-2"):
        assert_same_run(sharded / "all-2", sharded / name)


def test_sharded_statistics_and_precision_are_those_of_ddp(sharded: Path) -> None:
    """Batch norm's statistics are those of process 0. In bfloat16 a rounding may go another way."""
    assert_same_run(sharded / "statistics-ddp", sharded / "statistics-fsdp")
    one, other = (losses(sharded / f"precision-{name}") for name in ("ddp", "fsdp"))
    torch.testing.assert_close(other, one, rtol=2e-3, atol=2e-3)
