"""Counts of simulated cells, of several types and measured in several batches, as an .h5ad or SciPy's .npz.

    python -m benchmarks.simulate_counts cells.h5ad --cells 100000 --genes 20000 --density 0.05

A count is negative binomial of mean library x exp(gene + type + batch effects). A type changes some genes much, a batch
all genes a little. obs has the columns `type` and `batch`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK = 1000  # cells that are drawn at a time
MARKERS = 0.05  # the part of the genes that a type changes


class Counts(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray  # uint16
    genes: int
    types: np.ndarray
    batches: np.ndarray


def simulate(
    cells: int,
    genes: int,
    density: float = 0.05,
    types: int = 8,
    batches: int = 4,
    type_effect: float = 1.0,
    batch_effect: float = 0.5,
    seed: int = 0,
) -> Counts:
    rng = np.random.default_rng(seed)
    theta = rng.gamma(2.0, 1.0, genes).astype(np.float32) + 0.5
    profile = rng.normal(0, 1.5, genes)
    of_type = rng.normal(0, type_effect, (types, genes)) * (rng.random((types, genes)) < MARKERS)
    of_batch = rng.normal(0, batch_effect, (batches, genes))
    log_means = (profile + of_type[:, None] + of_batch).astype(np.float32)
    log_means += _offset(log_means, theta, density)
    type_of, batch_of = rng.integers(types, size=cells), rng.integers(batches, size=cells)
    library = np.exp(rng.normal(0, 0.3, cells)).astype(np.float32)
    lengths, columns, values = [np.zeros(1, np.int64)], [], []
    for start in range(0, cells, BLOCK):
        part = slice(start, min(start + BLOCK, cells))
        means = np.exp(log_means[type_of[part], batch_of[part]]) * library[part, None]
        gamma = rng.standard_gamma(np.broadcast_to(theta, means.shape), dtype=np.float32) / theta
        x = rng.poisson(means * gamma).clip(max=65535).astype(np.uint16)
        row, column = x.nonzero()
        lengths.append(np.bincount(row, minlength=len(x)))
        columns.append(column.astype(np.int32))
        values.append(x[row, column])
    indptr = np.cumsum(np.concatenate(lengths))
    return Counts(indptr, np.concatenate(columns), np.concatenate(values), genes, type_of, batch_of)


def _offset(log_means: np.ndarray, theta: np.ndarray, density: float) -> float:
    """What all log-means are raised by so that so much of the counts is not 0."""
    lo, hi = -20.0, 20.0
    for _ in range(40):
        middle = (lo + hi) / 2
        nonzero = 1 - ((1 + np.exp(log_means + middle) / theta) ** -theta).mean()
        lo, hi = (middle, hi) if nonzero < density else (lo, middle)
    return lo


def write(path: Path, counts: Counts) -> None:
    shape = (len(counts.indptr) - 1, counts.genes)
    if path.suffix == ".npz":
        from scipy.sparse import csr_matrix, save_npz

        matrix = csr_matrix((counts.values, counts.indices, counts.indptr), shape=shape)
        save_npz(path, matrix, compressed=False)
        return
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        x["data"], x["indices"], x["indptr"] = counts.values, counts.indices, counts.indptr
        _write_frame(file.create_group("obs"), shape[0], {"type": counts.types, "batch": counts.batches})
        _write_frame(file.create_group("var"), shape[1], {})


def _write_frame(group, n: int, columns: dict[str, np.ndarray]) -> None:  # type: ignore[no-untyped-def]
    import h5py

    text = h5py.string_dtype()
    attrs = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    group.attrs.update(attrs)
    group.attrs["column-order"] = np.array(list(columns), dtype=text)
    group["_index"] = np.array([str(i) for i in range(n)], dtype=text)
    group["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for name, codes in columns.items():
        column = group.create_group(name)
        column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        column["codes"] = codes.astype(np.int8)
        column["categories"] = np.array([f"{name} {i}" for i in range(codes.max() + 1)], dtype=text)
        column["categories"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--types", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    out = options.pop("out")
    counts = simulate(**options)
    write(out, counts)
    part = len(counts.values) / (len(counts.indptr) - 1) / counts.genes
    print(f"{out}: {len(counts.indptr) - 1:,} x {counts.genes:,}, {part:.2%} not 0")


if __name__ == "__main__":
    main()
