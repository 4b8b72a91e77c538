"""Losses of each element: what samples of one element have, to rounding, in every layout."""

from __future__ import annotations

import pytest
import torch

from vae_fast import reference
from vae_fast.backends.native import cuda

from .checks_likelihood import PARAMETERS, make_target
from .emulated import close, double, launches_once, schedule
from .layouts import BF16, F32, LAYOUTS, SHAPES, poisoned, tensor, values

__all__ = ["schedule"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_likelihood_elements(dtype: torch.dtype, layout: str) -> None:
    for likelihood in ("bernoulli", "gaussian", "negative_binomial"):
        for shape in SHAPES:
            if len(shape) == 1:
                continue
            x = make_target(shape, likelihood, dtype, layout)
            params = tuple(
                tensor(shape, dtype, layout, 2 + i, positive=likelihood in cuda.of_counts)
                for i in range(PARAMETERS[likelihood])
            )
            nll, grad = poisoned(shape, F32, layout), tensor(shape, F32, layout, 9)
            grads = tuple(poisoned(shape, dtype, layout) for _ in params)
            launches_once(cuda.likelihood_forward, likelihood, params, x, None, None, nll=nll)
            launches_once(cuda.likelihood_backward, likelihood, params, x, None, None, grad, grads=grads)
            truth = torch.empty(shape, dtype=torch.float64)
            slopes = tuple(torch.empty(shape, dtype=torch.float64) for _ in params)
            wide = double(params)
            reference.likelihood_forward(likelihood, wide, x.double(), None, None, nll=truth)
            reference.likelihood_backward(
                likelihood, wide, x.double(), None, None, grad.double(), grads=slopes
            )
            close(nll, truth)
            for got, slope in zip(grads, slopes, strict=True):
                close(got, slope)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prior", [False, True])
def test_kl_elements(layout: str, prior: bool) -> None:
    for shape in SHAPES:
        if len(shape) == 1:
            continue
        mu, logvar = (tensor(shape, F32, layout, i) for i in (1, 2))
        given = (tensor(shape, F32, layout, 3), tensor(shape, F32, layout, 4)) if prior else None
        kl, grad = poisoned(shape, F32, layout), values(shape, F32, 9)
        grads = poisoned(shape, F32, layout), poisoned(shape, F32, layout)
        launches_once(cuda.latent_forward, mu, logvar, given, None, None, None, z=None, kl=kl)
        launches_once(
            cuda.latent_backward, None, grad, mu, logvar, given, None, None, None,
            grad_mu=grads[0], grad_logvar=grads[1], grad_prior=None,
        )  # fmt: skip
        truth = torch.empty(shape, dtype=torch.float64)
        slopes = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)
        args = (double(mu), double(logvar), double(given) if given else None, None, None, None)
        reference.latent_forward(*args, z=None, kl=truth)
        reference.latent_backward(
            None, grad.double(), *args, grad_mu=slopes[0], grad_logvar=slopes[1], grad_prior=None
        )
        close(kl, truth)
        close(grads[0], slopes[0])
        close(grads[1], slopes[1])
