#!/usr/bin/env python3
"""The made-up files of docs/tutorials: scripts/tutorial_data.py FOLDER

Writes machines.csv (a table with faults and gaps), clicks.npz, seen.npz and hidden.npz (what users clicked on), and,
where anndata is installed, cells.h5ad (counts of three batches).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import single_cell


def machines(rows: int = 6000, missing: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """Columns that have three hidden causes in common; in a fault two of the numbers are those of other rows."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(rows, 3))
    numbers = y @ rng.normal(size=(3, 6)) + 0.3 * rng.normal(size=(rows, 6))
    is_fault = rng.random(rows) < 0.03
    for row in np.flatnonzero(is_fault):
        columns = rng.choice(6, 2, replace=False)
        numbers[row, columns] = numbers[rng.integers(rows, size=2), columns]
    scale = {"temperature": (60, 8), "pressure": (4, 0.5), "current": (12, 2), "vibration": (0.8, 0.1)}
    scale |= {"speed": (1500, 200), "flow": (30, 4)}
    table: dict[str, Any] = {"machine": [f"M{i:04}" for i in range(rows)]}
    table |= {name: a + b * v for (name, (a, b)), v in zip(scale.items(), numbers.T, strict=True)}
    noise = rng.gumbel(size=(rows, 3))
    table["mode"] = np.array(["cut", "drill", "polish"])[(3 * y + noise).argmax(1)]
    table["door_open"] = y[:, 0] + 0.5 * rng.normal(size=rows) > 1
    table["alarms"] = rng.poisson(np.exp(y[:, 1] / 2))
    frame = pd.DataFrame(table).round(3)
    for name in frame.columns[1:]:
        frame[name] = frame[name].astype(object).where(rng.random(rows) >= missing, None)
    return frame.assign(state=np.where(is_fault, "fault", "ok"))


def clicks(users: int = 3000, items: int = 400, groups: int = 8, seed: int = 0) -> scipy.sparse.csr_matrix:
    """1 where a user clicked on an item (users, items): most on items of the user's two groups; some items are liked
    more than others."""
    rng = np.random.default_rng(seed)
    group, liking = rng.integers(groups, size=items), rng.normal(-3.5, 1, items)
    likes = np.zeros((users, groups))
    for _ in range(2):
        likes[np.arange(users), rng.integers(groups, size=users)] = 2.5
    share = 1 / (1 + np.exp(-(liking + likes[:, group])))
    return scipy.sparse.csr_matrix((rng.random(share.shape) < share).astype(np.uint8))


def held_out(clicked: Any, users: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """The clicks of all users except the last ones; of these four fifths, which are shown, and the rest."""
    train, new = clicked[:-users], clicked[-users:].tocoo()
    is_seen = np.random.default_rng(seed).random(new.nnz) < 0.8
    parts = [
        scipy.sparse.csr_matrix((new.data[part], (new.row[part], new.col[part])), new.shape)
        for part in (is_seen, ~is_seen)
    ]
    return train, parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    machines().to_csv(folder / "machines.csv", index=False)
    for name, part in zip(("clicks", "seen", "hidden"), held_out(clicks(), 500), strict=True):
        scipy.sparse.save_npz(folder / f"{name}.npz", part)
    try:
        import anndata
    except ImportError:
        print("no cells.h5ad: anndata is not installed (pip install anndata)", file=sys.stderr)
        return
    counts, kind, batch = single_cell.simulate()
    obs = pd.DataFrame({"type": kind, "batch": batch}).astype(str).astype("category")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    sparse = scipy.sparse.csr_matrix(counts.astype(np.float32))
    anndata.AnnData(sparse, obs).write_h5ad(folder / "cells.h5ad")


if __name__ == "__main__":
    main()
