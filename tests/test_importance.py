"""The op `importance`: draws, their log weights and gradients, in every dtype and layout."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

import vae_fast
from conftest import DTYPES, assert_accurate, assert_same_bits_for_threads, needs_native, state
from likelihoods import clamp as clamped
from test_latent import layouts, leaf, moments
from vae_fast.likelihoods.numerics import per_sample

NAMES = ("z", "weights", "grad_mu", "grad_logvar", "grad_prior_mu", "grad_prior_logvar")


def textbook(mu, logvar, eps, prior=None, clamp=None, path=False):
    """z, and log p(z) - log q(z|x) in terms of each element, as people write them."""
    if clamp is not None:
        logvar = clamped(logvar, *clamp)
    z = mu + eps * torch.exp(0.5 * logvar)
    mp, lvp = prior or (torch.zeros_like(mu), torch.zeros_like(mu))
    m, lv = (mu.detach(), logvar.detach()) if path else (mu, logvar)
    log_p = -0.5 * (z - mp) ** 2 * torch.exp(-lvp) - 0.5 * lvp
    log_q = -0.5 * (z - m) ** 2 * torch.exp(-lv) - 0.5 * lv
    return z, log_p, log_q


def check(
    mu: Tensor, logvar: Tensor, prior=None, eps=None, rng_state=None, path=False, draws=3, clamp=None
) -> None:
    """Values and gradients against float64, with the noise that the op itself used."""
    inputs = [leaf(t) for t in (mu, logvar, *(prior or ()))]
    source = {"noise": eps} if eps is not None else {"rng_state": state() if rng_state is None else rng_state}
    options = {"num_samples": draws, "clamp": clamp, "path_derivative": path, **source}
    z, weights = vae_fast.log_weights(*inputs[:2], prior=tuple(inputs[2:]) or None, **options)
    is_double = mu.dtype == torch.float64
    if eps is None:
        dtype = torch.float64 if is_double else torch.float32
        eps = vae_fast.noise(mu.shape, source["rng_state"], num_samples=draws, dtype=dtype)
    assert z.shape == (draws, *mu.shape) and z.dtype == mu.dtype
    assert weights.shape == (draws, mu.shape[0])
    assert weights.dtype == (torch.float64 if is_double else torch.float32)
    torch.manual_seed(3)
    grads = torch.randn(z.shape).to(z.dtype), torch.randn(weights.shape).to(weights.dtype)
    got = z, weights, *torch.autograd.grad((z, weights), inputs, grads)

    def compute(*given: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Results, and for each the sum of the absolute terms: what rounding acts on."""
        first, dtype = given[0], given[0].dtype
        full = [t.expand(mu.shape).expand(z.shape).clone().requires_grad_() for t in given]
        z_, *logs = textbook(*full[:2], eps.to(dtype), tuple(full[2:]) or None, clamp, path)
        outputs = z_, *(per_sample(t, first.ndim) for t in logs)
        upstream = grads[0].to(dtype), grads[1].to(dtype), -grads[1].to(dtype)
        terms = [
            torch.autograd.grad(o, full, g, retain_graph=True, allow_unused=True)
            for o, g in zip(outputs, upstream, strict=True)
        ]
        values, sizes = [z_, outputs[1] - outputs[2]], [z_, outputs[1].abs() + outputs[2].abs()]
        for i, t in enumerate(given):
            parts = [part[i] for part in terms if part[i] is not None]
            parts = parts or [torch.zeros_like(full[i])]  # sticking the landing
            values.append(sum(parts).sum(0).sum_to_size(t.shape))
            sizes.append(sum(p.abs() for p in parts).sum(0).sum_to_size(t.shape))
        return values, sizes

    truths, scales = compute(*(t.detach().double() for t in inputs))
    own, _ = compute(*(t.detach().to(mu.dtype) for t in inputs))
    for row in zip(NAMES, got, truths, own, scales, strict=False):
        assert_accurate(*row)
    for g, x in zip(got[2:], inputs, strict=True):
        assert g.dtype == x.dtype and g.shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", [False, True], ids=["total", "path"])
def test_value_and_gradient(backend: str, path: bool, dtype: torch.dtype) -> None:
    for shape in ((6,), (5, 7), (3, 4, 5), (2, 2, 3, 3)):
        check(*moments(*shape, dtype=dtype), path=path)
    check(*moments(4, 6, dtype=dtype), path=path, clamp=(-0.7, 0.4), draws=1)
    check(*moments(4, 6, dtype=dtype), path=path, rng_state=torch.arange(8).view(4, 2) - 3)
    check(*moments(4, 6, dtype=dtype), path=path, rng_state=torch.tensor([5, 6, 3, 20]))
    check(*moments(4, 6, dtype=dtype), path=path, eps=torch.randn(3, 4, 6).to(dtype), clamp=(-1.0, 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("path", [False, True], ids=["total", "path"])
def test_prior(backend: str, path: bool, dtype: torch.dtype) -> None:
    mu, logvar = moments(9, 3, 4, dtype=dtype)
    for shape in ((9, 3, 4), (3, 4), (1, 3, 4), (), (1, 1, 1), (3, 1), (9, 1, 1)):
        check(mu, logvar, moments(*shape, dtype=dtype, seed=1), path=path)
    check(mu, logvar, (moments(4, seed=2)[0], torch.zeros(())), clamp=(-1.0, 0.5), path=path)
    expanded = tuple(p.expand(9, 3, 4) for p in moments(4, dtype=dtype, seed=1))
    check(mu, logvar, expanded, path=path)


@pytest.mark.parametrize("name", layouts())
def test_layouts(backend: str, name: str) -> None:
    mu, logvar = layouts()[name]
    check(mu, logvar, draws=2)
    check(mu.bfloat16(), logvar, prior=(mu[:1].contiguous(), logvar), clamp=(-1.0, 1.0), draws=2)
    z, _ = vae_fast.log_weights(mu, logvar, num_samples=2)
    assert z[0].stride() == torch.empty_like(mu).stride()


@needs_native
def test_samples_of_several_blocks() -> None:
    with vae_fast.backend("cpu"):
        check(*moments(3, 1301), prior=moments(1301, seed=1))
        check(*moments(1, 20_003), prior=moments(seed=1), draws=2)
        check(*moments(300, 20), prior=moments(20, seed=1), draws=2)


def test_equals_its_parts(backend: str) -> None:
    """z is that of `reparameterize`, and the mean of minus the weights is the KL divergence."""
    mu, logvar = moments(4, 5)
    z, weights = vae_fast.log_weights(mu, logvar, num_samples=3, clamp=(-1, 1), rng_state=state())
    want = vae_fast.reparameterize(mu, logvar, num_samples=3, clamp=(-1, 1), rng_state=state())
    torch.testing.assert_close(z, want, rtol=1e-6, atol=1e-6)
    none, alone = vae_fast.log_weights(
        mu, logvar, num_samples=3, clamp=(-1, 1), rng_state=state(), return_z=False
    )
    assert none is None and torch.equal(alone, weights)
    _, many = vae_fast.log_weights(mu, logvar, num_samples=200, return_z=False)
    error = -many.mean(0) - vae_fast.kl_divergence(mu, logvar)
    assert (error.abs() < 5 * many.std(0) / math.sqrt(200)).all()


@pytest.mark.parametrize("kind", ["one", "part", "each"])
def test_later_draws(backend: str, kind: str) -> None:
    """Draws 3 and on alone are those of all, values and gradients."""
    mu, logvar = map(leaf, moments(4, 5))
    rng_state = {"one": state(), "part": torch.tensor([1, 2, 3, 9]), "each": torch.arange(8).view(4, 2)}[kind]

    def compute(draws: int, first: int) -> tuple[Tensor, Tensor]:
        return vae_fast.log_weights(mu, logvar, num_samples=draws, first_draw=first, rng_state=rng_state)

    z, weights = compute(7, 0)
    late_z, late = compute(4, 3)
    assert torch.equal(late_z, z[3:]) and torch.equal(late, weights[3:])
    total = [compute(4, 3)[1].exp().sum() + compute(3, 0)[1].exp().sum(), weights.exp().sum()]
    for a, b in zip(*(torch.autograd.grad(t, (mu, logvar)) for t in total), strict=True):
        torch.testing.assert_close(a, b)
    streamed = torch.stack([compute(1, k)[1].logsumexp(0) for k in range(7)]).logsumexp(0)
    torch.testing.assert_close(streamed, weights.logsumexp(0))


def test_iwae_bound(backend: str) -> None:
    """With a fused head the bound of k draws, and its gradients, are those of plain lines in float64."""
    torch.manual_seed(0)
    moments_ = moments(6, 4)
    layer = [torch.randn(9, 4), torch.randn(9)]
    x = torch.rand(6, 9)

    def bound(weights: Tensor) -> Tensor:
        return (weights.logsumexp(0) - math.log(5)).mean()

    inputs = [leaf(t) for t in (*moments_, *layer)]
    z, weights = vae_fast.log_weights(*inputs[:2], num_samples=5, rng_state=state())
    got = bound(weights - vae_fast.linear_bernoulli_nll(z, *inputs[2:], x))
    doubles = [leaf(t.double()) for t in (*moments_, *layer)]
    mu, logvar, weight, bias = doubles
    z = mu + torch.exp(0.5 * logvar) * vae_fast.noise((6, 4), state(), num_samples=5).double()
    log_x = -torch.nn.functional.binary_cross_entropy_with_logits(
        z @ weight.T + bias, x.double().expand(5, 6, 9), reduction="none"
    ).sum(-1)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    p = torch.distributions.Normal(torch.zeros_like(mu), 1.0)
    want = bound(log_x + (p.log_prob(z) - q.log_prob(z)).sum(-1))
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, doubles), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-6)


def true_weight(mu: float, logvar: float, mu_p: float, logvar_p: float, eps: float) -> float:
    m, lv, mp, lvp, e = map(mpf, (mu, logvar, mu_p, logvar_p, eps))
    z = m + mpmath.exp(lv / 2) * e
    return float(e**2 / 2 + lv / 2 - (z - mp) ** 2 * mpmath.exp(-lvp) / 2 - lvp / 2)


def test_near_the_prior(backend: str) -> None:
    """Exactly 0 where q is the prior, and the gradient of sticking the landing with it."""
    mu, logvar = 100 * moments(8, 9)[0], 3 * moments(8, 9)[1]
    prior = mu, logvar
    inputs = [leaf(t) for t in prior]
    _, weights = vae_fast.log_weights(*inputs, num_samples=2, prior=prior, path_derivative=True)
    assert not weights.any()
    assert not any(g.any() for g in torch.autograd.grad(weights.sum(), inputs))


def test_beyond_the_range_of_exp(backend: str) -> None:
    """Where exp(-logvar_p), exp(logvar) or z leaves float32 though the weight does not."""
    rows = [  # mu, logvar, mu_p, logvar_p, eps
        (0.0, -300.0, 0.0, -300.0, 1.5),
        (1e-20, -90.0, 0.0, -90.0, -0.5),
        (1e19, 90.0, 0.0, 90.0, 0.25),
        (3e-30, -150.0, 1e-30, -151.0, 0.5),
        (0.0, 200.0, 0.0, 199.0, 2.0),
        (0.0, 200.0, 0.0, 190.0, 2.0),
        (0.0, 200.0, 0.0, 0.0, 0.0),
        (5.0, 3.0, 5.0, -30.0, 1e-3),
        (1000.0, -8.0, 1000.25, -14.0, 2.0),
        (2.0, -1e4, 0.0, 0.0, 1.0),
        (0.0, 0.0, 1.0, -100.0, 1.0),
        (1.0, 0.0, 0.0, -200.0, -1.5),
        (0.0, 150.0, 0.0, 0.0, 1.0),
    ]
    columns = [torch.tensor(c)[:, None] for c in zip(*rows, strict=True)]
    *inputs, noise = columns
    inputs = [leaf(t) for t in inputs]
    want = [true_weight(*(t[i].item() for t in columns)) for i in range(len(rows))]
    truth = torch.tensor(want, dtype=torch.float64).clamp(-1e39, 1e39).float()
    for path in (False, True):
        results = []
        for given in (inputs, [leaf(t.double()) for t in inputs]):
            _, weights = vae_fast.log_weights(
                *given[:2], num_samples=1, prior=tuple(given[2:]), noise=noise[None], path_derivative=path
            )
            results.append([weights.detach()[0], *torch.autograd.grad(weights.sum(), given)])
        torch.testing.assert_close(results[0][0], truth, rtol=2e-6, atol=1e-6)
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-37)
    _, got = vae_fast.log_weights(
        torch.tensor([2.0, 0.0])[:, None], torch.tensor([0.0, -math.inf])[:, None], num_samples=1,
        noise=torch.tensor([math.nan, 1.0])[None, :, None],
    )  # fmt: skip
    assert got[0, 0].isnan() and got[0, 1] == -math.inf


def test_clamp_and_bad_numbers(backend: str) -> None:
    """The gradient stops outside the bounds and passes on them; what is NaN stays in its sample."""
    mu, logvar = leaf(torch.zeros(1, 5)), leaf(torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0]]))
    _, weights = vae_fast.log_weights(mu, logvar, num_samples=1, clamp=(-1.0, 1.0), noise=torch.ones(1, 1, 5))
    slope = 0.5 * (1 - torch.exp(logvar.detach())) * torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(torch.autograd.grad(weights.sum(), logvar)[0], slope)
    mu, logvar = moments(5, 9)
    good_z, good = vae_fast.log_weights(mu, logvar, num_samples=2, rng_state=state())
    mu[2, 4], logvar[3, 1] = math.inf, math.nan
    z, weights = vae_fast.log_weights(mu, logvar, num_samples=2, rng_state=state())
    assert not weights[:, 2].isfinite().any() and weights[:, 3].isnan().all()
    keep = [0, 1, 4]
    assert torch.equal(weights[:, keep], good[:, keep]) and torch.equal(z[:, keep], good_z[:, keep])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 5)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    inputs = [leaf(t) for t in (*moments(*shape), torch.ones(shape[1:]), torch.zeros(()))]
    z, weights = vae_fast.log_weights(*inputs[:2], num_samples=2, prior=tuple(inputs[2:]))
    assert z.shape == (2, *shape) and torch.equal(weights, torch.zeros(2, shape[0]))
    for grad, x in zip(torch.autograd.grad(z.sum() + weights.sum(), inputs), inputs, strict=True):
        assert torch.equal(grad, torch.zeros_like(x))


def test_gradients_in_parts(backend: str) -> None:
    """z alone, weights alone, strided and expanded gradients, twice, and of some inputs."""
    inputs = [leaf(t) for t in (*moments(4, 6), *moments(6, seed=1))]

    def compute(*given: Tensor) -> tuple[Tensor | None, Tensor]:
        return vae_fast.log_weights(*given[:2], num_samples=2, prior=tuple(given[2:]), rng_state=state())

    def grads(of: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(of, inputs, upstream or None, retain_graph=True, allow_unused=True)

    z, weights = compute(*inputs)
    alone = grads(z.sum()), grads(weights.sum())
    assert all(g is None or not g.any() for g in alone[0][2:])
    torch.testing.assert_close(alone[0][0], torch.full((4, 6), 2.0))
    together = grads((z, weights), torch.ones(()).expand(z.shape), torch.ones(2, 8)[:, ::2])
    for a, b, c in zip(*alone, together, strict=True):
        torch.testing.assert_close(c, b if a is None else a + b)
    weight = torch.randn(6, 4, 2)
    strided = grads((z, weights), weight.permute(2, 1, 0), torch.randn(4, 2).T)
    again = grads((z, weights), weight.permute(2, 1, 0).contiguous(), torch.zeros(2, 4))
    assert not torch.equal(strided[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(grads(weights.sum()), alone[1], strict=True))
    for i in range(4):
        some = [t if k == i else t.detach() for k, t in enumerate(inputs)]
        (grad,) = torch.autograd.grad(sum(t.sum() for t in compute(*some)), some[i])
        torch.testing.assert_close(grad, together[i])


def test_double_backward(kernels: str) -> None:
    mu, logvar = map(leaf, moments(4, 5))
    _, weights = vae_fast.log_weights(mu, logvar, num_samples=2)
    (grad,) = torch.autograd.grad(weights.square().sum(), mu, create_graph=True)
    with pytest.raises(RuntimeError, match=r'second derivative.*backend\("reference"\)'):
        torch.autograd.grad(grad.sum(), mu)


def test_nothing_of_the_draws_is_saved(kernels: str) -> None:
    """Backward keeps the inputs and the state; a shared prior's gradient is summed in the kernel."""
    saved: list[Tensor] = []
    mu, logvar = map(leaf, moments(16, 8))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        vae_fast.log_weights(mu, logvar, num_samples=50, prior=(torch.zeros(8), torch.zeros(8)))
    assert sorted(t.numel() for t in saved) == [2, 8, 8, 128, 128]


def test_a_list_of_generators(backend: str) -> None:
    mu, logvar = moments(3, 5)
    seeded = [torch.Generator().manual_seed(k) for k in range(3)]
    z, _ = vae_fast.log_weights(mu, logvar, num_samples=2, generator=seeded)
    alone, _ = vae_fast.log_weights(
        mu[1:2], logvar[1:2], num_samples=2, generator=[torch.Generator().manual_seed(1)]
    )
    assert torch.equal(z[:, 1:2], alone)


def test_gradcheck(backend: str) -> None:
    inputs = [
        leaf(t) for t in (*moments(3, 4, dtype=torch.float64), *moments(4, dtype=torch.float64, seed=1))
    ]

    def f(m, lv, mp, lvp, path=False):
        return vae_fast.log_weights(
            m, lv, num_samples=2, prior=(mp, lvp), clamp=(-2, 2), rng_state=state(), path_derivative=path
        )

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 1), (1,), (3, 1, 1)], ids=str)
def test_gradcheck_of_the_library_op(shape: tuple[int, ...]) -> None:
    """float64 through the library op checks the closed form that stands for a kernel."""
    inputs = [
        leaf(t)
        for t in (*moments(3, 2, 2, dtype=torch.float64), *moments(*shape, dtype=torch.float64, seed=1))
    ]

    def f(*given: Tensor) -> Any:
        options = state(), None, (-0.9, 0.6), 2, 1, False, True
        return torch.ops.vae_fast.importance(*given, *options)

    assert torch.autograd.gradcheck(f, inputs)


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    inputs = [leaf(t) for t in (*moments(301, 67), *moments(67, seed=1))]
    grads = moments(3, 301, 67, seed=1)[0], moments(3, 301, seed=2)[0]

    def compute() -> tuple[Tensor, ...]:
        outputs = vae_fast.log_weights(*inputs[:2], num_samples=3, prior=tuple(inputs[2:]), rng_state=state())
        return *outputs, *torch.autograd.grad(outputs, inputs, grads)

    assert_same_bits_for_threads(compute)


@pytest.mark.no_poison
def test_opcheck(kernels: str) -> None:
    from test_compile import OPCHECKS

    mu, logvar = map(leaf, moments(4, 6))
    prior = tuple(map(leaf, moments(6, seed=1)))
    for args in (
        (mu, logvar, *prior, state(), None, (-1.0, 1.0), 2, 3, True, True),
        (mu, logvar, None, None, None, torch.randn(2, 4, 6), None, 2, 0, False, True),
    ):
        torch.library.opcheck(torch.ops.vae_fast.importance, args, test_utils=OPCHECKS)
    plain = [t.detach() for t in (mu, logvar, *prior)]
    args = (
        [True] * 4,
        torch.randn(2, 4, 6),
        torch.randn(2, 4),
        *plain,
        state(),
        None,
        None,
        2,
        0,
        False,
        True,
        [],
    )
    torch.library.opcheck(torch.ops.vae_fast.importance_backward, args, test_utils=OPCHECKS)


def test_errors() -> None:
    mu, logvar = moments(4, 5)
    for match, kind, options in (
        ("num_samples to be at least 1", ValueError, {"num_samples": 0}),
        ("noise to have shape", ValueError, {"noise": torch.zeros(4, 5)}),
        ("a pair of tensors", TypeError, {"prior": torch.zeros(4, 10)}),
        ("prior mu to broadcast", ValueError, {"prior": (torch.zeros(4), torch.zeros(4))}),
        ("first_draw to be at least 0", ValueError, {"first_draw": -1}),
        ("without first_draw", ValueError, {"first_draw": 1, "noise": torch.zeros(2, 4, 5)}),
        ("path_derivative to be a bool", TypeError, {"path_derivative": "yes"}),
        ("fewer than 2\\*\\*32 samples", ValueError, {"first_draw": 2**30, "rng_state": state()}),
        ("at most one of", ValueError, {"noise": torch.zeros(2, 4, 5), "rng_state": state()}),
    ):
        with pytest.raises(kind, match=match):
            vae_fast.log_weights(mu, logvar, **{"num_samples": 2, **options})
