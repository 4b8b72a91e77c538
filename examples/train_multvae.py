"""Mult-VAE on users' purchases that stay sparse, with fold-in: python examples/train_multvae.py

Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", 2018.
"""

import sys

import torch
from sklearn.metrics import ndcg_score, precision_recall_fscore_support
from torch.nn import Dropout, Module, Tanh

from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

BETA, ANNEALED = 0.2, 200  # beta's last value, and after how many steps


class Normalized(Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.dropout, self.latent_shape = encoder, Dropout(0.5), encoder.latent_shape

    def forward(self, x):
        values, crow = x.values().float(), x.crow_indices()
        norm = torch.segment_reduce(values.square(), "sum", offsets=crow).sqrt().clamp_min(1e-12)
        values = self.dropout(values / norm.repeat_interleave(crow.diff()))
        return self.encoder(torch.sparse_csr_tensor(crow, x.col_indices(), values, x.shape))


def metrics(scores, held_out, ks=(20, 50), n=100):
    """Means over users. Recall@k as Liang et al. have it, hits / min(k, held out): max(precision, recall)."""
    found = {f"NDCG@{n}": ndcg_score(held_out, scores, k=n)}
    for k in ks:
        best = torch.zeros_like(held_out).scatter(1, scores.topk(k).indices, 1)
        precision, recall, *_ = precision_recall_fscore_support(held_out.T, best.T)  # of each user
        found[f"Recall@{k}"] = sum(map(max, precision, recall)) / len(scores)
    return found


def train(steps=300, users=2000, items=500, seed=0):
    torch.manual_seed(seed)
    bought = torch.bernoulli((torch.randn(users, 4) @ torch.randn(4, items) - 3).sigmoid())
    new = bought[-200:]  # users that training has not seen: of each, 80% are folded in, 20% are to be found
    seen = new * torch.bernoulli(torch.full_like(new, 0.8))
    encoder = Normalized(MLPEncoder(items, 100, 20, activation=Tanh, sparse=True))
    model = VAE(encoder, MLPDecoder(20, 100, items, activation=Tanh), "multinomial", beta=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        model.beta = BETA * min(1, step / ANNEALED)
        model(bought[torch.randint(users - 200, (250,))].to_sparse_csr()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seen, held_out = (part[(new - seen).any(1) & seen.any(1)] for part in (seen, new - seen))
    scores = model.eval().reconstruct(seen.to_sparse_csr()).masked_fill(seen > 0, -1)  # seen: last
    popular = bought[:-200].mean(0).masked_fill(seen > 0, -1)
    return metrics(scores, held_out), metrics(popular, held_out)


if __name__ == "__main__":
    print("Mult-VAE and the most popular items:", *train(*map(int, sys.argv[1:])), sep="\n")
