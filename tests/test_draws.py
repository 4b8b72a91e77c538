"""Draws: parameters (k, batch, ...) meet a target (batch, ...). Each draw is what it is alone, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import linear_heads
import vae_fast
from conftest import BACKENDS, DTYPES, assert_same_bits_for_threads, needs_native, state
from likelihoods import LIKELIHOODS, WITH_OTHERS, function, leaf, make, make_params, make_target, uniform
from vae_fast import backends
from vae_fast.ops import _common, chunks

every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)
FULL = (5, 2, 3)
Call = Callable[..., Tensor]


@pytest.fixture(params=BACKENDS[2:])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Those whose bits are promised."""
    with vae_fast.backend(request.param):
        yield request.param


def assert_same(got: Tensor, alone: Tensor) -> None:
    """Bit for bit, but for torch's own sums and functions, whose bits depend on where an element lies."""
    assert got.dtype == alone.dtype
    if got.dtype == torch.float64 or backends._forced in ("reference", "twin"):
        torch.testing.assert_close(got, alone, rtol=8 * torch.finfo(got.dtype).eps, atol=1e-6)
    else:
        assert torch.equal(got, alone), (got - alone).abs().max()


def nll_of(name: str, target: Tensor) -> Call:
    """The likelihood's function of its parameters alone."""

    def call(first: Tensor, *others: Tensor, **options: Any) -> Tensor:
        return function(name)(first, target, *others, **options)

    return call


def check(
    call: Call, params: list[Tensor], draws: list[bool], shape: tuple[int, ...], **options: Any
) -> None:
    """call(*params), those with `draws` of which are (k, ...), against a call for each draw. `shape`: of its result.

    A gradient that is summed over the draws agrees to rounding.
    """
    inputs = [leaf(p) for p in params]
    nll = call(*inputs, **options)
    k = nll.shape[0]
    assert nll.shape == (k, *shape)
    grad = make(*nll.shape, dtype=nll.dtype, seed=5)
    got = torch.autograd.grad(nll, inputs, grad)
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in params]
    sizes = [s.clone() for s in sums]
    for d in range(k):
        alone = [leaf(p[d] if drawn else p) for p, drawn in zip(params, draws, strict=True)]
        weight = options.get("weight")
        own = options | {"weight": weight[d]} if weight is not None and weight.ndim > 1 else options
        one = call(*alone, **own)
        assert_same(nll[d], one)
        for i, by in enumerate(torch.autograd.grad(one, alone, grad[d])):
            if draws[i]:
                assert_same(got[i][d], by)
            else:
                sums[i] += by
                sizes[i] += by.abs()
    for g, p, total, size, drawn in zip(got, params, sums, sizes, draws, strict=True):
        assert g.shape == p.shape and g.dtype == p.dtype
        if not drawn and p.numel():
            assert ((g - total).abs() <= 4 * torch.finfo(p.dtype).eps * size.max()).all()


def check_all(name: str, target: Tensor, shapes: list[tuple[int, ...]], k: int, **options: Any) -> None:
    """Parameters with draws, of these shapes after them."""
    dtype = options.pop("dtype", torch.float32)
    params = make_params(name, [(k, *s) for s in shapes], dtype)
    shape = target.shape if options.get("reduction") == "none" else target.shape[:1]
    check(nll_of(name, target), params, [True] * len(params), shape, **options)


@every_likelihood
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_dtypes(engine: str, name: str, dtype: torch.dtype) -> None:
    target = make_target(name, *FULL, dtype=dtype)
    for draws in (1, 3):
        check_all(name, target, [FULL], draws, dtype=dtype)
        check_all(name, make_target(name, *FULL, dtype=torch.uint8), [FULL], draws, dtype=dtype)


@every_likelihood
def test_values(backend: str, name: str) -> None:
    """In float64, by the textbook."""
    target, params = make_target(name, *FULL), [leaf(p) for p in make_params(name, [(3, *FULL)])]
    wide = [leaf(p.detach().double()) for p in params]
    terms = LIKELIHOODS[name].textbook(wide[0], target.double().expand(3, *FULL), *wide[1:])
    grad = make(3, 5, seed=5)
    got, truth = nll_of(name, target)(*params), terms.flatten(2).sum(2)
    torch.testing.assert_close(got.double(), truth, rtol=1e-6, atol=1e-6)
    slopes = torch.autograd.grad(got, params, grad), torch.autograd.grad(truth, wide, grad.double())
    for g, t in zip(*slopes, strict=True):
        torch.testing.assert_close(g.double(), t, rtol=1e-5, atol=1e-5)
    mask, weight = uniform(*FULL, seed=3) > 0.4, uniform(3, 5)
    for reduction in ("sample", "none"):
        check_all(name, target, [FULL], 2, mask=mask, weight=weight[1], reduction=reduction)
        check_all(name, target, [FULL], 3, mask=mask[:1], weight=weight, reduction=reduction)


@every_likelihood
@pytest.mark.parametrize("shape", [(6,), (1, 1), (4, 33), (300, 3), (2, 784)], ids=str)
def test_sizes(engine: str, name: str, shape: tuple[int, ...]) -> None:
    check_all(name, make_target(name, *shape), [shape], 3)


@needs_native
def test_long_samples() -> None:
    """Cut into segments, with sums of their own for each draw."""
    with vae_fast.backend("cpu"):
        for name in ("bernoulli", "negative_binomial"):
            check_all(name, make_target(name, 2, 40_003), [(2, 40_003)], 3)


def laid(kind: str, x: Tensor) -> Tensor:
    """(k, batch, ...) in another layout."""
    if kind == "batch first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "draws last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if kind == "packed":
        return torch.cat((x, x), -1)[..., x.shape[-1] :]
    if kind == "channels-last":
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    return x


LAYOUTS = ["dense", "batch first", "draws last", "packed", "channels-last"]


@pytest.mark.parametrize("of_target", ["dense", "permuted", "expanded"])
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "zero_inflated_negative_binomial"])
def test_layouts(engine: str, name: str, kind: str, of_target: str) -> None:
    full = (3, 4, 2, 8)
    target = make_target(name, *full)
    if of_target == "permuted":
        target = target.mT.contiguous().mT
    if of_target == "expanded":
        target = target[:1, :, :, :1].expand(full)
    params = [laid(kind, p) for p in make_params(name, [(3, *full)])]
    drawn = [True] * len(params)
    check(nll_of(name, target), params, drawn, full[:1])
    check(nll_of(name, target), params, drawn, full, reduction="none")


@every_likelihood
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_masks_and_weights(engine: str, name: str, reduction: str) -> None:
    target = make_target(name, *FULL)
    for mask in (
        None,
        uniform(*FULL, seed=3) > 0.4,
        uniform(5, 1, 1, seed=3) > 0.4,
        uniform(3, seed=3) > 0.4,
    ):
        for weight in (uniform(5), uniform(3, 5)):
            check_all(name, target, [FULL], 3, mask=mask, weight=weight, reduction=reduction)


def test_what_the_mask_leaves_out(backend: str) -> None:
    mask = uniform(*FULL, seed=3) > 0.4
    target = make_target("gaussian", *FULL).where(mask, math.nan)
    params = [leaf(p.where(mask, math.nan)) for p in make_params("gaussian", [(3, *FULL)])]
    nll = vae_fast.gaussian_nll(params[0], target, params[1], mask=mask)
    assert nll.isfinite().all()
    for g in torch.autograd.grad(nll.sum(), params):
        assert g.isfinite().all() and not g.masked_select(~mask).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WITH_OTHERS)
@pytest.mark.parametrize("shape", [(2, 3), (), (1,), (5, 2, 3), (5, 1, 1), (1, 2, 3), (2, 1)], ids=str)
def test_shared_parameters(engine: str, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of one value for all draws: the gradient is a sum over them."""
    full = (3, *FULL)
    params = make_params(name, [full, shape], dtype)
    target = make_target(name, *FULL)
    check(nll_of(name, target), params, [True] + [False] * (len(params) - 1), (5,))
    params = make_params(name, [FULL, full], dtype)
    check(nll_of(name, target), params, [False] + [True] * (len(params) - 1), (5,))
    if len(params) > 2:
        params = make_params(name, [full, shape, full], dtype)
        check(nll_of(name, target), params, [True, False] + [True] * (len(params) - 2), (5,))


@pytest.mark.parametrize("shape", [(2, 3), (), (5, 2, 3), (5, 1, 1), (1, 2, 3)], ids=str)
def test_shared_parameters_of_every_backend(backend: str, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        params = make_params("gaussian", [(3, *FULL), shape], dtype)
        check(nll_of("gaussian", make_target("gaussian", *FULL)), params, [True, False], (5,))


@pytest.mark.parametrize("shape", [(3, 1, 2, 3), (3, 1, 1, 1), (3, 5, 2, 1)], ids=str)
def test_parameters_of_a_draw(backend: str, shape: tuple[int, ...]) -> None:
    """One value for several elements of each draw."""
    target = make_target("gaussian", *FULL)
    for shapes in ([(3, *FULL), shape], [shape, (3, *FULL)], [shape, shape]):
        params = [leaf(p) for p in make_params("gaussian", shapes)]
        grad = make(3, 5, seed=5)
        wide = [leaf(p.detach().expand(3, *FULL).clone()) for p in params]
        nll, full = (vae_fast.gaussian_nll(p[0], target, p[1]) for p in (params, wide))
        assert torch.equal(nll, full)
        got, slopes = torch.autograd.grad(nll, params, grad), torch.autograd.grad(full, wide, grad)
        for g, w, p in zip(got, slopes, params, strict=True):
            torch.testing.assert_close(g, w.sum_to_size(p.shape), rtol=1e-5, atol=1e-5)


def test_one_draw_beside_several(backend: str) -> None:
    """A parameter (1, batch, ...) serves all draws, as one without them does."""
    target, (mean, theta) = make_target("poisson", *FULL), make_params("negative_binomial", [(3, *FULL)])
    shared = [leaf(theta[0]), leaf(theta[:1])]
    nlls = [vae_fast.negative_binomial_nll(mean, target, t) for t in shared]
    assert nlls[0].shape == (3, 5) and torch.equal(*nlls)
    grads = [torch.autograd.grad(n.sum(), t)[0] for n, t in zip(nlls, shared, strict=True)]
    assert torch.equal(grads[0][None], grads[1])


@pytest.mark.parametrize("shape", [(2,), (4, 2)], ids=str)
def test_binarized_once(backend: str, shape: tuple[int, ...]) -> None:
    """One set of bits for all draws of a sample."""
    x, logits = uniform(4, 7), leaf(make(3, 4, 7))
    rng_state = state() if len(shape) == 1 else torch.arange(8).view(4, 2)
    bits = vae_fast.binarize(x, rng_state=rng_state)
    nll = vae_fast.bernoulli_nll(logits, x, binarize=True, rng_state=rng_state)
    expected = vae_fast.bernoulli_nll(logits, bits)
    assert torch.equal(nll, expected)
    grad = make(3, 4, seed=5)
    assert torch.equal(*(torch.autograd.grad(n, logits, grad)[0] for n in (nll, expected)))


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "negative_binomial"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 4), (0,)], ids=str)
@pytest.mark.parametrize("draws", [0, 3])
def test_empty(backend: str, name: str, draws: int, shape: tuple[int, ...]) -> None:
    for full in (shape, (3, 5)) if draws == 0 else (shape,):
        for others in ((draws, *full), full, full[1:], ()):
            params = [leaf(p) for p in make_params(name, [(draws, *full), others])]
            for reduction, size in (("sample", full[:1]), ("none", full)):
                nll = function(name)(params[0], torch.zeros(full), *params[1:], reduction=reduction)
                assert nll.shape == (draws, *size) and not nll.any()
                for g, p in zip(torch.autograd.grad(nll.sum(), params), params, strict=True):
                    assert torch.equal(g, torch.zeros_like(p))


def test_parameters_that_arrive_expanded(kernels: str) -> None:
    """As torch.broadcast_tensors leaves them: the kernel sums their gradient over the draws."""
    target = make_target("poisson", *FULL)
    for shape in ((2, 3), (), (5, 2, 3)):
        mean, theta = map(leaf, make_params("negative_binomial", [(3, *FULL), shape]))
        grads = []
        for params in ((mean, theta), torch.broadcast_tensors(mean, theta)):
            nll = vae_fast.negative_binomial_nll(params[0], target, params[1])
            grads.append(torch.autograd.grad(nll.sum(), (mean, theta)))
        assert all(map(torch.equal, *grads))
    logits = leaf(make(*FULL))
    nll = vae_fast.bernoulli_nll(logits.expand(3, *FULL), uniform(*FULL))
    one = vae_fast.bernoulli_nll(logits, uniform(*FULL))
    assert nll.shape == (3, 5) and torch.equal(nll, one.expand(3, 5).contiguous())
    grad, alone = (torch.autograd.grad(n.sum(), logits)[0] for n in (nll, one))
    torch.testing.assert_close(grad, 3 * alone)


@needs_native
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_the_target_is_never_repeated(reduction: str) -> None:
    """Nothing as large as the target times the draws is allocated but what is returned, by its layout or dtype."""
    k, batch, n = 8, 32, 100
    whole = k * batch * n * 4
    assert whole < _common.LARGE  # beyond, outputs have memory that the profiler does not see
    uint8 = make_target("bernoulli", batch, n, dtype=torch.uint8)
    counts = make_target("poisson", n, batch).t()
    mask = uniform(batch, n) > 0.2

    def sizes(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, list[int]]:
        with torch.profiler.profile(profile_memory=True) as profile:
            result = call(*args, **kwargs)
        return result, [size for e in profile.events() if (size := e.self_cpu_memory_usage) >= whole]

    theta_shapes = (k, batch, n), (batch, n), (n,), ()
    cases = [("bernoulli", uint8, (), (k, batch, n))]
    cases += [("zero_inflated_negative_binomial", counts, (s,), (k, batch, n)) for s in theta_shapes]
    with vae_fast.backend("cpu"):
        for name, target, others, full in cases:
            params = [
                leaf(laid("batch first", p) if p.shape == full else p)
                for p in make_params(name, [full, *others])
            ]
            of_draws = sum(p.shape == full for p in params)
            options = {"mask": mask, "reduction": reduction}
            nll, large = sizes(function(name), params[0], target, *params[1:], **options)
            assert large == ([whole] if reduction == "none" else [])
            grad = torch.ones(k, batch) if reduction == "sample" else torch.ones(full)
            _, large = sizes(torch.autograd.grad, nll, params, grad)
            assert large == [whole] * of_draws


@needs_native
@pytest.mark.parametrize(("draws", "batch"), [(3, 300), (40, 2), (70, 1)])
def test_threads_do_not_change_the_bits(draws: int, batch: int) -> None:
    shape, names = (batch, 277), ("bernoulli", "gaussian", "zero_inflated_negative_binomial")
    shapes = [(draws, *shape), shape[1:], (), shape]
    cases = [(n, make_target(n, *shape), [leaf(p) for p in make_params(n, shapes)]) for n in names]
    cases += [("laplace", uniform(*shape), [leaf(p) for p in make_params("laplace", [shapes[0], shape])])]
    grad = uniform(draws, batch)

    def compute() -> list[Tensor]:
        result = []
        for name, target, params in cases:
            nll = function(name)(params[0], target, *params[1:])
            result += [nll.detach(), *torch.autograd.grad(nll, params, grad)]
        return result

    assert_same_bits_for_threads(compute)


def test_few_samples_of_many_draws(kernels: str) -> None:
    """Which the CPU shares out by draws, with sums of their own for each part."""
    for batch in (1, 2):
        shape = (batch, 33)
        target = make_target("gaussian", *shape)
        for other in ((33,), (), shape, (50, *shape)):
            params = make_params("gaussian", [(50, *shape), other])
            check(nll_of("gaussian", target), params, [True, len(other) == 3], (batch,))


def test_the_layout_is_the_target_s(kernels: str) -> None:
    x = uniform(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    nll = vae_fast.gaussian_nll(make(2, 3, 4, 5, 6), x, reduction="none")
    assert nll.stride() == (360, *x.stride())


X = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: vae_fast.gaussian_nll(make(3, 4, 5), make(5, 4)),
            r"expected target to have shape \(3, 4, 5\) like mean, but got \(5, 4\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(make(2, 3, 4, 5), X),
            r"expected target to have shape \(2, 3, 4, 5\) like mean, but got \(4, 5\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(X, make(3, 4, 5)),
            r"expected target to have shape \(4, 5\) like mean, but got \(3, 4, 5\)",
        ),
        (
            lambda: vae_fast.bernoulli_nll(make(3, 4, 2), X),
            r"expected target to have shape \(3, 4, 2\) like logits, but got \(4, 5\)",
        ),
        (
            lambda: vae_fast.bernoulli_nll(make(3), torch.tensor(1.0)),
            r"expected target to have shape \(3,\) like logits, but got \(\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(make(3, 4, 5), X, make(2, 4, 5)),
            r"expected logvar to broadcast to the shape \(3, 4, 5\) of mean, but got \(2, 4, 5\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(make(3, 1, 5), X, make(3, 4, 4)),
            r"expected logvar to broadcast to the shape \(3, 4, 5\) of mean, but got \(3, 4, 4\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(X, X, make(3, 5, 4)),
            r"expected logvar to broadcast to the shape \(4, 5\) of mean, but got \(3, 5, 4\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(X, X, make(2, 3, 4, 5)),
            r"expected logvar to broadcast to the shape \(4, 5\) of mean, but got \(2, 3, 4, 5\)",
        ),
        (
            lambda: vae_fast.zero_inflated_negative_binomial_nll(X, X, make(3, 4, 5), make(2, 4, 5)),
            r"expected dropout_logits to broadcast to the shape \(3, 4, 5\) of mean, but got \(2, 4, "
            r"5\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(make(3, 4, 5), X, mask=make(3, 4, 5) > 0),
            r"expected mask to broadcast to the shape \(4, 5\) of target, but got \(3, 4, 5\)",
        ),
        (
            lambda: vae_fast.gaussian_nll(make(3, 4, 5), X, weight=make(3)),
            r"expected weight to have shape \(batch,\) = \(4,\), but got \(3,\)",
        ),
        (
            lambda: vae_fast.bernoulli_nll(make(3, 4, 5), X, weight=make(4, 3)),
            r"expected weight to have shape \(batch,\) = \(4,\), but got \(4, 3\)",
        ),
        (
            lambda: vae_fast.bernoulli_nll(
                make(3, 4, 5), X, binarize=True, rng_state=torch.zeros(12, 2, dtype=torch.int64)
            ),
            r"expected rng_state to have shape \(2,\), \(4,\) or \(batch, 2\) = \(4, 2\), but got \(12, 2\)",
        ),
    ],
)
def test_other_shapes_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def calls(mean: Tensor, theta: Tensor, x: Tensor, mask: Tensor, weight: Tensor, rng_state: Tensor) -> Tensor:
    grey = x / 100
    each = vae_fast.gaussian_nll(mean, grey, theta, mask=mask, weight=weight, reduction="none")
    return (
        vae_fast.zero_inflated_negative_binomial_nll(mean.exp(), x, theta.exp(), mean)
        + vae_fast.negative_binomial_nll(mean[:, :, :1].exp(), x, theta.exp().expand_as(x), weight=weight)
        + vae_fast.bernoulli_nll(mean, grey, binarize=True, rng_state=rng_state, mask=mask)
        + each.sum(-1)
    )


def arguments(k: int, batch: int, n: int) -> tuple[Tensor, ...]:
    x, mask = make_target("poisson", batch, n), uniform(batch, n) > 0.3
    return leaf(make(k, batch, n)), leaf(make(n, seed=1)), x, mask, uniform(batch), state()


@pytest.mark.no_poison
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(kernels: str, dynamic: bool) -> None:
    compiled = torch.compile(calls, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for sizes in ((3, 8, 6), (2, 5, 7)):
        given = arguments(*sizes)
        results = []
        for f in (compiled, calls):
            nll = f(*given)
            results.append([nll.detach(), *torch.autograd.grad(nll, given[:2], make(*nll.shape))])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.no_poison
def test_opcheck(kernels: str) -> None:
    target, checks = uniform(4, 5), ("test_schema", "test_faketensor", "test_autograd_registration")
    for each in (False, True):
        for other in ((3, 4, 5), (4, 5), (5,), ()):
            params = [leaf(p) for p in make_params("gaussian", [(3, 4, 5), other])]
            args = ("gaussian", target, None, None, each, params)
            torch.library.opcheck(torch.ops.vae_fast.likelihood, args, test_utils=checks)
            grad = make(*((3, 4, 5) if each else (3, 4)))
            back = (
                [True, True],
                grad,
                "gaussian",
                target,
                None,
                None,
                each,
                [p.detach() for p in params],
                [],
            )
            torch.library.opcheck(torch.ops.vae_fast.likelihood_backward, back, test_utils=checks)


def class_call(name: str, image: tuple[int, ...] = ()) -> tuple[Call, Tensor, Tensor]:
    """The function, params (3, 4, ...) and a target of 4 samples."""
    if name == "mixture":
        x = (256 * uniform(4, 3, *image)).to(torch.uint8)
        return vae_fast.discretized_logistic_mixture_nll, make(3, 4, 20, *image), x
    counts = (9 * uniform(4, *image, 8)).floor()
    if name == "multinomial":
        return vae_fast.multinomial_nll, make(3, 4, *image, 8), counts
    return vae_fast.categorical_nll, make(3, 4, *image, 8), counts[..., 0].long() % 8


@pytest.mark.parametrize("name", ["categorical", "multinomial", "mixture"])
@pytest.mark.parametrize("image", [(), (2, 3)], ids=str)
def test_classes_and_mixtures(backend: str, name: str, image: tuple[int, ...]) -> None:
    call, params, x = class_call(name, image)
    shape = (4, 1, *image) if name == "mixture" else (4, *image)
    keep = uniform(*shape, seed=3) > 0.3
    if name == "categorical":
        x[0] = -100
    is_slow = backend in ("reference", "twin")
    for dtype in (torch.float32, torch.bfloat16)[: 1 if is_slow else 2]:
        for kind in ("dense", "batch first")[is_slow:]:
            for mask, weight in ((keep[:1], uniform(3, 4)), (keep, uniform(4)), (None, None))[
                : 1 if is_slow else 3
            ]:
                options = {"mask": mask, "weight": weight}
                given = [laid(kind, params.to(dtype))]
                check(lambda p, **o: call(p, x, **o), given, [True], (4,), **options)
                check(lambda p, **o: call(p, x, **o), given, [True], (4, *image), reduction="none", **options)
    nll = call(leaf(params[:0]), x)
    assert nll.shape == (0, 4) and not torch.isnan(nll).any()
    wide, reference = call(params.double(), x), getattr(vae_fast.reference, call.__name__)
    torch.testing.assert_close(reference(params.double(), x), wide)
    torch.testing.assert_close(wide[1], call(params[1].double(), x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: vae_fast.categorical_nll(make(3, 4, 5), torch.zeros(5).long()),
            r"expected target to have shape \(3, 4\) for logits of shape \(3, 4, 5\)",
        ),
        (
            lambda: vae_fast.multinomial_nll(make(3, 1, 5), X),
            r"expected target to have shape \(3, 1, 5\) like logits, but got \(4, 5\)",
        ),
        (
            lambda: vae_fast.discretized_logistic_mixture_nll(make(2, 4, 6, 5), make(4, 1, 4)),
            r"expected target to have shape \(2, 1 or 3, 6, 5\) for params",
        ),
        (
            lambda: vae_fast.linear_bernoulli_nll(make(2, 3, 4, 5), make(6, 5), None, make(4, 6)),
            r"expected hidden to have shape \(batch, H\), but got \(2, 3, 4, 5\)",
        ),
        (
            lambda: vae_fast.linear_bernoulli_nll(make(3, 4, 5), make(6, 5), None, make(3, 6)),
            r"expected target to have shape \(4, features, ...\) for hidden of shape \(3, 4, 5\)",
        ),
        (
            lambda: vae_fast.linear_multinomial_nll(make(3, 4, 5), make(6, 5), None, make(3, 6)),
            r"expected target to have shape \(3, 4, 6\) for hidden",
        ),
    ],
)
def test_other_shapes_of_classes_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("most", [10**9, 22, 4], ids=["one chunk", "two draws a chunk", "parts of a draw"])
@pytest.mark.parametrize("case", linear_heads.CASES)
def test_linear_heads(engine: str, case: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a call for each draw has it; the products are BLAS's, whose bits depend on the number of rows."""
    monkeypatch.setattr(chunks, "_most_rows", lambda *_: most)
    name, heads, target, given, _ = linear_heads.CASES[case]
    inputs, outputs = linear_heads.HIDDEN, heads * linear_heads.FEATURES
    tensors = (
        make(3, linear_heads.BATCH, *target.shape[1:-1], inputs),
        make(outputs, inputs, seed=1),
        make(outputs, seed=2),
    )
    if name == "categorical":
        tensors = make(3, *target.shape, inputs), *tensors[1:]
    call, mask = getattr(vae_fast, f"linear_{name}_nll"), uniform(*target.shape, seed=3) > 0.2
    if name == "multinomial":
        mask = mask[..., 0]
    for options in ({}, {"sample_weight": uniform(linear_heads.BATCH), "mask": mask}):
        results = []
        for whole in (True, False):
            hidden, *rest = learning = [leaf(t.clone()) for t in (*tensors, *given.values())]
            others = dict(zip(given, rest[2:], strict=True)) | options
            nlls = [call(h, *rest[:2], target, **others) for h in ([hidden] if whole else hidden.unbind(0))]
            nll = nlls[0] if whole else torch.stack(nlls)
            apart = torch.autograd.grad(nll, learning, make(*nll.shape, seed=5), retain_graph=True)
            results.append([nll.detach(), *apart, *torch.autograd.grad(nll.mean(), learning)])
        for got, want in zip(*results, strict=True):
            scale = want.abs().max().item()
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * scale)


def test_linear_heads_of_the_reference() -> None:
    with vae_fast.backend("reference"):
        for name, heads, target, given, _ in linear_heads.CASES.values():
            shape = target.shape if name == "categorical" else (*target.shape[:1], *target.shape[1:-1])
            hidden, weight = make(3, *shape, 3), make(heads * linear_heads.FEATURES, 3, seed=1)
            call = getattr(vae_fast, f"linear_{name}_nll")
            nll = call(hidden, weight, None, target, **given)
            torch.testing.assert_close(
                nll, torch.stack([call(h, weight, None, target, **given) for h in hidden])
            )
