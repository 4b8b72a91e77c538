"""What tests/test_processes.py looks at, computed by 1, 2 and 4 processes: processes.py ops | train.

The worlds are forked from one interpreter that has imported everything and computed nothing: a test of its own for each
would spend its time on imports.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import vae_fast

WORLDS = (1, 2, 4)
BATCH, FEATURES = 12, 30
TRAIN = ["train", "--data", "tiny.npy", "--batch-size", "10", "--hidden", "12", "--latent", "3", "--cpu"]
# Batches of 10 of 32 samples: 2 or 3 for each of four processes, and a last one of 2, of which two have none.
TRAIN += ["--binarize", "dynamic", "--num-samples", "2", "--accumulate", "2", "--clip-grad", "5"]
TRAIN += ["--ema", "0.5", "--kl-warmup", "2", "--lr-warmup", "1", "--best"]


def run_world(size: int, work: Callable[..., Any], *args: Any) -> list[int | None]:
    """Runs work(rank, size, *args) in `size` processes, and returns how they exited."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_enter, args=(rank, size, port, work, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def _enter(rank: int, size: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
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
    if size == 2:
        torch.manual_seed(7)
        traced = torch.compile(draw, backend="aot_eager", fullgraph=True)
        found["compiled"] = [*traced(mu, logvar, x), *traced(mu, logvar, x)]
    zero = torch.zeros(BATCH // size, FEATURES)
    torch.manual_seed(7 + rank)
    found["own seeds"] = vae_fast.reparameterize(zero, zero)
    found["own generators"] = vae_fast.reparameterize(zero, zero, generator=torch.Generator().manual_seed(7))
    if size == 4:  # two by two: ranks 0 and 1 have parts of the same samples, and 2 and 3
        groups = [distributed.new_group([0, 2]), distributed.new_group([1, 3])]
        vae_fast.set_noise_group(groups[rank % 2])
        torch.manual_seed(7)
        found["two by two"] = vae_fast.reparameterize(zero, zero)
        vae_fast.set_noise_group(None)
    found["warnings"] = warn_of(rank, [5, 5, 5, 5]), warn_of(rank, [5, 4, 5, 5])
    found["ddp"] = ddp(rank, size)
    found["aggregate posterior"] = aggregate_posterior(rank, size)
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


def aggregate_posterior(rank: int, size: int) -> dict[str, list[Tensor]]:
    """Terms and gradients of a part of the batch, paired with every rank's."""
    found = {}
    for estimator in ("mss", "mws", "mss_columns"):
        torch.manual_seed(5)
        inputs = [part(t, rank, size).requires_grad_() for t in torch.randn(3, BATCH, 4)]
        group = None if size == 1 else distributed.group.WORLD
        terms = vae_fast.aggregate_posterior(*inputs, 500, estimator, group=group)
        weight = part(torch.linspace(1, 2, BATCH), rank, size)
        found[estimator] = [*terms, *torch.autograd.grad((terms.total_correlation * weight).sum(), inputs)]
    return found


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
            encoder,
            decoder,
            likelihood=likelihood,
            latent_shape=(3,),
            num_samples=2,
            fused_head=True,
            **options,
        )
        x = (
            torch.rand(BATCH, FEATURES)
            if likelihood == "bernoulli"
            else torch.randint(0, 9, (BATCH, FEATURES)).float()
        )
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

    command.Checkpoints = lambda folder, **options: Checkpoints(folder, seconds=0, **options)  # type: ignore[assignment]
    command._draw = lambda *_: []  # type: ignore[assignment]
    command._print_end = lambda *_: None  # type: ignore[assignment]
    sys.exit(cli.run([*TRAIN, "--epochs", str(epochs), *arguments]))


def train_until_killed(rank: int, size: int, epochs: int, folder: str, *arguments: str) -> None:
    """The last rank is killed when the first checkpoint is there."""
    from vae_fast.training import checkpoint, loop

    train_epoch = loop.Trainer._train_epoch

    def or_die(trainer: Any, *args: Any) -> None:
        if rank == size - 1 and (Path(folder) / checkpoint.STATE).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        train_epoch(trainer, *args)

    loop.Trainer._train_epoch = or_die  # type: ignore[method-assign]
    sys.stderr = Path(f"error-{rank}").open("w")  # noqa: SIM115
    train(rank, size, epochs, "--out", folder, *arguments)


if __name__ == "__main__":
    import torch._dynamo

    if sys.argv[1] == "ops":
        exits = [run_world(size, ops) for size in WORLDS]
        assert not any(map(any, exits)), exits
    else:
        import torch.distributed.fsdp

        import vae_fast.cli.app
        import vae_fast.cli.train

        exits = [run_world(size, train, 3, "--out", f"runs/{size}") for size in WORLDS]
        exits += [run_world(2, train, 3, "--fsdp", "--out", "runs/fsdp")]
        assert not any(map(any, exits)), exits
        for name, options in (("killed", []), ("killed-fsdp", ["--fsdp"])):
            start = time.monotonic()
            exits = [run_world(2, train_until_killed, 50, f"runs/{name}", *options)]
            assert exits == [[1, -signal.SIGKILL]] and time.monotonic() - start < 60, exits
            Path("error-0").rename(f"error-{name}")
            shutil.copytree(f"runs/{name}", f"runs/{name}-resumed")
            exits = [run_world(1, train, 3, "--resume", "--out", f"runs/{name}-resumed")]
            assert exits == [[0]], exits
