"""The latent op's parametrizations through the CUDA kernels, a backend like another here, of CPU tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

import test_parametrization
import vae_fast
from test_parametrization import CLAMPS, EPSILONS, LAYOUTS, PARAMETRIZATIONS, PRIORS, Layout, check
from vae_fast import backends

from .emulated import DTYPES, schedule

__all__ = ["schedule"]
backends._HOMES["emulated"] = "native.cuda"
backends._reasons["emulated"] = None


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with vae_fast.backend("emulated"):
        yield


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_value_and_gradient(kind: str, prior: str | None) -> None:
    layouts, dtypes = itertools.cycle(LAYOUTS.values()), itertools.cycle(DTYPES)
    shapes, kinds = itertools.cycle(("full", "row", "feature")), itertools.cycle(("none", "sample"))
    for epsilon, bounds in itertools.product(EPSILONS, CLAMPS):
        for layout in (next(layouts), Layout((3, 32), 1)):
            if len(layout.shape) > 1:
                check(
                    layout, next(dtypes), prior, next(shapes), reduction=next(kinds),
                    parametrization=kind, epsilon=epsilon, **bounds,
                )  # fmt: skip


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_shift_and_scale(kind: str) -> None:
    shift, scale = torch.randn(6, 1, 1), torch.rand(6, 1, 1) + 0.5
    for draws, layout in itertools.product((None, 3), ("packed channels-last", "six channels")):
        given = LAYOUTS.get(layout, Layout((2, 6, 4, 4), 1))
        check(
            given, draws=draws, parametrization=kind, epsilon=1e-4, shift=shift, scale=scale, prior="packed"
        )
    check(LAYOUTS["odd"], what="z", scale=0.5, shift=-1.0, parametrization=kind)
    check(LAYOUTS["odd"], what="kl", parametrization=kind, epsilon=1e-2)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_extremes(kind: str, epsilon: float) -> None:
    test_parametrization.test_extremes("emulated", kind, epsilon)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outside_of_the_domain(dtype: torch.dtype) -> None:
    test_parametrization.test_outside_of_the_domain("emulated", dtype)


def test_packed_priors() -> None:
    test_parametrization.test_packed_prior_of_q_itself("emulated")
    test_parametrization.test_shapes_of_a_packed_prior("emulated")
    test_parametrization.test_clamp_of_a_packed_prior("emulated", torch.float32)


def test_soft_clamp_in_its_tails() -> None:
    test_parametrization.test_soft_clamp_in_its_tails("emulated")
