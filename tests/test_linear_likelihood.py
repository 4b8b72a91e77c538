"""The fused heads against the layer and the likelihood one after the other, in float64, over several chunks of rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_accurate
from torch import Tensor

import vae_fast
from vae_fast import backends, reference
from vae_fast.ops import chunks

BATCH, HIDDEN, FEATURES = 11, 3, 6


@pytest.fixture(autouse=True)
def four_rows_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 rows in chunks of 4, 4 and 3 where the layer has one output per feature; fewer where it has more."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * FEATURES * 4)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def uniform(*shape: int, seed: int = 7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


GREY = uniform(BATCH, FEATURES)
COUNTS = torch.poisson(4 * uniform(BATCH, FEATURES), generator=torch.Generator().manual_seed(8))
THETA, LIBRARY = uniform(FEATURES, seed=9) + 0.5, 30 * uniform(BATCH, seed=10) + 1
WORDS = torch.tensor([[0, 3], [5, -100]]).repeat(6, 1)[:BATCH]

# What each head computes from the layer's outputs o, target x, and what is given besides; written out.
Case = tuple[str, int, Tensor, dict[str, Tensor], Callable[..., Tensor]]


def halves(o: Tensor) -> tuple[Tensor, ...]:
    return o[:, :FEATURES], o[:, FEATURES : 2 * FEATURES], o[:, 2 * FEATURES :]


def share(o: Tensor, library: Tensor) -> Tensor:
    return library[:, None] * torch.softmax(o[:, :FEATURES], -1)


def both(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of the two halves of the outputs."""
    return lambda o, x: function(halves(o)[0], x, halves(o)[1])


nb, zinb = reference.negative_binomial_nll, reference.zero_inflated_negative_binomial_nll
CASES: dict[str, Case] = {
    "bernoulli": ("bernoulli", 1, GREY, {}, reference.bernoulli_nll),
    "continuous bernoulli": ("continuous_bernoulli", 1, GREY, {}, reference.continuous_bernoulli_nll),
    "gaussian": ("gaussian", 1, GREY, {}, reference.gaussian_nll),
    "gaussian, scalar": ("gaussian", 1, GREY, {"logvar": normal(1)[0]}, reference.gaussian_nll),
    "gaussian, by feature": ("gaussian", 1, GREY, {"logvar": normal(FEATURES)}, reference.gaussian_nll),
    "gaussian, by sample": ("gaussian", 1, GREY, {"logvar": normal(BATCH, 1)}, reference.gaussian_nll),
    "gaussian, by element": (
        "gaussian",
        1,
        GREY,
        {"logvar": normal(BATCH, FEATURES)},
        reference.gaussian_nll,
    ),
    "gaussian, two heads": ("gaussian", 2, GREY, {}, both(reference.gaussian_nll)),
    "laplace": ("laplace", 1, GREY, {"log_scale": normal(FEATURES)}, reference.laplace_nll),
    "laplace, two heads": ("laplace", 2, GREY, {}, both(reference.laplace_nll)),
    "logistic": (
        "discretized_logistic",
        1,
        GREY,
        {"log_scale": normal(1, FEATURES)},
        reference.discretized_logistic_nll,
    ),
    "logistic, two heads": (
        "discretized_logistic",
        2,
        GREY,
        {},
        both(reference.discretized_logistic_nll),
    ),
    "poisson": ("poisson", 1, COUNTS, {}, lambda o, x: reference.poisson_nll(o.exp(), x)),
    "poisson, library": (
        "poisson",
        1,
        COUNTS,
        {"library": LIBRARY},
        lambda o, x, library: reference.poisson_nll(share(o, library), x),
    ),
    "nb": ("negative_binomial", 1, COUNTS, {"theta": THETA}, lambda o, x, theta: nb(o.exp(), x, theta)),
    "nb, two heads": (
        "negative_binomial",
        2,
        COUNTS,
        {},
        lambda o, x: nb(halves(o)[0].exp(), x, halves(o)[1].exp()),
    ),
    "nb, library": (
        "negative_binomial",
        1,
        COUNTS,
        {"theta": THETA, "library": LIBRARY},
        lambda o, x, theta, library: nb(share(o, library), x, theta),
    ),
    "nb, two heads, library": (
        "negative_binomial",
        2,
        COUNTS,
        {"library": LIBRARY},
        lambda o, x, library: nb(share(o, library), x, halves(o)[1].exp()),
    ),
    "zinb": (
        "zero_inflated_negative_binomial",
        2,
        COUNTS,
        {"theta": THETA},
        lambda o, x, theta: zinb(halves(o)[0].exp(), x, theta, halves(o)[1]),
    ),
    "zinb, three heads, library": (
        "zero_inflated_negative_binomial",
        3,
        COUNTS,
        {"library": LIBRARY},
        lambda o, x, library: zinb(share(o, library), x, halves(o)[1].exp(), halves(o)[2]),
    ),
    "multinomial": ("multinomial", 1, COUNTS, {}, reference.multinomial_nll),
    "categorical": ("categorical", 1, WORDS, {}, reference.categorical_nll),
}


def layer(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """hidden, weight, bias"""
    _, heads, target, _, _ = case
    hidden = normal(*target.shape[: 2 if target is WORDS else 1], HIDDEN, seed=1)
    tensors = (
        hidden,
        normal(heads * FEATURES, HIDDEN, seed=2, scale=0.4),
        normal(heads * FEATURES, seed=3, scale=0.3),
    )
    return [t.to(dtype).requires_grad_() for t in tensors]


def fused(case: Case, tensors: list[Tensor], given: dict[str, Tensor], **options: Any) -> Tensor:
    hidden, weight, bias = tensors
    function = getattr(vae_fast, f"linear_{case[0]}_nll")
    return function(hidden, weight, bias, case[2], **given, **options)


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
    member, _, target, given, compose = case
    hidden, weight, _ = layer(case)
    mask = uniform(*(target.shape[:1] if member == "multinomial" else target.shape), seed=4) < 0.6
    if member == "categorical":
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
    if member in ("bernoulli", "multinomial", "categorical"):
        nll = compose(o, target, mask=mask)
    elif member == "poisson":
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
        module, self.count = backends._module(backend), 0
        function = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> None:
            self.count += 1
            function(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("even", [True, False])
def test_gradients_are_taken_when_they_are_cheapest(
    even: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward pass and, where the factors of the samples differ, once more; backward may run again."""
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
    torch.autograd.grad(nll, tensors, upstream(nll, not even), retain_graph=True)
    again = torch.autograd.grad(nll, tensors, upstream(nll, even))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


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


def test_sums_over_samples_are_float32() -> None:
    """bfloat16 counts to 256: the 300th one would be lost in it."""
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
@pytest.mark.parametrize("member", ["gaussian", "multinomial"])
def test_library_op(member: str) -> None:
    case = CASES["gaussian, by feature" if member == "gaussian" else "multinomial"]
    hidden, weight, bias = layer(case)
    given = [v.detach().clone().requires_grad_() for v in case[3].values()]
    early = [True, False, True, False] + [True] * len(given)
    torch.library.opcheck(
        torch.ops.vae_fast.linear_likelihood.default,
        (
            member,
            hidden,
            weight.detach(),
            bias,
            case[2],
            given,
            None,
            None,
            uniform(BATCH),
            torch.float32,
            early,
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


def test_reference_has_the_same_functions() -> None:
    names = [n for n in vae_fast.__all__ if n.startswith("linear_")]
    assert len(names) == 10
    for name in names:
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (vae_fast, reference))
        assert list(ours.parameters) == list(theirs.parameters)


H, W, B = normal(4, 3), normal(6, 3), normal(6)
X = uniform(4, 6)
ERRORS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("bernoulli", {"hidden": H[0]}, ValueError, r"hidden has shape \(3,\)"),
    ("bernoulli", {"hidden": H[None]}, ValueError, r"hidden has shape \(1, 4, 3\), it takes \(batch, H\)"),
    ("bernoulli", {"hidden": H.long()}, TypeError, "hidden has dtype torch.int64"),
    ("bernoulli", {"weight": W.t()}, ValueError, r"weight has shape \(3, 6\), it takes \(outputs, H\) with H = 3"),
    ("bernoulli", {"weight": W.double()}, TypeError, "weight has dtype torch.float64, hidden has torch.float32"),
    ("bernoulli", {"weight": W[:5], "bias": None}, ValueError, "6 elements per sample it takes 6 rows"),
    ("bernoulli", {"bias": B[:5]}, ValueError, r"bias has shape \(5,\)"),
    ("bernoulli", {"target": X[:3]}, ValueError, r"target has shape \(3, 6\), hidden has \(4, 3\)"),
    ("bernoulli", {"target": X[:, :0]}, ValueError, "at least one element per sample"),
    ("bernoulli", {"target": X.to(torch.complex64)}, TypeError, "target has dtype torch.complex64"),
    ("bernoulli", {"mask": X}, TypeError, "mask has dtype torch.float32"),
    ("bernoulli", {"mask": X[:, :5] > 0}, ValueError, r"mask has shape \(4, 5\)"),
    ("bernoulli", {"sample_weight": X}, ValueError, r"sample_weight has shape \(4, 6\), it takes \(batch,\) = \(4,\)"),
    ("gaussian", {"target": X[:, :3], "logvar": 0.0}, ValueError, "logvar is given, but weight has rows for it"),
    ("gaussian", {"logvar": B[:5]}, ValueError, r"logvar has shape \(5,\)"),
    ("discretized_logistic", {}, TypeError, "log_scale is NoneType"),
    ("negative_binomial", {}, TypeError, "theta is NoneType"),
    ("poisson", {"library": X}, ValueError, r"library has shape \(4, 6\)"),
    ("zero_inflated_negative_binomial", {"theta": 1.0}, ValueError, "takes 12 or 18 rows"),
    ("categorical", {"target": X[:, 0]}, TypeError, "it takes class numbers"),
    ("categorical", {"target": X.long()}, ValueError, r"target has shape \(4, 6\), hidden and weight ask for \(4,\)"),
    ("multinomial", {"target": X[:, :5]}, ValueError, r"ask for \(4, 6\)"),
]  # fmt: skip


@pytest.mark.parametrize(("member", "wrong", "error", "message"), ERRORS)
def test_errors(member: str, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"hidden": H, "weight": W, "bias": B, "target": X} | wrong
    with pytest.raises(error, match=message):
        getattr(vae_fast, f"linear_{member}_nll")(**arguments)
