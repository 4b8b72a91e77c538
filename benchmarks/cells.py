"""Training on sparse counts from a file against scvi-tools: cells a second and peak memory, beside the matrix products.

    python -m benchmarks.simulate_counts cells.h5ad --cells 100000 --genes 20000
    python -m benchmarks.cells cells.h5ad

The model is scvi-tools' own: one hidden layer of 128, latent 10, batch norm, dropout 0.1 in the encoder, one theta a
gene, the batch as a condition; batches of 1024. scvi-tools trains on a part of the cells (--part), where it takes
minutes. Every measurement is a process of its own, in turns; the best of each counts. Memory is anonymous, above what
the imports and the loaded data take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

HIDDEN, LATENT, BATCH, DROPOUT = 128, 10, 1024, 0.1
LIKELIHOODS = {"nb": "negative_binomial", "zinb": "zero_inflated_negative_binomial"}


class PeakMemory:
    """The most anonymous memory of this process in MB above what it has at the start, asked for every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self._start = self.peak = anonymous_memory()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.peak -= self._start

    def _watch(self) -> None:
        while not self._is_over.wait(0.005):
            self.peak = max(self.peak, anonymous_memory())


def anonymous_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def train_vae_fast(path: str, likelihood: str, steps: int, part: int) -> dict[str, float]:
    from vae_fast.training import Recipe, Trainer, load
    from vae_fast.training.callbacks import Callback
    from vae_fast.training.malloc import set_up_process

    class Clock(Callback):
        def __init__(self) -> None:
            self.times = [time.perf_counter()]

        def on_step(self, trainer: Trainer) -> None:
            self.times.append(time.perf_counter())
            if len(self.times) > steps + 1:
                raise StopIteration

    set_up_process()
    dataset, clock = load(path, batch_key="batch"), Clock()
    recipe = Recipe(
        data=path, epochs=1, batch_size=BATCH, hidden=(HIDDEN,), latent=LATENT, batch_norm=True, dropout=DROPOUT,
        likelihood=LIKELIHOODS[likelihood], batch_key="batch",
    )  # fmt: skip
    with PeakMemory() as memory:
        trainer = Trainer(recipe, dataset, callbacks=(clock,))
        with suppress(StopIteration):
            trainer.fit()
    steps_taken = sorted(b - a for a, b in pairwise(clock.times[1:]))
    mean = sum(steps_taken) / len(steps_taken)
    return {"cells/s": BATCH / mean, "best": BATCH / steps_taken[0], "MB": memory.peak}


def train_scvi(path: str, likelihood: str, steps: int, part: int) -> dict[str, float]:
    import anndata
    import scvi

    data = anndata.read_h5ad(path, backed="r")[:part].to_memory()
    data.X = data.X.astype("float32")
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_hidden=HIDDEN, n_latent=LATENT, n_layers=1, gene_likelihood=likelihood)
    options: dict[str, Any] = {"batch_size": BATCH, "train_size": 1.0, "accelerator": "cpu", "logger": False}
    options |= {"enable_progress_bar": False, "enable_checkpointing": False}
    clock: list[float] = []
    step = type(model.module).forward

    def timed(*arguments: Any, **keywords: Any) -> Any:
        clock.append(time.perf_counter())
        return step(*arguments, **keywords)

    type(model.module).forward = timed
    with PeakMemory() as memory:
        model.train(max_epochs=1, **options)
    steps_taken = sorted(b - a for a, b in pairwise(clock[1:]))
    return {
        "cells/s": BATCH * len(steps_taken) / sum(steps_taken),
        "best": BATCH / steps_taken[0],
        "MB": memory.peak,
    }


def products(path: str, likelihood: str, steps: int, part: int) -> dict[str, float]:
    """The three products of the decoder's last layer, which no engine can leave out."""
    import h5py
    import torch

    with h5py.File(path) as file:
        genes = int(file["X"].attrs["shape"][1])
    outputs = genes * (2 if likelihood == "zinb" else 1)
    hidden, weight, grad = torch.rand(BATCH, HIDDEN), torch.rand(outputs, HIDDEN), torch.rand(BATCH, outputs)
    buffers = torch.empty(BATCH, outputs), torch.empty(BATCH, HIDDEN), torch.empty(outputs, HIDDEN)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        torch.mm(hidden, weight.T, out=buffers[0])
        torch.mm(grad, weight, out=buffers[1])
        torch.mm(grad.T, hidden, out=buffers[2])
        times.append(time.perf_counter() - start)
    return {"cells/s": BATCH * steps / sum(times[1:]), "best": BATCH / min(times), "MB": 0.0}


PROVIDERS = {"products": products, "vae_fast": train_vae_fast, "scvi-tools": train_scvi}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--likelihoods", nargs="+", choices=LIKELIHOODS, default=list(LIKELIHOODS))
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="that are timed, after one that is not")
    parser.add_argument("--part", type=int, default=6144, help="cells that scvi-tools trains on")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        result = PROVIDERS[options.one](options.data, options.likelihoods[0], options.steps, options.part)
        print(json.dumps(result))
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for likelihood in options.likelihoods:
            for provider in options.providers:
                command = [sys.executable, "-m", "benchmarks.cells", options.data, "--one", provider]
                command += [
                    "--likelihoods",
                    likelihood,
                    "--steps",
                    str(options.steps),
                    "--part",
                    str(options.part),
                ]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
                found.setdefault((likelihood, provider), []).append(row)
                print(likelihood, provider, {name: round(value) for name, value in row.items()}, flush=True)
    print("| likelihood | | cells/s | best step | peak MB |\n| --- | --- | ---: | ---: | ---: |")
    for (likelihood, provider), rows in found.items():
        speed, step = (max(row[name] for row in rows) for name in ("cells/s", "best"))
        memory = min(row["MB"] for row in rows)
        print(f"| {likelihood} | {provider} | {speed:,.0f} | {step:,.0f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
