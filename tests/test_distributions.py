"""vae_fast.distributions against torch.distributions: values, gradients, shapes, errors, and where they are used."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as theirs
from torch.distributions import Independent, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fast
from conftest import needs_native
from vae_fast import distributions as ours


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(*shape: int) -> Tensor:
    return (3 * randn(*shape, seed=9)).abs().round()


def classes(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % 5


def parts(*shape: int) -> Tensor:
    return torch.sigmoid(randn(*shape, seed=9))


def zero_inflated(total_count: Tensor, logits: Tensor, gate_logits: Tensor, cls: Any = ours) -> Any:
    if cls is ours:
        return ours.ZeroInflatedNegativeBinomial(total_count, logits=logits, gate_logits=gate_logits)
    # torch has none: of two
    base = theirs.NegativeBinomial(total_count, logits=logits)

    class Mixture:
        batch_shape, event_shape = torch.broadcast_shapes(base.batch_shape, gate_logits.shape), torch.Size()

        def log_prob(self, x: Tensor) -> Tensor:
            counted = torch.nn.functional.logsigmoid(-gate_logits) + base.log_prob(x)
            dropped = torch.where(x == 0, torch.nn.functional.logsigmoid(gate_logits), -torch.inf)
            return torch.logaddexp(counted, dropped)

    return Mixture()


def named(name: str, *keys: str) -> Callable[..., Any]:
    return lambda *params, cls=ours, **more: getattr(cls, name)(
        **dict(zip(keys, params, strict=True)), **more
    )


# The class of some parameters, the parameters of normal numbers, a value, the dims of an event.
identity, exp, sigmoid = (lambda n: n), torch.exp, torch.sigmoid
CASES: dict[str, tuple[Callable[..., Any], tuple[Callable[[Tensor], Tensor], ...], Callable[..., Tensor], int]] = {
    "Normal": (named("Normal", "loc", "scale"), (identity, exp), lambda *s: randn(*s, seed=9), 0),
    "Laplace": (named("Laplace", "loc", "scale"), (identity, exp), lambda *s: randn(*s, seed=9), 0),
    "Bernoulli of logits": (named("Bernoulli", "logits"), (identity,), lambda *s: parts(*s).round(), 0),
    "Bernoulli of probs": (named("Bernoulli", "probs"), (sigmoid,), lambda *s: parts(*s).round(), 0),
    "ContinuousBernoulli of logits": (named("ContinuousBernoulli", "logits"), (lambda n: 3 * n + n.sign(),), parts, 0),
    "ContinuousBernoulli of probs": (
        named("ContinuousBernoulli", "probs"), (lambda n: sigmoid(n + n.sign()),), parts, 0
    ),
    "Poisson": (named("Poisson", "rate"), (exp,), counts, 0),
    "NegativeBinomial of logits": (named("NegativeBinomial", "total_count", "logits"), (exp, identity), counts, 0),
    "NegativeBinomial of probs": (named("NegativeBinomial", "total_count", "probs"), (exp, sigmoid), counts, 0),
    "ZeroInflatedNegativeBinomial": (zero_inflated, (exp, identity, identity), counts, 0),
    "Categorical of logits": (named("Categorical", "logits"), (identity,), classes, 1),
    "Categorical of probs": (named("Categorical", "probs"), (sigmoid,), classes, 1),
    "Multinomial of logits": (lambda p, cls=ours: cls.Multinomial(9, logits=p), (identity,), counts, 1),
    "Multinomial of probs": (lambda p, cls=ours: cls.Multinomial(9, probs=p), (sigmoid,), counts, 1),
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def unchecked() -> Any:
    """A multinomial's counts are not 9 here."""
    before = theirs.Distribution._validate_args
    theirs.Distribution.set_default_validate_args(False)
    yield
    theirs.Distribution.set_default_validate_args(before)


def leaves(name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    of = CASES[name][1]
    shapes = list(itertools.islice(itertools.cycle(shapes), len(of)))
    return [
        f(randn(*s, seed=i)).to(dtype).requires_grad_()
        for i, (f, s) in enumerate(zip(of, shapes, strict=True))
    ]


def compare(name: str, value: Tensor, params: list[Tensor], dtype: torch.dtype, tolerance: float) -> None:
    """log_prob and all gradients in `dtype`, against torch's in float64 of the same numbers."""
    make = CASES[name][0]
    mine = [p.detach().to(dtype).requires_grad_() for p in params]
    exact = [p.detach().double().requires_grad_() for p in mine]
    x = value.to(dtype) if value.is_floating_point() else value
    got, want = make(*mine).log_prob(x), make(*exact, cls=theirs).log_prob(x.double())
    assert got.shape == want.shape and got.dtype == torch.promote_types(dtype, torch.float32)
    weight = randn(*want.shape, seed=3)
    grads = torch.autograd.grad((got.double() * weight).sum(), mine)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    for g, w in zip(grads, torch.autograd.grad((want * weight).sum(), exact), strict=True):
        limit = tolerance if dtype.itemsize > 2 else torch.finfo(dtype).eps
        torch.testing.assert_close(g.double(), w, rtol=limit, atol=limit * max(1.0, w.abs().max().item()))


SHAPES = [
    [(4, 5)],
    [(4, 5), (5,)],  # as a dispersion of each gene
    [(1, 5), (4, 1)],
    [(5,)],
    [(2, 3, 5), (5,), (1, 1, 5)],
]


@every
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_log_prob(name: str, shapes: list[tuple[int, ...]]) -> None:
    """Broadcast among themselves and with the value, which may have fewer dims or more."""
    doubles = [(torch.float64, 1e-9)] if shapes is SHAPES[1] else []
    for dtype, tolerance in [(torch.float32, 2e-5), *doubles]:
        params = leaves(name, shapes)
        batch = torch.broadcast_shapes(*(p.shape for p in params))
        batch = batch[:-1] if name.startswith("Categorical") else batch
        for shape in {batch, (3, *batch), batch[-1:]}:
            compare(name, CASES[name][2](*shape), params, dtype, tolerance)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit(name: str, dtype: torch.dtype) -> None:
    """In float32, where torch's own sums overflow or have two digits."""
    shape = (4,) if name.startswith("Categorical") else (4, 5)
    of_probs = name.endswith(
        "probs"
    )  # torch's class rounds 1 - p and the sum of p on the way, in those 16 bits
    compare(name, CASES[name][2](*shape), leaves(name, [(4, 5)]), dtype, 0.05 if of_probs else 2e-5)


@needs_native
@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][3] == 0])
def test_a_broadcast_parameter_has_a_gradient_of_its_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sums it; what `broadcast_all` expanded is never written out."""
    from vae_fast.ops import likelihood as op

    params = leaves(name, [(8,)], torch.float32)
    sizes: list[tuple[int, ...]] = []
    empty = op._common.empty_gradient
    monkeypatch.setattr(
        op._common, "empty_gradient", lambda b, p, *rest: sizes.append(tuple(p.shape)) or empty(b, p, *rest)
    )
    CASES[name][0](*params).log_prob(CASES[name][2](16, 8).float()).sum().backward()
    assert sizes and all(torch.Size(s).numel() == 8 for s in sizes)


@pytest.mark.parametrize("name", ["Normal", "Laplace"])
def test_value_that_learns(name: str) -> None:
    """log q(z | x) of a z that has a gradient, with and without gradients of the parameters."""
    make, value = CASES[name][0], CASES[name][2](3, 4, 5)
    for learning in itertools.product((True, False), repeat=2):
        found = []
        for cls, dtype in ((ours, torch.float32), (theirs, torch.float64)):
            params = [
                p.detach().to(dtype).requires_grad_(g)
                for p, g in zip(leaves(name, [(4, 5)]), learning, strict=True)
            ]
            x = value.detach().clone().to(dtype).requires_grad_()
            made = make(*params, cls=cls).log_prob(x)
            made.square().sum().backward()
            found.append([made, x.grad, *(p.grad for p in params if p.requires_grad)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


@every
def test_shapes_expand_and_samples(name: str) -> None:
    make, of, _, event = CASES[name]
    mine = make(*leaves(name, [(4, 5)], torch.float32))
    other = make(*leaves(name, [(4, 5)], torch.float32), cls=theirs)
    assert (mine.batch_shape, mine.event_shape) == (other.batch_shape, other.event_shape)
    wide = mine.expand((3, *mine.batch_shape))
    assert wide.batch_shape == (3, *mine.batch_shape) and type(wide) is type(mine)
    torch.manual_seed(0)
    x = wide.sample((2,))
    assert x.shape == (2, 3, *mine.batch_shape, *mine.event_shape)
    torch.testing.assert_close(wide.log_prob(x), mine.log_prob(x))
    if isinstance(mine, theirs.Distribution) and name != "ZeroInflatedNegativeBinomial":
        assert isinstance(mine, getattr(theirs, type(mine).__name__))
        torch.testing.assert_close(mine.mean, other.mean, equal_nan=True)
        torch.testing.assert_close(mine.variance, other.variance, equal_nan=True)
    scalar = make(*(f(torch.tensor([0.3] * 5) if event else torch.tensor(0.3)) for f in of))
    assert scalar.log_prob(scalar.sample()).shape == ()


@every
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_independent(name: str, dims: int) -> None:
    """Ours, which sums in the kernel, and torch's around ours; gradients too."""
    make = CASES[name][0]
    values = leaves(name, [(2, 4, 5)], torch.float32), leaves(name, [(2, 4, 5)], torch.float32)
    mine, other = (make(*v, cls=cls) for v, cls in zip(values, (ours, theirs), strict=True))
    x = CASES[name][2](*mine.batch_shape, *mine.event_shape).float()
    dims = min(dims, len(mine.batch_shape))
    want = other.log_prob(x).sum(tuple(range(-dims, 0)))
    grad = torch.rand(want.shape) + 0.5
    by = torch.autograd.grad(want, values[1], grad)
    for independent in (ours.Independent, theirs.Independent):
        got = independent(mine, dims).log_prob(x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        for g, w in zip(torch.autograd.grad(got, values[0], grad, retain_graph=True), by, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_independent_sums_in_the_kernel_unless_log_prob_is_overridden() -> None:
    """No result per element is allocated; a subclass's own log_prob is called."""

    class Half(ours.Normal):
        def log_prob(self, value: Tensor) -> Tensor:  # type: ignore[override]
            return super().log_prob(value) / 2

    loc, x = torch.zeros(6, 5), torch.ones(6, 5)
    seen: list[torch.Size] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if "vae_fast" in str(func):
                seen.append(out[0].shape if isinstance(out, tuple | list) else out.shape)
            return out

    with Record():
        whole = ours.Independent(ours.Normal(loc, torch.ones(6, 5)), 1).log_prob(x)
    assert seen and set(seen) == {torch.Size([6])}
    half = ours.Independent(Half(loc, torch.ones(6, 5)), 1).log_prob(x)
    torch.testing.assert_close(half, whole / 2)


def test_scalars() -> None:
    """Python numbers, as torch's classes take them."""
    x = torch.tensor([0.0, 1.0, 2.0])
    for mine, other in (
        (ours.Normal(0.5, 2), theirs.Normal(0.5, 2)),
        (ours.Laplace(0.5, 2), theirs.Laplace(0.5, 2)),
        (ours.Poisson(0.5), theirs.Poisson(0.5)),
        (ours.Bernoulli(logits=0.5), theirs.Bernoulli(logits=0.5)),
        (ours.NegativeBinomial(3, torch.tensor(0.5)), theirs.NegativeBinomial(3, torch.tensor(0.5))),
    ):
        torch.testing.assert_close(mine.log_prob(x), other.log_prob(x))
        assert mine.sample((2, 3)).shape == (2, 3)


def test_edges() -> None:
    """Where the kernels add 1e-8, as scvi-tools does, and a distribution must not; and counts of any dtype."""
    x = torch.tensor([0.0, 1.0, 7.0])
    for rate in (1e-11, 1e-6, 1.0, 1e6):
        mine, other = ours.Poisson(torch.tensor(rate)), theirs.Poisson(torch.tensor(rate).double())
        torch.testing.assert_close(
            mine.log_prob(x).double(), other.log_prob(x.double()), rtol=2e-5, atol=1e-14
        )
    for count, logit in itertools.product((1e-6, 1.0, 50.0), (-10.0, -5.0, 0.0, 5.0)):
        args = torch.tensor(count), torch.tensor(logit)
        mine = ours.NegativeBinomial(args[0], logits=args[1])
        other = theirs.NegativeBinomial(args[0].double(), logits=args[1].double())
        torch.testing.assert_close(
            mine.log_prob(x).double(), other.log_prob(x.double()), rtol=2e-5, atol=1e-14
        )
    zero, one = torch.zeros(3), torch.ones(3)
    for nothing in (
        ours.Poisson(zero), ours.NegativeBinomial(zero, logits=zero), ours.NegativeBinomial(one, logits=zero - 90)
    ):  # fmt: skip
        got = nothing.log_prob(x)
        assert got.isfinite().all() and got[0].abs() < 1e-10 and (got[1:] < -20).all()
    for negative in (ours.Poisson(-one), ours.NegativeBinomial(-one, logits=one)):
        assert negative.log_prob(x).isnan().all()
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.int64, torch.float64):
        for mine in (
            ours.Poisson(torch.ones(3)),
            ours.Normal(torch.ones(3), 1.0),
            ours.Laplace(torch.ones(3), 1.0),
        ):
            torch.testing.assert_close(mine.log_prob(x.to(dtype)), mine.log_prob(x), check_dtype=False)
    for p in (0.0, 1.0):
        mine, other = ours.Bernoulli(torch.full((2,), p)), theirs.Bernoulli(torch.full((2,), p))
        torch.testing.assert_close(mine.log_prob(x[:2]), other.log_prob(x[:2]))
    one = ours.Categorical(logits=torch.zeros(2, 3))
    assert one.log_prob(torch.tensor([3, -100])).isnan().all()


def test_large_total_count() -> None:
    """Where lgammas cancel, and torch's float32 has no digit left."""
    x, total, mean = torch.tensor(5.0), torch.tensor(1e8), torch.tensor(4.0)
    got = ours.NegativeBinomial(total, logits=torch.log(mean / total)).log_prob(x)
    torch.testing.assert_close(got, theirs.Poisson(mean).log_prob(x), rtol=1e-5, atol=0)


def test_errors() -> None:
    """Torch's own, in its words."""
    x = torch.tensor([0.5, 1.0])
    for build in (
        lambda cls: cls.Normal(x, -x, validate_args=True),
        lambda cls: cls.Bernoulli(validate_args=True),
        lambda cls: cls.Bernoulli(x, x),
        lambda cls: cls.Categorical(logits=torch.tensor(1.0)),
        lambda cls: cls.Categorical(logits=x * torch.nan, validate_args=True),
        lambda cls: cls.Multinomial(x, logits=x),
        lambda cls: cls.Poisson(x, validate_args=True).log_prob(x),
        lambda cls: cls.NegativeBinomial(x, logits=x, validate_args=True).log_prob(-x),
        lambda cls: cls.Bernoulli(x, validate_args=True).log_prob(x),
        lambda cls: cls.Categorical(x, validate_args=True).log_prob(torch.tensor(7)),
        lambda cls: cls.Normal(x, x, validate_args=True).log_prob(torch.ones(3)),
    ):
        messages = []
        for cls in (ours, theirs):
            with pytest.raises((ValueError, NotImplementedError)) as caught:
                build(cls)
            messages.append((caught.type, str(caught.value)))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="Either `gate` or `gate_logits`"):
        ours.ZeroInflatedNegativeBinomial(x, logits=x)
    with pytest.raises(ValueError, match="parameter gate"):
        ours.ZeroInflatedNegativeBinomial(x, logits=x, gate=2 * x, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        ours.ZeroInflatedNegativeBinomial(x, logits=x, gate=x, validate_args=True).log_prob(x)


def test_zero_inflated_moments() -> None:
    total, logits, gate = torch.full((50000,), 3.0), torch.tensor(0.5), torch.tensor(0.3)
    mine = ours.ZeroInflatedNegativeBinomial(total, logits=logits, gate=gate)
    torch.manual_seed(0)
    x = mine.sample()
    torch.testing.assert_close(x.mean(), mine.mean[0], rtol=0.03, atol=0)
    torch.testing.assert_close(x.var(), mine.variance[0], rtol=0.05, atol=0)


def test_normal_samples() -> None:
    """The noise is vae_fast's, repeated by the seed, with the gradients of the reparametrisation."""
    loc, scale = randn(4, 5).float().requires_grad_(), randn(5, seed=1).exp().float().requires_grad_()
    normal = ours.Normal(loc, scale)
    for sample_shape in ((), (2,), (2, 3)):
        torch.manual_seed(3)
        z = normal.rsample(sample_shape)
        torch.manual_seed(3)
        assert torch.equal(z, normal.sample(sample_shape)) and not normal.sample(sample_shape).requires_grad
        torch.manual_seed(3)
        draws = torch.Size(sample_shape).numel()
        eps = vae_fast.noise((4, 5), vae_fast.draw_rng_state("cpu"), num_samples=draws).view(z.shape)
        torch.testing.assert_close(z, loc + scale * eps)
        weight = randn(*z.shape, seed=4).float()
        got = torch.autograd.grad((z * weight).sum(), (loc, scale))
        want = torch.autograd.grad(((loc + scale * eps) * weight).sum(), (loc, scale))
        torch.testing.assert_close(got, want)
    assert normal.sample((0,)).shape == (0, 4, 5) and normal.rsample((2, 0)).shape == (2, 0, 4, 5)


def test_normal_of_logvar() -> None:
    loc, logvar = randn(4, 5).float(), randn(5, seed=1).float()
    lazy, plain = ours.Normal.from_logvar(loc, logvar), ours.Normal(loc, torch.exp(0.5 * logvar))
    assert "scale" not in lazy.__dict__
    x = randn(3, 4, 5, seed=2).float()
    torch.testing.assert_close(lazy.log_prob(x), plain.log_prob(x))
    assert lazy.expand((2, 4, 5)).rsample().shape == (2, 4, 5)
    torch.testing.assert_close(kl_divergence(lazy, plain), torch.zeros(4, 5), rtol=0, atol=1e-6)
    assert "scale" not in lazy.__dict__
    torch.testing.assert_close(lazy.scale, plain.scale)
    torch.testing.assert_close(lazy.entropy(), plain.entropy())
    of_sum = ours.Normal.from_logvar(loc, logvar, epsilon=0.1).expand((2, 4, 5))
    plain = ours.Normal(loc, torch.sqrt(torch.exp(logvar) + 0.1)).expand((2, 4, 5))
    torch.testing.assert_close(of_sum.log_prob(x[:2]), plain.log_prob(x[:2]))
    torch.testing.assert_close(of_sum.scale, plain.scale)
    torch.testing.assert_close(kl_divergence(of_sum, lazy), kl_divergence(plain, lazy), rtol=1e-5, atol=1e-6)
    for dist in (of_sum, plain):
        torch.manual_seed(0)
        z = dist.rsample()
        torch.manual_seed(0)
        torch.testing.assert_close(
            z, loc + plain.scale * vae_fast.noise((2, 4, 5), vae_fast.draw_rng_state("cpu"))
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_kl(dtype: torch.dtype) -> None:
    """Of two of ours, of ours and torch's, and inside Independent; broadcast."""
    for shapes in ([(4, 5)], [(4, 5), (5,), (1, 5), ()], [()], [(5,), (5,), (4, 5), (4, 5)]):
        shapes = list(itertools.islice(itertools.cycle(shapes), 4))
        numbers = [
            (f(randn(*s, seed=i))).to(dtype)
            for i, (s, f) in enumerate(zip(shapes, (identity, exp) * 2, strict=True))
        ]
        exact = [n.double().requires_grad_() for n in numbers]
        want = kl_divergence(theirs.Normal(*exact[:2]), theirs.Normal(*exact[2:]))
        grads = torch.autograd.grad(want.sum(), exact)
        for p, q in ((ours.Normal, ours.Normal), (ours.Normal, theirs.Normal), (theirs.Normal, ours.Normal)):
            mine = [n.detach().requires_grad_() for n in numbers]
            got = kl_divergence(p(*mine[:2]), q(*mine[2:]))
            assert got.dtype == torch.promote_types(dtype, torch.float32) and got.shape == want.shape
            torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-6)
            limit = 2e-5 if dtype.itemsize > 2 else 0.02
            for a, b in zip(torch.autograd.grad(got.sum(), mine), grads, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=limit, atol=limit)
    p, q = (Independent(ours.Normal(randn(4, 5, seed=i), exp(randn(4, 5, seed=i + 5))), 1) for i in (0, 1))
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p.base_dist, q.base_dist).sum(-1))


def test_transforms() -> None:
    """torch.func and forward-mode AD go through, as with torch's own."""
    x, loc, scale = randn(4, 5).float(), randn(4, 5, seed=1).float(), randn(5, seed=2).exp().float()
    found = []
    for cls in (ours, theirs):

        def loss(loc: Tensor, scale: Tensor, cls: Any = cls) -> Tensor:
            return cls.Normal(loc, scale).log_prob(x).sum()

        each = torch.func.vmap(torch.func.grad(lambda m, x, cls=cls: cls.Normal(m, scale).log_prob(x).sum()))
        found.append([*torch.func.grad(loss, (0, 1))(loc, scale), each(loc, x)])
        found[-1].append(torch.func.jvp(loss, (loc, scale), (x, scale))[1])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.no_poison
def test_compiled() -> None:
    """The whole step in one graph, where torch's own kl_divergence breaks it."""
    torch._dynamo.reset()

    def step(h: Tensor, rate: Tensor, theta: Tensor, x: Tensor, rng: Tensor) -> Tensor:
        q = Independent(ours.Normal(h, torch.exp(h), validate_args=False), 1, validate_args=False)
        p = Independent(
            ours.Normal(torch.zeros_like(h), torch.ones_like(h), validate_args=False), 1, validate_args=False
        )
        z = q.rsample()
        px = ours.ZeroInflatedNegativeBinomial(theta, logits=rate + z, gate_logits=rate, validate_args=False)
        y = ours.Categorical(logits=z, validate_args=False).log_prob(torch.zeros(len(z), dtype=torch.int64))
        return kl_divergence(q, p).sum() - px.log_prob(x).sum() - y.sum() + q.log_prob(z).sum()

    h, rate, theta = randn(4, 5).float(), randn(4, 5, seed=1).float(), randn(5, seed=2).exp().float()
    x = counts(4, 5).float()
    found = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        learning = [t.clone().requires_grad_() for t in (h, rate, theta)]
        torch.manual_seed(0)
        loss = run(*learning, x, None)
        found.append([loss, *torch.autograd.grad(loss, learning)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
