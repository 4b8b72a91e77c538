"""What the latent op reads as sigma, packed priors, the soft clamp, shift and scale: against what a user writes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import likelihoods
import vae_fast
from conftest import DTYPES, TRITON, assert_same_bits_for_threads, needs_native, state
from vae_fast.backends.contract import PARAMETRIZATIONS

EPSILONS = (0.0, 1e-4, 1e-2)
CLAMPS = ({}, {"clamp": (-0.75, 1.125)}, {"soft_clamp": 2.0})
PRIORS = (None, "pair", "packed")
FORMS = list(itertools.product(PARAMETRIZATIONS, EPSILONS, CLAMPS, PRIORS))
WIDE = {torch.float64: torch.float64}


def sigma(raw: Tensor, parametrization: str, epsilon: float) -> Tensor:
    if parametrization == "logvar":
        return torch.sqrt(torch.exp(raw) + epsilon)
    return {"logstd": torch.exp, "softplus": F.softplus, "std": lambda x: x}[parametrization](raw) + epsilon


def squash(
    mu: Tensor, raw: Tensor, clamp: Any = None, soft_clamp: float | None = None
) -> tuple[Tensor, Tensor]:
    if soft_clamp is not None:
        return soft_clamp * torch.tanh(mu / soft_clamp), soft_clamp * torch.tanh(raw / soft_clamp)
    return mu, raw if clamp is None else likelihoods.clamp(raw, *clamp)


class Textbook(NamedTuple):
    """What PyTorch's own lines give, and the sums of the absolute terms that rounding acts on."""

    z: Tensor
    kl: Tensor
    grads: tuple[Tensor, ...]
    terms_of_z: Tensor
    terms_of_kl: Tensor
    terms_of_grads: tuple[Tensor, ...]


def textbook(
    dtype: torch.dtype, mu: Tensor, raw: Tensor, prior: Sequence[Tensor], eps: Tensor, grad_z: Tensor, grad_kl: Tensor,
    options: dict[str, Any], packed: bool = False,
) -> Textbook:  # fmt: skip
    """Of single elements: prior is a pair in mu's shape. grad_kl is in mu's shape, too."""
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in (mu, raw, *prior)]
    kind, epsilon = options.get("parametrization", "logvar"), options.get("epsilon", 0.0)
    bounds = {k: options[k] for k in ("clamp", "soft_clamp") if k in options}
    m, r = squash(leaves[0], leaves[1], **bounds)
    shift, scale = options.get("shift", 0.0), options.get("scale", 1.0)
    std = sigma(r, kind, epsilon)
    parts = [m.expand(eps.shape), std * eps.to(dtype), -torch.as_tensor(shift).to(dtype).expand(eps.shape)]
    parts = [part * scale for part in parts]
    if prior:
        mp, rp = squash(*leaves[2:], **bounds) if packed else leaves[2:]
        std_p = sigma(rp, kind, epsilon) if packed else torch.exp(0.5 * rp)
        ratio = std / std_p
        terms = [0.5 * ((m - mp) / std_p) ** 2, 0.5 * ratio**2, -torch.log(std), torch.log(std_p)]
        apart = 0.5 * ((m.abs() + mp.abs()) / std_p) ** 2
    else:
        terms = [0.5 * m**2, 0.5 * std**2, -torch.log(std)]
    terms.append(torch.full_like(m, -0.5))
    # A soft clamp rounds mu, which is subtracted from, and raw, whose absolute error is sigma's relative one.
    is_soft = "soft_clamp" in bounds
    sizes = [*terms, apart] if prior and is_soft else terms
    reach = 1 + sum(t.detach().abs() for t in ((r, rp) if prior else (r,))) if is_soft else 1
    wanted = [(part, grad_z.to(dtype)) for part in parts] + [(size, grad_kl.to(dtype)) for size in sizes]
    found = [
        torch.autograd.grad(part, leaves, grad, retain_graph=True, allow_unused=True)
        for part, grad in wanted
        if part.requires_grad
    ]
    columns = [
        [torch.zeros_like(leaves[0]) if g is None else g for g in column]
        for column in zip(*found, strict=True)
    ]
    count = len(columns[0]) - len(sizes) + len(terms)
    return Textbook(
        sum(parts).detach(),
        sum(terms).detach(),
        tuple(sum(column[:count]) for column in columns),
        sum(part.abs() for part in parts).detach() * reach,
        sum(term.abs() for term in sizes).detach() * reach,
        tuple(sum(g.abs() for g in column) * reach for column in columns),
    )


def assert_close(what: str, got: Tensor, truth: Tensor, own: Tensor, terms: Tensor) -> None:
    """Each element within twice PyTorch's error or 4 units in the last place of its terms, whose sum in 16 bits is
    rounded once more."""
    assert got.shape == truth.shape, f"{what}: {tuple(got.shape)}, {tuple(truth.shape)}"
    unit = torch.finfo(torch.float64 if own.dtype == torch.float64 else torch.float32).eps
    allowed = 2 * (own.double() - truth).abs() + 4 * unit * terms
    if got.dtype in (torch.bfloat16, torch.float16):
        allowed = (
            allowed + torch.finfo(got.dtype).eps * terms + torch.finfo(got.dtype).smallest_normal * 2.0**-8
        )
    if got.dtype == torch.float64:  # the truth is no better
        allowed = 1e-12 * (1 + terms)
    error = (got.double() - truth).abs()
    bad = ~(error <= allowed)
    assert not bad.any(), f"{what}: errors {error[bad].tolist()}, allowed {allowed[bad].tolist()}"


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def raws(kind: str, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = 1.5 * numbers(*shape, seed=seed)
    return (F.softplus(x) + 0.1 if kind == "std" else x).to(dtype)


class Layout(NamedTuple):
    shape: tuple[int, ...]
    dim: int | None = None  # where mu and raw are packed
    memory_format: torch.memory_format = torch.contiguous_format
    is_strided: bool = False


LAYOUTS = {
    "odd": Layout((5, 7)),
    "one element": Layout((6,)),
    "every other": Layout((3, 13), is_strided=True),
    "channels-last": Layout((2, 5, 3, 4), memory_format=torch.channels_last),
    "packed": Layout((3, 4, 3, 3), 1),
    "packed last": Layout((3, 5, 9), -1),
    "packed channels-last": Layout((2, 6, 3, 4), 1, torch.channels_last),
    "rows": Layout((4, 33), 1),
    "empty": Layout((0, 4)),
    "empty samples": Layout((3, 0), 1),
}


def check(
    layout: Layout, dtype: torch.dtype = torch.float32, prior: str | None = None, prior_shape: str = "full",
    what: str = "both", draws: int | None = None, reduction: str = "sample", **options: Any,
) -> None:  # fmt: skip
    """Values and gradients of the op against float64."""
    shape, dim, memory, is_strided = layout
    kind = options.get("parametrization", "logvar")

    def place(x: Tensor) -> Tensor:
        if is_strided:
            return torch.stack((x, x), -1).flatten(-2)[..., ::2]
        return x.contiguous(memory_format=memory)

    def pair(seed: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        return numbers(*size, seed=seed, dtype=dtype), raws(kind, *size, seed=seed + 1, dtype=dtype)

    q = pair(1, shape)
    packs_at = 1 if dim is None else dim % len(shape)
    p_shape = (
        tuple(shape) if prior_shape == "full" else (1, *shape[1:]) if prior_shape == "row" else shape[1:]
    )
    p = pair(3, p_shape) if prior else ()
    given_prior: Any = None
    if prior == "pair":
        p = (p[0], numbers(*p_shape, seed=4, dtype=dtype))
        p_leaves = given_prior = (
            tuple(place(t).detach().requires_grad_() for t in p)
            if prior_shape == "full"
            else tuple(t.detach().requires_grad_() for t in p)
        )
    elif prior == "packed":
        given_prior = torch.cat(p, packs_at - len(shape)).detach()
        given_prior = (place(given_prior) if prior_shape == "full" else given_prior).detach().requires_grad_()
        p_leaves = (given_prior,)
    else:
        p_leaves = ()
    if dim is None:
        leaves = tuple(place(t).detach().requires_grad_() for t in q)
    else:
        leaves = (place(torch.cat(q, dim)).detach().requires_grad_(),)

    z_shape = shape if draws is None else (draws, *shape)
    options = {**options}
    if what == "kl":
        args = dict(options)
        if dim is None:
            outputs = [vae_fast.kl_divergence(*leaves, prior=given_prior, reduction=reduction, **args)]
        else:
            outputs = [
                vae_fast.reparameterize_kl_packed(
                    *leaves, dim=dim, prior=given_prior, reduction=reduction, **args
                )[1]
            ]
        eps = torch.zeros(z_shape)
    else:
        source = {"rng_state": state(), "num_samples": draws}
        eps = vae_fast.noise(shape, state(), num_samples=draws, dtype=WIDE.get(dtype, torch.float32))
        if what == "z":
            assert dim is None
            outputs = [vae_fast.reparameterize(*leaves, **source, **options)]
        elif dim is None:
            outputs = list(
                vae_fast.reparameterize_kl(
                    *leaves, prior=given_prior, reduction=reduction, **source, **options
                )
            )
        else:
            outputs = list(
                vae_fast.reparameterize_kl_packed(
                    *leaves, dim=dim, prior=given_prior, reduction=reduction, **source, **options
                )
            )
    wide = WIDE.get(dtype, torch.float32)
    grads = [numbers(*o.shape, seed=9 + i).to(o.dtype) for i, o in enumerate(outputs)]
    got = torch.autograd.grad(outputs, (*leaves, *p_leaves), grads, allow_unused=what == "z")

    grad_z = grads[0] if what != "kl" else torch.zeros(z_shape)
    grad_kl = grads[-1] if what != "z" else torch.zeros(shape)
    if grad_kl.ndim < len(shape):
        grad_kl = grad_kl.view(-1, *(1,) * (len(shape) - 1))
    full = [t.expand(shape) for t in p]
    calls = (torch.float64, wide)
    truth, own = (
        textbook(d, *q, full, eps, grad_z, grad_kl.expand(shape), options, prior == "packed") for d in calls
    )

    def summed(t: Tensor) -> Tensor:
        return t if reduction == "none" or t.ndim < 2 else t.flatten(1).sum(1)

    if what != "kl":
        assert outputs[0].dtype == dtype and outputs[0].shape == z_shape
        assert_close("z", outputs[0], truth.z, own.z, truth.terms_of_z)
    if what != "z":
        assert outputs[-1].dtype == wide
        assert_close("kl", outputs[-1], *(summed(t) for t in (truth.kl, own.kl, truth.terms_of_kl)))
    got_q = got[:2] if dim is None else got[0].chunk(2, dim)
    got_p = got[len(leaves) :] if prior != "packed" else got[-1].chunk(2, packs_at - len(shape))
    for g, x in zip(got, (*leaves, *p_leaves), strict=True):
        assert g is None or (g.dtype == x.dtype and g.shape == x.shape)
    names = ("grad_mu", "grad_raw", "grad_prior_mu", "grad_prior_raw")
    for name, g, t, o, terms in zip(
        names, (*got_q, *got_p), truth.grads, own.grads, truth.terms_of_grads, strict=False
    ):
        if g is not None:
            assert_close(name, g, *(v.sum_to_size(g.shape) for v in (t, o, terms)))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_value_and_gradient(backend: str, kind: str, prior: str | None) -> None:
    """Every form; layouts, dtypes and shapes of the prior take turns."""
    layouts, dtypes = itertools.cycle(LAYOUTS.values()), itertools.cycle((torch.float32, *DTYPES))
    shapes, kinds = itertools.cycle(("full", "row", "feature")), itertools.cycle(("none", "sample", "none"))
    for epsilon, bounds in (
        zip(EPSILONS, CLAMPS, strict=True) if TRITON else itertools.product(EPSILONS, CLAMPS)
    ):
        for _ in range(1 if TRITON else 3):
            layout = next(layouts)
            shape = "full" if len(layout.shape) == 1 else next(shapes)
            if len(layout.shape) == 1 and prior == "packed":
                continue
            check(
                layout, next(dtypes), prior, shape, reduction=next(kinds),
                parametrization=kind, epsilon=epsilon, **bounds,
            )  # fmt: skip


@pytest.mark.parametrize("what", ["z", "kl", "both"])
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_sample_and_kl_alone(backend: str, kind: str, what: str) -> None:
    if TRITON and kind != "softplus":  # every call takes a tenth of a second
        return
    for bounds, prior in itertools.product(CLAMPS[::2], PRIORS):
        if what != "z" or prior is None:
            check(LAYOUTS["odd"], what=what, prior=prior, parametrization=kind, epsilon=1e-2, **bounds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_shift_and_scale(backend: str, kind: str, dtype: torch.dtype) -> None:
    """Numbers, one a channel, one an element; of one draw and of several."""
    if TRITON and (kind, dtype) not in (("logvar", torch.float32), ("std", torch.bfloat16)):
        return
    channels = numbers(6, 1, 1, seed=5), 0.2 + numbers(6, 1, 1, seed=6).abs()
    elements = numbers(2, 6, 3, 4, seed=5), numbers(1, 6, 3, 4, seed=6)
    layout = LAYOUTS["packed channels-last"]
    for draws, affine in (
        (None, channels),
        (3, channels),
        (2, elements),
        (None, (0.25, 1.5)),
        (None, (None, 0.18)),
    ):
        given = {k: v for k, v in zip(("shift", "scale"), affine, strict=True) if v is not None}
        check(layout, dtype, draws=draws, parametrization=kind, epsilon=1e-4, **given)
        if TRITON:
            break
    check(LAYOUTS["odd"], dtype, "pair", shift=-0.5, what="both", parametrization=kind)
    check(LAYOUTS["odd"], dtype, what="z", scale=numbers(7, seed=3), parametrization=kind, soft_clamp=3.0)


def test_scale_leaves_kl_as_it_is(backend: str) -> None:
    mu, raw = numbers(4, 6), numbers(4, 6, seed=1)
    z, kl = vae_fast.reparameterize_kl(mu, raw, rng_state=state())
    shifted, same = vae_fast.reparameterize_kl(mu, raw, rng_state=state(), shift=0.5, scale=2.0)
    assert torch.equal(kl, same)
    torch.testing.assert_close(shifted, (z - 0.5) * 2.0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("draws", [1, 3])
def test_draws(backend: str, draws: int) -> None:
    for kind in PARAMETRIZATIONS[:: 3 if TRITON else 1]:
        for bounds in CLAMPS[:: 2 if TRITON else 1]:
            check(LAYOUTS["odd"], draws=draws, prior="packed", parametrization=kind, epsilon=1e-2, **bounds)


def test_odd_sizes(backend: str) -> None:
    for n in (1, 2, 3, 17) if TRITON else range(1, 36):
        check(Layout((3, n)), parametrization=PARAMETRIZATIONS[n % 4], epsilon=1e-2)
    if not TRITON:
        check(Layout((2, 1500), 1), prior="packed", parametrization="softplus", soft_clamp=5.0, scale=0.5)


def test_logstd_without_epsilon_is_logvar(backend: str) -> None:
    """Twice the log of sigma is its logvar, exactly: the same bits."""
    mu, raw = numbers(5, 9), numbers(5, 9, seed=1)
    prior = numbers(5, 18, seed=2)
    twice = torch.cat((prior[:, :9], 2 * prior[:, 9:]), 1)
    for a, b in ((None, None), (prior, twice)):
        x, y = (raw.clone().requires_grad_(), (2 * raw).requires_grad_())
        one = vae_fast.reparameterize_kl(mu, x, prior=a, rng_state=state(), parametrization="logstd")
        other = vae_fast.reparameterize_kl(mu, y, prior=b, rng_state=state())
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        grads = [torch.autograd.grad([o.sum() for o in out], v)[0] for out, v in ((one, x), (other, y))]
        torch.testing.assert_close(grads[0], 2 * grads[1], rtol=1e-6, atol=1e-6)


def test_packed_prior_of_q_itself(backend: str) -> None:
    """Has no divergence and no gradient: to the last bit where sigma is the same."""
    for kind, epsilon in itertools.product(PARAMETRIZATIONS, (0.0, 1e-2)):
        raw = raws(kind, 4, 7, seed=1).requires_grad_()
        mu = numbers(4, 7).requires_grad_()
        prior = torch.cat((mu, raw), 1).detach().requires_grad_()
        kl = vae_fast.kl_divergence(mu, raw, prior=prior, parametrization=kind, epsilon=epsilon)
        assert torch.equal(kl, torch.zeros(4))
        assert not any(g.any() for g in torch.autograd.grad(kl.sum(), (mu, raw, prior)))


# raw where sigma leaves float32 on the way, or meets 0, 1 and its own bounds
EXTREMES = [-200.0, -103.5, -100.0, -90.0, -88.0, -87.0, -40.0, -20.5, -17.0, -1e-3, -1e-8, 0.0, 1e-8, 1e-3]
EXTREMES += [0.5413, 1.0, 1.0001, 17.0, 19.9, 20.1, 40.0, 60.0, 80.0, 88.0]


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_extremes(backend: str, kind: str, epsilon: float) -> None:
    """Each element right wherever it fits float32: the truth is computed in float64, of the formula."""
    if TRITON and epsilon == 1e-2:
        return
    values = [v for v in EXTREMES if abs(v) <= 44 or kind != "logstd"]
    raw = torch.tensor([1e-30 + abs(v) for v in values] if kind == "std" else values)[:, None]
    mu, ones = torch.full_like(raw, 0.25), torch.ones_like(raw)
    leaf = raw.clone().requires_grad_()
    z, kl = vae_fast.reparameterize_kl(
        mu, leaf, noise=ones, reduction="none", parametrization=kind, epsilon=epsilon
    )
    for weight_z, weight_kl in ((1.0, 0.0), (0.0, 1.0)):
        (grad,) = torch.autograd.grad((z, kl), leaf, (weight_z * ones, weight_kl * ones), retain_graph=True)
        wide = raw.double().requires_grad_()
        std = (
            wide.exp()
            if kind == "logstd"
            else torch.logaddexp(wide, torch.zeros(()).double())
            if kind == "softplus"
            else wide
        )
        std = (wide.exp() + epsilon).sqrt() if kind == "logvar" else std + epsilon
        terms = [0.5 * std**2, -torch.log(std), torch.full_like(std, 0.5**5 - 0.5)]
        parts = [0.25 + std, sum(terms)]
        (truth,) = torch.autograd.grad(
            parts, wide, (weight_z * ones.double(), weight_kl * ones.double()), retain_graph=True
        )
        sizes = [
            torch.autograd.grad(t, wide, torch.ones_like(t), retain_graph=True)[0].abs() for t in terms[:2]
        ]
        size = weight_kl * sum(sizes) + truth.abs()
        fits = size < 1e38
        unit = 8 * torch.finfo(torch.float32).eps
        if kind != "std":  # float32's own exp(raw) may be subnormal
            unit = unit + 2.0**-148 / wide.detach().exp().clamp(min=2.0**-149)
        assert ((grad.double() - truth).abs() <= unit * size + 1e-44)[fits].all(), (kind, grad, truth)
        assert ((z.double() - parts[0]).abs() <= unit * parts[0].abs()).all()
        size = sum(t.abs() for t in terms)
        fits = size < 1e38
        assert ((kl.double() - parts[1]).abs() <= unit * size)[fits].all(), (kind, kl, parts[1])
        assert kl[~fits].isinf().all()


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_outside_of_the_domain(backend: str, dtype: torch.dtype) -> None:
    """NaN stays NaN, and a sigma that is 0 or negative gives no finite divergence: as PyTorch's own lines."""
    if TRITON and dtype != torch.float32:
        return
    raw = torch.tensor([[-1.0], [-1e-3], [0.0], [math.nan], [1.0]], dtype=dtype)
    mu, eps = torch.full_like(raw, 0.5), torch.full_like(raw, 2.0)
    z, kl = vae_fast.reparameterize_kl(mu, raw, noise=eps, parametrization="std")
    torch.testing.assert_close(z, mu + raw * eps, equal_nan=True)
    assert kl[:2].isnan().all() and kl[2] == math.inf and kl[3].isnan() and kl[4].isfinite()
    for prior in ((mu, torch.zeros_like(raw)), None)[TRITON:]:
        for kind, clamp in itertools.product(PARAMETRIZATIONS, CLAMPS[:: 2 if TRITON else 1]):
            for bad in (math.nan, math.inf):
                x = torch.tensor([[bad], [0.5]], dtype=dtype)
                z, kl = vae_fast.reparameterize_kl(
                    mu[:2], x, noise=eps[:2], prior=prior and tuple(t[:2] for t in prior), parametrization=kind,
                    epsilon=1e-2, **clamp,
                )  # fmt: skip
                assert z[1].isfinite() and kl[1].isfinite()
                if math.isnan(bad) or not clamp:
                    assert not z[0].isfinite() and not kl[0].isfinite(), (kind, bad)
                else:
                    assert z[0].isfinite() and kl[0].isfinite(), (kind, bad)


def test_soft_clamp_in_its_tails(backend: str) -> None:
    """The slope 1 - tanh^2 does not cancel, and infinity is the bound."""
    raw = torch.tensor([[-math.inf, -30.0, -6.0, -1e-6, 0.0, 1e-6, 6.0, 30.0, math.inf]], requires_grad=True)
    mu = raw.detach().clone().requires_grad_()
    z = vae_fast.reparameterize(mu, raw, noise=torch.zeros(1, 9), soft_clamp=2.0)
    wide = raw.detach().double()
    torch.testing.assert_close(z.double(), 2 * torch.tanh(wide / 2), rtol=3e-7, atol=0)
    if backend not in ("reference", "twin"):  # PyTorch's lines lose it
        (grad,) = torch.autograd.grad(z.sum(), mu)
        torch.testing.assert_close(grad.double(), 1 / torch.cosh(wide / 2) ** 2, rtol=3e-6, atol=1e-38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamp_of_a_packed_prior(backend: str, dtype: torch.dtype) -> None:
    """Bounds both, with gradient 1 on the bounds; a pair is taken as it is."""
    mu, raw = torch.zeros(1, 3, dtype=dtype), torch.tensor([[-3.0, 0.5, 3.0]], dtype=dtype)
    bounds = (-1.0, 1.0)
    prior = torch.cat((mu, torch.tensor([[-2.0, -1.0, 1.5]], dtype=dtype)), 1).requires_grad_()
    kl = vae_fast.kl_divergence(mu, raw, prior=prior, clamp=bounds, reduction="none")
    held = prior.detach()[:, 3:].clamp(*bounds).requires_grad_()
    same = vae_fast.kl_divergence(mu, raw, prior=(mu, held), clamp=bounds, reduction="none")
    torch.testing.assert_close(kl, same)
    (grad,), (plain,) = (torch.autograd.grad(k.sum(), p) for k, p in ((kl, prior), (same, held)))
    assert torch.equal(grad[:, 3:], plain * torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype))
    as_it_is = vae_fast.kl_divergence(mu, raw, prior=(mu, prior[:, 3:]), clamp=bounds, reduction="none")
    assert not torch.allclose(as_it_is[:, 0], kl[:, 0])


def test_shapes_of_a_packed_prior(backend: str) -> None:
    """Halves that broadcast: a vector, one number, one a channel; dim is counted as in moments."""
    packed = numbers(3, 8, 2, 5, seed=2).requires_grad_()
    shapes = ((3, 8, 2, 5), (1, 8, 2, 5), (8, 2, 5), (8, 1, 1), (1, 8, 1, 1), (2, 1, 1), (3, 2, 1, 1))
    for shape in shapes[:: 3 if TRITON else 1]:
        prior = numbers(*shape, seed=3).requires_grad_()
        _, kl = vae_fast.reparameterize_kl_packed(packed, prior=prior, soft_clamp=3.0, epsilon=1e-2)
        halves = [t.detach().requires_grad_() for t in prior.chunk(2, -3)]
        full = torch.cat([t.expand(3, 4, 2, 5) for t in halves], 1)
        _, same = vae_fast.reparameterize_kl_packed(packed, prior=full, soft_clamp=3.0, epsilon=1e-2)
        torch.testing.assert_close(kl, same)
        got, *want = (
            torch.autograd.grad(kl.sin().sum(), prior),
            *torch.autograd.grad(same.sin().sum(), halves),
        )
        torch.testing.assert_close(got[0], torch.cat(want, -3), rtol=1e-5, atol=1e-5)
    expanded = numbers(8, 1, 1, seed=3).requires_grad_()
    _, kl = vae_fast.reparameterize_kl_packed(packed, prior=expanded.expand(3, 8, 2, 5))
    assert torch.autograd.grad(kl.sum(), expanded)[0].isfinite().all()


def test_large_images_with_shift_and_scale(backend: str) -> None:
    """Blocks that end inside a channel."""
    if TRITON:
        return
    channels = numbers(3, 1, 1, seed=5), numbers(3, 1, 1, seed=6)
    check(
        Layout((2, 3, 21, 17), 1),
        shift=channels[0],
        scale=channels[1],
        parametrization="softplus",
        epsilon=1e-4,
    )


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    packed, prior = numbers(40, 2000).requires_grad_(), numbers(2000, seed=1).requires_grad_()
    grads = numbers(40, 1000, seed=2), numbers(40, seed=3)

    def compute() -> tuple[Tensor, ...]:
        outputs = vae_fast.reparameterize_kl_packed(
            packed, prior=prior, rng_state=state(), parametrization="softplus", soft_clamp=4.0, scale=0.3
        )
        return *outputs, *torch.autograd.grad(outputs, (packed, prior), grads)

    assert_same_bits_for_threads(compute)


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@pytest.mark.parametrize("bounds", CLAMPS, ids=str)
def test_gradcheck(kind: str, bounds: dict[str, Any]) -> None:
    """The reference in float64, and the closed forms behind the library op."""
    mu, raw = (t.double().requires_grad_() for t in (numbers(1, 2), raws(kind, 1, 2, seed=1)))
    prior = torch.cat((numbers(2), raws(kind, 2, seed=2))).double().requires_grad_()
    scale = numbers(2, seed=5).double()
    for epsilon in (0.0, 1e-2):

        def f(m: Tensor, r: Tensor, p: Tensor, epsilon: float = epsilon) -> Any:
            return vae_fast.reparameterize_kl(
                m,
                r,
                prior=p,
                rng_state=state(),
                parametrization=kind,
                epsilon=epsilon,
                scale=scale,
                shift=0.1,
                **bounds,
            )

        def closed(m: Tensor, r: Tensor, p: Tensor, epsilon: float = epsilon) -> Any:
            clamp, soft = bounds.get("clamp"), bounds.get("soft_clamp")
            return torch.ops.vae_fast.latent(
                m, r, 1, p, None, state(), None, clamp, 2, True, True, False, kind, epsilon, soft, None, scale
            )

        assert torch.autograd.gradcheck(f, (mu, raw, prior))
        assert torch.autograd.gradcheck(closed, (mu, raw, prior))
    if not bounds:
        assert torch.autograd.gradgradcheck(f, (mu, raw, prior))


@pytest.mark.no_poison
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled(kernels: str) -> None:
    """One graph, the numbers of eager, and opcheck of the library op with all that it takes."""
    if TRITON:
        return
    torch._dynamo.reset()
    moments, prior = numbers(4, 12).requires_grad_(), numbers(12, seed=1).requires_grad_()
    mu, raw = numbers(4, 6, seed=2).requires_grad_(), raws("std", 4, 6, seed=3).requires_grad_()
    scale = numbers(6, seed=4)

    def everything(moments: Tensor, prior: Tensor, mu: Tensor, raw: Tensor) -> Tensor:
        z, kl = vae_fast.reparameterize_kl_packed(
            moments, prior=prior, rng_state=state(), parametrization="logstd", epsilon=1e-2, soft_clamp=5.0
        )
        z1 = vae_fast.reparameterize(
            mu, raw, rng_state=state(), parametrization="std", shift=0.5, scale=scale
        )
        kl1 = vae_fast.kl_divergence(mu, raw, parametrization="softplus", epsilon=1e-4)
        return (z * z1).sum() + (kl * kl1).sum()

    args = (moments, prior, mu, raw)
    want = everything(*args)
    got = torch.compile(everything, fullgraph=True, backend="aot_eager")(*args)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, args), torch.autograd.grad(want, args), strict=True):
        torch.testing.assert_close(a, b)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for form in (("std", 1e-2, None, None, scale), ("logstd", 0.0, 5.0, numbers(1, seed=1), None)):
        positive = torch.cat((prior[:6], raw[0].detach())).detach().requires_grad_()
        sample = (mu, raw, 1, positive, None, state(), None, None, 2, True, True, False, *form)
        torch.library.opcheck(torch.ops.vae_fast.latent, sample, test_utils=checks)
    plain = [t.detach() for t in (mu, raw, prior)]
    sample = (
        [True, True, True, False], torch.randn(2, 4, 6), torch.randn(4), *plain[:2], 1, plain[2], None, state(), None,
        None, 2, True, True, False, "softplus", 1e-4, 3.0, None, scale, [],
    )  # fmt: skip
    torch.library.opcheck(torch.ops.vae_fast.latent_backward, sample, test_utils=checks)


X = torch.zeros(4, 6)
kl = functools.partial(vae_fast.kl_divergence, X, X)
sample = functools.partial(vae_fast.reparameterize, X, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: kl(parametrization="var"),
            ValueError,
            'parametrization to be "logvar", "logstd", "softplus" or "std"',
        ),
        (lambda: kl(epsilon=-1e-3), ValueError, "epsilon to be finite and at least 0, but got -0.001"),
        (lambda: kl(epsilon=math.nan), ValueError, "epsilon to be finite"),
        (lambda: kl(epsilon=math.inf), ValueError, "epsilon to be finite"),
        (lambda: kl(epsilon="1"), TypeError, "epsilon to be a number, but got '1'"),
        (lambda: kl(soft_clamp=0.0), ValueError, "soft_clamp to be finite and larger than 0, but got 0"),
        (lambda: kl(soft_clamp=math.nan), ValueError, "soft_clamp to be finite and larger than 0"),
        (lambda: kl(soft_clamp="5"), TypeError, "soft_clamp to be a number"),
        (lambda: kl(soft_clamp=5.0, clamp=(-1, 1)), ValueError, "at most one of clamp and soft_clamp"),
        (lambda: kl(shift=1.0), TypeError, "shift"),
        (
            lambda: kl(prior=torch.zeros(4, 10)),
            TypeError,
            r"not \[mu_p \| raw_p\] along dim 1 for mu of shape",
        ),
        (lambda: kl(prior=torch.zeros(3, 12)), TypeError, r"not \[mu_p \| raw_p\]"),
        (lambda: kl(prior=torch.zeros(1, 4, 12)), TypeError, r"not \[mu_p \| raw_p\]"),
        (lambda: kl(prior=torch.zeros(4, 12).int()), TypeError, "prior to have dtype"),
        (lambda: kl(prior=torch.zeros(4, 12, device="meta")), ValueError, "prior to be on cpu like mu"),
        (
            lambda: vae_fast.kl_divergence(X[0], X[0], prior=torch.zeros(12)),
            TypeError,
            r"not \[mu_p \| raw_p\]",
        ),
        (lambda: sample(scale=torch.ones(6, requires_grad=True)), ValueError, "scale to be a constant"),
        (lambda: sample(shift=torch.ones(5)), ValueError, "shift to broadcast to the shape"),
        (lambda: sample(shift="1"), TypeError, "shift to be a tensor or a number"),
        (lambda: sample(scale=torch.ones(6).int()), TypeError, "scale to have dtype"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
