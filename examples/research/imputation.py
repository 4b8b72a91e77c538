"""Filling in what is missing of an image: MNIST without the upper half, or without a third of the pixels.

python examples/research/imputation.py --data DIR

A VAE trained on whole images; the root mean square error of the missing pixels, by draws and steps of pseudo-Gibbs
sampling, beside that of the mean image and of the reconstruction of the whole image.
"""

import torch
from common import mnist, options, train

from vae_fast import nn

STEPS = (0, 3, 10, 30)


def main(arguments=None):
    args = options(__doc__, epochs=10, images=500, draws=1000).parse_args(arguments)
    (x, _), (test, _) = mnist(args.data), mnist(args.data, "test")
    torch.manual_seed(0)
    model = nn.VAE(nn.MLPEncoder(784, 400, 20), nn.MLPDecoder(20, 400, 784))
    train(model, x, torch.optim.Adam(model.parameters(), lr=1e-3), args.out / "imputation", args.epochs, 128)
    model.eval()
    test = test[: args.images]
    half, third = torch.arange(784) >= 392, torch.rand(784) > 1 / 3
    found = {}
    for name, mask in (("upper half", half), ("third", third)):

        def error(filled, mask=mask):
            return (filled - test)[:, ~mask].square().mean().sqrt().item()

        found[name, "mean image"] = error(x.mean(0).expand_as(test))
        found[name, "whole image"] = error(model.reconstruct(test))
        for k in (k for k in (1, 10, 100, 1000) if k <= args.draws):
            for steps in STEPS:
                filled = nn.impute(model, test, mask, num_samples=k, num_iterations=steps)
                found[name, k, steps] = error(filled)
    for key, value in found.items():
        print(*key, f"{value:.3f}", sep="   ")
    return found


if __name__ == "__main__":
    main()
