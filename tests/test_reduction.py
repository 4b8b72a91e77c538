"""reduction="none": a loss of each element. It is what a sample of that element alone has, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast
from conftest import assert_same_bits_for_threads, needs_native, state
from likelihoods import LIKELIHOODS, PAIRS, check, function, leaf, make, make_params, make_target, uniform
from test_likelihood import MASKS, strided

every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)
FULL = (5, 3, 4)
Call = Callable[..., Tensor]


def alone(call: Call, *tensors: Tensor, grad: Tensor, **options: Any) -> list[Tensor]:
    """The loss and its gradients where each element is a sample of its own, in the elements' shape."""
    inputs = [leaf(t.reshape(-1)) if t.is_floating_point() else t.reshape(-1) for t in tensors]
    learning = [t for t in inputs if t.requires_grad]
    loss = call(*inputs, **options)
    return [
        t.view(grad.shape) for t in (loss.detach(), *torch.autograd.grad(loss, learning, grad.reshape(-1)))
    ]


def together(call: Call, *tensors: Tensor, grad: Tensor, **options: Any) -> list[Tensor]:
    inputs = [leaf(t) if t.is_floating_point() else t for t in tensors]
    learning = [t for t in inputs if t.requires_grad]
    loss = call(*inputs, reduction="none", **options)
    return [loss.detach(), *torch.autograd.grad(loss, learning, grad)]


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), (a - b).abs().max()


def nll_of(name: str, target: Tensor) -> Call:
    """The likelihood's function of its parameters alone: the target is data."""

    def call(first: Tensor, *others: Tensor, **options: Any) -> Tensor:
        return function(name)(first, target.reshape(first.shape), *others, **options)

    return call


@every_likelihood
@pytest.mark.parametrize("shape", [(7,), (5, 37), (600, 3), (2, 3000), FULL], ids=str)
def test_an_element_is_a_sample(backend: str, name: str, shape: tuple[int, ...]) -> None:
    if backend in ("reference", "twin"):  # expressions have no blocks that size would matter to
        shape = tuple(min(n, 40) for n in shape)
    call, params = nll_of(name, make_target(name, *shape)), make_params(name, [shape])
    grad = make(*shape, seed=5)
    assert_equal(together(call, *params, grad=grad), alone(call, *params, grad=grad))


@every_likelihood
@pytest.mark.parametrize(("dtype", "target"), PAIRS, ids=str)
def test_dtypes(backend: str, name: str, dtype: torch.dtype, target: torch.dtype) -> None:
    check(name, make_target(name, *FULL, dtype=target), *make_params(name, [FULL], dtype), reduction="none")


@every_likelihood
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks_weights_and_broadcast_parameters(backend: str, name: str, shape: tuple[int, ...]) -> None:
    full = (9, 3, 4)
    mask, target = uniform(*shape, seed=3) > 0.4, make_target(name, *full)
    check(name, target, *make_params(name, [full]), mask=mask, weight=uniform(9), reduction="none")
    check(name, target, *make_params(name, [full, shape]), mask=mask, reduction="none")


@pytest.mark.parametrize("of_target", ["dense", "channels-last", "permuted", "slice", "expanded"])
@pytest.mark.parametrize("of_params", ["dense", "channels-last", "permuted", "slice"])
def test_layouts(backend: str, of_target: str, of_params: str) -> None:
    full = (3, 4, 5, 6)
    for name in ("bernoulli", "gaussian", "zero_inflated_negative_binomial"):
        x = strided(of_target, make_target(name, *full))
        check(name, x, *(strided(of_params, p) for p in make_params(name, [full])), reduction="none")


@pytest.mark.parametrize("kind", ["channels-last", "permuted", "slice", "expanded"])
def test_layouts_of_what_comes_from_above(backend: str, kind: str) -> None:
    full = (3, 4, 5, 6)
    for name in ("gaussian", "negative_binomial"):
        call, params = nll_of(name, make_target(name, *full)), make_params(name, [full])
        grad = strided(kind, make(*full, seed=5))
        got, dense = (together(call, *params, grad=g) for g in (grad, grad.contiguous()))
        assert_equal(got, dense)
    mu, logvar = make(*full, seed=1), make(*full, seed=2)
    got, dense = (together(vae_fast.kl_divergence, mu, logvar, grad=g) for g in (grad, grad.contiguous()))
    assert_equal(got, dense)


@every_likelihood
def test_of_the_sum(backend: str, name: str) -> None:
    """A gradient of stride 0: nll.sum() of the elements has the gradients of nll.sum() of the samples."""
    call, params = (
        nll_of(name, make_target(name, *FULL)),
        [leaf(p) for p in make_params(name, [FULL, FULL[1:]])],
    )
    got = torch.autograd.grad(call(*params, reduction="none").sum(), params)
    assert_equal(list(got), list(torch.autograd.grad(call(*params).sum(), params)))


def test_binarized(backend: str) -> None:
    logits, x = leaf(make(*FULL)), uniform(*FULL)
    bits = vae_fast.binarize(x, rng_state=state())
    for target, options in ((x, {"binarize": True, "rng_state": state()}), (bits, {})):
        nll = vae_fast.bernoulli_nll(logits, target, reduction="none", **options)
        got = [nll.detach(), *torch.autograd.grad(nll, logits, make(*FULL, seed=5))]
        if options:
            first = got
    assert_equal(got, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7,), (5, 37), (600, 3), (2, 3000), FULL], ids=str)
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
def test_kl(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...], prior: bool, clamp: tuple[float, float] | None
) -> None:
    moments = [make(*shape, dtype=dtype, seed=i) for i in range(4 if prior else 2)]
    grad = make(*shape, seed=5).to(torch.float64 if dtype == torch.float64 else torch.float32)

    def call(mu: Tensor, logvar: Tensor, *p: Tensor, **options: Any) -> Tensor:
        return vae_fast.kl_divergence(mu, logvar, prior=p or None, clamp=clamp, **options)  # type: ignore[arg-type]

    assert_equal(together(call, *moments, grad=grad), alone(call, *moments, grad=grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("draws", [None, 3])
def test_sample_and_kl(backend: str, dtype: torch.dtype, draws: int | None) -> None:
    """Beside z, packed and with priors of other shapes: as the two losses apart."""
    moments, prior = leaf(make(5, 6, 4, dtype=dtype)), (leaf(make(3, 4, seed=7)), leaf(make(4, seed=8)))
    shape = (5, 3, 4) if draws is None else (draws, 5, 3, 4)
    grad_z, grad_kl = make(*shape, dtype=dtype, seed=5), make(5, 3, 4, seed=6)
    options = {"prior": prior, "rng_state": state(), "num_samples": draws}
    inputs = (moments, *prior)
    z, kl = vae_fast.reparameterize_kl_packed(moments, reduction="none", **options)
    got = torch.autograd.grad((z, kl), inputs, (grad_z, grad_kl))
    mu, logvar = moments.chunk(2, 1)
    expected = vae_fast.kl_divergence(mu, logvar, prior=prior, reduction="none")
    assert torch.equal(kl, expected) and kl.dtype == torch.float32
    z_alone = vae_fast.reparameterize(mu, logvar, rng_state=state(), num_samples=draws)
    assert torch.equal(z, z_alone)
    apart = torch.autograd.grad((z_alone, expected), inputs, (grad_z, grad_kl))
    for a, b in zip(got, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2 * torch.finfo(dtype).eps * b.abs().max().item())


CLASSES = (4, 2, 3, 8)


def classes(name: str) -> tuple[Call, Tensor, Tensor]:
    if name == "mixture":
        params, x = make(4, 20, 2, 3), (256 * uniform(4, 3, 2, 3)).to(torch.uint8)
        return vae_fast.discretized_logistic_mixture_nll, params, x
    counts = (9 * uniform(*CLASSES)).floor()
    if name == "multinomial":
        return vae_fast.multinomial_nll, make(*CLASSES), counts
    return vae_fast.categorical_nll, make(*CLASSES), counts[..., 0].long() % 8


@pytest.mark.parametrize("mask", [None, (4, 1, 1), (1, 2, 1), ()], ids=str)
@pytest.mark.parametrize("name", ["categorical", "multinomial", "mixture"])
def test_positions(backend: str, name: str, mask: tuple[int, ...] | None) -> None:
    """A loss of each position or pixel: what a sample of that position alone has."""
    call, params, x = classes(name)
    grad, options = make(4, 2, 3, seed=5), {}
    kept = torch.ones(4, 2, 3) > 0
    if mask is not None:
        keep = uniform(*mask, seed=3) > 0.4
        kept = keep.expand(4, 2, 3)
        options["mask"] = keep.unsqueeze(1) if name == "mixture" and keep.ndim else keep
    got = together(lambda p, **o: call(p, x, **o), params, grad=grad, **options)
    leaves = leaf(params)
    for b, i, j in torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(3)).tolist():
        at = (slice(b, b + 1), slice(None), i, j) if name == "mixture" else (slice(b, b + 1), i, j)
        nll = call(leaves[at], x[at])
        (by,) = torch.autograd.grad(nll, leaves, grad[b : b + 1, i, j])
        if kept[b, i, j]:
            torch.testing.assert_close(got[0][b : b + 1, i, j], nll, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got[1][at], by[at], rtol=1e-5, atol=1e-6)
        else:
            assert got[0][b, i, j] == 0 and not got[1][at].any()


@pytest.mark.parametrize("name", ["categorical", "multinomial", "mixture"])
def test_of_the_sum_of_positions(backend: str, name: str) -> None:
    call, params, x = classes(name)
    params = leaf(params)
    weight = leaf(uniform(4))
    each, sums = (call(params, x, weight=weight, reduction=r) for r in ("none", "sample"))
    assert each.shape == (4, 2, 3)
    torch.testing.assert_close(each.flatten(1).sum(1), sums)
    for a, b in zip(*(torch.autograd.grad(n.sum(), (params, weight)) for n in (each, sums)), strict=True):
        torch.testing.assert_close(a, b)


@every_likelihood
def test_empty(backend: str, name: str) -> None:
    for shape in ((0,), (0, 4), (3, 0), (2, 0, 5)):
        params = [leaf(p) for p in make_params(name, [shape, ()])]
        nll = function(name)(params[0], torch.zeros(shape), *params[1:], reduction="none")
        assert nll.shape == shape
        for grad, p in zip(torch.autograd.grad(nll.sum(), params), params, strict=True):
            assert torch.equal(grad, torch.zeros_like(p))


@every_likelihood
def test_bad_numbers_stay_in_their_element(backend: str, name: str) -> None:
    params, target = make_params(name, [(4, 9)]), make_target(name, 4, 9)
    others = torch.ones(4, 9) > 0
    others[1, 3] = False
    good = function(name)(params[0], target, *params[1:], reduction="none")
    for i in range(len(params)):
        bad = [p.clone() for p in params]
        bad[i][1, 3] = math.nan
        nll = function(name)(bad[0], target, *bad[1:], reduction="none")
        assert nll[1, 3].isnan() and torch.equal(nll[others], good[others])


@pytest.mark.parametrize("reduction", ["sum", "mean", None, "batchmean"])
def test_other_reductions_are_refused(reduction: Any) -> None:
    x = torch.zeros(2, 3)
    message = r'expected reduction to be "sample" or "none", but got'
    for call in (
        lambda: vae_fast.gaussian_nll(x, x, reduction=reduction),
        lambda: vae_fast.bernoulli_nll(x, x, reduction=reduction),
        lambda: vae_fast.categorical_nll(x, torch.zeros(2, dtype=torch.long), reduction=reduction),
        lambda: vae_fast.kl_divergence(x, x, reduction=reduction),
        lambda: vae_fast.reparameterize_kl(x, x, reduction=reduction),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@every_likelihood
def test_autograd_behaviour(kernels: str, name: str) -> None:
    """Backward twice, and no second derivative."""
    params, target = [leaf(p) for p in make_params(name, [(4, 5)])], make_target(name, 4, 5)
    nll = function(name)(params[0], target, *params[1:], reduction="none")
    first, again = (torch.autograd.grad(nll.sum(), params, retain_graph=True) for _ in range(2))
    assert_equal(list(first), list(again))
    (grad, *_) = torch.autograd.grad(nll.square().sum(), params, create_graph=True)
    with pytest.raises(RuntimeError, match=r'second derivative.*backend\("reference"\)'):
        grad.sum().backward()


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    shape = (2001, 77)
    cases = [
        (n, make_target(n, *shape), [leaf(p) for p in make_params(n, [shape, (77,)])]) for n in LIKELIHOODS
    ]
    grad = uniform(*shape)

    def compute() -> list[Tensor]:
        result = []
        for name, target, params in cases:
            nll = function(name)(params[0], target, *params[1:], reduction="none")
            result += [nll.detach(), *torch.autograd.grad(nll, params, grad)]
        return result

    assert_same_bits_for_threads(compute)


def test_the_layout_is_the_target_s(backend: str) -> None:
    """Channels-last stays channels-last, as with torch's own losses."""
    x = strided("channels-last", uniform(3, 4, 5, 6))
    mean = strided("channels-last", make(3, 4, 5, 6))
    assert vae_fast.gaussian_nll(mean, x, reduction="none").stride() == x.stride()
    assert vae_fast.kl_divergence(mean, x, reduction="none").stride() == x.stride()
