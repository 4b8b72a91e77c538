"""The noise and the latent kernels."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import noise_rows
from vae_fast import reference
from vae_fast.backends.native import cpu, cuda

from .emulated import DTYPES, EMULATION, HAS_CPU, STATE, close, double, launches_once, same, schedule
from .layouts import BF16, F16, F32, LAYOUTS, SHAPES, poisoned, tensor, values

__all__ = ["schedule"]
MIXED = list(itertools.product(DTYPES, DTYPES))


def test_words() -> None:
    words = (ctypes.c_uint32 * 4)()
    for seed, offset, group, row in ((0, 0, 0, 0), (-1, -1, 2**32 - 1, 2**32 - 1), (*STATE.tolist(), 77, 3)):
        EMULATION.emulation_words(ctypes.c_int64(seed), ctypes.c_int64(offset), group, row, words)
        low = [torch.tensor(x & 0xFFFFFFFF) for x in (group, row, offset, offset >> 32, seed, seed >> 32)]
        assert list(words) == [int(w) for w in reference.philox(low[:4], low[4:])]


def test_normals_with_the_largest_errors_of_the_approximations() -> None:
    """Within 4e-6 of the transform: random words, both ends of (0, 1), around 1 - 2^-6 where two terms of log
    begin, and angles around the quarters of a turn."""
    random, near = np.random.default_rng(1), np.arange(-5000, 5000)
    starts = (0, 2**32 - 2**26, 2**31, 2**32 - 5000)
    first_words = np.concatenate([random.integers(0, 2**32, 160_000), *(near % 2**32 + s for s in starts)])
    turns = np.concatenate([near + quarter * 2**30 for quarter in range(4)])
    second_words = np.concatenate([turns, random.integers(0, 2**32, 160_000)])
    first_words, second_words = (w.astype(np.int64).astype(np.uint32) for w in (first_words, second_words))
    for words in (second_words, random.permutation(second_words)):
        got = np.empty((2, first_words.size), np.float32)
        EMULATION.emulation_normals(
            *(ctypes.c_void_p(a.ctypes.data) for a in (first_words, words)), ctypes.c_int64(words.size),
            *(ctypes.c_void_p(a.ctypes.data) for a in got),
        )  # fmt: skip
        r = np.sqrt(-2 * np.log((first_words + 0.5) / 2**32))
        angle = 2 * np.pi * words / 2**32
        error = np.abs(got - [r * np.cos(angle), r * np.sin(angle)]).max()
        assert 1e-6 < error <= 4e-6  # not too exact either: the errors are there


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise(dtype: torch.dtype, layout: str, per_sample: bool) -> None:
    for k, shape in itertools.product((1, 3), SHAPES):
        state = values((shape[0], 2), F32, 3).mul(2**62).long() if per_sample else STATE
        eps = poisoned((k, *shape), dtype, layout)
        launches_once(cuda.noise_fill, eps, state)
        truth = reference.noise(shape, state, num_samples=k, dtype=torch.float64)
        exact = eps if dtype is F32 else poisoned((k, *shape), F32, layout)
        if dtype is not F32:
            cuda.noise_fill(exact, state)
            assert torch.equal(eps, exact.to(dtype))
        assert ((exact.double() - truth).abs() <= 4e-6).all()


def test_noise_of_a_part_of_a_batch() -> None:
    noise_rows.check_noise(cuda)
    noise_rows.check_noise(cuda, (BF16, F16), brief=True)


# ---- latent ----


def latent(shape: Sequence[int], dtypes: Any, layout: str, *, k: int | None = None, prior: str | None = None,
           clamp: Any = None, noise: bool = False, state: Tensor | None = STATE, z: bool = True, kl: bool = True,
           truth: bool = True) -> None:  # fmt: skip
    """Forward and backward, against float64 and the CPU engine."""
    first, second = dtypes
    mu, logvar = tensor(shape, first, layout, 1), tensor(shape, second, layout, 2)
    pair = None if prior is None else (tensor(shape, second, prior, 3), tensor(shape, first, prior, 4))
    sampled = tuple(shape) if k is None else (k, *shape)
    given = tensor(sampled, second, layout, 5) if noise else None
    rng = None if noise or not z else state
    args = (mu, logvar, pair, rng, given, clamp)
    out = {
        "z": poisoned(sampled, first, layout) if z else None,
        "kl": poisoned(shape[:1], F32, "every_other") if kl else None,
    }
    launches_once(cuda.latent_forward, *args, **out)

    grad_z = tensor(sampled, first, layout, 6) if z else None
    grad_kl = tensor(shape[:1], F32, "constant", 7) if kl else None
    summed = {"per_feature": shape[1:], "constant": ()}.get(prior or "", shape)
    back_args = (grad_z, grad_kl, *args)

    def gradients() -> dict[str, Any]:
        wanted = (
            None
            if prior is None
            else tuple(poisoned(summed, F32, "dense" if summed != shape else layout) for _ in "ab")
        )
        return {
            "grad_mu": poisoned(shape, first, layout),
            "grad_logvar": poisoned(shape, second, layout),
            "grad_prior": wanted,
        }

    grads = gradients()
    launches_once(cuda.latent_backward, *back_args, **grads)
    flat = [grads["grad_mu"], grads["grad_logvar"], *(grads["grad_prior"] or ())]

    if truth:
        true_out = {
            n: None if t is None else torch.empty(t.shape, dtype=torch.float64) for n, t in out.items()
        }
        reference.latent_forward(*double(args), **true_out)
        true_grads = {n: torch.empty(t.shape, dtype=torch.float64) for n, t in list(grads.items())[:2]}
        true_prior = None if prior is None else tuple(torch.empty(summed, dtype=torch.float64) for _ in "ab")
        reference.latent_backward(*double(back_args), **true_grads, grad_prior=true_prior)
        columns = max(1, mu[0].numel())
        spread = double(logvar if clamp is None else logvar.clamp(*clamp)).mul(0.5).exp()
        for n, size in (("z", 4 * (1 + spread)), ("kl", columns)):
            if out[n] is not None:
                close(out[n], true_out[n], size)
        close(grads["grad_mu"], true_grads["grad_mu"], 8 * (k or 1))
        close(grads["grad_logvar"], true_grads["grad_logvar"], 8 * (k or 1) * (1 + spread))
        for got, want in zip(grads["grad_prior"] or (), true_prior or (), strict=True):
            close(got, want, 8 * mu.numel() / max(1, got.numel()))
    if HAS_CPU and (first is F32 or first is not second):  # all of 16 bits: approximations
        if rng is not None:  # the CPU's own differs in the last bits
            given = torch.empty((k or 1, *shape))
            cuda.noise_fill(given, rng)
            given = given.view(sampled)
        cpu_args = (mu, logvar, pair, None, given, clamp)
        other = {n: None if t is None else torch.empty_like(t) for n, t in out.items()}
        cpu.latent_forward(*cpu_args, **other)
        if z:
            same([out["z"]], [other["z"]])
        other_grads = gradients()
        cpu.latent_backward(grad_z, grad_kl, *cpu_args, **other_grads)
        same(flat[:2], [other_grads["grad_mu"], other_grads["grad_logvar"]])
        if kl and summed == shape and prior is not None:
            same(flat[2:], other_grads["grad_prior"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", MIXED, ids=str)
def test_latent(dtypes: Any, layout: str) -> None:
    shapes = SHAPES if dtypes[0] is dtypes[1] else SHAPES[4:8]
    for shape in shapes:
        latent(shape, dtypes, layout)


@pytest.mark.parametrize("prior", ["dense", "packed", "per_feature", "constant"])
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F16, F16)], ids=str)
def test_prior(dtypes: Any, prior: str) -> None:
    for shape in (*SHAPES, (70, 12), (600, 3)):
        latent(shape, dtypes, "dense" if prior != "packed" else "channels_last", prior=prior)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_and_given_noise(dtype: torch.dtype) -> None:
    states = values((9, 2), F32, 3).mul(2**62).long()
    for shape, layout in itertools.product(
        ((9,), (4, 7), (3, 16), (2, 3, 4, 4)), ("dense", "channels_last", "odd_address")
    ):
        for k in (None, 1, 5):
            latent(shape, (dtype, dtype), layout, k=k, state=states[: shape[0]])
            latent(shape, (dtype, dtype), layout, k=k, noise=True, prior="dense" if k is None else None)
            latent(shape, (dtype, dtype), layout, k=k)


@pytest.mark.parametrize("prior", [None, "dense"])
def test_one_result_alone(prior: str | None) -> None:
    for shape, layout in itertools.product(((4, 7), (3, 16), (2, 2304)), ("dense", "every_other")):
        latent(shape, (F32, F32), layout, z=False, prior=prior)
        latent(shape, (F32, F32), layout, kl=False, prior=prior)
        latent(shape, (BF16, BF16), layout, z=False, kl=False, prior=prior)


@pytest.mark.parametrize("prior", [None, "per_feature"])
def test_clamp(prior: str | None) -> None:
    for shape in ((4, 7), (3, 16), (1, 4999)):
        latent(shape, (F32, F32), "dense", clamp=(-0.5, 0.25), prior=prior)
        latent(shape, (BF16, BF16), "packed", clamp=(-0.5, 0.25), prior=prior)


@pytest.mark.parametrize("dtype", DTYPES)
def test_latent_of_a_part_of_a_batch(dtype: torch.dtype) -> None:
    noise_rows.check_latent(cuda, (dtype,), brief=dtype is not F32)


def test_nan_and_infinity_stay_where_they_are() -> None:
    mu = values((4, 16), F32, 1)
    logvar = values((4, 16), F32, 2)
    logvar[1, 3], logvar[2, 5], mu[3, 7] = float("nan"), float("inf"), float("inf")
    for clamp in (None, (-2.0, 2.0)):
        z, kl = poisoned((4, 16), F32, "dense"), poisoned((4,), F32, "dense")
        cuda.latent_forward(mu, logvar, None, STATE, None, clamp, z=z, kl=kl)
        grad_mu, grad_logvar = poisoned((4, 16), F32, "dense"), poisoned((4, 16), F32, "dense")
        cuda.latent_backward(
            torch.ones(4, 16), torch.ones(4), mu, logvar, None, STATE, None, clamp,
            grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=None,
        )  # fmt: skip
        finite = torch.ones(4, 16, dtype=torch.bool)
        finite[1, 3] = finite[3, 7] = False
        finite[2, 5] = clamp is not None
        assert torch.equal(z.isfinite(), finite)
        assert kl.isfinite().tolist() == [True, False, clamp is not None, False]
        assert grad_logvar[0].isfinite().all()
        assert grad_logvar[3].isfinite().all()
        if clamp is not None:
            assert grad_logvar[1, 3] == 0  # as torch.clamp: NaN lies outside
            assert grad_logvar[2, 5] == 0


def test_some_gradients_alone() -> None:
    mu, logvar, prior = (
        values((5, 12), F32, 1),
        values((5, 12), F32, 2),
        (values((5, 12), F32, 3), values((5, 12), F32, 4)),
    )
    grad_z, grad_kl = values((5, 12), F32, 5), values((5,), F32, 6)
    full = [poisoned((5, 12), F32, "dense") for _ in range(4)]
    args = (grad_z, grad_kl, mu, logvar, prior, STATE, None, None)
    cuda.latent_backward(*args, grad_mu=full[0], grad_logvar=full[1], grad_prior=(full[2], full[3]))
    for wanted in range(4):
        got = poisoned((5, 12), F32, "dense")
        some: list[Tensor | None] = [got if i == wanted else None for i in range(4)]
        cuda.latent_backward(*args, grad_mu=some[0], grad_logvar=some[1], grad_prior=(some[2], some[3]))
        assert torch.equal(got, full[wanted])
