"""Time and memory of the IWAE bound of MNIST's test images by 5,000 draws each, in this library and in pythae.

python examples/research/bound.py --data DIR
python examples/research/bound.py --data DIR --library pythae --images 100

The model is the untrained one of iwae.py. pythae's get_nll takes one image at a time and the decoder's draws of it 100
at a time: a part of the images tells the time of all.
"""

import resource
import time

import torch
from common import mnist, options
from torch.nn import Linear, Sequential, Sigmoid, Tanh


def peak():
    """In MiB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(x, draws):
    from iwae import build

    from vae_fast import nn

    model = build(x.mean(0)).eval()
    return lambda: nn.importance_nll(model, x, draws).mean().item()


def pythae(x, draws):
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.body = Sequential(Linear(784, 200), Tanh(), Linear(200, 200), Tanh())
            self.mu, self.logvar = Linear(200, 50), Linear(200, 50)

        def forward(self, x):
            hidden = self.body(x.flatten(1))
            return ModelOutput(embedding=self.mu(hidden), log_covariance=self.logvar(hidden))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            layers = Linear(50, 200), Tanh(), Linear(200, 200), Tanh(), Linear(200, 784), Sigmoid()
            self.body = Sequential(*layers)

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z))

    config = VAEConfig(input_dim=(784,), latent_dim=50, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).eval()

    def compute():
        with torch.no_grad():
            return -model.get_nll(x, n_samples=draws, batch_size=100)

    return compute


def main(arguments=None):
    args = options(__doc__, library="vae_fast", draws=5000, images=10000, threads=2).parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.bernoulli(mnist(args.data, "test")[0][: args.images])
    make = {"vae_fast": ours, "pythae": pythae}[args.library]
    before = peak()
    make(x[:2], 200)()  # what is done once
    compute, start = make(x, args.draws), time.perf_counter()
    nll = compute()
    seconds = time.perf_counter() - start
    print(
        f"{args.library}: {len(x)} images, {args.draws} draws: {nll:.1f} nats, {seconds:.1f} s, "
        f"{10000 / len(x) * seconds:.0f} s for 10,000; {peak() - before:.0f} MiB more than before"
    )
    return seconds


if __name__ == "__main__":
    main()
