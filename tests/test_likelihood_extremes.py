"""Each member of the likelihood family where float32 has few digits left: tails, limits, cancellation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from likelihoods import function, leaf
from torch import Tensor

from vae_fast import reference

EPS = torch.finfo(torch.float32).eps


def exactly(
    name: str, x: Tensor, params: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """nll and gradients in float64, and for each what a relative error of 1 in one of its inputs does to it."""
    target, *inputs = (leaf(t.double()) for t in (x, *params))
    nll = getattr(reference, f"{name}_nll")(inputs[0], target, *inputs[1:])

    def moves(value: Tensor) -> Tensor:
        slopes = torch.autograd.grad(value.sum(), (target, *inputs), retain_graph=True, allow_unused=True)
        pairs = zip((target, *inputs), slopes, strict=True)
        return sum((t * s).abs() for t, s in pairs if s is not None).detach() + value.detach().abs()

    grads = torch.autograd.grad(nll.sum(), inputs, create_graph=True)
    nll_scale, *scales = (moves(v) for v in (nll, *grads))
    return nll.detach(), nll_scale, [g.detach() for g in grads], scales


# What a gradient's rounding acts on where it nearly vanishes, by parameter: a difference of two sigmoids times a scale;
# and what float64 knows of a difference of two digammas.
FLOORS = {
    "discretized_logistic": lambda m, s: (torch.exp(-s.clamp(min=-7)), 1.0),
    "negative_binomial": lambda *_: (0.0, 1e-8),
    "zero_inflated_negative_binomial": lambda *_: (0.0, 1e-8, 1e-8),
}


def check(name: str, x: Tensor, *params: Tensor, units: float = 16) -> None:
    """Every element a sample of its own: backward stable, that is as good as if the inputs had moved by a few units in
    their last place."""
    floors = FLOORS.get(name, lambda *p: (0.0,) * len(p))(*params)
    inputs = [leaf(p) for p in params]
    nll = function(name)(inputs[0], x, *inputs[1:])
    grads = torch.autograd.grad(nll.sum(), inputs)
    truth, scale, truths, scales = exactly(name, x, params)
    names = ("nll", *(f"gradient {i}" for i in range(len(grads))))
    rows = zip(names, (nll.detach(), *grads), (truth, *truths), (scale, *scales), (0.1, *floors), strict=True)
    for what, got, want, by, floor in rows:
        error, allowed = (got.double() - want).abs(), units * EPS * (by + floor) + 1e-36
        worst = torch.argmax(torch.where(error.isnan(), math.inf, error / allowed))
        assert error[worst] <= allowed[worst], (
            f"{name}: {what} is {got[worst].item():.9g}, not {want[worst].item():.9g}, allowed {allowed[worst]:.3g}, "
            f"at x {x[worst].item():.9g}, parameters {[p[worst].item() for p in params]}"
        )


def grid(*axes: Sequence[float]) -> list[Tensor]:
    return [t.flatten() for t in torch.meshgrid(*(torch.tensor(a) for a in axes), indexing="ij")]


LOGITS = [0.0, *(s * v for v in (1e-9, 1e-4, 0.01, 0.1, 0.5, 1, 2, 5, 17, 30, 88, 100, 300) for s in (-1, 1))]
GREYS = [0.0, 1e-3, 0.25, 0.5, 0.75, 1.0]
LEVELS = [k / 255 for k in (0, 1, 2, 64, 128, 200, 253, 254, 255)]
COUNTS = [0.0, 1.0, 2.0, 7.0, 30.0, 255.0, 4000.0, 1e5]
MEANS = [0.0, 1e-6, 0.01, 0.5, 1.0, 6.5, 31.0, 260.0, 3900.0, 1e5]
THETAS = [1e-4, 0.01, 0.5, 1.0, 20.0, 1e3, 1e4, 1e6, 1e8]
CASES = {
    "bernoulli": (GREYS, LOGITS),
    "continuous_bernoulli": (GREYS, LOGITS),
    "gaussian": ([-30.0, 0.0, 0.3, 1.0], [-5.0, 0.0, 0.3, 1e4], [-30.0, -5.0, 0.0, 5.0, 30.0]),
    "laplace": ([-30.0, 0.0, 0.3, 1.0], [-5.0, 0.0, 0.3, 1e4], [-30.0, -5.0, 0.0, 5.0, 30.0]),
    "discretized_logistic": (
        LEVELS,
        [-50.0, -2.0, -1.0, -0.3, 0.0, 0.003, 0.9, 1.0, 1.5, 50.0],
        [-90.0, -8.0, -7.0, -6.9, -4.0, -1.0, 0.0, 3.0, 20.0],
    ),
    "poisson": (COUNTS, MEANS),
    "negative_binomial": (COUNTS, MEANS, THETAS),
    "zero_inflated_negative_binomial": (COUNTS[:6], MEANS[:8], THETAS, [-50.0, -3.0, 0.0, 3.0, 50.0]),
}


@pytest.mark.parametrize("name", CASES)
def test_extremes(backend: str, name: str) -> None:
    """Bernoulli at logits of 100, Gaussian at log-variances of 30, the discretized logistic's tails and bound, counts far
    from their mean, dispersions up to the Poisson limit."""
    check(name, *grid(*CASES[name]))
