"""What `vae-fast train` makes of MNIST's grey images by its defaults, beside the VAE of pytorch/examples: test ELBO and
seconds of training."""

import csv
import time

import torch
import torch.nn.functional as F
from common import mnist, options
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vae_fast import cli


class PlainVAE(nn.Module):
    """The model of pytorch/examples/vae, line by line."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x):
        hidden = F.relu(self.fc1(x))
        mu, logvar = self.fc21(hidden), self.fc22(hidden)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def plain_loss(model, x):
    """-ELBO of the batch, summed."""
    probabilities, mu, logvar = model(x)
    nll = F.binary_cross_entropy(probabilities, x, reduction="sum")
    return nll - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def train_plain(x, test, epochs):
    """Test ELBO and seconds, by the recipe of pytorch/examples: batches of 128, Adam at 1e-3."""
    torch.manual_seed(1)
    model = PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(epochs):
        for (batch,) in DataLoader(TensorDataset(x), batch_size=128, shuffle=True):
            optimizer.zero_grad()
            plain_loss(model, batch).backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return -sum(plain_loss(model, part).item() for part in test.split(128)) / len(test), seconds


def train_default(data, out, epochs):
    """The same two, of the command."""
    asked = ["--epochs", str(epochs)] if epochs else []
    assert cli.run(["train", "--data", str(data), "--out", str(out), "--overwrite", "--cpu", *asked]) == 0
    *_, last = csv.DictReader((out / "metrics.csv").open())
    return float(last["test_elbo"]), float(last["seconds"])


def main(arguments=None):
    args = options(__doc__, epochs=0, plain_epochs=10).parse_args(arguments)
    (x, _), (test, _) = mnist(args.data), mnist(args.data, "test")
    plain = train_plain(x, test, args.plain_epochs)
    default = train_default(args.data / "mnist", args.out / "default_recipe", args.epochs)
    for name, (elbo, seconds) in (("pytorch/examples", plain), ("vae-fast train", default)):
        print(f"{name:<18} test ELBO {elbo:.2f}, {seconds:.1f} s of training")
    return {"plain": plain, "default": default}


if __name__ == "__main__":
    main()
