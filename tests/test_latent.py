"""The op `latent`: values and gradients in every dtype and layout, and how it behaves inside autograd."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import likelihoods
import vae_fast
from conftest import (
    DTYPES,
    LOGVAR,
    assert_accurate,
    assert_same_bits_for_threads,
    needs_native,
    state,
    truth_and_scale,
)
from vae_fast import backends


def textbook(mu, logvar, eps, prior=None, clamp=None):
    """What a user writes, in the dtype of the inputs."""
    if clamp is not None:
        logvar = likelihoods.clamp(logvar, *clamp)
    z = mu + eps * torch.exp(0.5 * logvar)
    dims = tuple(range(1, mu.ndim))
    if prior is None:
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    else:
        mp, lvp = prior
        kl = -0.5 * (1 + logvar - lvp - ((mu - mp).pow(2) + logvar.exp()) / lvp.exp())
    return z, kl.sum(dims) if dims else kl


def leaf(tensor: Tensor) -> Tensor:
    """A leaf in the same memory layout."""
    return tensor.detach().requires_grad_()


def gradients(outputs, inputs, grads):
    return torch.autograd.grad(outputs, inputs, grads, retain_graph=True)


def check(mu: Tensor, logvar: Tensor, prior=None, eps=None, rng_state=None, **options) -> None:
    """Value and gradient of the op against float64, with the noise that the op itself used."""
    draws = options.get("num_samples")
    mu, logvar = leaf(mu), leaf(logvar)
    prior = None if prior is None else tuple(leaf(p) for p in prior)
    kwargs = {"noise": eps} if eps is not None else {"rng_state": state() if rng_state is None else rng_state}
    z, kl = vae_fast.reparameterize_kl(mu, logvar, prior=prior, **kwargs, **options)
    if eps is None:
        dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
        eps = vae_fast.noise(mu.shape, kwargs["rng_state"], num_samples=draws, dtype=dtype)
    assert z.dtype == mu.dtype and z.shape == eps.shape
    assert kl.dtype == (torch.float64 if mu.dtype == torch.float64 else torch.float32)
    torch.manual_seed(3)
    grad_z, grad_kl = torch.randn(z.shape).to(z.dtype), torch.randn(kl.shape).to(kl.dtype)
    inputs = (mu, logvar, *(prior or ()))
    got = (z, kl, *gradients((z, kl), inputs, (grad_z, grad_kl)))

    def plain(*args):
        return textbook(args[0], args[1], eps.to(args[0].dtype), args[2:] or None, options.get("clamp"))

    truths, scales = truth_and_scale(plain, inputs, (grad_z, grad_kl), mu.shape)
    args = [leaf(t.to(mu.dtype)) for t in inputs]
    own = plain(*args)
    own = (*own, *gradients(own, args, [g.to(mu.dtype) for g in (grad_z, grad_kl)]))
    names = ("z", "kl", "grad_mu", "grad_logvar", "grad_prior_mu", "grad_prior_logvar")
    for row in zip(names, got, truths, own, scales, strict=False):
        assert_accurate(*row)
    for g, x in zip(got[2:], inputs, strict=True):
        assert g.dtype == x.dtype


def moments(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(dtype), (torch.randn(shape, generator=g) - 0.5).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (5, 7), (64, 20), (3, 4, 5), (2, 8, 3, 4), (2, 2, 3, 2, 3)], ids=str)
def test_value_and_gradient(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(*moments(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"num_samples": 1}, {"num_samples": 3}, {"clamp": (-0.7, 0.4)}], ids=str)
def test_options(backend: str, options: dict, dtype: torch.dtype) -> None:
    check(*moments(5, 3, 7, dtype=dtype), **options)
    check(*moments(5, 3, 7, dtype=dtype), rng_state=torch.arange(10).view(5, 2) - 4, **options)
    eps = torch.randn((*((options["num_samples"],) if "num_samples" in options else ()), 5, 3, 7))
    check(*moments(5, 3, 7, dtype=dtype), eps=eps.to(dtype), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(9, 3, 4), (3, 4), (1, 3, 4), (), (1,), (1, 1, 1), (4,), (3, 1), (9, 1, 1), (9, 1, 4)], ids=str
)
def test_prior(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mu, logvar = moments(9, 3, 4, dtype=dtype)
    prior = moments(*shape, dtype=dtype, seed=1)
    check(mu, logvar, prior=prior)
    check(mu, logvar, prior=(prior[0], torch.zeros((), dtype=dtype)), num_samples=2, clamp=(-1.0, 0.5))


def test_odd_sizes(backend: str) -> None:
    for n in range(1, 38):
        check(*moments(3, n))


@needs_native
def test_one_long_sample() -> None:
    with vae_fast.backend("cpu"):
        check(*moments(1, 1_000_003))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_outputs(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Outputs over a megabyte may come from memory that the backend keeps: still their own, still in mu's layout."""
    with vae_fast.backend("cpu"):
        _check_large_outputs(layout, dtype)


def _check_large_outputs(layout: torch.memory_format, dtype: torch.dtype) -> None:
    mu, logvar = (t.contiguous(memory_format=layout) for t in moments(40, 24, 24, 24, dtype=dtype))
    assert mu.nbytes > 2**20
    check(mu, logvar)
    z, _ = vae_fast.reparameterize_kl(mu, logvar, rng_state=state(), num_samples=2)
    assert z[0].stride() == mu.stride() and z.is_contiguous() == (layout == torch.contiguous_format)
    before = z.clone()
    for _ in range(3):  # memory that is still in use is not given out again
        vae_fast.reparameterize_kl(mu, logvar, num_samples=2)
    assert torch.equal(z, before)
    packed = leaf(torch.cat((mu, logvar), 1).contiguous(memory_format=layout))
    z, kl = vae_fast.reparameterize_kl_packed(packed, rng_state=state())
    (z.sum() + kl.sum()).backward()
    assert packed.grad.stride() == packed.stride() and packed.grad.isfinite().all()


def test_mixed_dtypes(backend: str) -> None:
    """Each tensor may have its own dtype; z has mu's."""
    mu, logvar = moments(4, 6)
    z, kl = vae_fast.reparameterize_kl(mu.bfloat16(), logvar, prior=(mu[0].half(), logvar), rng_state=state())
    truth, kl_truth = vae_fast.reference.reparameterize_kl(
        mu.bfloat16().double(),
        logvar.double(),
        prior=(mu[0].half().double(), logvar.double()),
        rng_state=state(),
    )
    assert z.dtype == torch.bfloat16 and kl.dtype == torch.float32
    torch.testing.assert_close(z, truth.bfloat16(), rtol=2**-7, atol=1e-5)
    torch.testing.assert_close(kl.double(), kl_truth, rtol=1e-5, atol=1e-5)
    assert vae_fast.kl_divergence(mu, logvar.double()).dtype == torch.float64


def layouts() -> dict[str, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    packed = torch.randn(4, 12, 3, 5, generator=g)
    rows = torch.randn(8, 14, generator=g)
    return {
        "packed": packed.chunk(2, 1),
        "packed last": torch.randn(4, 3, 10, generator=g).chunk(2, -1),
        "channels-last": tuple(
            t.contiguous(memory_format=torch.channels_last) for t in packed.clone().chunk(2, 1)
        ),
        "channels-last packed": packed.clone().contiguous(memory_format=torch.channels_last).chunk(2, 1),
        "mixed": (packed[:, :6].contiguous(memory_format=torch.channels_last), packed[:, :6].contiguous()),
        "transposed": (rows.T, rows.T.contiguous()),
        "every other": (rows[:, ::2], rows[:, 1::2]),
        "permuted": (packed.permute(2, 3, 0, 1), packed.permute(2, 3, 0, 1).contiguous()),
        "batch of one": (rows[:1], rows[1:2]),
        "expanded": (rows[:, :1].expand(8, 6), rows[0].expand(8, 14)[:, :6]),
        "offset": (rows.flatten()[1:97].view(8, 12), rows.flatten()[3:99].view(8, 12)),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend: str, name: str, dtype: torch.dtype) -> None:
    mu, logvar = layouts()[name]
    if dtype != torch.float32:
        mu, logvar = mu.to(dtype), logvar.to(dtype)
    check(mu, logvar)
    check(mu, logvar, num_samples=2, prior=(mu[:1].contiguous(), logvar), clamp=(-1.0, 1.0))
    z, _ = vae_fast.reparameterize_kl(mu, logvar, rng_state=state())
    assert z.stride() == torch.empty_like(mu).stride()
    dense, _ = vae_fast.reparameterize_kl(mu.contiguous(), logvar.contiguous(), rng_state=state())
    torch.testing.assert_close(z, dense, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dim", "layout"),
    [
        ((4, 12), 1, torch.contiguous_format),
        ((4, 12), -1, torch.contiguous_format),
        ((2, 6, 3, 5), 1, torch.contiguous_format),
        ((2, 6, 3, 5), 1, torch.channels_last),
        ((2, 3, 5, 8), -1, torch.contiguous_format),
        ((2, 3, 5, 8), -1, torch.channels_last),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed(backend: str, shape, dim, layout, dtype) -> None:
    """The packed form is the plain one on the two halves, and its gradient is one tensor in the input's layout."""
    packed = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    packed = packed.contiguous(memory_format=layout)
    packed, twice = leaf(packed), leaf(packed)
    half = shape[dim] // 2
    prior_shape = [1] * len(shape)
    prior_shape[dim] = half
    prior = moments(*prior_shape, dtype=dtype)
    kwargs = {"prior": prior, "clamp": (-1.0, 1.0), "rng_state": state()}
    for draws in (None, 2):
        z, kl = vae_fast.reparameterize_kl_packed(packed, dim=dim, num_samples=draws, **kwargs)
        z2, kl2 = vae_fast.reparameterize_kl(*twice.chunk(2, dim), num_samples=draws, **kwargs)
        assert torch.equal(z, z2) and torch.equal(kl, kl2) and z.stride() == z2.stride()
        (grad,) = torch.autograd.grad((z.float().square().sum() + kl.sin().sum()), packed)
        (grad2,) = torch.autograd.grad((z2.float().square().sum() + kl2.sin().sum()), twice)
        assert torch.equal(grad, grad2)
    if backend != "reference" and dtype != torch.float64:
        assert grad.stride() == packed.stride()
        assert z.grad_fn.next_functions[0][0].variable is packed  # no slicing or concatenation in between


def test_sample_and_kl_alone(backend: str) -> None:
    mu, logvar = map(leaf, moments(6, 5))
    prior = tuple(map(leaf, moments(5)))
    z, kl = vae_fast.reparameterize_kl(
        mu, logvar, prior=prior, clamp=(-1, 1), rng_state=state(), num_samples=2
    )
    z1 = vae_fast.reparameterize(mu, logvar, clamp=(-1, 1), rng_state=state(), num_samples=2)
    kl1 = vae_fast.kl_divergence(mu, logvar, prior=prior, clamp=(-1, 1))
    assert torch.equal(z, z1) and torch.equal(kl, kl1)
    inputs = (mu, logvar, *prior)
    one = torch.autograd.grad(z.sum() + kl.sum(), inputs)
    both = torch.autograd.grad(z1.sum() + kl1.sum(), inputs)
    for a, b in zip(one, both, strict=True):
        torch.testing.assert_close(a, b)


def test_kl_near_zero(backend: str) -> None:
    """Where the posterior is nearly the prior, 1 + logvar - exp(logvar) is all rounding error."""
    g = torch.Generator().manual_seed(0)
    mu, logvar = 1e-4 * torch.randn(512, 16, generator=g), 1e-4 * torch.randn(512, 16, generator=g)
    truth = (0.5 * (mu.double() ** 2 + torch.expm1(logvar.double()) - logvar.double())).sum(1)
    own = (textbook(mu, logvar, mu)[1].double() - truth).abs().max()
    ours = (vae_fast.kl_divergence(mu, logvar).double() - truth).abs().max()
    assert ours < own / 100
    if backend == "reference":  # autograd's derivative of expm1 is exp
        return
    lv = leaf(logvar)
    (grad,) = torch.autograd.grad(vae_fast.kl_divergence(mu, lv).sum(), lv)
    exact = 0.5 * torch.expm1(logvar.double())
    assert ((grad.double() - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact.abs()).all()


def test_clamp_is_torch_clamp(backend: str) -> None:
    """The gradient is 1 on the bounds and 0 outside, and NaN stays NaN."""
    logvar = leaf(torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0]]))
    mu = leaf(torch.zeros(1, 5))
    ones = torch.ones(1, 5)
    z, kl = vae_fast.reparameterize_kl(mu, logvar, clamp=(-1.0, 1.0), noise=ones)
    torch.testing.assert_close(z, torch.exp(0.5 * logvar.detach().clamp(-1, 1)))
    slope = 0.5 * torch.exp(0.5 * logvar.detach()) * torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(torch.autograd.grad(z.sum(), logvar, retain_graph=True)[0], slope)
    slope = 0.5 * torch.expm1(logvar.detach()) * torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), logvar)[0], slope)
    nan = torch.full((1, 5), math.nan)
    z, kl = vae_fast.reparameterize_kl(mu, nan, clamp=(-1.0, 1.0), noise=ones)
    assert z.isnan().all() and kl.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_stay_in_their_sample(backend: str, bad: float) -> None:
    mu, logvar = moments(5, 9)
    z_good, kl_good = vae_fast.reparameterize_kl(mu, logvar, rng_state=state())
    mu[2, 4] = bad
    logvar[3, 1] = math.nan
    z, kl = vae_fast.reparameterize_kl(mu, logvar, rng_state=state())
    assert not kl[2].isfinite() and kl[3].isnan()
    keep = [0, 1, 4]
    assert torch.equal(kl[keep], kl_good[keep]) and torch.equal(z[keep], z_good[keep])
    touched = torch.zeros(5, 9, dtype=torch.bool)
    touched[2, 4] = touched[3, 1] = True
    assert torch.equal(~z.isfinite(), touched)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 3, 2), (3, 0), (2, 0, 5)], ids=str)
@pytest.mark.parametrize("draws", [None, 2])
def test_empty(backend: str, shape: tuple[int, ...], draws: int | None) -> None:
    """No samples give no results; samples without features have KL 0; sums over nothing are 0."""
    mu, logvar = map(leaf, moments(*shape))
    prior = (leaf(torch.ones(shape[1:])), leaf(torch.zeros(())))
    z, kl = vae_fast.reparameterize_kl(mu, logvar, prior=prior, num_samples=draws)
    assert z.shape == ((2, *shape) if draws else shape)
    assert torch.equal(kl, torch.zeros(shape[0]))
    grads = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar, *prior))
    for grad, x in zip(grads, (mu, logvar, *prior), strict=True):
        assert torch.equal(grad, torch.zeros_like(x))
    if len(shape) > 1:
        packed = leaf(torch.zeros(shape[0], 2 * shape[1], *shape[2:]))
        z, kl = vae_fast.reparameterize_kl_packed(packed)
        assert z.shape == shape and torch.equal(kl, torch.zeros(shape[0]))
        (z.sum() + kl.sum()).backward()
        assert packed.grad.shape == packed.shape


def test_backward_twice(backend: str) -> None:
    mu, logvar = map(leaf, moments(4, 5))
    z, kl = vae_fast.reparameterize_kl(mu, logvar)
    loss = z.square().sum() + kl.sum()
    first = torch.autograd.grad(loss, (mu, logvar), retain_graph=True)
    again = torch.autograd.grad(loss, (mu, logvar))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_broadcast_and_strided_gradients(backend: str) -> None:
    """sum() hands backward a gradient of stride 0, a permuted consumer one in another order."""
    mu, logvar = map(leaf, moments(4, 6, 3))
    z, kl = vae_fast.reparameterize_kl(mu, logvar, rng_state=state())
    weight = torch.randn(3, 4, 6)

    def grads(grad_z, grad_kl):
        return torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl), retain_graph=True)

    for strided_z, strided_kl in (
        (torch.ones(()).expand(4, 6, 3), torch.full((), 0.5).expand(4)),
        (weight.permute(1, 2, 0), torch.randn(8)[::2]),
    ):
        got = grads(strided_z, strided_kl)
        want = grads(strided_z.contiguous(), strided_kl.contiguous())
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_missing_gradients(backend: str) -> None:
    """Only z or only kl reaches the loss."""
    mu, logvar = map(leaf, moments(4, 5))
    z, kl = vae_fast.reparameterize_kl(mu, logvar, rng_state=state())
    eps = vae_fast.noise((4, 5), state())
    grad_mu, grad_logvar = torch.autograd.grad(z.sum(), (mu, logvar), retain_graph=True)
    torch.testing.assert_close(grad_mu, torch.ones(4, 5))
    torch.testing.assert_close(grad_logvar, 0.5 * eps * torch.exp(0.5 * logvar.detach()))
    grad_mu, grad_logvar = torch.autograd.grad(kl.sum(), (mu, logvar))
    torch.testing.assert_close(grad_mu, mu.detach())
    torch.testing.assert_close(grad_logvar, 0.5 * torch.expm1(logvar.detach()))
    for shape in ((5,), (4, 5)):
        prior = tuple(map(leaf, moments(*shape)))
        z, _ = vae_fast.reparameterize_kl(mu, logvar, prior=prior)
        filled = [torch.full((4, 5), math.nan) for _ in range(8)]
        del filled  # memory that a gradient would show if it was not written
        grads = torch.autograd.grad(z.sum(), prior, allow_unused=True)
        assert all(g is None or not g.any() for g in grads)


@pytest.fixture
def seen(kernels: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the backend's latent_backward was called with last."""
    module = backends._find(kernels)
    arguments: dict = {}
    real = module.latent_backward

    def spy(grad_z, grad_kl, *args, **kwargs):
        arguments.update(kwargs, grad_z=grad_z, grad_kl=grad_kl)
        real(grad_z, grad_kl, *args, **kwargs)

    monkeypatch.setattr(module, "latent_backward", spy)
    return arguments


@pytest.mark.parametrize("frozen", range(4))
def test_frozen_inputs(seen: dict, frozen: int) -> None:
    """An input that needs no gradient gets none, and no memory is taken for one."""
    tensors = [*moments(4, 5), *moments(5, seed=1)]
    inputs = [t if i == frozen else leaf(t) for i, t in enumerate(tensors)]
    full = [leaf(t) for t in tensors]

    def loss(mu, logvar, mp, lvp):
        z, kl = vae_fast.reparameterize_kl(mu, logvar, prior=(mp, lvp), rng_state=state())
        return z.square().sum() + kl.sum()

    loss(*full).backward()
    loss(*inputs).backward()
    for i, (x, y) in enumerate(zip(inputs, full, strict=True)):
        assert x.grad is None if i == frozen else torch.equal(x.grad, y.grad)
    written = (seen["grad_mu"], seen["grad_logvar"], *seen["grad_prior"])
    assert [g is None for g in written] == [i == frozen for i in range(4)]


def test_missing_gradients_are_not_made(seen: dict) -> None:
    """A kernel hears that z or kl has no gradient, instead of reading zeros."""
    mu, logvar = map(leaf, moments(4, 5))
    z, kl = vae_fast.reparameterize_kl(mu, logvar)
    z.sum().backward(retain_graph=True)
    assert seen["grad_z"] is not None and seen["grad_kl"] is None
    kl.sum().backward()
    assert seen["grad_z"] is None and seen["grad_kl"] is not None


def test_summed_gradients_are_summed_in_the_kernel(seen: dict) -> None:
    """Memory of one sample, or one number, for a prior that is shared by the batch."""
    mu, logvar = map(leaf, moments(9, 3, 4))
    for shape, written in (
        ((9, 3, 4), (9, 3, 4)),
        ((3, 4), (3, 4)),
        ((1, 3, 4), (3, 4)),
        ((3, 1), (3, 4)),
        ((1, 1, 4), (3, 4)),
        ((), ()),
        ((1, 1), ()),
        ((9, 1, 1), (9, 3, 4)),
    ):
        prior = tuple(map(leaf, moments(*shape)))
        vae_fast.kl_divergence(mu, logvar, prior=prior).sum().backward()
        assert [g.shape for g in seen["grad_prior"]] == [written] * 2
        assert [p.grad.shape for p in prior] == [shape] * 2
        expanded = tuple(p.expand(9, 3, 4) for p in prior)
        grads = torch.autograd.grad(vae_fast.kl_divergence(mu, logvar, prior=expanded).sum(), prior)
        assert [g.shape for g in seen["grad_prior"]] == [written] * 2
        assert all(torch.equal(g, p.grad) for g, p in zip(grads, prior, strict=True))


def test_double_backward_is_refused(kernels: str) -> None:
    mu, logvar = map(leaf, moments(4, 5))
    z, kl = vae_fast.reparameterize_kl(mu, logvar)
    grad_mu, grad_logvar = torch.autograd.grad(z.square().sum() + kl.sum(), (mu, logvar), create_graph=True)
    for grad in (grad_mu, grad_logvar):
        with pytest.raises(RuntimeError, match=r'second derivative.*backend\("reference"\)'):
            torch.autograd.grad(grad.sum(), mu, retain_graph=True)


def test_double_backward_of_the_reference() -> None:
    with vae_fast.backend("reference"):
        mu, logvar = map(leaf, moments(4, 5))
        kl = vae_fast.kl_divergence(mu, logvar)
        (grad,) = torch.autograd.grad(kl.sum(), logvar, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), logvar)
        torch.testing.assert_close(second, 0.5 * torch.exp(logvar.detach()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_makes_the_same_noise(backend: str, reentrant: bool) -> None:
    mu, logvar = map(leaf, moments(4, 5))

    def loss(m, lv):
        z, kl = vae_fast.reparameterize_kl(m, lv)
        return z.pow(3).sum() + kl.sum()

    torch.manual_seed(7)
    want = torch.autograd.grad(loss(mu, logvar), (mu, logvar))
    torch.manual_seed(7)
    checkpoint(loss, mu, logvar, use_reentrant=reentrant).backward()
    assert torch.equal(mu.grad, want[0]) and torch.equal(logvar.grad, want[1])


def test_backward_saves_no_noise(kernels: str) -> None:
    saved: list[Tensor] = []
    mu, logvar = map(leaf, moments(16, 8))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        vae_fast.reparameterize_kl(mu, logvar, prior=(torch.zeros(8), torch.zeros(8)))
    assert sorted(t.numel() for t in saved) == [2, 8, 8, 128, 128]


def test_inputs_changed_in_place_are_noticed(kernels: str) -> None:
    mu, logvar = map(leaf, moments(4, 5))
    hidden = mu * 1
    z, _ = vae_fast.reparameterize_kl(hidden, logvar)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_no_graph_without_gradients(backend: str) -> None:
    mu, logvar = moments(4, 5)
    z, kl = vae_fast.reparameterize_kl(mu, logvar)
    assert z.grad_fn is None and kl.grad_fn is None
    with torch.no_grad():
        z, kl = vae_fast.reparameterize_kl(leaf(mu), logvar)
    assert not z.requires_grad and not kl.requires_grad
    with torch.inference_mode():
        z, kl = vae_fast.reparameterize_kl(mu, logvar)
    assert z.is_inference()


def test_gradcheck(backend: str) -> None:
    """float64, through the public functions: the plain expression and everything that autograd does with it."""
    mu, logvar = (leaf(t) for t in moments(3, 4, dtype=torch.float64))
    prior = tuple(leaf(t) for t in moments(4, dtype=torch.float64, seed=1))

    def f(m, lv, mp, lvp):
        return vae_fast.reparameterize_kl(
            m, lv, prior=(mp, lvp), num_samples=2, clamp=(-2, 2), rng_state=state()
        )

    assert torch.autograd.gradcheck(f, (mu, logvar, *prior))
    assert torch.autograd.gradgradcheck(f, (mu, logvar, *prior))
    packed = leaf(torch.randn(2, 6, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda t: vae_fast.reparameterize_kl_packed(t, rng_state=state()), packed)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 2), (2, 1), (1,), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("draws", [None, 2])
def test_gradcheck_of_the_library_op(shape: tuple[int, ...], draws: int | None) -> None:
    """float64 through the library op checks the closed form that stands for a kernel."""
    mu, logvar = (leaf(t) for t in moments(3, 2, 2, dtype=torch.float64))
    prior = tuple(leaf(t) for t in moments(*shape, dtype=torch.float64, seed=1))

    def f(m, lv, mp, lvp, each):
        options = None, (-0.9, 0.6), draws, True, True, each, *LOGVAR
        return torch.ops.vae_fast.latent(m, lv, 1, mp, lvp, state(), *options)

    for each in (False, True):
        assert torch.autograd.gradcheck(functools.partial(f, each=each), (mu, logvar, *prior))
    packed = leaf(torch.randn(2, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda t: torch.ops.vae_fast.latent(
            t, None, 1, None, None, state(), None, None, draws, True, True, False, *LOGVAR
        ),
        packed,
    )


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    mu, logvar = map(leaf, moments(3001, 67))
    prior = leaf(moments(67)[0]), leaf(torch.zeros(()))
    grads = moments(3001, 67, seed=1)[0], moments(3001, seed=2)[0]

    def compute() -> tuple[Tensor, ...]:
        outputs = vae_fast.reparameterize_kl(mu, logvar, prior=prior, rng_state=state())
        return *outputs, *torch.autograd.grad(outputs, (mu, logvar, *prior), grads)

    assert_same_bits_for_threads(compute)


def test_distributions_beyond_the_range_of_exp(backend: str) -> None:
    """Where exp(-logvar_p) or (mu - mu_p)^2 leaves float32 though the KL divergence does not."""
    rows = [  # mu, logvar, mu_p, logvar_p, KL, and its derivatives by mu, logvar and logvar_p
        (0.0, -88.0, 0.0, -89.0, 0.35914091, 0.0, 0.85914091, -0.85914091),
        (0.0, -300.0, 0.0, -300.0, 0.0, 0.0, 0.0, 0.0),
        (1e-20, -90.0, 0.0, -90.0, 6.1020163e-02, 1.2204033e19, 0.0, -6.1020163e-02),
        (1e19, 90.0, 0.0, 90.0, 4.0970063e-02, 8.1940126e-21, 0.0, -4.0970063e-02),
        (1e30, 200.0, -1e30, 200.0, 2.7677930e-27, 2.7677930e-57, 0.0, -2.7677930e-27),
        (3e-30, -150.0, 1e-30, -151.0, 757699.45, 7.5769909e35, 0.85914091, -757699.95),
        (0.0, 89.0, 0.0, 0.0, 2.2448064e38, 0.0, 2.2448064e38, -2.2448064e38),
        (2e19, 0.0, 0.0, 0.0, 2e38, 2e19, 0.0, -2e38),
        (0.0, 0.0, 1.0, -100.0, math.inf, -math.inf, math.inf, -math.inf),
        (0.0, -1e30, 0.0, 1e30, 1e30, 0.0, -0.5, 0.5),
    ]
    columns = [leaf(torch.tensor(c)[:, None]) for c in zip(*(r[:4] for r in rows), strict=True)]
    want = [torch.tensor(c) for c in zip(*(r[4:] for r in rows), strict=True)]
    kl = vae_fast.kl_divergence(*columns[:2], prior=tuple(columns[2:]))
    by_mu, by_logvar, by_mu_p, by_logvar_p = (g[:, 0] for g in torch.autograd.grad(kl.sum(), columns))
    for got, wanted in zip((kl, by_mu, by_logvar, by_logvar_p), want, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=2e-6, atol=1e-37)
    torch.testing.assert_close(by_mu_p, -by_mu, rtol=0, atol=0)
    mu, logvar = (leaf(torch.tensor(v)) for v in ([0.0, 2e19, 0.0, 3.0], [89.0, 0.0, -1e30, -200.0]))
    kl = vae_fast.kl_divergence(mu, logvar)
    torch.testing.assert_close(
        kl.detach(), torch.tensor([2.2448064e38, 2e38, 5e29, 104.0]), rtol=2e-6, atol=0
    )
    by_mu, by_logvar = torch.autograd.grad(kl.sum(), (mu, logvar))
    assert torch.equal(by_mu, mu)
    torch.testing.assert_close(by_logvar, torch.tensor([2.2448064e38, 0.0, -0.5, -0.5]), rtol=2e-6, atol=0)


def test_samples_of_wide_distributions(backend: str) -> None:
    """exp(logvar / 2) may be too large for float32 where its product with the noise is not."""
    logvar = leaf(torch.tensor([[178.0, 178.0, 200.0, 1e4, 1e4, -1e4]]))
    noise = torch.tensor([[0.25, 0.0, 1e-10, 0.0, 1.0, 1.0]])
    for draws in (None, 2):
        eps = noise if draws is None else noise.expand(draws, 1, 6)
        z = vae_fast.reparameterize(torch.ones(1, 6), logvar, noise=eps, num_samples=draws)
        want = torch.tensor([[1.1224032e38, 1.0, 2.6881171e33, 1.0, math.inf, 1.0]]).expand(z.shape)
        torch.testing.assert_close(z.detach(), want, rtol=2e-6, atol=0)
        weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 1.0]).expand(z.shape)
        (grad,) = torch.autograd.grad((z * weights).sum(), logvar)
        torch.testing.assert_close(grad, 0.5 * (want - 1).view(-1, 1, 6).sum(0), rtol=4e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bounds_are_rounded_to_the_dtype(backend: str, dtype: torch.dtype) -> None:
    """As torch.clamp rounds them. The gradient passes at the bound itself, which torch 2.14's own clamp holds back."""
    mu = torch.tensor([0.3, -1.0], dtype=dtype)
    for bound in (0.1, 0.3, 1 / 3, 7.7):
        at = torch.tensor(bound, dtype=dtype)
        steps = at * torch.tensor([1.0, 1 + 2 * torch.finfo(dtype).eps, 1 - 2 * torch.finfo(dtype).eps])
        logvar = torch.cat((steps, -steps)).to(dtype)[:, None].expand(6, 2)
        results = []
        for clamp in ((-bound, bound), None):
            lv = leaf(logvar.clone())
            held = lv if clamp is not None else likelihoods.clamp(lv, -at, at)
            z, kl = vae_fast.reparameterize_kl(mu.expand(6, 2), held, clamp=clamp, rng_state=state())
            results.append((z, kl, *torch.autograd.grad((z.float().sum(), kl.sum()), lv)))
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want)
        assert (results[0][2][0] != 0).all() and (results[0][2][3] != 0).all()
    packed = leaf(torch.tensor([[0.0, 0.1]], dtype=dtype))
    _, kl = vae_fast.reparameterize_kl_packed(packed, clamp=(-0.1, 0.1), rng_state=state())
    assert torch.autograd.grad(kl, packed)[0][0, 1] != 0
