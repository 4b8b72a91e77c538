"""What the condition does: whether the cells of simulated counts cluster by type or by batch.

    python -m benchmarks.batch_effect

KMeans on the means of q(z | x), with as many clusters as there are types (batches), against the types (batches):
adjusted Rand index, 1 for the same clusters, 0 for clusters by chance.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

from .simulate_counts import simulate


def cluster(conditioned: bool, cells: int = 3000, genes: int = 500, epochs: int = 40) -> tuple[float, float]:
    """The index of the types, and that of the batches."""
    counts = simulate(cells, genes, density=0.3, types=5, batches=3, type_effect=2.0)
    x = torch.zeros(cells, genes)
    x[np.arange(cells).repeat(np.diff(counts.indptr)), counts.indices] = torch.from_numpy(
        counts.values
    ).float()
    labels = torch.from_numpy(counts.batches)
    torch.manual_seed(0)
    n = 3 if conditioned else None
    model = VAE(
        MLPEncoder(genes, 128, 10, log1p=True, sparse=True, conditions=n, batch_norm=True, dropout=0.1),
        MLPDecoder(10, 128, genes, conditions=n, batch_norm=True),
        "negative_binomial",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(cells).split(250):
            condition = labels[rows] if conditioned else None
            model(x[rows].to_sparse_csr(), condition=condition).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        mu, _ = model.eval().encode(x, condition=labels if conditioned else None)
    found = []
    for truth in (counts.types, counts.batches):
        clusters = KMeans(int(truth.max()) + 1, n_init=10, random_state=0).fit_predict(mu.numpy())
        found.append(float(adjusted_rand_score(truth, clusters)))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    print("| | ARI of the type | of the batch |\n| --- | ---: | ---: |")
    for name, conditioned in (("without", False), ("with the batch as condition", True)):
        types, batches = cluster(conditioned, epochs=epochs)
        print(f"| {name} | {types:.2f} | {batches:.2f} |", flush=True)


if __name__ == "__main__":
    main()
