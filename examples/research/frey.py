"""Frey faces with a Gaussian decoder whose log-variance is learned, as in Kingma & Welling, "Auto-Encoding Variational
Bayes", 2014.

python examples/research/frey.py --data DIR

400 hidden units, the first 1,500 frames for training, as in github.com/y0ast/Variational-Autoencoder. With 20 latents
the ELBO's curve and samples; with 2 the manifold: decoded at the inverse CDF of a grid on the unit square.
"""

import json

import torch
from common import frey, options, train

from vae_fast import nn
from vae_fast.training.pictures import save_curve, save_grid


def fit(x, latent, epochs, folder):
    torch.manual_seed(0)
    encoder, decoder = nn.MLPEncoder(560, 400, latent), nn.MLPDecoder(latent, 400, 560, num_parameters=2)
    model = nn.VAE(encoder, decoder, "gaussian", variance="decoder")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def check(model):
        return {"score": model.elbo(x[1500:], num_samples=10).mean().item()}

    return train(model, x[:1500], optimizer, folder, epochs, 100, check=check)


def main(arguments=None):
    args = options(__doc__, epochs=1000, side=20).parse_args(arguments)
    x = frey(args.data)
    found = {}
    for latent in (20, 2):
        folder = args.out / f"frey_{latent}"
        model = fit(x, latent, args.epochs, folder)
        history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        best = max(history, key=lambda row: row["score"])
        found[latent] = best["score"]
        print(
            f"latent {latent}: ELBO of the last 465 frames {best['score']:.1f} after {best['epoch']} epochs"
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
