"""What more processes cost: measured on Gloo with 1 and 2 processes of one machine, reckoned for 8 and 64 GPUs.

python -m benchmarks.scaling > docs/scaling.md
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import nn

import vae_fast

STEPS = 12


class Case(NamedTuple):
    title: str
    features: int
    hidden: int
    latent: int
    likelihood: str
    batch: int  # of each GPU
    measured_batch: int | None  # of all processes; None where it is not measured


CASES = (
    Case("MLP, 784 pixels", 784, 400, 20, "bernoulli", 4096, 4096),
    Case("single cells, 4,000 genes", 4000, 128, 10, "negative_binomial", 1024, 1024),
    Case("single cells, 20,000 genes", 20_000, 128, 10, "negative_binomial", 1024, None),
    Case("recommender, 100,000 items", 100_000, 128, 64, "multinomial", 1024, None),
)
# Assumed, not measured: dense float32 by TF32 at 40% of an H100's 495 TFLOP/s; its memory; all-reduce at 80% of
# NVLink's 450 GB/s each way within 8 GPUs, and of 50 GB/s (400 Gbit/s for each GPU) between nodes.
FLOPS, MEMORY = 0.4 * 495e12, 3.0e12
LINK = {8: 0.8 * 450e9, 64: 0.8 * 50e9}
CHUNK = 16e6  # bytes of a fused head's outputs at a time


def make_model(case: Case, fused: bool) -> vae_fast.nn.VAE:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Linear(case.features, case.hidden), nn.Tanh(), nn.Linear(case.hidden, 2 * case.latent)
    )
    decoder = nn.Sequential(
        nn.Linear(case.latent, case.hidden), nn.Tanh(), nn.Linear(case.hidden, case.features)
    )
    return vae_fast.nn.VAE(
        encoder, decoder, likelihood=case.likelihood, latent_shape=(case.latent,), fused_head=fused
    )


def _train(rank: int, size: int, port: int, case: Case, fused: bool, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    model = make_model(case, fused)
    wrapped = nn.parallel.DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.Adam(model.parameters())
    assert case.measured_batch
    x = torch.rand(case.measured_batch, case.features)
    x = (x if case.likelihood == "bernoulli" else (x * 5).floor()).chunk(size)[rank].clone()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        wrapped(x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    if rank == 0:
        results.put(statistics.median(times[2:]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure(case: Case, size: int, fused: bool) -> float:
    """Seconds of a step of one global batch, one thread for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_train, args=(r, size, port, case, fused, results)) for r in range(size)]
    for process in ranks:
        process.start()
    seconds: float = results.get(timeout=600)
    for process in ranks:
        process.join()
    return seconds


def reckoned(case: Case) -> list[str]:
    with torch.device("meta"):
        weights = sum(p.numel() for p in make_model(case, False).parameters())
    outputs = 4 * case.batch * case.features  # bytes of the last layer's
    # A product forward, two back; the outputs and their gradient are written once and read twice each.
    compute = 6 * weights * case.batch / FLOPS + 6 * outputs / MEMORY
    cells = [case.title, f"{weights / 1e6:.1f}", f"{compute * 1e3:.2f}"]
    for size, link in LINK.items():
        moved = 2 * (size - 1) / size * 4 * weights
        cells += [f"{moved / 1e6:.0f}", f"{moved / link * 1e3:.2f}", f"{moved / link / compute:.0%}"]
    return [*cells, f"{2 * outputs / 1e6:,.0f}", f"{2 * min(CHUNK, outputs) / 1e6:.0f}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    rows = []
    for case in CASES:
        for fused in (False, True) if case.measured_batch else ():
            one, two = (measure(case, size, fused) for size in (1, 2))
            head = "fused" if fused else "apart"
            rows.append(
                [
                    case.title,
                    f"{case.measured_batch:,}",
                    head,
                    f"{one * 1e3:.0f}",
                    f"{two * 1e3:.0f}",
                    f"{2 * two / one - 1:+.0%}",
                ]
            )
    print("# Scaling\n")
    print("`python -m benchmarks.scaling` writes this page.\n")
    print(
        "Measured: Gloo, processes of one machine with one thread each, the same global batch; forward, backward, "
        "all-reduce and Adam, medians of 10 steps. Overhead is what two processes need beyond half of one's time; "
        f"they share the machine's memory bandwidth. torch {torch.__version__}, {os.cpu_count()} CPUs.\n"
    )
    print(table(["case", "global batch", "head", "1 process, ms", "2 processes, ms", "overhead"], rows))
    print(
        f"\nReckoned, not measured, for a batch of 1024 (MLP: 4096) on each GPU: float32 products at "
        f"{FLOPS / 1e12:.0f} TFLOP/s, memory at {MEMORY / 1e12:.0f} TB/s; a ring all-reduce of the gradients, "
        f"2 (n - 1) / n bytes for each of theirs, at {LINK[8] / 1e9:.0f} GB/s within 8 GPUs and "
        f"{LINK[64] / 1e9:.0f} GB/s among 64. Compute is the products and the traffic of the last layer's outputs. "
        "A share is of the compute; DistributedDataParallel hides "
        "some of it behind backward. A fused head moves as many bytes and needs less memory, so a larger batch fits, "
        "and the share falls as the batch grows.\n"
    )
    columns = ["case", "million parameters", "compute, ms"]
    for size in LINK:
        columns += [f"{size} GPUs: MB a step", "ms", "share"]
    print(
        table([*columns, "outputs and gradient, MB", "with a fused head"], [reckoned(case) for case in CASES])
    )


if __name__ == "__main__":
    main()
