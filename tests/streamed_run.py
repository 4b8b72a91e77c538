"""Run by test_stream: trains on a file in a process whose memory is limited, and prints what came of it."""

from __future__ import annotations

import json
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast.training import DataError, Recipe, Trainer, data
from vae_fast.training.callbacks import Callback


def memory() -> dict[str, int]:
    """Bytes of the process: `VmData`, what RLIMIT_DATA limits, and `RssAnon`, what is in memory and no file's page."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmData", "RssAnon")}


class Watch(Callback):
    peak = 0

    def on_step(self, trainer: Any) -> None:
        self.peak = max(self.peak, memory()["RssAnon"])


def train(dataset: data.Dataset, **options: Any) -> Trainer:
    trainer = Trainer(Recipe(batch_size=1024, hidden=(32,), latent=4, lr=3e-3, epochs=1), dataset, **options)
    trainer.fit()
    return trainer


def main(path: str, limit: int) -> None:
    torch.set_num_threads(1)
    threading.stack_size(1 << 18)  # by default 8 MB, all of which RLIMIT_DATA counts
    few = torch.from_numpy(np.load(path, mmap_mode="r")[:4096].copy())
    train(data.Dataset("few", few, few))  # what torch takes for itself: threads, libraries, buffers
    before = memory()
    resource.setrlimit(resource.RLIMIT_DATA, (before["VmData"] + limit, resource.RLIM_INFINITY))
    try:
        data.load(path, stream=False)
        refused = ""
    except DataError as error:
        refused = str(error)
    dataset, watch = data.load(path), Watch()
    trainer = train(dataset, callbacks=[watch])
    found = {
        "refused": refused,
        "is_streamed": dataset.is_streamed,
        "notes": dataset.notes,
        "elbo": trainer.history[-1]["test_elbo"],
        "peak": watch.peak - before["RssAnon"],
        "seen": trainer.images,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
