"""The likelihood kernels: every likelihood, target, layout, mask, binarization and broadcast parameter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import noise_rows
from vae_fast import reference
from vae_fast.backends.native import cpu, cuda
from vae_fast.likelihoods import ELEMENTWISE

from .emulated import DTYPES, HAS_CPU, STATE, close, double, launches_once, same, schedule
from .layouts import BF16, BOOL, F16, F32, INTEGERS, LAYOUTS, LONG, SHAPES, U8, poisoned, tensor, values

__all__ = ["schedule"]
PARAMETERS = {name: len(ELEMENTWISE[name].parameters) for name in cuda.likelihoods}


def make_target(shape: Sequence[int], likelihood: str, dtype: torch.dtype, layout: str) -> Tensor:
    x = tensor(shape, dtype, layout, 1)
    if likelihood in cuda.of_counts:
        x.copy_((values(shape, F32, 1).abs() * 4).floor())
    elif dtype in INTEGERS:
        x.copy_(values(shape, BOOL, 1))
    elif x.is_floating_point() and likelihood not in ("gaussian", "laplace"):
        x.sigmoid_()
    if likelihood == "discretized_logistic" and x.is_floating_point():
        x.copy_((x * 255).round() / 255)
    return x


def check(shape: Sequence[int], likelihood: str, dtype: torch.dtype, target: torch.dtype, layout: str,
               second: str | None = None, grad_layout: str = "dense", mask: str | None = None,
               rng_state: Tensor | None = None) -> None:  # fmt: skip
    """Forward and backward. `second` is the layout of the parameters after the first, a broadcast one perhaps."""
    x = make_target(shape, likelihood, target, layout)
    layouts = (layout, *(second or layout for _ in range(PARAMETERS[likelihood] - 1)))
    params = tuple(tensor(shape, dtype, where, 2 + i) for i, where in enumerate(layouts))
    if likelihood in cuda.of_counts:
        are_logs = [p.is_log for p in ELEMENTWISE[likelihood].parameters]
        params = tuple(tensor(shape, dtype, w, 2 + i, positive=are_logs[i]) for i, w in enumerate(layouts))
    if likelihood == "bernoulli_probs":
        params[0].sigmoid_()
    kept = None if mask is None else tensor(shape, BOOL, mask, 7)
    if kept is not None:  # what is left out may be anything
        for t in (x, params[0]):
            if t.is_floating_point():
                t.masked_fill_(~kept, float("nan"))
    value = double(x) / 255 if target is U8 and likelihood not in cuda.of_counts else x.double()
    if rng_state is not None:
        value = reference.binarize(x, rng_state).double()
    summed = {"per_feature": shape[1:], "constant": ()}.get(second or "", tuple(shape))

    nll = poisoned(shape[:1], F32, "every_other")
    launches_once(cuda.likelihood_forward, likelihood, params, x, kept, rng_state, nll=nll)
    true_nll = torch.empty(shape[:1], dtype=torch.float64)
    reference.likelihood_forward(likelihood, double(params), value, kept, None, nll=true_nll)
    close(nll, true_nll, 8 * max(1, x[0].numel()))

    grad = tensor(shape[:1], F32, grad_layout, 6)

    def gradients() -> tuple[Tensor, ...]:
        shared = F32 if summed != tuple(shape) else dtype
        return (
            poisoned(shape, dtype, layout),
            *(poisoned(summed, shared, layout if summed == tuple(shape) else "dense") for _ in params[1:]),
        )

    grads = gradients()
    args = (likelihood, params, x, kept, rng_state, grad)
    launches_once(cuda.likelihood_backward, *args, grads=grads)
    truth = tuple(torch.empty(g.shape, dtype=torch.float64) for g in grads)
    reference.likelihood_backward(likelihood, double(params), value, kept, None, grad.double(), grads=truth)
    for got, want in zip(grads, truth, strict=True):
        close(got, want, 16 * max(1, x.numel() / max(1, got.numel())))
    if kept is not None:
        assert not grads[0][~kept].any()
    if HAS_CPU and (dtype is F32 or target is not dtype):  # all of 16 bits: approximations
        others = gradients()
        cpu.likelihood_backward(*args, grads=others)
        alike = 1 if summed != tuple(shape) else len(grads)
        same(grads[:alike], others[:alike])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_likelihood(likelihood: str, layout: str) -> None:
    for i, (dtype, shape) in enumerate(itertools.product(DTYPES, SHAPES)):
        if layout == "dense" or i % 3 == 0:  # of the others a part, another one for each dtype
            check(shape, likelihood, dtype, dtype, layout)


@pytest.mark.parametrize("layout", ["dense", "channels_last", "odd_address"])
@pytest.mark.parametrize("likelihood", list(PARAMETERS)[2:])
def test_every_likelihood(likelihood: str, layout: str) -> None:
    shapes = [(9,), (4, 7), (3, 16), (2, 5, 3, 3), (2, 1028)]
    for dtype, shape in itertools.product(DTYPES, shapes):
        check(shape, likelihood, dtype, F32 if likelihood in cuda.of_counts else dtype, layout)
    for second in ("per_feature", "constant"):
        check((9, 12), likelihood, BF16, F32, layout, second)
        check((4, 7), likelihood, F32, U8, layout, second)


@pytest.mark.parametrize("target", [F32, BF16, F16, U8, BOOL, *INTEGERS])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_targets(dtype: torch.dtype, target: torch.dtype) -> None:
    likelihoods = ["bernoulli", "poisson"] if target in INTEGERS else ["bernoulli", "gaussian"]
    if target is U8:
        likelihoods.append("poisson")
    for likelihood, shape in itertools.product(likelihoods, (*SHAPES[4:9], LONG)):
        check(shape, likelihood, dtype, target, "dense", grad_layout="constant")
        if shape is not LONG:
            check(shape, likelihood, dtype, target, "channels_last" if len(shape) > 2 else "odd_address")


def test_every_byte_is_its_255th() -> None:
    for shape in ((256, 1), (1, 256), (32, 8)):
        x, zero = torch.arange(256, dtype=U8).view(shape), torch.zeros(shape)
        args, grad = ((zero, zero), x, None, None, torch.ones(shape[0])), poisoned(shape, F32, "dense")
        cuda.likelihood_backward("gaussian", *args, grads=(grad, None))
        assert torch.equal(grad, -(x.float() / 255))


def test_numbers_as_they_are() -> None:
    """The ends of what integers hold, and a byte that is a number."""
    for dtype in (U8, *INTEGERS):
        info = torch.iinfo(dtype)
        x = torch.tensor([info.min, info.max, 0, 1, 77], dtype=dtype)[:, None].expand(5, 4)
        ones, grad = torch.ones(5, 4), poisoned((5, 4), F32, "dense")
        cuda.likelihood_backward("poisson", (ones,), x, None, None, torch.ones(5), grads=(grad,))
        want = torch.where(x < 0, torch.nan, 1 - x.float())  # the mean is 1; no count is negative
        torch.testing.assert_close(grad, want, rtol=0, atol=0, equal_nan=True, msg=str(dtype))


@pytest.mark.parametrize("mask", ["dense", "per_feature", "per_sample", "odd_address"])
@pytest.mark.parametrize("layout", ["dense", "channels_last"])
def test_mask(layout: str, mask: str) -> None:
    for dtype, shape in itertools.product((F32, BF16), ((5, 4), (3, 16), (4, 7), (2, 4, 3, 5), LONG)):
        check(shape, "gaussian", dtype, dtype, layout, mask=mask)
        check(shape, "bernoulli", dtype, U8, layout, mask=mask)
    check((9, 12), "gaussian", F32, F32, "dense", "per_feature", mask=mask)
    check((9, 12), "zero_inflated_negative_binomial", F32, F32, "dense", "constant", mask=mask)


@pytest.mark.parametrize("target", [U8, F32, BF16])
def test_binarization(target: torch.dtype) -> None:
    """The very bits of the contract, forward and backward, in every access."""
    for shape in ((9,), (4, 7), (3, 16), (2, 3, 4, 4), LONG):
        many = values((shape[0], 2), F32, 3).mul(2**62).long()
        for rng_state, layout in itertools.product((STATE, many), ("dense", "channels_last")):
            check(shape, "bernoulli", BF16 if target is U8 else F32, target, layout, rng_state=rng_state)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="does not binarize"):
        cuda.likelihood_forward("gaussian", (x, x), x, None, STATE, nll=torch.empty(2))


@pytest.mark.parametrize("target", [F32, BF16, U8])
def test_bits_of_a_part_of_a_batch(target: torch.dtype) -> None:
    noise_rows.check_likelihood(cuda, (target,), brief=target is BF16)


@pytest.mark.parametrize("second", ["per_feature", "constant"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_variance(dtype: torch.dtype, second: str) -> None:
    for shape in (*SHAPES, (70, 12), (600, 3), (20, 300)):
        check(shape, "gaussian", dtype, F32, "dense", second)
    check((2, 3, 4, 4), "gaussian", dtype, U8, "channels_last", second)
