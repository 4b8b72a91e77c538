"""A Gaussian decoder with a network of its own for the variance: python examples/gaussian_vae.py [STEPS]

The noise of these signals grows from left to right, and with the signal's amplitude. A decoder that gives mean and
log-variance of every number finds that; beside it stands the same VAE with one learned variance.
Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.2.
"""

import sys

import torch
from torch.nn import Module, Tanh

from vae_fast import nn

POINTS, LATENT = 40, 4


class MeanAndVariance(Module):
    def __init__(self):
        super().__init__()
        self.mean, self.logvar = (nn.MLPDecoder(LATENT, 64, POINTS, activation=Tanh) for _ in range(2))

    def forward(self, z):
        return self.mean(z), self.logvar(z)


def make_signals(n):
    """Noisy signals (n, points), and the standard deviation of each number's noise."""
    time, amplitude = torch.linspace(0, 1, POINTS), 0.5 + torch.rand(n, 1)
    signal = amplitude * (2 * torch.pi * (time + torch.rand(n, 1))).sin()
    sigma = amplitude * (0.05 + 0.5 * time)
    return signal + sigma * torch.randn(n, POINTS), sigma


def fit(variance, steps, batch=256):
    torch.manual_seed(0)
    decoder = MeanAndVariance()
    decoder = decoder if variance == "decoder" else decoder.mean
    encoder = nn.MLPEncoder(POINTS, 64, LATENT, activation=Tanh)
    model = nn.VAE(encoder, decoder, "gaussian", variance=variance)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        model(make_signals(batch)[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def train(steps=3000):
    test, sigma = make_signals(1000)
    models = {variance: fit(variance, steps) for variance in ("learned", "decoder")}
    found = {f"log p(x), {name}": -nn.importance_nll(m, test, 50).mean().item() for name, m in models.items()}
    model = models["decoder"]
    ratio = (model.decoder.logvar(model.encode(test)[0]) / 2).exp() / sigma
    return found | {"sigma / true, quartiles": ratio.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()}


if __name__ == "__main__":
    print(*train(*map(int, sys.argv[1:])).items(), sep="\n")
