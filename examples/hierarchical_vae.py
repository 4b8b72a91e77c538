"""Two levels of latents beside one: python examples/hierarchical_vae.py [EPOCHS]

z2 is the condition of the VAE below it, whose prior p(z1 | z2) is a network. hierarchical_vae.png: each row is one z2.
Source: Sonderby et al., "Ladder variational autoencoders", 2016.
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from vae_fast import nn

TOP, BOTTOM = 4, 12


def make(levels):
    torch.manual_seed(0)
    if levels == 1:
        return nn.VAE(nn.MLPEncoder(64, 128, BOTTOM), nn.MLPDecoder(BOTTOM, 128, 64), binarize=True)
    bottom = nn.VAE(
        nn.MLPEncoder(64, 128, BOTTOM, conditions=TOP),  # q(z1 | x, z2)
        nn.MLPDecoder(BOTTOM, 128, 64, conditions=TOP),  # p(x | z1, z2)
        prior=nn.ConditionalPrior(nn.MLPEncoder(TOP, 64, BOTTOM)),  # p(z1 | z2)
        binarize=True,
    )
    beta = nn.LinearSchedule(500, start=0.1)  # without warm-up the top level is given up
    return nn.HierarchicalVAE(nn.MLPEncoder(64, 128, TOP), bottom, beta=beta)  # q(z2 | x)


def train(levels, epochs=150, batch=64):
    x = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    model = make(levels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(1400).split(batch):
            model(x[part]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    found = nn.evaluate(model.eval(), x[1400:].split(200), 100)
    return model, {"-log p(x)": found.nll, "-ELBO": -found.elbo, "KL": found.rate}


def draw(model, path):
    z2 = torch.randn(8, TOP, generator=torch.Generator().manual_seed(0))
    rows = [model.bottom.generate(10, condition=z).view(-1, 8, 8) for z in z2]
    picture = torch.cat([torch.cat(tuple(row), 1) for row in rows])
    plt.imsave(path, picture.repeat_interleave(4, 0).repeat_interleave(4, 1), cmap="gray")


if __name__ == "__main__":
    for levels in (1, 2):
        model, figures = train(levels, *map(int, sys.argv[1:]))
        print(levels, figures)
    draw(model, "hierarchical_vae.png")
