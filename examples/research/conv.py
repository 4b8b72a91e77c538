"""A convolutional VAE beside an MLP, both with 20 latents, on MNIST with pixels drawn anew in every pass.

python examples/research/conv.py --data DIR
"""

import torch
from common import mnist, options, train

from vae_fast import nn


def build(name):
    torch.manual_seed(0)
    if name == "mlp":
        return nn.VAE(nn.MLPEncoder(784, 400, 20), nn.MLPDecoder(20, 400, (28, 28)), binarize=True)
    shape, channels = (28, 28), (32, 64)
    return nn.VAE(nn.ConvEncoder(shape, channels, 20), nn.ConvDecoder(20, channels, shape), binarize=True)


def fit(name, args):
    x = mnist(args.data)[0].view(-1, 28, 28)
    model = build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return train(model, x, optimizer, args.out / name, args.epochs, 128)


def main(arguments=None):
    args = options(__doc__, epochs=20, draws=100).parse_args(arguments)
    test = mnist(args.data, "test")[0].view(-1, 28, 28)
    found = {}
    for name in ("mlp", "conv"):
        model = fit(name, args)
        torch.manual_seed(0)
        found[name] = nn.evaluate(model, test.split(500), num_samples=args.draws)
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{name}, {parameters} parameters: ELBO {found[name].elbo:.2f}, -log p(x) {found[name].nll:.2f}"
        )
    return found


if __name__ == "__main__":
    main()
