"""Training to a given test ELBO on real data: scikit-learn's digits, a 64-128-16 MLP, Bernoulli, Adam, batch 128.

A step is a whole training run from new weights, with its own seed, until the bound is reached.

    python -m benchmarks --only elbo          pytest benchmarks/bench_elbo.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .bench_training import as_people_write_it
from .comparison import Case, Comparison
from .harness import Provider, Suite, compare
from .settings import QUICK
from .timing import OURS
from .work import Work

BOUND = 40.0 if QUICK else 24.6  # nats an image; 600 epochs end at 23.8
MOST_EPOCHS, BATCH, DRAWS = 300, 128, 8


def make_network() -> nn.ModuleDict:
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    decoder = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64))
    return nn.ModuleDict({"encoder": encoder, "decoder": decoder})


def train(network: Any, loss_function: Callable[[Any, Tensor], Tensor], data: Tensor, test: Tensor) -> float:
    """-ELBO of the test images when it first is below the bound, or after the last epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss = float("inf")
    for _ in range(MOST_EPOCHS):
        for x in data[torch.randperm(len(data))].split(BATCH):
            optimizer.zero_grad()
            loss_function(network, x).backward()
            optimizer.step()
        with torch.no_grad():
            loss = sum(float(loss_function(network, test)) for _ in range(DRAWS)) / DRAWS
        if loss < BOUND:
            break
    return loss


def training_work(make: Callable[[], Any], loss_function: Callable[[Any, Tensor], Tensor]) -> Work:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    data, test = images[:1497], images[1497:]

    def step(i: int) -> float:
        torch.manual_seed(i)
        return train(make(), loss_function, data, test)

    def check(i: int, loss: float) -> None:
        assert 15 < loss < BOUND, loss

    return Work(step, check)


def eager(case: Case) -> Work:
    return training_work(make_network, as_people_write_it({"model": "mlp"}))


def compiled(case: Case) -> Work:
    return training_work(make_network, torch.compile(as_people_write_it({"model": "mlp"})))


def ours(case: Case) -> Work:
    from vae_fast.nn import VAE

    def make() -> VAE:
        network = make_network()
        return VAE(network["encoder"], network["decoder"])

    return training_work(make, lambda model, x: model(x).loss)


PROVIDERS = [
    Provider("eager", eager, requires=("sklearn",)),
    *([] if QUICK else [Provider("torch.compile", compiled, requires=("sklearn",))]),
    Provider(OURS, ours, requires=("sklearn",), train_process=True),
]


def run() -> Comparison:
    title = f"training on digits until -ELBO is {BOUND:g} nats an image, 64-128-16 MLP, batch {BATCH} float32"
    return compare(title, {"bound": BOUND, "batch": BATCH}, PROVIDERS, rounds=8, turn_seconds=0)


def test_training_to_an_elbo(benchmark: Any) -> None:
    Suite("elbo", ours).add(run(), benchmark, rounds=1)
