"""A whole training step of pytorch/examples' 784-400-20 VAE at a large batch: forward, backward and Adam, float32.

Eager and torch.compile run in a process as torch leaves it; vae_fast in a process set up as `vae-fast train` sets its
own up. All have the same network, start from the same weights, and must lower the loss.

    pytest benchmarks/bench_training.py -s          python benchmarks/bench_training.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import Provider, Work, compare
from report import OURS, QUICK, Case, Comparison, save

BATCH = 64 if QUICK else 16384
INPUT_SETS = 2


def make_network() -> Any:
    """The network of pytorch/examples, with its weights."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40)),
            "decoder": nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)),
        }
    )


def as_people_write_it(network: Any, x: Any) -> Any:
    import torch
    import torch.nn.functional as F

    mu, logvar = network["encoder"](x).chunk(2, dim=1)
    std = torch.exp(0.5 * logvar)
    z = mu + torch.randn_like(std) * std
    logits = network["decoder"](z)
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
    return (nll + kl).mean()


def training_work(case: Case, network: Any, loss_function: Callable[[Any, Any], Any]) -> Work:
    import torch

    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand((case["batch"], 784), generator=generator) ** 4 for _ in range(INPUT_SETS)]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
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
                start = float(as_people_write_it(make_network(), batches[0]))
            assert abs(losses[0] - start) < 50 / case["batch"] ** 0.5, (losses, start)
        assert losses == sorted(losses, reverse=True), losses

    return Work(step, check)


def eager(case: Case) -> Work:
    return training_work(case, make_network(), as_people_write_it)


def compiled(case: Case) -> Work:
    import torch

    return training_work(case, make_network(), torch.compile(as_people_write_it))


def ours(case: Case) -> Work:
    import torch

    from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

    model = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784))
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), make_network().parameters(), strict=True):
            mine.copy_(theirs)
    return training_work(case, model, lambda model, x: model(x).loss)


PROVIDERS = [
    Provider("eager", eager),
    Provider("torch.compile", compiled),
    Provider(OURS, ours, requires=("vae_fast",), train_process=True),
]


def run(batch: int) -> Comparison:
    title = f"training step, 784-400-20 MLP, Bernoulli, Adam, batch {batch} float32"
    return compare(title, {"batch": batch}, PROVIDERS, turn_seconds=2.0)


def test_training_step(benchmark: Any) -> None:
    comparison = run(BATCH)
    save("training", [comparison])
    work = ours(comparison.case)
    benchmark.extra_info.update({r.provider: r.median for r in comparison.results if r.rounds})
    benchmark.pedantic(work.step, (0,), rounds=3)


if __name__ == "__main__":
    print(save("training", [run(BATCH)]))
