"""The importance kernels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backends.native import cpu, cuda

from .emulated import DTYPES, HAS_CPU, STATE, close, double, launches_once, same, schedule
from .layouts import BF16, F16, F32, LAYOUTS, SHAPES, poisoned, tensor, values

__all__ = ["schedule"]


def importance(shape: Sequence[int], dtype: torch.dtype, layout: str, *, k: int = 3, prior: str | None = None,
               clamp: Any = None, noise: bool = False, state: Tensor = STATE, z: bool = True, path: bool = False,
               first_draw: int = 0) -> None:  # fmt: skip
    """Forward and backward, against float64 and the CPU engine."""
    mu, logvar = tensor(shape, dtype, layout, 1), tensor(shape, dtype, layout, 2)
    pair = None if prior is None else (tensor(shape, dtype, prior, 3), tensor(shape, dtype, prior, 4))
    sampled = (k, *shape)
    given = tensor(sampled, F32, layout, 5) if noise else None
    args = (mu, logvar, pair, None if noise else state, given, clamp)
    out = {
        "z": poisoned(sampled, dtype, layout) if z else None,
        "weights": poisoned((k, shape[0]), F32, "every_other"),
    }
    launches_once(cuda.importance_forward, *args, **out, first_draw=first_draw)

    grad_z = tensor(sampled, dtype, layout, 6) if z else None
    back_args = (grad_z, tensor((k, shape[0]), F32, "transposed", 7), *args)
    summed = {"per_feature": tuple(shape[1:]), "constant": ()}.get(prior or "", tuple(shape))

    def gradients(kind: torch.dtype | None = None) -> dict[str, Any]:
        pair = [poisoned(summed, kind or F32, "dense") for _ in "ab"]
        return {
            "grad_mu": poisoned(shape, kind or dtype, layout),
            "grad_logvar": poisoned(shape, kind or dtype, layout),
            "grad_prior": None if prior is None else tuple(pair),
            "path_derivative": path,
            "first_draw": first_draw,
        }

    grads, true_grads = gradients(), gradients(torch.float64)
    launches_once(cuda.importance_backward, *back_args, **grads)
    true_out = {n: None if t is None else torch.empty(t.shape, dtype=torch.float64) for n, t in out.items()}
    reference.importance_forward(*double(args), **true_out, first_draw=first_draw)
    reference.importance_backward(*double(back_args), **true_grads)
    columns = max(1, mu[0].numel())
    # Terms of up to (z - mu_p)^2 / sigma_p^2, with moments and noise from N(0, 1).
    wide = 1 if prior is None else double(pair[1]).neg().exp().max().item()
    spread = double(logvar).exp().max().item()
    size = 40 * (1 + spread) * (1 + wide)
    if z:
        close(out["z"], true_out["z"], 4 * (1 + double(logvar).mul(0.5).exp()))
    close(out["weights"], true_out["weights"], size * columns)
    for name in ("grad_mu", "grad_logvar"):
        close(grads[name], true_grads[name], 2 * size * k)
    for got, want in zip(grads["grad_prior"] or (), true_grads["grad_prior"] or (), strict=True):
        close(got, want, size * k * mu.numel() / max(1, got.numel()))
    if HAS_CPU and z:
        if not noise:  # the CPU's own differs in the last bits
            drawn = torch.empty((first_draw + k, *shape))
            cuda.noise_fill(drawn, state)
            given = drawn[first_draw:]
        other = torch.empty_like(out["z"])  # type: ignore[arg-type]
        weights = torch.empty_like(out["weights"])
        cpu.importance_forward(mu, logvar, pair, None, given, clamp, z=other, weights=weights)
        same([out["z"]], [other])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_importance(dtype: torch.dtype, layout: str) -> None:
    for shape, path in zip(SHAPES, itertools.cycle((False, True))):
        importance(shape, dtype, layout, path=path)


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("prior", ["dense", "packed", "per_feature", "constant"])
def test_importance_with_a_prior(prior: str, path: bool) -> None:
    for shape in (*SHAPES[2:8], SHAPES[10], (70, 12), (600, 3)):
        importance(shape, F32, "dense" if prior != "packed" else "channels_last", prior=prior, path=path)
    importance((3, 16), BF16, "dense", prior=prior, path=path, clamp=(-0.5, 0.25))


def test_importance_of_draws_and_given_noise() -> None:
    states = values((9, 2), F32, 3).mul(2**62).long()
    for shape, layout in itertools.product(((9,), (4, 7), (3, 16), (2, 2304)), ("dense", "odd_address")):
        importance(shape, F32, layout, k=6, state=states[: shape[0]], first_draw=2)
        importance(
            shape, F32, layout, k=5, state=torch.tensor([1, 2, 3, 20]), first_draw=3, clamp=(-0.5, 0.25)
        )
        importance(shape, F16, layout, k=1, noise=True, z=False)
        importance(shape, F32, layout, k=40, noise=True, prior="dense")
