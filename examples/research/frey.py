"""Frey faces with a Gaussian decoder whose log-variance is learned, as in Kingma & Welling, "Auto-Encoding Variational
Bayes", 2014: 200 tanh units, means between 0 and 1 by a sigmoid.

python examples/research/frey.py --data DIR

With 20 latents the ELBO's curve and samples; with 2 the manifold: decoded at the inverse CDF of a grid on the unit
square. Trained on 1,500 frames drawn at random; the other 465 have neighbours among them, as frames of a film do.
"""

import json

import torch
from common import frey, options, train
from torch.nn import Module, Sequential, Tanh

from vae_fast import nn
from vae_fast.training.pictures import save_curve, save_grid


class SigmoidMean(Module):
    def forward(self, moments):
        mean, logvar = moments.chunk(2, dim=1)
        return mean.sigmoid(), logvar


def fit(x, valid, latent, epochs, folder):
    torch.manual_seed(0)
    decoder = Sequential(nn.MLPDecoder(latent, 200, 560, num_parameters=2, activation=Tanh), SigmoidMean())
    model = nn.VAE(nn.MLPEncoder(560, 200, latent, activation=Tanh), decoder, "gaussian", variance="decoder")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def check(model):
        return {"score": model.elbo(valid, num_samples=10).mean().item()}

    return train(model, x, optimizer, folder, epochs, 100, check=check)


def main(arguments=None):
    args = options(__doc__, epochs=1000, side=20).parse_args(arguments)
    x = frey(args.data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, valid = x[order[:1500]], x[order[1500:]]
    found = {}
    for latent in (20, 2):
        folder = args.out / f"frey_{latent}"
        model = fit(x, valid, latent, args.epochs, folder)
        history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        best = max(history, key=lambda row: row["score"])
        found[latent] = best["score"]
        print(
            f"latent {latent}: ELBO of the 465 other frames {best['score']:.1f} after {best['epoch']} epochs"
        )
        rows = [r | {"train_loss": r["loss"], "test_elbo": r["score"]} for r in history]
        save_curve(folder / "elbo.png", rows, "frame")
        samples = model.generate(40, generator=torch.Generator().manual_seed(0))
        save_grid(folder / "samples.png", samples.view(-1, 28, 20), 10, f"samples, {latent} latents")
    u = torch.linspace(0, 1, args.side + 2)[1:-1]
    z = torch.special.ndtri(torch.cartesian_prod(u, u))
    with torch.no_grad():
        save_grid(folder / "manifold.png", model.decode(z).view(-1, 28, 20), args.side, "two latents")
    return found


if __name__ == "__main__":
    main()
