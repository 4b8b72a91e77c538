"""A table with gaps: fill them, find odd rows and what is odd in them: python examples/mixed_table.py

Source: Nazabal et al., "Handling incomplete heterogeneous data using VAEs", 2020.
"""

import math
import sys

import torch
from sklearn.metrics import roc_auc_score

from vae_fast import nn

REAL, CLASS, COUNT = slice(0, 8), slice(8, 10), slice(13, 15)


def make_table(rows):
    """Rows with four hidden causes; the same, but one number of each row is that of another row; its column."""
    y = torch.randn(rows, 4) @ torch.randn(4, 19, generator=torch.Generator().manual_seed(0))
    real = y[:, :8] / 2 + 0.2 * torch.randn(rows, 8)
    classes = torch.distributions.Categorical(logits=3 * y[:, 8:14].view(rows, 2, 3)).sample()
    bits, counts = torch.bernoulli((3 * y[:, 14:17]).sigmoid()), torch.poisson((y[:, 17:] / 3 + 1).exp())
    table = torch.cat([real, classes, bits, counts], 1)
    row, column = torch.arange(rows), torch.randint(8, (rows,))
    return table, table.index_put((row, column), table[row - 1, column]), column


def train(steps=3000, rows=4000, missing=0.2):
    torch.manual_seed(0)
    table, odd, column = make_table(rows)
    x = table.masked_fill(torch.rand(table.shape) < missing, math.nan)
    gaussian, classes = ("gaussian", 8, {"variance": "feature"}), ("categorical", 2, {"classes": 3})
    likelihood = nn.MixedColumns([gaussian, classes, ("bernoulli", 3), ("poisson", 2)], encoder_mask=True)
    encoder = nn.MLPEncoder(likelihood.encoder_features, (64, 64), 6)
    model = nn.VAE(encoder, nn.MLPDecoder(6, (64, 64), likelihood.decoder_features), likelihood)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        model(x[torch.randint(rows, (250,))]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    found, n = {}, min(500, rows)
    simple = x.nanmean(0).expand(n, -1).clone()
    simple[:, CLASS] = x[:, CLASS].mode(0).values
    for name, guess in (("VAE", nn.impute(model, x[:n])), ("column mean", simple)):
        error = (guess - table[:n]).where(x[:n].isnan(), math.nan)
        for kind, columns in (("numbers", REAL), ("counts", COUNT)):
            found[f"{name}: error of {kind}"] = error[:, columns].square().nanmean().sqrt().item()
        found[f"{name}: wrong classes"] = error[:, CLASS].abs().clamp(max=1).nanmean().item()
    usual, strange = (nn.anomaly_score(model, t[:n], "iwae", 100) for t in (table, odd))
    found["odd rows: AUROC"] = roc_auc_score([0] * n + [1] * n, torch.cat([usual, strange]))
    worst = nn.feature_nll(model, odd[:n], 100)[:, REAL].argmax(1)
    return found | {"odd rows: column found": (worst == column[:n]).float().mean().item()}


if __name__ == "__main__":
    print(*train(*map(int, sys.argv[1:])).items(), sep="\n")
