"""Paths between latents, traversals, directions and used dimensions, against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vae_fast import nn


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_interpolation() -> None:
    a, b = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    way = nn.interpolate(a, b, 5)
    assert way.shape == (5, 3, 2, 4)
    for i in range(5):
        torch.testing.assert_close(way[i], a + i / 4 * (b - a))
    assert torch.equal(way[0], a) and torch.equal(way[-1], b)


def test_spherical_interpolation() -> None:
    """A quarter of a circle in equal angles; lengths in between; each sample by itself."""
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    way = nn.interpolate(a, b, 4, spherical=True)
    for i in range(4):
        w = i / 3 * math.pi / 2
        torch.testing.assert_close(way[i, 0], torch.tensor([math.cos(w), math.sin(w)]))
        torch.testing.assert_close(way[i, 1], torch.tensor([4 * math.sin(w), 2 * math.cos(w)]))
    z, other = randn(64, 3, 8), randn(64, 3, 8, seed=1)
    other *= z.flatten(1).norm(dim=1).div(other.flatten(1).norm(dim=1)).view(-1, 1, 1)
    lengths = nn.interpolate(z, other, 5, spherical=True).flatten(2).norm(dim=2)
    torch.testing.assert_close(lengths, lengths[:1].expand(5, 64))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-7, 1e-3, 3.0])
def test_spherical_interpolation_of_near_directions(angle: float) -> None:
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64).requires_grad_()
    way = nn.interpolate(a, b, 3, spherical=True)
    middle = torch.tensor([math.cos(angle / 2), math.sin(angle / 2)], dtype=torch.float64)
    torch.testing.assert_close(way[1, 0], middle, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(way.sum(), b)
    assert grad.isfinite().all()


def test_traversal() -> None:
    z = randn(1, 2, 3)
    grid = nn.traverse(z, [0, -1], span=(-2, 2), steps=5)
    assert grid.shape == (2, 5, 2, 3)
    for row, at in enumerate([(0, 0), (1, 2)]):
        for step, value in enumerate([-2.0, -1.0, 0.0, 1.0, 2.0]):
            want = z[0].clone()
            want[at] = value
            assert torch.equal(grid[row, step], want)
    assert nn.traverse(z).shape == (6, 7, 2, 3)


def test_direction() -> None:
    mu = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    direction = nn.attribute_direction(mu, torch.tensor([False, False, True]))
    assert direction.tolist() == [8.0, -3.0]


def test_used_dimensions() -> None:
    mu = torch.stack([torch.linspace(-1, 1, 100), torch.full((100,), 5.0), 0.02 * randn(100).float()], 1)
    assert nn.active_units(mu).tolist() == [True, False, False]
    assert nn.active_units(mu, 1e-5).tolist() == [True, False, True]
    # float16 sums would lose it
    assert nn.active_units((100 + 10 * randn(5000, 2)).half()).all()


def test_kl_of_each_dimension() -> None:
    mu, logvar = randn(50, 2, 3), randn(50, 2, 3, seed=1)
    want = (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).mean(0)
    torch.testing.assert_close(nn.kl_per_dimension(mu, logvar), want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda z: nn.interpolate(z, z[:2]),
            r"expected end to have shape \(4, 3\) like start, but got \(2, 3\)",
        ),
        (lambda z: nn.interpolate(z, z, 1), "expected steps to be at least 2, but got 1"),
        (lambda z: nn.interpolate(z, -z, spherical=True), "not to be opposite vectors"),
        (
            lambda z: nn.interpolate(z[0], z[0]),
            r"expected start to have shape \(batch, \.\.\.\), but got \(3,\)",
        ),
        (lambda z: nn.traverse(z), r"one latent of shape \(1, \.\.\.\), but got \(4, 3\)"),
        (lambda z: nn.traverse(z[:1], [3]), r"expected dims to be less than 3, but got \[3\]"),
        (lambda z: nn.traverse(z[:1], [-4]), "expected dims to be at least -3, but got -4"),
        (lambda z: nn.attribute_direction(z, torch.ones(4, dtype=torch.bool)), "but 4 of 4 have it"),
        (lambda z: nn.attribute_direction(z, torch.ones(4)), "expected has_attribute to be bool"),
        (lambda z: nn.active_units(z[:1]), "at least two samples"),
        (lambda z: nn.active_units(z.long()), "expected mu to have a floating dtype, but got torch.int64"),
    ],
)
def test_errors(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(randn(4, 3).float())
