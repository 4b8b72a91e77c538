"""How fast the fused ops are on a run's own tensors: against the reference backend and against today's plain lines.

The three do the same work in turns, forward and backward, with new noise each time, and the medians are compared. The
reference makes its noise by the contract (Philox spelled out in tensor operations), which costs more than torch.randn;
so the plain lines are the fairer peer.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast

from .. import backends
from ..nn import Bernoulli
from .model import HubVAE

Losses = tuple[Tensor, Tensor]  # z and the loss per sample


@dataclass(frozen=True)
class Speed:
    backend: str  # the one that the fused ops use here
    batch: int
    seconds: dict[str, float]  # median of one forward and backward: "fused", "reference", "plain"

    def times_faster_than(self, peer: str) -> float:
        return self.seconds[peer] / self.seconds["fused"]


def measure(model: HubVAE, x: Tensor, *, seconds: float = 2.0, rounds: int = 50) -> Speed:
    """Times the ops around the networks, on the networks' outputs for the batch x."""
    target = x / 255 if x.dtype == torch.uint8 else x.float()
    bernoulli = isinstance(model.likelihood, Bernoulli)
    with torch.no_grad():
        moments = model.encoder(target)
        params = model.likelihood.split(model.decoder(moments.chunk(2, dim=1)[0]))
        if (
            not bernoulli and len(params) == 1
        ):  # the variance is fixed or learned, and no output of the decoder
            params = (*params, torch.as_tensor(model.likelihood.logvar, dtype=torch.float32, device=x.device))
    moments, *leaves = (t.detach().clone().requires_grad_() for t in (moments, *params))
    grad_z = torch.ones_like(moments.chunk(2, dim=1)[0])  # what a decoder would send back

    def of(functions: Any) -> Losses:
        z, kl = functions.reparameterize_kl_packed(moments)
        member = functions.bernoulli_nll if bernoulli else functions.gaussian_nll
        return z, member(leaves[0], target, *leaves[1:]) + kl

    def plain() -> Losses:
        mu, logvar = moments.chunk(2, dim=1)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
        if bernoulli:
            nll = F.binary_cross_entropy_with_logits(leaves[0], target, reduction="none")
        else:
            mean, lv = leaves
            nll = 0.5 * (math.log(2 * math.pi) + lv + (target - mean).pow(2) * torch.exp(-lv))
        return z, nll.flatten(1).sum(1) + kl

    def step(way: Callable[[], Losses]) -> float:
        for leaf in (moments, *leaves):
            leaf.grad = None
        _wait(x.device)
        start = time.perf_counter()
        z, loss = way()
        torch.autograd.backward((z, loss.mean()), (grad_z, None))
        _wait(x.device)
        return time.perf_counter() - start

    ways = {"fused": lambda: of(vae_fast), "reference": lambda: of(vae_fast.reference), "plain": plain}
    for way in ways.values():  # warms up
        step(way)
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while len(times["plain"]) < 3 or (time.perf_counter() < end and len(times["plain"]) < rounds):
        for name, way in ways.items():
            times[name].append(step(way))
    medians = {name: statistics.median(t) for name, t in times.items()}
    return Speed(backends.choose(x.device.type), len(x), medians)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
