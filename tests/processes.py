"""What tests/test_processes.py looks at, computed by 1, 2 and 4 processes: processes.py ops | train | kill.

The worlds are forked from one interpreter that has imported everything and computed nothing: a test of its own for each
would spend its time on imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import vae_fast

WORLDS = (1, 2, 4)
BATCH, FEATURES = 12, 30
TRAIN = ["train", "--data", "tiny.npy", "--batch-size", "10", "--hidden", "12", "--latent", "3", "--cpu"]
# Batches of 10 of 32 samples: 2 or 3 for each of four processes, and a last one of 2, of which two have none.
TRAIN += ["--binarize", "--num-samples", "2"]


def run_world(size: int, work: Callable[..., Any], *args: Any, check: bool = True) -> None:
    """Runs work(rank, size, *args) in `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = torch.multiprocessing.start_processes(
        _enter, (size, port, work, args), size, join=False, start_method="fork"
    )
    with contextlib.suppress(Exception) if not check else contextlib.nullcontext():
        while not processes.join():
            pass


def _enter(rank: int, size: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ.update(where, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    work(rank, size, *args)


def part(x: Tensor, rank: int, size: int) -> Tensor:
    return x.chunk(size)[rank]


def ops(rank: int, size: int) -> None:
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    mu, logvar, x = (part(t, rank, size) for t in torch.randn(3, BATCH, FEATURES).sigmoid())

    def draw(mu: Tensor, logvar: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        z = vae_fast.reparameterize(mu, logvar)
        draws, _ = vae_fast.reparameterize_kl_packed(torch.cat((mu, logvar), 1), num_samples=3)
        return z, draws.transpose(0, 1), vae_fast.bernoulli_nll(mu, x, binarize=True, reduction="none")

    torch.manual_seed(7)  # as set_seed(7) on every rank
    found: dict[str, Any] = {"eager": [*draw(mu, logvar, x), *draw(mu, logvar, x)]}
    with vae_fast.backend("reference"):
        torch.manual_seed(7)
        found["reference"] = [*draw(mu, logvar, x), *draw(mu, logvar, x)]
    if size < 4:
        torch.manual_seed(7)
        traced = torch.compile(draw, backend="aot_eager", fullgraph=True)
        found["compiled"] = [*traced(mu, logvar, x), *traced(mu, logvar, x)]
    zero = torch.zeros(BATCH // size, FEATURES)
    torch.manual_seed(7 + rank)
    found["own seeds"] = vae_fast.reparameterize(zero, zero)
    found["own generators"] = vae_fast.reparameterize(
        zero, zero, generator=torch.Generator().manual_seed(7)
    )
    if size == 4:  # two by two: ranks 0 and 1 have parts of the same samples, and 2 and 3
        groups = [distributed.new_group([0, 2]), distributed.new_group([1, 3])]
        vae_fast.set_noise_group(groups[rank % 2])
        torch.manual_seed(7)
        found["two by two"] = vae_fast.reparameterize(zero, zero)
        vae_fast.set_noise_group(None)
    found["warnings"] = warn_of(rank, [5, 5, 5, 5]), warn_of(rank, [5, 4, 5, 5])
    found["ddp"] = ddp(rank, size)
    torch.save(found, f"{size}-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def warn_of(rank: int, sizes: list[int]) -> list[str]:
    """The warnings about a group's first batches."""
    group = distributed.new_group()
    vae_fast.set_noise_group(group)
    zero = torch.zeros(sizes[rank], 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            vae_fast.reparameterize(zero, zero)
    vae_fast.set_noise_group(None)
    return [str(w.message) for w in seen]


def ddp(rank: int, size: int) -> dict[str, Tensor]:
    """A step's loss and gradients: a fused head of a likelihood with a learned parameter, and binarization."""
    found = {}
    for likelihood, options in (
        ("negative_binomial", {"theta": "feature", "link": "exp"}),
        ("bernoulli", {"binarize": True}),
    ):
        torch.manual_seed(1)
        encoder = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 6))
        decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, FEATURES))
        model = vae_fast.nn.VAE(
            encoder, decoder, likelihood=likelihood, latent_shape=(3,), num_samples=2, fused_head=True, **options
        )
        x = torch.rand(BATCH, FEATURES) if likelihood == "bernoulli" else torch.randint(0, 9, (BATCH, FEATURES)).float()
        wrapped = DistributedDataParallel(model)
        torch.manual_seed(2)
        loss = wrapped(part(x, rank, size)).loss
        loss.backward()
        loss = loss.detach()
        distributed.all_reduce(loss)
        found[f"{likelihood} loss"] = loss / size
        found.update({f"{likelihood} {name}": p.grad for name, p in model.named_parameters()})
    return found


def train(rank: int, size: int, epochs: int, *arguments: str) -> None:
    from vae_fast import cli
    from vae_fast.cli import train as command
    from vae_fast.training.callbacks import Checkpoints

    command.Checkpoints = lambda folder: Checkpoints(folder, seconds=0)  # type: ignore[assignment]
    command._draw = lambda *_: []  # type: ignore[assignment]
    command._print_end = lambda *_: None  # type: ignore[assignment]
    if size == 1:
        os.environ["WORLD_SIZE"] = "1"
    status = cli.run([*TRAIN, "--epochs", str(epochs), *arguments])
    Path(f"status-{rank}").write_text(str(status))
    if status:
        raise SystemExit(status)


def killed(rank: int, size: int) -> None:
    """The last rank is killed when the first checkpoint is there."""
    from vae_fast.training import loop

    fit_epoch = loop.Trainer._train_epoch

    def train_epoch(trainer: Any, *args: Any) -> None:
        if rank == size - 1 and Path("runs/killed/training.safetensors").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        fit_epoch(trainer, *args)

    loop.Trainer._train_epoch = train_epoch  # type: ignore[method-assign]
    train(rank, size, 10_000, "--evaluate-every", "1", "--out", "runs/killed")


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "ops":
        for size in WORLDS:
            run_world(size, ops)
    else:
        import accelerate  # noqa: F401  (before the fork)

        import vae_fast.cli.app  # noqa: F401

    if what == "train":
        for size in WORLDS:
            run_world(size, train, 3, "--out", f"runs/{size}")
        run_world(2, train, 2, "--out", "runs/resumed")
        run_world(1, train, 3, "--out", "runs/resumed", "--resume")
    elif what == "kill":
        run_world(2, killed, check=False)
