"""The fused heads against the layer and the likelihood one after the other, in float64, over several chunks of rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from conftest import assert_accurate
from linear_heads import (
    BATCH,
    CASES,
    COUNTS,
    FEATURES,
    GREY,
    WORDS,
    fused,
    halves,
    layer,
    nb,
    normal,
    share,
    uniform,
)
from vae_fast import backends, reference
from vae_fast.ops import _common, chunks


@pytest.fixture(autouse=True)
def four_rows_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 rows in chunks of 4, 4 and 3 where the layer has one output per feature; fewer where it has more."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * FEATURES * 4)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)


def upstream(nll: Tensor, even: bool) -> Tensor:
    return torch.full_like(nll, 0.25) if even else normal(BATCH, seed=5).to(nll.dtype)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name: str, even: bool, backend: str) -> None:
    case = CASES[name]

    def run(dtype: torch.dtype | None) -> tuple[Tensor, list[Tensor]]:
        inputs = layer(case, dtype or torch.float32)
        given = {k: v.detach().to(inputs[0].dtype, copy=True).requires_grad_() for k, v in case[3].items()}
        leaves = [*inputs, *given.values()]
        if dtype is None:
            return fused(case, inputs, given), leaves
        x = case[2] if case[2] is WORDS else case[2].to(dtype)
        return case[4](F.linear(*inputs), x, **given), leaves

    def differentiate(nll: Tensor, leaves: list[Tensor], g: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(nll, leaves, g, retain_graph=True)

    (nll, leaves), (truth, exact), (own, single) = run(None), run(torch.float64), run(torch.float32)
    assert_accurate("nll", nll, truth, own, scale=truth.abs().clamp(min=FEATURES))
    g = upstream(truth, even)
    grads = zip(
        ["hidden", "weight", "bias", *case[3]],
        differentiate(nll, leaves, g.float()),
        differentiate(truth, exact, g),
        differentiate(own, single, g.float()),
        # Rounding acts on the terms of the sums over samples.
        zip(
            *(differentiate(truth, exact, g * (torch.arange(BATCH) == i)) for i in range(BATCH)), strict=True
        ),
        strict=True,
    )
    for what, grad, truth_grad, own_grad, terms in grads:
        assert grad.dtype == torch.float32
        assert_accurate(what, grad, truth_grad, own_grad, scale=sum(t.abs() for t in terms))


@pytest.mark.parametrize(
    "name", ["bernoulli", "nb, two heads", "poisson, library", "multinomial", "categorical"]
)
@pytest.mark.parametrize("even", [True, False])
def test_mask_weight_and_no_bias(name: str, even: bool, kernels: str) -> None:
    case = CASES[name]
    likelihood, _, target, given, compose = case
    hidden, weight, _ = layer(case)
    mask = uniform(*(target.shape[:1] if likelihood == "multinomial" else target.shape), seed=4) < 0.6
    if likelihood == "categorical":
        mask = mask[:1]  # broadcasts
    factor = uniform(BATCH, seed=6).requires_grad_()
    results = []
    for w in (factor, factor.detach()):
        nll = fused(case, [hidden, weight, None], given, mask=mask, sample_weight=w)
        results.append([nll, *torch.autograd.grad(nll, [hidden, weight], upstream(nll, even))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    h, w, f = (t.detach().double().requires_grad_() for t in (hidden, weight, factor))
    o = F.linear(h, w)
    if likelihood in ("bernoulli", "multinomial", "categorical"):
        nll = compose(o, target, mask=mask)
    elif likelihood == "poisson":
        nll = reference.poisson_nll(share(o, given["library"].double()), target, mask=mask)
    else:
        nll = nb(halves(o)[0].exp(), target, halves(o)[1].exp(), mask=mask)
    truth = [nll * f, *torch.autograd.grad(nll * f, [h, w], upstream(nll, even))]
    for got, want in zip(results[1], truth, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_what_is_masked_may_be_anything(kernels: str) -> None:
    case = CASES["poisson"]
    hidden, weight, bias = layer(case)
    bias = torch.where(torch.arange(FEATURES) == 2, torch.inf, bias.detach()).requires_grad_()
    mask = torch.arange(FEATURES) != 2
    target = torch.where(mask, COUNTS, torch.nan)
    nll = vae_fast.linear_poisson_nll(hidden, weight, bias, target, mask=mask)
    grads = torch.autograd.grad(nll.sum(), [weight, bias])
    for grad in grads:
        assert torch.isfinite(grad).all() and (grad[2] == 0).all() and (grad[3] != 0).all()


def test_target_in_its_own_shape(kernels: str) -> None:
    """Images in bytes: 255ths, in the order of weight's rows; a parameter per channel."""
    hidden, weight, bias = layer(CASES["gaussian"])
    image = (255 * GREY).byte()
    logvar = normal(2, 1).requires_grad_()
    flat = logvar.detach().expand(2, 3).reshape(-1).requires_grad_()
    nll = vae_fast.linear_gaussian_nll(hidden, weight, bias, image.view(BATCH, 2, 3), logvar)
    want = vae_fast.linear_gaussian_nll(hidden, weight, bias, image.float() / 255, flat)
    torch.testing.assert_close(nll, want)
    inputs = [hidden, weight, bias]
    *grads, by_channel = torch.autograd.grad(nll.sum(), [*inputs, logvar])
    *wants, by_feature = torch.autograd.grad(want.sum(), [*inputs, flat])
    torch.testing.assert_close(by_channel, by_feature.view(2, 3).sum(1, keepdim=True))
    torch.testing.assert_close(grads, wants)


class Calls:
    """Counts the calls of a backend's function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backend: str, name: str) -> None:
        module, self.count = backends._find(backend), 0
        function = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> None:
            self.count += 1
            function(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("even", [True, False])
def test_gradients_are_taken_when_they_are_cheapest(
    even: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward pass and, where the factors of the samples differ or backward runs again, once more."""
    case = CASES["bernoulli"]
    tensors = layer(case)
    backward = Calls(monkeypatch, kernels, "likelihood_backward")
    with torch.no_grad():
        silent = fused(case, tensors, {})
    assert backward.count == 0
    nll = fused(case, tensors, {})
    assert torch.equal(nll, silent) and backward.count == 3
    first = torch.autograd.grad(nll, tensors, upstream(nll, even), retain_graph=True)
    assert backward.count == (3 if even else 6)
    kept = [g.clone() for g in first]
    torch.autograd.grad(nll, tensors, upstream(nll, not even), retain_graph=True)
    again = torch.autograd.grad(nll, tensors, upstream(nll, even))
    assert backward.count == (9 if even else 12)
    for a, b, c in zip(first, kept, again, strict=True):
        assert torch.equal(a, b), "handed out, and written again"
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(
    "frozen", [("weight", "bias"), ("hidden",), ("hidden", "weight", "bias"), ("theta", "library")]
)
def test_frozen(frozen: tuple[str, ...], even: bool, kernels: str) -> None:
    case = CASES["nb, library"]
    names = ["hidden", "weight", "bias", "theta", "library"]

    def run(frozen: tuple[str, ...]) -> dict[str, Tensor]:
        tensors = dict(
            zip(names, [*layer(case), *(v.detach().clone() for v in case[3].values())], strict=True)
        )
        for name, tensor in tensors.items():
            tensor.requires_grad_(name not in frozen)
        nll = vae_fast.linear_negative_binomial_nll(target=COUNTS, **tensors)
        nll.backward(upstream(nll, even))
        return {n: t.grad for n, t in tensors.items() if t.grad is not None}

    some, all_of_them = run(frozen), run(())
    assert set(some) == set(names) - set(frozen)
    for name, grad in some.items():
        assert torch.equal(grad, all_of_them[name])


def test_sums_over_samples_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 counts to 256: the 300th one would be lost in it."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)  # a row at a time
    rows = 300
    hidden, weight = (
        torch.ones(*s, dtype=torch.bfloat16).requires_grad_() for s in ((rows, 1), (FEATURES, 1))
    )
    bias = torch.ones(FEATURES, dtype=torch.bfloat16).requires_grad_()
    nll = vae_fast.linear_gaussian_nll(hidden, weight, bias, torch.ones(rows, FEATURES))  # derivatives of 1
    for even in (True, False):
        g = torch.ones(rows) if even else torch.ones(rows).index_fill(0, torch.tensor([0]), 2.0)
        for grad in torch.autograd.grad(nll, [weight, bias], g, retain_graph=True):
            assert grad.dtype == torch.bfloat16
            assert torch.equal(
                grad.float(), torch.full_like(grad, g.sum(), dtype=torch.float32).bfloat16().float()
            )


class Products:
    """torch.mm and torch.addmm with products of 16-bit matrices in float32, which torch has for GPUs alone, and what
    they were called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        addmm, mm = torch.addmm, torch.mm

        def wide_addmm(total: Tensor, a: Tensor, b: Tensor, *, out: Tensor, **options: Any) -> Tensor:
            if "out_dtype" not in options:
                return addmm(total, a, b, out=out, **options)
            assert total is out
            self.calls.append(("addmm", out.dtype, a.dtype, b.dtype, *options.values()))
            return addmm(out, a.float(), b.float(), beta=options["beta"], out=out)

        def wide_mm(a: Tensor, b: Tensor, *, out: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
            if out_dtype is None:
                return mm(a, b, out=out)
            self.calls.append(("mm", out.dtype, a.dtype, b.dtype, out_dtype))
            return mm(a.float(), b.float(), out=out)

        monkeypatch.setattr(torch, "addmm", wide_addmm)
        monkeypatch.setattr(torch, "mm", wide_mm)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths that a GPU takes. Its cache holds less than MIN_ROWS."""
    monkeypatch.setattr(_common, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(chunks, "_l2_bytes", lambda device: 64)
    monkeypatch.setattr(chunks, "MIN_ROWS", 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, None])
def test_products_on_a_gpu(
    dtype: torch.dtype | None, kernels: str, on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight's gradient is summed inside the product, in float32; the first chunk ignores what is there. (None:
    float32 tensors under autocast, where the gradient of hidden is float32 as well.)"""
    products, case = Products(monkeypatch), CASES["gaussian"]
    single, half = torch.float32, dtype or torch.bfloat16
    tensors = layer(case, dtype or single)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    with torch.autocast("cpu", half, enabled=dtype is None):
        nll = fused(case, tensors, {})
    assert products.calls == []
    grads = torch.autograd.grad(nll, tensors, upstream(nll, even=False))
    addmm = ("addmm", single, half, half, single)
    calls = [(*addmm, 0), (*addmm, 1), (*addmm, 1)]
    if dtype is None:
        calls = [call for c in calls for call in (("mm", single, half, half, single), c)]
    assert products.calls == ([] if dtype is single else calls)
    truth = case[4](F.linear(*exact), case[2].double())
    for grad, want in zip(grads, torch.autograd.grad(truth, exact, upstream(truth, even=False)), strict=True):
        assert grad.dtype is (dtype or single)
        eps = torch.finfo(half).eps
        torch.testing.assert_close(grad.double(), want, rtol=4 * eps, atol=4 * eps * want.abs().max().item())


def test_chunks_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some bytes, or of twice as many where the rows would be few."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 384)
    for outputs, rows in ((2, 500), (4, 384), (10, 200), (5000, 1)):
        assert chunks._most_rows(torch.empty(outputs, 0), torch.float32, True) == rows


def test_chunks_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the L2 cache, of outputs and gradients; rows enough for the products, unless they fill the memory."""

    def rows(
        known: dict[str, int], outputs: int, dtype: torch.dtype, wide: torch.dtype, grad: bool = True
    ) -> int:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**known))
        chunks._l2_bytes.cache_clear()
        return chunks._most_rows(torch.empty(outputs, 0, dtype=dtype), wide, grad)

    monkeypatch.setattr(_common, "on_cpu", lambda tensor: False)
    single, half, h100 = torch.float32, torch.bfloat16, {"L2_cache_size": 50 << 20}
    assert rows(h100, 784, single, single) == (25 << 20) // (784 * 8)
    assert rows(h100, 784, single, single, grad=False) == (25 << 20) // (784 * 4)
    assert rows(h100, 784, half, half) == (25 << 20) // (784 * 4)
    assert rows(h100, 784, half, single) == (25 << 20) // (784 * 12)
    assert rows({}, 784, single, single) == (20 << 20) // (784 * 8)
    assert rows(h100, 32000, half, half) == 1024
    assert rows(h100, 250000, half, half) == (256 << 20) // 1000000
    assert rows(h100, 1 << 30, half, half) == 1
    chunks._l2_bytes.cache_clear()


@pytest.mark.parametrize("name", ["gaussian, two heads", "zinb, three heads, library", "categorical"])
def test_autocast(name: str, kernels: str) -> None:
    """Outputs in bfloat16 as F.linear makes them, the likelihood in float32, gradients of float32 leaves in float32."""
    case = CASES[name]
    tensors = layer(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = F.linear(*tensors)
        assert outputs.dtype == torch.bfloat16
        nll = fused(case, tensors, case[3])
    want = case[4](outputs.float(), case[2], **case[3])
    torch.testing.assert_close(nll, want)
    grads = torch.autograd.grad(nll.sum(), tensors)
    for grad, own in zip(grads, torch.autograd.grad(want.sum(), tensors), strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, own, rtol=2**-7, atol=2**-7 * own.abs().max().item())


def test_float16_leaves_its_gradients_to_backward(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a loss scale of 1/1024 a derivative of 1e5, beyond float16, is within it."""
    hidden, weight, bias = layer(CASES["gaussian"], torch.float16)
    nll = vae_fast.linear_gaussian_nll(hidden, weight, bias, torch.full((BATCH, FEATURES), 1e5))
    grad = torch.autograd.grad(nll, bias, torch.full_like(nll, 1 / 1024))[0]
    torch.testing.assert_close(
        grad.float(), torch.full_like(grad, -BATCH * 1e5 / 1024).float(), rtol=1e-3, atol=0
    )


@pytest.mark.no_poison
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    case = CASES["nb, library"]

    def loss(hidden, weight, bias, theta, library, target):  # type: ignore[no-untyped-def]
        nll = vae_fast.linear_negative_binomial_nll(hidden, weight, bias, target, theta, library=library)
        return nll.mean() + 0.1 * nll[0]

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (BATCH, 5):
        leaves = [*layer(case), *(v.detach().clone().requires_grad_() for v in case[3].values())]
        inputs = [leaves[0][:rows], *leaves[1:4], leaves[4][:rows], COUNTS[:rows]]
        got, want = (torch.autograd.grad(f(*inputs), leaves) for f in (compiled, loss))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.no_poison
@pytest.mark.parametrize("likelihood", ["gaussian", "multinomial"])
def test_library_op(likelihood: str) -> None:
    case = CASES["gaussian, by feature" if likelihood == "gaussian" else "multinomial"]
    hidden, weight, bias = layer(case)
    given = [v.detach().clone().requires_grad_() for v in case[3].values()]
    early = [1, 0, 1, 0] + [1] * len(given)
    torch.library.opcheck(
        torch.ops.vae_fast.linear_likelihood.default,
        (
            likelihood,
            hidden,
            weight.detach(),
            bias,
            case[2],
            None,
            None,
            uniform(BATCH),
            torch.float32,
            early,
            None,
            0,
            given or None,
        ),
    )


def test_the_outputs_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of forward and backward is a chunk, or a gradient."""
    rows, features, hidden_size = 400, 50, 2
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16 * features * 4)
    hidden = normal(rows, hidden_size).requires_grad_()
    weight, theta = normal(features, hidden_size).requires_grad_(), torch.ones(features, requires_grad=True)
    target, library = torch.ones(rows, features), torch.full((rows,), 50.0)
    for even in (True, False):
        with torch.profiler.profile(profile_memory=True) as profile:
            nll = vae_fast.linear_negative_binomial_nll(hidden, weight, None, target, theta, library=library)
            nll.backward(torch.ones(rows) if even else torch.rand(rows))
        sizes = [event.self_cpu_memory_usage for event in profile.events()]
        assert 0 < max(sizes) <= 16 * features * 4 < rows * features * 4 / 20


def test_second_derivatives_are_refused(kernels: str) -> None:
    case = CASES["bernoulli"]
    tensors = layer(case)
    (grad,) = torch.autograd.grad(fused(case, tensors, {}).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_no_samples(backend: str) -> None:
    hidden, weight, bias = layer(CASES["gaussian"])
    nll = vae_fast.linear_gaussian_nll(hidden[:0], weight, bias, GREY[:0])
    assert nll.shape == (0,)
    nll.sum().backward()
    assert (weight.grad == 0).all() and (bias.grad == 0).all()


def test_a_target_that_learns() -> None:
    hidden, weight, bias = layer(CASES["gaussian"])
    target = GREY.clone().requires_grad_()
    vae_fast.linear_gaussian_nll(hidden, weight, bias, target).sum().backward()
    torch.testing.assert_close(target.grad, target.detach() - F.linear(hidden, weight, bias).detach())
