"""A plain VAE on vectors, held against the answer that is known here: python examples/mlp_vae.py [STEPS]

x (100 numbers) is linear in five hidden factors, with noise: log p(x) has a closed form, which no model can beat. What
tutorials often get wrong is the library's here: z = mu + exp(logvar / 2) eps, sums over x and z before the mean over
the batch (a mean over x is another beta), and a noise level that is learned instead of a bare squared error.
"""

import sys

import torch
from torch.distributions import LowRankMultivariateNormal

from vae_fast import nn

FEATURES, FACTORS, NOISE = 100, 5, 0.5


def make_data():
    weight = torch.randn(FEATURES, FACTORS, generator=torch.Generator().manual_seed(0))
    return LowRankMultivariateNormal(torch.zeros(FEATURES), weight, torch.full((FEATURES,), NOISE**2))


def train(steps=4000, latent=10, hidden=256, batch=256):
    torch.manual_seed(0)
    truth = make_data()
    encoder, decoder = nn.MLPEncoder(FEATURES, hidden, latent), nn.MLPDecoder(latent, hidden, FEATURES)
    model = nn.VAE(encoder, decoder, "gaussian", variance="learned")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        model(truth.sample((batch,))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    test = truth.sample((2000,))
    found = nn.evaluate(model.eval(), test.split(500), 50)
    return {
        "log p(x), exact": truth.log_prob(test).mean().item(),
        "log p(x), importance sampling": -found.nll,
        "ELBO": found.elbo,
        "active units": found.active_units,
        "noise": model.likelihood.logvar.exp().sqrt().item(),
    }


if __name__ == "__main__":
    print(*train(*map(int, sys.argv[1:])).items(), sep="\n")
