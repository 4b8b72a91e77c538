"""The op `likelihood`: values and gradients of each likelihood, in every dtype and layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast
from conftest import DTYPES, assert_same_bits_for_threads, needs_native, state
from likelihoods import (
    LIKELIHOODS,
    PAIRS,
    WITH_OTHERS,
    check,
    function,
    leaf,
    make,
    make_params,
    make_target,
    uniform,
)
from vae_fast.ops import _common

every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


@every_likelihood
@pytest.mark.parametrize(("dtype", "target"), PAIRS, ids=str)
def test_dtypes(backend: str, name: str, dtype: torch.dtype, target: torch.dtype) -> None:
    for shape in ((6,), (5, 7), (2, 3, 4, 5)):
        check(name, make_target(name, *shape, dtype=target), *make_params(name, [shape], dtype))


@every_likelihood
def test_sizes(backend: str, name: str) -> None:
    """Full vectors, remainders of every length, samples that fill blocks; parameters per feature among them."""
    for n in (*range(1, 10), 15, 16, 17, 31, 33, 35, 784):
        target = make_target(name, 3, n)
        check(name, target, *make_params(name, [(3, n)]))
        if n in (1, 16, 35, 784):
            check(name, target, *make_params(name, [(3, n), (n,)]))


@every_likelihood
@needs_native
def test_one_long_sample(name: str) -> None:
    n = 300_003
    with vae_fast.backend("cpu"):
        check(name, make_target(name, 1, n, dtype=torch.uint8), *make_params(name, [(1, n)]))


SHAPES = [(9, 3, 4), (3, 4), (1, 3, 4), (), (1,), (1, 1, 1), (4,), (3, 1), (9, 1, 1), (9, 1, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_broadcast_parameters(backend: str, shape, dtype: torch.dtype) -> None:
    """Per element, per feature, one for all, and the broadcasts between: gradients are the matching sums."""
    check(
        "gaussian",
        make_target("gaussian", 9, 3, 4, dtype=dtype),
        *make_params("gaussian", [(9, 3, 4), shape], dtype),
    )


@pytest.mark.parametrize("name", [name for name in WITH_OTHERS if name != "gaussian"])
@pytest.mark.parametrize("shape", [(3, 4), (1,), (), (9, 1, 1)], ids=str)
def test_broadcast_parameters_of_others(backend: str, name: str, shape) -> None:
    full = (9, 3, 4)
    check(name, make_target(name, *full), *make_params(name, [full, shape]))
    check(name, make_target(name, *full), *make_params(name, [full, shape, full]))
    check(name, make_target(name, *full), *make_params(name, [full, shape, (4,)], torch.bfloat16))


@pytest.mark.parametrize("value", [None, 0, -1.5, 2], ids=str)
def test_parameters_that_are_numbers(backend: str, value: float | None) -> None:
    for name in WITH_OTHERS:
        if LIKELIHOODS[name].counts and (value is None or value <= 0):
            continue
        if name == "discretized_logistic" and value is None:
            continue
        first, *others = make_params(name, [(4, 33)])
        target = make_target(name, 4, 33)
        number = torch.tensor(float(value or 0))
        got = function(name)(first, target, value, *others[1:])
        assert torch.equal(got, function(name)(first, target, number, *others[1:]))
        if LIKELIHOODS[name].counts or name == "discretized_logistic":
            continue
        assert torch.equal(got, function(name)(first, target, others[0] * 0 + number))


def strided(kind: str, x: Tensor) -> Tensor:
    if kind == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "permuted":
        return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    if kind == "slice":
        return torch.stack((x, x), -1)[..., 0]
    if kind == "expanded":
        return x[:, :1, :1].expand(x.shape)
    return x


@pytest.mark.parametrize("target", [torch.float32, torch.uint8])
@pytest.mark.parametrize("of_target", ["dense", "channels-last", "permuted", "slice", "expanded"])
@pytest.mark.parametrize("of_params", ["dense", "channels-last", "permuted", "slice"])
def test_layouts(backend: str, of_target: str, of_params: str, target: torch.dtype) -> None:
    full = (3, 4, 5, 6)
    for name in ("bernoulli", "gaussian", "zero_inflated_negative_binomial"):
        x = strided(of_target, make_target(name, *full, dtype=target))
        params = [strided(of_params, p) for p in make_params(name, [full])]
        check(name, x, *params)
        if len(params) > 1:
            check(name, x, params[0], *(p[0] for p in params[1:]))


MASKS = [(9, 3, 4), (3, 4), (9, 1, 1), (4,), (1, 3, 1), ()]


@every_likelihood
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_mask(backend: str, name: str, shape) -> None:
    """What is left out adds nothing and learns nothing, even where it is NaN; what is left in is as without a mask."""
    full = (9, 3, 4)
    mask = uniform(*shape, seed=3) > 0.4
    check(name, make_target(name, *full), *make_params(name, [full]), mask=mask)
    check(name, make_target(name, *full, dtype=torch.uint8), *make_params(name, [full, (3, 4)]), mask=mask)


@every_likelihood
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_mask_in_other_dtypes_and_layouts(backend: str, name: str, dtype: torch.dtype) -> None:
    full = (3, 4, 5, 6)
    for kind in ("channels-last", "permuted", "slice"):
        mask = strided(kind, uniform(*full, seed=3) > 0.4)
        check(name, make_target(name, *full, dtype=dtype), *make_params(name, [full], dtype), mask=mask)
    wide = (2, 200)
    mask = (uniform(*wide, seed=3) > 0.4).repeat(1, 2)[:, ::2]
    check(name, make_target(name, *wide, dtype=dtype), *make_params(name, [wide], dtype), mask=mask)


@every_likelihood
def test_everything_masked(backend: str, name: str) -> None:
    params = [leaf(p * math.nan) for p in make_params(name, [(3, 40)])]
    target, nothing = make_target(name, 3, 40) * math.nan, torch.zeros(3, 1, dtype=torch.bool)
    nll = function(name)(params[0], target, *params[1:], mask=nothing)
    assert torch.equal(nll, torch.zeros(3))
    for grad in torch.autograd.grad(nll.sum(), params):
        assert torch.equal(grad, torch.zeros(3, 40))


@every_likelihood
def test_weight(backend: str, name: str) -> None:
    """A factor for each sample, which may learn."""
    target, params = make_target(name, 5, 7), make_params(name, [(5, 7)])
    check(name, target, *params, weight=uniform(5), mask=uniform(5, 7) > 0.4)
    weight = leaf(uniform(5))
    nll = function(name)(params[0], target, *params[1:], weight=weight)
    plain = function(name)(params[0], target, *params[1:])
    assert torch.equal(torch.autograd.grad(nll.sum(), weight)[0], plain)
    double = function(name)(params[0], target, *params[1:], weight=weight.double())
    assert double.dtype == torch.float64


@every_likelihood
def test_bad_numbers_stay_in_their_sample(backend: str, name: str) -> None:
    params, target = make_params(name, [(4, 9)]), make_target(name, 4, 9)
    good = function(name)(params[0], target, *params[1:])
    for i in range(len(params)):
        bad = [p.clone() for p in params]
        bad[i][1, 3] = math.nan
        bad = leaf(bad[0]), *map(leaf, bad[1:])
        nll = function(name)(bad[0], target, *bad[1:])
        assert nll[1].isnan() and torch.equal(nll[[0, 2, 3]], good[[0, 2, 3]])
        grad = torch.autograd.grad(nll.sum(), bad)[i]
        assert grad.isnan().sum() <= 1
    target[2, 3] = math.nan
    nll = function(name)(params[0], target, *params[1:])
    assert nll[2].isnan() and torch.equal(nll[[0, 1, 3]], good[[0, 1, 3]])


@every_likelihood
def test_empty(backend: str, name: str) -> None:
    for shape in ((0,), (0, 4), (0, 3, 2), (3, 0), (2, 0, 5)):
        for others in (shape, shape[1:], ()):
            params = [leaf(p) for p in make_params(name, [shape, others])]
            nll = function(name)(params[0], torch.zeros(shape), *params[1:], mask=torch.ones(shape) > 0)
            assert torch.equal(nll, torch.zeros(shape[0]))
            for grad, p in zip(torch.autograd.grad(nll.sum(), params), params, strict=True):
                assert torch.equal(grad, torch.zeros_like(p))


@every_likelihood
def test_autograd_behaviour(backend: str, name: str) -> None:
    """retain_graph, gradients of stride 0, frozen parameters, no graph where none is needed."""
    params, target = [leaf(p) for p in make_params(name, [(4, 5), (5,)])], make_target(name, 4, 5)
    nll = function(name)(params[0], target, *params[1:])
    first = torch.autograd.grad(nll.sum(), params, retain_graph=True)
    again = torch.autograd.grad(nll, params, torch.ones(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for i, p in enumerate(params):
        only = [q if q is p else q.detach() for q in params]
        (grad,) = torch.autograd.grad(function(name)(only[0], target, *only[1:]).sum(), p)
        assert torch.equal(grad, first[i])
    with torch.no_grad():
        assert not function(name)(params[0], target, *params[1:]).requires_grad
    assert function(name)(params[0].detach(), target, *(p.detach() for p in params[1:])).grad_fn is None


def test_a_target_that_learns(backend: str) -> None:
    """Kernels take the target as data; a target that requires grad is served by the reference."""
    logits, target = leaf(make(4, 5)), leaf(uniform(4, 5))
    grads = torch.autograd.grad(vae_fast.bernoulli_nll(logits, target).sum(), (logits, target))
    torch.testing.assert_close(grads[0], torch.sigmoid(logits.detach()) - target.detach())
    torch.testing.assert_close(grads[1], -logits.detach())
    mean = leaf(make(4, 5))
    (grad,) = torch.autograd.grad(vae_fast.gaussian_nll(mean, target).sum(), target)
    torch.testing.assert_close(grad, target.detach() - mean.detach())
    for name in LIKELIHOODS:
        params = make_params(name, [(4, 5)])
        (grad,) = torch.autograd.grad(function(name)(params[0], target, *params[1:]).sum(), target)
        assert torch.isfinite(grad).all()


@every_likelihood
def test_double_backward_is_refused(kernels: str, name: str) -> None:
    params, target = [leaf(p) for p in make_params(name, [(4, 5)])], make_target(name, 4, 5)
    nll = function(name)(params[0], target, *params[1:])
    (grad, *_) = torch.autograd.grad(nll.square().sum(), params, create_graph=True)
    with pytest.raises(RuntimeError, match=r'second derivative.*backend\("reference"\)'):
        grad.sum().backward()


@every_likelihood
def test_gradcheck(name: str) -> None:
    """The reference in float64, which serves float64 on every backend; and twice."""
    params = [leaf(p) for p in make_params(name, [(3, 4), (4,), ()], torch.float64)]
    target, mask, call = make_target(name, 3, 4, dtype=torch.float64), uniform(3, 4) > 0.3, function(name)
    assert torch.autograd.gradcheck(lambda p, *q: call(p, target, *q), params, fast_mode=True)
    assert torch.autograd.gradcheck(lambda p, *q: call(p, target, *q, mask=mask), params, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda p, *q: call(p, target, *q), params, fast_mode=True)


@every_likelihood
@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 2), (2, 1), (), (3, 1, 1)], ids=str)
def test_gradcheck_of_the_library_op(name: str, shape) -> None:
    """float64 through the library op checks the closed forms that stand for a kernel."""
    target = make_target(name, 3, 2, 2, dtype=torch.float64)
    params = [leaf(p) for p in make_params(name, [(3, 2, 2), shape], torch.float64)]
    mask = uniform(3, 2, 2) > 0.3
    op = torch.ops.vae_fast.likelihood
    assert torch.autograd.gradcheck(lambda *p: op(name, target, None, None, False, p), params, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *p: op(name, target, mask, None, True, p), params, fast_mode=True)


@every_likelihood
def test_the_library_op_serves_what_eager_calls_do(kernels: str, name: str) -> None:
    target, params = make_target(name, 4, 6), [leaf(p) for p in make_params(name, [(4, 6), (6,)])]
    rng_state = state() if name == "bernoulli" else None
    mask = uniform(4, 6) > 0.3
    nll = torch.ops.vae_fast.likelihood(name, target, mask, rng_state, False, params)
    options = {"binarize": True, "rng_state": rng_state} if rng_state is not None else {}
    want = function(name)(params[0], target, *params[1:], mask=mask, **options)
    assert torch.equal(nll, want)
    grads = torch.autograd.grad(nll.square().sum(), params), torch.autograd.grad(want.square().sum(), params)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    shape = (2001, 77)
    mask = uniform(*shape) > 0.2
    cases = [
        (
            name,
            make_target(name, *shape, dtype=torch.uint8),
            [leaf(p) for p in make_params(name, list(shapes))],
        )
        for name in LIKELIHOODS
        for shapes in ((shape, (77,)), (shape, ()))
    ]
    grad_nll = uniform(shape[0])

    def compute() -> list[Tensor]:
        result = []
        for name, target, params in cases:
            nll = function(name)(params[0], target, *params[1:], mask=mask)
            result += [nll, *torch.autograd.grad(nll, params, grad_nll)]
        return result

    assert_same_bits_for_threads(compute)


@pytest.mark.parametrize("name", WITH_OTHERS)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 1), ()], ids=str)
def test_parameters_that_arrive_expanded(
    kernels: str, name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.broadcast_tensors leaves them: the kernel sums their gradient, and none of full size is written."""
    full = (5, 7)
    target, (first, *others) = make_target(name, *full), map(leaf, make_params(name, [full, shape, shape]))
    expected = torch.autograd.grad(function(name)(first, target, *others).sum(), (first, *others))
    sizes = []
    empty_gradient = _common.empty_gradient

    def seen(*args: Any) -> Any:
        grad = empty_gradient(*args)
        sizes.append(grad.numel())
        return grad

    monkeypatch.setattr(_common, "empty_gradient", seen)
    views = torch.broadcast_tensors(first, *others)[1:]
    got = torch.autograd.grad(function(name)(first, target, *views).sum(), (first, *others))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    summed = {(): 1, (5, 1): 35}.get(shape, 7)
    assert sizes == [35, *[summed] * len(others)]


def test_an_expanded_parameter_that_is_watched(kernels: str) -> None:
    """Who keeps the gradient of the view has it, and views of other kinds are left alone."""
    mean, target, theta = leaf(uniform(5, 7)), make_target("poisson", 5, 7), leaf(uniform(7))
    view = theta.expand(5, 7)
    view.retain_grad()
    vae_fast.negative_binomial_nll(mean, target, view).sum().backward()
    assert view.grad is not None and view.grad.shape == (5, 7)
    torch.testing.assert_close(view.grad.sum(0), theta.grad)
    wide = leaf(uniform(14))
    strided_view = wide[::2].expand(5, 7)
    (grad,) = torch.autograd.grad(vae_fast.negative_binomial_nll(mean, target, strided_view).sum(), wide)
    assert grad[::2].all() and not grad[1::2].any()
