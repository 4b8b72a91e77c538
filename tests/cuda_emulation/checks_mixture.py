"""The mixture kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backends.native import cuda

from .emulated import DTYPES, EMULATION, close, launches_once, same, schedule
from .layouts import BOOL, F32, U8, like, poisoned, tensor, values

__all__ = ["schedule"]


def parameters(
    batch: int, channels: int, components: int, pixels: int, dtype: torch.dtype, layout: str
) -> Tensor:
    """As a network gives them at first, and some log-scales below the bound."""
    params = tensor((batch, (3 if channels == 1 else 10) * components, pixels), dtype, layout, 1)
    params[:, components:] *= 0.5
    params[:, 2 * components : 3 * components] -= 2
    params[:, 2 * components, ::3] = -7.5
    return params


def mixture(batch: int, channels: int, components: int, pixels: int, dtype: torch.dtype = F32,
            target: torch.dtype = U8, layout: str = "dense", mask: str | None = None) -> None:  # fmt: skip
    params = parameters(batch, channels, components, pixels, dtype, layout)
    levels = values((batch, channels, pixels), U8, 2)
    levels[..., : pixels // 3] = torch.tensor([0, 255, 3], dtype=U8)[:channels, None]
    x = like(levels.shape, target, layout).copy_(levels if target is U8 else levels.float() / 255)
    kept = None if mask is None else tensor((batch, pixels), BOOL, mask, 3)
    if kept is not None:
        params.masked_fill_(~kept[:, None], float("nan"))
    nll = poisoned((batch,), F32, "every_other")
    launches_once(cuda.mixture_forward, params, x, kept, nll=nll)
    exact = levels.double() / 255 if target is U8 else x.double()
    truth = torch.empty(batch, dtype=torch.float64)
    finite = params.double().nan_to_num(0)
    reference.mixture_forward(finite, exact, kept, nll=truth)
    close(nll, truth, 4 * max(1, pixels))

    grad_nll, grad = values((batch,), F32, 4), like(params.shape, dtype, layout).fill_(float("nan"))
    launches_once(cuda.mixture_backward, params, x, kept, grad_nll, grad_params=grad)
    true_grad = torch.empty(params.shape, dtype=torch.float64)
    reference.mixture_backward(finite, exact, kept, grad_nll.double(), grad_params=true_grad)
    close(grad, true_grad, 64)  # products of an inverse scale of up to 1100
    if kept is not None:
        assert not grad.movedim(1, -1)[~kept].any()


@pytest.mark.parametrize(
    "layout", ["dense", "packed", "packed_last", "transposed", "odd_address", "every_other"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts(channels: int, layout: str) -> None:
    for dtype, (batch, components, pixels) in itertools.product(DTYPES, ((3, 1, 1), (2, 4, 7), (1, 3, 40))):
        mixture(batch, channels, components, pixels, dtype, layout=layout)


@pytest.mark.parametrize("target", [F32, torch.bfloat16, torch.float16, BOOL])
def test_targets_and_masks(target: torch.dtype) -> None:
    for channels, mask in itertools.product(
        (1, 3), (None, "dense", "per_feature", "per_sample", "every_other")
    ):
        mixture(2, channels, 3, 25, target=target, mask=mask)


def test_several_blocks_a_sample() -> None:
    mixture(2, 1, 2, 700)
    mixture(1, 3, 10, 300)


def test_order_of_blocks_and_threads() -> None:
    params, results = parameters(2, 1, 2, 600, F32, "dense"), []
    for seed in range(6):
        EMULATION.emulation_seed(seed)
        nll = poisoned((2,), F32, "dense")
        cuda.mixture_forward(params, values((2, 1, 600), U8, 2), None, nll=nll)
        results.append([nll])
    for other in results[1:]:
        same(results[0], other)


def test_nothing() -> None:
    for batch, pixels in ((0, 3), (2, 0)):
        params, x, nll = (
            torch.empty(batch, 6, pixels),
            torch.empty(batch, 1, pixels),
            torch.full((batch,), 7.0),
        )
        cuda.mixture_forward(params, x, None, nll=nll)
        assert not nll.any()
        cuda.mixture_backward(params, x, None, nll, grad_params=torch.empty_like(params))
