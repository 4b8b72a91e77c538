"""Training on samples that are read by chunks beside training on the same ones in memory, in turns.

    python -m benchmarks.streaming

An epoch of the default MLP at batch 1024 on images of 784 uint8, each time of a new model: images/s of training, the
median of the rounds. `cold` drops the file's pages before the epoch, so that the disk is read; `warm` leaves them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from vae_fast.training import Recipe, Trainer, load
from vae_fast.training.malloc import set_up_process

WAYS = ("resident", "warm", "cold")


def write(path: Path, n: int) -> None:
    """Grey shapes in 784 pixels, as sparse as digits."""
    generator = np.random.default_rng(0)
    shapes = generator.random((10, 784), np.float32) ** 4 * 255
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 784))
    for start in range(0, n, 10_000):
        part = images[start : start + 10_000]
        light = generator.random((len(part), 1), np.float32) / 2 + 0.5
        part[:] = shapes[generator.integers(0, 10, len(part))] * light
    images.flush()  # only pages that are written can be dropped


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch(path: Path, way: str) -> float:
    """Images a second of training."""
    dataset = load(str(path), stream=way != "resident")
    trainer = Trainer(Recipe(data=str(path), epochs=1), dataset)
    if way == "cold":
        drop_pages(path)
    trainer.fit()
    return trainer.images / trainer.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=200_000, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the file is written: on the disk that is to be measured")
    options = parser.parse_args()
    set_up_process()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "images.npy"
        write(path, options.n)
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                speeds[way].append(epoch(path, way))
                print(f"{way}: {speeds[way][-1]:,.0f} images/s", file=sys.stderr)
    resident = statistics.median(speeds["resident"])
    print("| | images/s | of resident |\n| --- | ---: | ---: |")
    for way, found in speeds.items():
        median = statistics.median(found)
        print(f"| {way} | {median:,.0f} | {median / resident:.0%} |")


if __name__ == "__main__":
    main()
