"""beta-TCVAE beside beta-VAE on 3,000 drawn images of known factors: mutual information gap, several seeds.

python examples/research/disentangle.py

Squares and ellipses of 32 x 32 pixels: shape, 3 sizes, 5 orientations, 10 places across and 10 down. The gap is that of
Chen et al., "Isolating sources of disentanglement in variational autoencoders", 2018: the information about a factor
in the latent that has most of it, less that in the next one, over the factor's entropy; mean over the factors.
"""

import math

import torch
from common import options, train

import vae_fast
from vae_fast import nn

FACTORS = ("shape", "size", "orientation", "across", "down")


def images():
    """(3000, 32, 32) in [0, 1], and each image's factors, (3000, 5)."""
    sizes = (2, 3, 5, 10, 10)
    values = torch.cartesian_prod(*map(torch.arange, sizes))
    shape, size, turn, across, down = (v.float().view(-1, 1, 1) for v in values.T)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    x, y, angle = x - 7 - 2 * across, y - 7 - 2 * down, turn * math.pi / 10
    radius = 4 + 1.2 * size
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    square = torch.maximum(u.abs(), v.abs()) - 0.8 * radius
    ellipse = (u.square() + (1.8 * v).square()).sqrt() - radius
    return (0.5 - torch.where(shape == 0, square, ellipse)).clamp(0, 1), values


def mutual_information_gap(mu, logvar, factors):
    z = vae_fast.reparameterize(mu, logvar)

    def entropy(rows, j):
        """Of z_j under the aggregate posterior of these rows."""
        density = vae_fast.mixture_log_prob(z[rows, j : j + 1], mu[rows, j : j + 1], logvar[rows, j : j + 1])
        return -density.mean()

    gaps = []
    for factor in factors.T:
        values = [(factor == value).nonzero()[:, 0] for value in factor.unique()]
        information = (
            torch.stack(
                [
                    entropy(slice(None), j) - sum(len(rows) / len(z) * entropy(rows, j) for rows in values)
                    for j in range(z.shape[1])
                ]
            )
            .sort(descending=True)
            .values
        )
        gaps.append((information[0] - information[1]) / math.log(len(values)))
    return torch.stack(gaps)


def main(arguments=None):
    args = options(__doc__, epochs=150, seeds=3, beta=4.0).parse_args(arguments)
    x, factors = images()
    found = {}
    for name in ("beta", "beta_tc"):
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            objective = nn.ELBO(args.beta) if name == "beta" else nn.BetaTC(len(x), beta=args.beta)
            encoder, decoder = nn.MLPEncoder(1024, (256, 256), 8), nn.MLPDecoder(8, (256, 256), (32, 32))
            model = nn.VAE(encoder, decoder, objective=objective)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            train(model, x, optimizer, args.out / f"{name}_{seed}", args.epochs, 200)
            with torch.no_grad():
                gaps = mutual_information_gap(*model.encode(x), factors)
                elbo = model.elbo(x).mean()
            found.setdefault(name, []).append(gaps.mean().item())
            each = "  ".join(f"{factor} {gap:.2f}" for factor, gap in zip(FACTORS, gaps, strict=True))
            print(f"{name:8} seed {seed}: gap {gaps.mean():.3f}  ({each})  ELBO {elbo:.1f}")
        gaps = torch.tensor(found[name])
        print(f"{name:8} mean of {args.seeds} seeds: {gaps.mean():.3f}")
    return found


if __name__ == "__main__":
    main()
