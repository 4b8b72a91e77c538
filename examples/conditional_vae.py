"""A conditional VAE: digits to order, in a style of one's own choice: python examples/conditional_vae.py [EPOCHS]

Encoder and decoder are told the label, so that z holds what the label does not say. conditional_vae.png: each column is
one z, each row a label. Source: Sohn, Lee & Yan, "Learning structured output representation using deep conditional
generative models", 2015.
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from vae_fast import nn


def train(epochs=300, latent=3, batch=64):
    torch.manual_seed(0)
    digits = load_digits()
    x, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    encoder = nn.MLPEncoder(64, 128, latent, conditions=10)
    model = nn.VAE(encoder, nn.MLPDecoder(latent, 128, 64, conditions=10), "continuous_bernoulli")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(1400).split(batch):
            model(x[part], condition=labels[part]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    ordered = torch.arange(10).repeat_interleave(50)
    made = model.generate(500, condition=ordered)
    judge = KNeighborsClassifier(1).fit(x[:1400], labels[:1400])
    x, labels = x[1400:], labels[1400:]
    right, wrong = (nn.importance_nll(model, x, 50, condition=c).mean() for c in (labels, (labels + 1) % 10))
    return model, {
        "made, share of the label asked for": judge.score(made, ordered),
        "real, the same judge": judge.score(x, labels),
        "-log p(x | label)": right.item(),
        "-log p(x | another label)": wrong.item(),
    }


def draw(model, path, columns=12):
    z = torch.randn(columns, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = [torch.cat(tuple(model.decode(z, condition=label).view(-1, 8, 8)), 1) for label in range(10)]
    plt.imsave(path, torch.cat(rows).repeat_interleave(4, 0).repeat_interleave(4, 1), cmap="gray")


if __name__ == "__main__":
    model, figures = train(*map(int, sys.argv[1:]))
    print(*figures.items(), sep="\n")
    draw(model, "conditional_vae.png")
