"""The op `likelihood`: values and gradients of each member, in every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import DTYPES, assert_accurate, needs_native, truth_and_scale
from torch import Tensor

import vae_fast

TARGETS = (*DTYPES, torch.uint8, torch.bool)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_target(*shape: int, dtype: torch.dtype) -> Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(9))
    if dtype == torch.uint8:
        return (x * 256).to(torch.uint8)
    return x > 0.5 if dtype == torch.bool else x.to(dtype)


def number(target: Tensor, dtype: torch.dtype) -> Tensor:
    return target.to(dtype) / 255 if target.dtype == torch.uint8 else target.to(dtype)


def bernoulli_textbook(logits: Tensor, target: Tensor) -> Tensor:
    nll = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return nll.flatten(1).sum(1) if nll.ndim > 1 else nll


def gaussian_textbook(mean: Tensor, target: Tensor, logvar: Tensor) -> Tensor:
    nll = 0.5 * (math.log(2 * math.pi) + logvar + (target - mean) ** 2 / logvar.exp())
    return nll.flatten(1).sum(1) if nll.ndim > 1 else nll


def check(function, textbook, target: Tensor, *params: Tensor) -> None:
    """Value and gradients against float64, next to the textbook lines in the dtype of the first parameter."""
    params = tuple(map(leaf, params))
    first, *others = params
    nll = function(first, target, *others)
    double = any(t.dtype == torch.float64 for t in (target, *params))
    assert nll.dtype == (torch.float64 if double else torch.float32) and nll.shape == target.shape[:1]
    grad_nll = make(*nll.shape, dtype=nll.dtype, seed=5)
    got = (nll, *torch.autograd.grad(nll, params, grad_nll))

    def plain(first, *others):
        return (textbook(first, number(target, first.dtype), *others),)

    truths, scales = truth_and_scale(plain, params, (grad_nll,), target.shape)
    args = [leaf(p.to(first.dtype)) for p in params]
    own = plain(*args)
    own = (*own, *torch.autograd.grad(own, args, grad_nll.to(first.dtype)))
    for i, row in enumerate(zip(got, truths, own, scales, strict=True)):
        assert_accurate("nll" if i == 0 else f"gradient {i}", *row)
    for g, p in zip(got[1:], params, strict=True):
        assert g.dtype == p.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(6,), (5, 7), (16, 784), (2, 3, 4, 5)], ids=str)
def test_bernoulli(backend: str, shape, dtype: torch.dtype, target: torch.dtype) -> None:
    check(
        vae_fast.bernoulli_nll,
        bernoulli_textbook,
        make_target(*shape, dtype=target),
        3 * make(*shape, dtype=dtype),
    )


LOGVARS = [(9, 3, 4), (3, 4), (1, 3, 4), (), (1,), (1, 1, 1), (4,), (3, 1), (9, 1, 1), (9, 1, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LOGVARS, ids=str)
def test_gaussian(backend: str, shape, dtype: torch.dtype) -> None:
    """Learned log-variance: per element, per feature, one for all, and the broadcasts between."""
    target = make_target(9, 3, 4, dtype=dtype)
    check(
        vae_fast.gaussian_nll,
        gaussian_textbook,
        target,
        make(9, 3, 4, dtype=dtype),
        make(*shape, dtype=dtype, seed=1),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_gaussian_targets(backend: str, target: torch.dtype) -> None:
    check(
        vae_fast.gaussian_nll,
        gaussian_textbook,
        make_target(4, 33, dtype=target),
        make(4, 33),
        make(33, seed=1),
    )


@pytest.mark.parametrize("logvar", [None, 0, -1.5, 2], ids=str)
def test_gaussian_of_known_variance(backend: str, logvar: float | None) -> None:
    def textbook(mean, target):
        return gaussian_textbook(mean, target, torch.tensor(float(logvar or 0), dtype=mean.dtype))

    check(
        lambda m, x: vae_fast.gaussian_nll(m, x, logvar),
        textbook,
        make_target(4, 33, dtype=torch.float32),
        make(4, 33),
    )


def test_odd_sizes(backend: str) -> None:
    for n in range(1, 38):
        target = make_target(3, n, dtype=torch.float32)
        check(vae_fast.bernoulli_nll, bernoulli_textbook, target, make(3, n))
        check(vae_fast.gaussian_nll, gaussian_textbook, target, make(3, n), make(n, seed=1))


@needs_native
def test_one_long_sample() -> None:
    n = 1_000_003
    with vae_fast.backend("cpu"):
        target = make_target(1, n, dtype=torch.uint8)
        check(vae_fast.bernoulli_nll, bernoulli_textbook, target, make(1, n))
        check(vae_fast.gaussian_nll, gaussian_textbook, target, make(1, n), make(1, n, seed=1))


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
    x = strided(of_target, make_target(3, 4, 5, 6, dtype=target))
    mean, logvar = (strided(of_params, make(3, 4, 5, 6, seed=s)) for s in (0, 1))
    check(vae_fast.bernoulli_nll, bernoulli_textbook, x, mean)
    check(vae_fast.gaussian_nll, gaussian_textbook, x, mean, logvar)
    check(vae_fast.gaussian_nll, gaussian_textbook, x, mean, logvar[0])


def test_extreme_logits(backend: str) -> None:
    """The stable form: no overflow, and no cancellation far from zero; the slope at zero is 1/2 - x."""
    logits = leaf(torch.tensor([[-300.0, -30.0, -1e-4, 0.0, 1e-4, 30.0, 300.0]]).T)
    for x in (0.0, 0.25, 1.0):
        target = torch.full_like(logits, x)
        nll = vae_fast.bernoulli_nll(logits, target)
        double = logits.detach().double()
        truth = torch.logaddexp(torch.zeros(()).double(), double) - x * double
        torch.testing.assert_close(nll.double(), truth.sum(1), rtol=1e-6, atol=1e-12 if x else 1e-37)
        (grad,) = torch.autograd.grad(nll.sum(), logits)
        torch.testing.assert_close(grad.double(), torch.sigmoid(double) - x, rtol=1e-6, atol=6e-8)


def test_bad_numbers_stay_in_their_sample(backend: str) -> None:
    logits, target = make(4, 9), make_target(4, 9, dtype=torch.float32)
    good = vae_fast.bernoulli_nll(logits, target)
    logits[1, 3] = math.nan
    logits[2, 3] = -math.inf
    target[2, 3] = 1.0
    bad = vae_fast.bernoulli_nll(logits, target)
    assert bad[1].isnan() and bad[2] == math.inf and torch.equal(bad[[0, 3]], good[[0, 3]])
    mean, logvar = make(4, 9), make(9, seed=1)
    good = vae_fast.gaussian_nll(mean, target, logvar)
    mean[1, 3] = math.nan
    bad = vae_fast.gaussian_nll(mean, target, logvar)
    assert bad[1].isnan() and torch.equal(bad[[0, 2, 3]], good[[0, 2, 3]])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 3, 2), (3, 0), (2, 0, 5)], ids=str)
def test_empty(backend: str, shape) -> None:
    first, target = leaf(make(*shape)), torch.zeros(shape)
    scalar, feature = leaf(make()), leaf(make(*shape[1:]))
    for nll, params in (
        (vae_fast.bernoulli_nll(first, target), (first,)),
        (vae_fast.gaussian_nll(first, target), (first,)),
        (vae_fast.gaussian_nll(first, target, scalar), (first, scalar)),
        (vae_fast.gaussian_nll(first, target, feature), (first, feature)),
    ):
        assert torch.equal(nll, torch.zeros(shape[0]))
        for grad, p in zip(torch.autograd.grad(nll.sum(), params), params, strict=True):
            assert torch.equal(grad, torch.zeros_like(p))


def test_autograd_behaviour(backend: str) -> None:
    """retain_graph, gradients of stride 0, frozen parameters, no graph where none is needed."""
    mean, logvar, target = leaf(make(4, 5)), leaf(make(5, seed=1)), make(4, 5, seed=2)
    nll = vae_fast.gaussian_nll(mean, target, logvar)
    first = torch.autograd.grad(nll.sum(), (mean, logvar), retain_graph=True)
    again = torch.autograd.grad(nll, (mean, logvar), torch.ones(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    only_mean = torch.autograd.grad(vae_fast.gaussian_nll(mean, target, logvar.detach()).sum(), mean)[0]
    only_logvar = torch.autograd.grad(vae_fast.gaussian_nll(mean.detach(), target, logvar).sum(), logvar)[0]
    assert torch.equal(only_mean, first[0]) and torch.equal(only_logvar, first[1])
    with torch.no_grad():
        assert not vae_fast.gaussian_nll(mean, target, logvar).requires_grad
    assert vae_fast.gaussian_nll(mean.detach(), target).grad_fn is None


def test_a_target_that_learns(backend: str) -> None:
    """Kernels take the target as data; a target that requires grad is served by the reference."""
    logits, target = leaf(make(4, 5)), leaf(make_target(4, 5, dtype=torch.float32))
    grads = torch.autograd.grad(vae_fast.bernoulli_nll(logits, target).sum(), (logits, target))
    torch.testing.assert_close(grads[0], torch.sigmoid(logits.detach()) - target.detach())
    torch.testing.assert_close(grads[1], -logits.detach())
    mean = leaf(make(4, 5))
    (grad,) = torch.autograd.grad(vae_fast.gaussian_nll(mean, target).sum(), target)
    torch.testing.assert_close(grad, target.detach() - mean.detach())


def test_double_backward_is_refused(kernels: str) -> None:
    logits, target = leaf(make(4, 5)), make_target(4, 5, dtype=torch.float32)
    nll = vae_fast.bernoulli_nll(logits, target)
    (grad,) = torch.autograd.grad(nll.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r'second derivative.*backend\("reference"\)'):
        grad.sum().backward()


def test_gradcheck(backend: str) -> None:
    mean, logvar = leaf(make(3, 4, dtype=torch.float64)), leaf(make(4, dtype=torch.float64, seed=1))
    target = make_target(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: vae_fast.bernoulli_nll(p, target), mean)
    assert torch.autograd.gradgradcheck(lambda p: vae_fast.bernoulli_nll(p, target), mean)
    assert torch.autograd.gradcheck(lambda m, v: vae_fast.gaussian_nll(m, target, v), (mean, logvar))


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 2), (2, 1), (), (3, 1, 1)], ids=str)
def test_gradcheck_of_the_library_op(shape) -> None:
    """float64 through the library op checks the closed forms that stand for a kernel."""
    mean, logvar = leaf(make(3, 2, 2, dtype=torch.float64)), leaf(make(*shape, dtype=torch.float64, seed=1))
    target = make_target(3, 2, 2, dtype=torch.float64)
    op = torch.ops.vae_fast.likelihood
    assert torch.autograd.gradcheck(lambda p: op("bernoulli", target, [p], None, None), mean)
    assert torch.autograd.gradcheck(lambda m, v: op("gaussian", target, [m, v], None, None), (mean, logvar))


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    threads = torch.get_num_threads()
    mean, target = leaf(make(2001, 77)), make_target(2001, 77, dtype=torch.uint8)
    per_feature, scalar = leaf(make(77, seed=1)), leaf(make(seed=2))
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            with vae_fast.backend("cpu"):
                losses = [
                    vae_fast.bernoulli_nll(mean, target),
                    vae_fast.gaussian_nll(mean, target, per_feature),
                    vae_fast.gaussian_nll(mean, target, scalar),
                ]
                grads = torch.autograd.grad(
                    sum(x.square().sum() for x in losses), (mean, per_feature, scalar)
                )
                results.append((*losses, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
