"""Whole training steps: forward, backward and Adam, float32.

Eager and torch.compile run in a process as torch leaves it; vae_fast in a process set up as `vae-fast train` sets its
own up. All have the same network, start from the same weights, and must lower the loss.

    python -m benchmarks --only "training_step and cells"          pytest benchmarks/bench_training.py -s
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import likelihoods
from .bench_latent import as_people_write_it as sample_and_kl
from .comparison import Case, Comparison
from .harness import Provider, Suite, compare
from .settings import QUICK
from .timing import OURS
from .work import INPUT_SETS, Work

# (model, batch, numbers in x)
CASES = (
    [("mlp", 64, 784), ("conv", 8, 784), ("cells", 16, 50), ("items", 16, 60)]
    if QUICK
    else [
        *(("mlp", batch, 784) for batch in (128, 1024, 4096, 16384, 65536)),
        ("conv", 256, 784),
        ("cells", 1024, 20_000),
        ("items", 256, 100_000),
    ]
)
TITLES = {
    "mlp": "784-400-20 MLP of pytorch/examples, Bernoulli",
    "conv": "two convolutions each way, 28 x 28, Bernoulli",
    "cells": "single cells, {features} genes, hidden 128, negative binomial as scvi-tools",
    "items": "recommender, {features} items, hidden 128, multinomial as Mult-VAE",
}


class Log1p(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log1p()


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x)


def make_network(case: Case) -> Any:
    """encoder, decoder and, for cells, log_theta; the same weights at every call."""
    torch.manual_seed(0)
    n = case["features"]
    if case["model"] == "mlp":
        encoder = nn.Sequential(nn.Linear(n, 400), nn.ReLU(), nn.Linear(400, 40))
        decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, n))
    elif case["model"] == "conv":
        encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Flatten()
        ).append(nn.Linear(64 * 49, 40))
        decoder = nn.Sequential(nn.Linear(20, 64 * 49), nn.ReLU(), nn.Unflatten(1, (64, 7, 7))).extend(
            (nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1))
        )
    else:
        first = Log1p() if case["model"] == "cells" else Normalize()
        encoder = nn.Sequential(first, nn.Linear(n, 128), nn.ReLU(), nn.Linear(128, 20))
        decoder = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, n))
    network = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    if case["model"] == "cells":
        network.log_theta = nn.Parameter(torch.zeros(n))
    return network


def make_batches(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (case["batch"], 1, 28, 28) if case["model"] == "conv" else (case["batch"], case["features"])

    def one() -> Tensor:
        if case["model"] in ("mlp", "conv"):
            return torch.rand(shape, generator=generator) ** 4
        if case["model"] == "cells":
            return torch.poisson(torch.rand(shape, generator=generator).pow(3) * 1.1, generator=generator)
        return (torch.rand(shape, generator=generator) < 1e-3).float()

    return [one() for _ in range(INPUT_SETS)]


def nll_as_people_write_it(case: Case, network: Any, output: Tensor, x: Tensor) -> Tensor:
    if case["model"] == "cells":
        mean = x.sum(1, keepdim=True) * output.softmax(1)
        return likelihoods.negative_binomial(x, mean, network.log_theta.exp())
    if case["model"] == "items":
        return likelihoods.multinomial(x, output)
    return likelihoods.bernoulli(x.flatten(1), output.flatten(1))


def as_people_write_it(case: Case) -> Callable[[Any, Tensor], Tensor]:
    def loss(network: Any, x: Tensor) -> Tensor:
        z, kl = sample_and_kl(network["encoder"](x))
        nll = nll_as_people_write_it(case, network, network["decoder"](z), x)
        return (nll + kl).mean()

    return loss


def training_work(case: Case, network: Any, loss_function: Callable[[Any, Any], Any]) -> Work:
    batches = make_batches(case)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4 if case["model"] == "cells" else 1e-3)
    losses: list[float] = []

    def step(i: int) -> Any:
        optimizer.zero_grad()
        loss = loss_function(network, batches[i % INPUT_SETS])
        loss.backward()
        optimizer.step()
        return loss.detach()

    def check(i: int, loss: Any) -> None:
        losses.append(float(loss))
        if i == 0:
            with torch.no_grad():  # the same weights: differs in the noise alone
                start = float(as_people_write_it(case)(make_network(case), batches[0]))
            assert abs(losses[0] - start) < 50 / case["batch"] ** 0.5 + 2e-3 * abs(start), (losses, start)
        for before, after in zip(losses, losses[INPUT_SETS:], strict=False):  # on the same batch
            assert after < before, losses

    return Work(step, check)


def eager(case: Case) -> Work:
    return training_work(case, make_network(case), as_people_write_it(case))


def compiled(case: Case) -> Work:
    return training_work(case, make_network(case), torch.compile(as_people_write_it(case)))


def ours(case: Case) -> Work:
    from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

    network = make_network(case)
    encoder, decoder = network["encoder"], network["decoder"]
    likelihood = {"cells": "negative_binomial", "items": "multinomial"}.get(case["model"], "bernoulli")
    if case["model"] == "mlp":  # the package's own, whose ReLU works in place
        encoder, decoder = MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784)
        with torch.no_grad():
            mine = [*encoder.parameters(), *decoder.parameters()]
            for to, of in zip(mine, network.parameters(), strict=True):
                to.copy_(of)
    return training_work(case, VAE(encoder, decoder, likelihood), lambda model, x: model(x).loss)


def pythae(case: Case) -> Work:
    models = importlib.import_module("pythae.models")
    base, bases = importlib.import_module("pythae.models.base.base_utils"), models.nn

    class Encoder(bases.BaseEncoder):  # type: ignore[name-defined]
        def __init__(self, layers: nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.layers(x).chunk(2, 1)
            return base.ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(bases.BaseDecoder):  # type: ignore[name-defined]
        def __init__(self, layers: nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, z: Tensor) -> Any:  # its binary_cross_entropy takes probabilities
            return base.ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))

    network = make_network(case)
    config = models.VAEConfig(input_dim=(case["features"],), latent_dim=20, reconstruction_loss="bce")
    model = models.VAE(config, Encoder(network["encoder"]), Decoder(network["decoder"]))
    return training_work(case, model, lambda model, x: model({"data": x}).loss)


PROVIDERS = [
    Provider("eager", eager),
    Provider("torch.compile", compiled),
    Provider("pythae", pythae, requires=("pythae",)),
    Provider(OURS, ours, train_process=True),
]


def run(model: str, batch: int, features: int) -> Comparison:
    case = {"model": model, "batch": batch, "features": features}
    title = f"training step, {TITLES[model].format(features=features)}, Adam, batch {batch} float32"
    wide, large = model in ("cells", "items"), batch > 16384
    return compare(
        title,
        case,
        # Compilation is the slowest of all: a quick run has it once. pythae brings the MLP's losses alone.
        [
            p
            for p in PROVIDERS
            if model == "mlp" or p.build not in ([compiled, pythae] if QUICK else [pythae])
        ],
        turn_seconds=2.0 if batch >= 16384 else 0.8,
        rounds=3 if wide else 5 if large else 10,
    )


_suite = Suite("training", ours)


@pytest.mark.parametrize(("model", "batch", "features"), CASES)
def test_training_step(model: str, batch: int, features: int, benchmark: Any) -> None:
    _suite.add(run(model, batch, features), benchmark, rounds=3)
