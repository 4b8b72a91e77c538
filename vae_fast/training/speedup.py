"""How fast the fused ops are on a run's own tensors: against the reference backend and against today's plain lines.

All do the same work in turns, forward and backward, with new noise each time, and the medians are compared. The
reference makes its noise by the contract (Philox spelled out in tensor operations), which costs more than torch.randn;
so the plain lines are the fairer peer. They are there for the likelihoods that torch itself has.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import vae_fast

from .. import backends, nn
from ..nn.condition import call
from ..rng import draw_rng_state

MOST_NUMBERS = 1 << 24  # of x; the outputs of a fused head may not fit in memory
Losses = tuple[Tensor, Tensor]  # z and the loss per sample


@dataclass(frozen=True)
class Speed:
    backend: str  # the one that the fused ops use here
    batch: int
    seconds: dict[
        str, float
    ]  # median of one forward and backward: "fused", "reference", and "plain" where there is one

    def times_faster_than(self, peer: str) -> float:
        return self.seconds[peer] / self.seconds["fused"]


def measure(
    model: nn.VAE, x: Tensor, condition: Tensor | None = None, *, seconds: float = 2.0, rounds: int = 50
) -> Speed:
    """Times the ops around the networks, on the networks' outputs for the batch x (or a part of a large one). Sparse
    samples are measured dense, as the plain lines take them."""
    classes = (getattr(model.likelihood, "classes", None) or 1) if model.likelihood.over_classes else 1
    most = max(1, MOST_NUMBERS // (math.prod(x.shape[1:]) * classes))
    if x.layout is torch.sparse_csr:
        x = _dense(x)
    x = x[:most]
    condition = None if condition is None else condition[:most]
    likelihood = model.likelihood
    with torch.no_grad():
        if likelihood.binarize:
            x = likelihood.observe(x, draw_rng_state(x.device, None))
        target = x if isinstance(likelihood, nn.MixedColumns) else likelihood.encoder_input(x)
        given = () if condition is None else (condition,)
        moments = model.encoder(likelihood.encoder_input(x), *given)
        decoded = call(model.decoder, moments.chunk(2, dim=1)[0], condition, target)
        params = likelihood.split(decoded)
    moments, *leaves = (t.detach().clone().requires_grad_() for t in (moments, *params))
    learned = list(likelihood.parameters())
    grad_z = torch.ones_like(moments.chunk(2, dim=1)[0])  # what a decoder would send back

    def fused() -> Losses:
        z, kl = vae_fast.reparameterize_kl_packed(moments)
        return z, likelihood.nll(tuple(leaves), target) + kl

    def reference() -> Losses:
        with vae_fast.backend("reference"):
            return fused()

    def plain() -> Losses:
        mu, logvar = moments.chunk(2, dim=1)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
        nll = likelihood.plain_nll(tuple(leaves), target)
        assert nll is not None
        return z, nll.flatten(1).sum(1) + kl

    def step(way: Callable[[], Losses]) -> float:
        for leaf in (moments, *leaves, *learned):
            leaf.grad = None
        _wait(x.device)
        start = time.perf_counter()
        z, loss = way()
        torch.autograd.backward((z, loss.mean()), (grad_z, None))
        _wait(x.device)
        return time.perf_counter() - start

    ways = {"fused": fused, "reference": reference}
    if likelihood.plain_nll(params, target) is not None:
        ways["plain"] = plain
    for way in ways.values():  # warms up
        step(way)
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while len(times["fused"]) < 3 or (time.perf_counter() < end and len(times["fused"]) < rounds):
        for name, way in ways.items():
            times[name].append(step(way))
    for p in learned:
        p.grad = None
    medians = {name: statistics.median(t) for name, t in times.items()}
    return Speed(backends.choose(x.device.type), len(x), medians)


def _dense(x: Tensor) -> Tensor:
    """torch makes none of uint16."""
    values = x.values().float()
    return torch.sparse_csr_tensor(
        x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False
    ).to_dense()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
