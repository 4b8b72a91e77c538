"""Cells of five types in three batches, whose effects the condition takes out of z: python examples/single_cell.py

Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018.
"""

import sys

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from vae_fast.nn import VAE, LinearSchedule, MLPDecoder, MLPEncoder

TYPES, BATCHES = 5, 3


def simulate(cells=3000, genes=500, seed=0):
    """Counts (cells, genes), negative binomial with theta 3, a type and a batch for each cell; depth differs."""
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(TYPES, size=cells), rng.integers(BATCHES, size=cells)
    of_type = rng.normal(0, 0.8, (TYPES, genes)) * (rng.random((TYPES, genes)) < 0.1)
    logits = rng.normal(0, 1, genes) + of_type[kind] + rng.normal(0, 0.5, (BATCHES, genes))[batch]
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mean = share * rng.lognormal(np.log(2 * genes), 0.3, (cells, 1))
    return rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape)), kind, batch


def clusters(z, kind, batch):
    """The adjusted Rand index of k-means' clusters of z with the types (best 1) and with the batches (best 0)."""
    found = KMeans(TYPES, n_init=10, random_state=0).fit_predict(z)
    return adjusted_rand_score(kind, found), adjusted_rand_score(batch, found)


def train(counts, batch, is_told=True, steps=1000):
    """mu of every cell. Where the model is not told a cell's batch, z holds it."""
    torch.manual_seed(0)
    x, label = torch.from_numpy(counts).float(), torch.from_numpy(batch)
    genes, conditions = x.shape[1], BATCHES if is_told else None
    encoder = MLPEncoder(genes, 128, 10, log1p=True, batch_norm=True, dropout=0.1, conditions=conditions)
    decoder = MLPDecoder(10, 128, genes, batch_norm=True, conditions=conditions)
    model = VAE(encoder, decoder, "negative_binomial", beta=LinearSchedule(steps // 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        model(x[rows], condition=label[rows] if is_told else None).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model.eval().encode(x, condition=label if is_told else None)[0].numpy()


if __name__ == "__main__":
    counts, kind, batch = simulate(*map(int, sys.argv[1:]))
    for name, is_told in (("told the batch", True), ("not told", False)):
        of_types, of_batches = clusters(train(counts, batch, is_told), kind, batch)
        print(f"{name}: ARI of the types {of_types:.3f}, of the batches {of_batches:.3f}")
