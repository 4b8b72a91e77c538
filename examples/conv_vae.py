"""Networks of convolutions on 28 x 28 images: python examples/conv_vae.py [DATA] [ARCHITECTURE] [EPOCHS]

DATA is what `vae-fast train --data` reads, such as a folder with MNIST's files; without it, scikit-learn's digits are
enlarged. ARCHITECTURE is "conv", "resnet" or "mlp". Pictures: conv_vae.png.
"""

import sys

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from vae_fast import nn
from vae_fast.training import load

HIDDEN = {"conv": (32, 64), "resnet": (16, 32), "mlp": (400,)}


def read(source=None):
    """Training and test images, (n, 28, 28), 0 to 1."""
    data = load(source or "digits")
    if source:
        return data.train / 255, data.test / 255
    return (
        F.interpolate(x.view(-1, 1, 8, 8) / x.max(), 28, mode="bilinear")[:, 0]
        for x in (data.train, data.test)
    )


def train(x, test, architecture="conv", epochs=10, hidden=None, latent=20, batch=128):
    torch.manual_seed(0)
    hidden = hidden or HIDDEN[architecture]
    networks = nn.build_networks(x.shape[1:], architecture=architecture, hidden=hidden, latent=latent)
    model = nn.VAE(*networks, "bernoulli").to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            model(x[part]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    found = nn.evaluate(model.eval(), test.split(500), 10)
    figures = {"-ELBO": -found.elbo, "KL": found.rate, "active units": found.active_units}
    mean = x.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(test)
    return model, figures | {"mean image": F.binary_cross_entropy(mean, test).item() * mean[0].numel()}


def draw(model, test, path):
    """Test images, what the model gives back of them, and images that it makes."""
    rows = (test[:10], model.reconstruct(test[:10]), model.generate(10))
    plt.imsave(path, torch.cat([torch.cat(tuple(row), 1) for row in rows]), cmap="gray")


if __name__ == "__main__":
    source, architecture, epochs = (*sys.argv[1:], *("", "conv", 10)[len(sys.argv) - 1 :])
    x, test = read(source)
    model, figures = train(x, test, architecture, int(epochs))
    print(architecture, figures)
    draw(model, test, "conv_vae.png")
