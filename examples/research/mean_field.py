"""The mean-field VAE of github.com/altosaar/variational-autoencoder on the fixed binarization of MNIST.

python examples/research/mean_field.py --data DIR

Latent 128, two hidden layers of 256 each way, RMSprop (centered) at 1e-3, batch 128, the weights of the best ELBO on
the validation part. Published: test ELBO -103.31, log p(x) -97.10. Here the encoder gives the log-variance, there a
scale by softplus.
"""

import torch
from common import binarized_mnist, options, train

from vae_fast import nn


def main(arguments=None):
    args = options(__doc__, epochs=170, draws=1000).parse_args(arguments)
    torch.manual_seed(0)
    model = nn.VAE(nn.MLPEncoder(784, (256, 256), 128), nn.MLPDecoder(128, (256, 256), 784))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, centered=True)
    valid = binarized_mnist(args.data, "valid")

    def check(model):
        return {"score": model.elbo(valid, num_samples=10).mean().item()}

    x = binarized_mnist(args.data)
    train(model, x, optimizer, args.out / "mean_field", args.epochs, 128, check=check, every=5)
    test = binarized_mnist(args.data, "test")
    found = nn.evaluate(model, test.split(500), num_samples=args.draws)
    print(f"test ELBO {found.elbo:.2f}, log p(x) {-found.nll:.2f} by {args.draws} draws")
    return found


if __name__ == "__main__":
    main()
