"""Parameters (k, batch, ...) and a target (batch, ...): in one launch what a launch for each draw gives, bit for bit.

Without a mask 16-bit launches of one draw round in their own arithmetic (the plain form of csrc/cuda/access.h).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vae_fast.backends.native import cuda

from .checks_likelihood import PARAMETERS, make_target
from .emulated import STATE, close, launches_once, schedule
from .layouts import BF16, BOOL, F32, poisoned, tensor

__all__ = ["schedule"]
DRAWS = 3
SHAPES = [(9,), (4, 7), (3, 16), (2, 3, 4, 4), (2, 2304)]


def laid(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int, positive: bool) -> Tensor:
    """(k, batch, ...): each draw in that layout, or the batch before the draws in memory."""
    parts = [tensor(shape, dtype, layout, seed + 10 * d, positive=positive) for d in range(DRAWS)]
    if layout == "transposed":
        return torch.stack(parts, 1).transpose(0, 1)
    rows = parts[0].as_strided(parts[0].shape, parts[0].stride())
    whole = torch.empty((DRAWS, rows.untyped_storage().size() // rows.element_size()), dtype=dtype)
    out = whole.as_strided((DRAWS, *shape), (whole.stride(0), *rows.stride()), rows.storage_offset())
    for d, part in enumerate(parts):
        out[d].copy_(part)
    return out


@pytest.mark.parametrize("layout", ["dense", "packed_last", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "negative_binomial_mixture"])
@pytest.mark.parametrize("masked", [False, True])
def test_draws(likelihood: str, dtype: torch.dtype, layout: str, masked: bool) -> None:
    """Every shape where it is dense, one that can be channels-last, and half of them in turn in other layouts."""
    half = SHAPES[((layout == "transposed") + (dtype is BF16) + masked) % 2 :: 2]
    for shape in {"dense": SHAPES, "channels_last": [(2, 3, 4, 4)]}.get(layout, half):
        x = make_target(shape, likelihood, dtype, layout)
        positive = likelihood in cuda.of_counts
        params = tuple(laid(shape, dtype, layout, 2 + i, positive) for i in range(PARAMETERS[likelihood]))
        mask = tensor(shape, BOOL, "dense", 7) if masked else None
        state = STATE if likelihood == "bernoulli" and masked else None
        for each in (False, True):
            size = shape if each else shape[:1]
            nll, grad = poisoned((DRAWS, *size), F32, "dense"), tensor((DRAWS, *size), F32, "dense", 9)
            grads = tuple(torch.full_like(p, float("nan")) for p in params)
            launches_once(cuda.likelihood_forward, likelihood, params, x, mask, state, nll=nll, draws=DRAWS)
            launches_once(
                cuda.likelihood_backward, likelihood, params, x, mask, state, grad, grads=grads, draws=DRAWS
            )
            exact = dtype is F32 or masked or each
            for d in range(DRAWS):
                own, one = tuple(p[d] for p in params), poisoned(size, F32, "dense")
                slopes = tuple(torch.full_like(p[d], float("nan")) for p in params)
                cuda.likelihood_forward(likelihood, own, x, mask, state, nll=one)
                cuda.likelihood_backward(likelihood, own, x, mask, state, grad[d], grads=slopes)
                for got, alone in zip((nll[d], *(g[d] for g in grads)), (one, *slopes), strict=True):
                    if exact:
                        assert torch.equal(got, alone)
                    else:
                        close(got, alone.double(), 2**13 * max(1, x[0].numel()))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shared", ["of_draws", "per_feature", "constant"])
def test_shared_parameters(dtype: torch.dtype, shared: str) -> None:
    """Gradients that are summed over the draws, and over the batch, in the launch."""
    for shape in ((4, 7), (40, 16), (2, 3, 4, 4), (2, 2304)):
        x = make_target(shape, "gaussian", dtype, "dense")
        mean = laid(shape, dtype, "dense", 2, False)
        size = {"of_draws": shape, "per_feature": shape[1:], "constant": ()}[shared]
        logvar = tensor(size, F32, "dense", 5)
        params = (mean, logvar.expand(shape))
        grad = tensor((DRAWS, shape[0]), F32, "dense", 9)
        grads = (torch.full_like(mean, float("nan")), poisoned(size, F32, "dense"))
        launches_once(
            cuda.likelihood_backward, "gaussian", params, x, None, None, grad, grads=grads, draws=DRAWS
        )
        truth = torch.zeros(size, dtype=torch.float64)
        for d in range(DRAWS):
            slopes = (torch.full_like(mean[d], float("nan")), poisoned(shape, F32, "dense"))
            wide = (mean[d].float(), params[1])
            cuda.likelihood_backward("gaussian", wide, x, None, None, grad[d], grads=(None, slopes[1]))
            truth += slopes[1].double().sum_to_size(size)
            cuda.likelihood_backward(
                "gaussian", (mean[d], params[1]), x, None, None, grad[d], grads=(slopes[0], None)
            )
            assert torch.equal(grads[0][d], slopes[0])
        close(grads[1], truth, 16 * DRAWS * x.numel() / max(1, truth.numel()))
