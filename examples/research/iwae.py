"""The single-layer model of Burda et al., "Importance Weighted Autoencoders", 2016: VAE and IWAE on MNIST.

python examples/research/iwae.py --data DIR --k 50

Latent 50, two hidden layers of 200 tanh units each way, Adam with eps 1e-4, batch 20, pixels drawn anew in every pass,
the decoder's bias from the mean image. The learning rate is the paper's at each epoch: 1e-4 round(10^(1 - i/7), 1) for
3^i epochs, i = 0, 1, ..., 7; it takes 3,280 epochs in all, fewer are the schedule's beginning. --k 1 is the VAE.
With --dtype bfloat16 training is autocast to it, half the time at k = 50 where the processor multiplies in it; the
weights, Adam and the test are float32 in any case.
"""

import torch
from common import mnist, options, train
from torch import nn as torch_nn

from vae_fast import nn


def rate(epoch):
    stage = next(i for i in range(8) if epoch < (3 ** (i + 1) - 1) / 2 or i == 7)
    return 1e-4 * round(10 ** (1 - stage / 7), 1)


def build(mean, k=1):
    encoder = nn.MLPEncoder(784, (200, 200), 50, activation=torch_nn.Tanh)
    decoder = nn.MLPDecoder(50, (200, 200), 784, activation=torch_nn.Tanh)
    for layer in (*encoder.modules(), *decoder.modules()):
        if isinstance(layer, torch_nn.Linear):
            torch_nn.init.xavier_uniform_(layer.weight)
            torch_nn.init.zeros_(layer.bias)
    with torch.no_grad():
        decoder[-2].bias.copy_(mean.clamp(0.001, 0.999).logit())
    objective = "elbo" if k == 1 else nn.IWAE(k)
    return nn.VAE(encoder, decoder, "bernoulli", binarize=True, objective=objective)


def main(arguments=None):
    parser = options(__doc__, k=50, epochs=200, draws=5000, images=10000, dtype="float32")
    args = parser.parse_args(arguments)
    dtype = getattr(torch, args.dtype)

    def loss(model, x):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(x).loss

    torch.manual_seed(0)
    x, _ = mnist(args.data)
    model = build(x.mean(0), args.k)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)
    train(model, x, optimizer, args.out / f"iwae_{args.k}", args.epochs, 20, rate, loss)
    test = mnist(args.data, "test")[0][: args.images]
    generator = torch.Generator().manual_seed(0)
    nll = nn.importance_nll(model, test, args.draws, generator=generator).mean().item()
    print(
        f"k = {args.k}, {args.epochs} epochs: -log p(x) {nll:.2f} by {args.draws} draws, {len(test)} images"
    )
    return nll


if __name__ == "__main__":
    main()
