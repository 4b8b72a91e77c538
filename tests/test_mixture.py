"""The op `mixture`: mixtures of discretized logistics, next to the lines of PixelCNN++."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from conftest import DTYPES, assert_accurate, assert_same_bits_for_threads, needs_native
from likelihoods import clamp, leaf, make, softplus, uniform
from vae_fast.backends.native import cpu

OP = torch.ops.vae_fast.mixture


def pixel_cnn(params: Tensor, x: Tensor) -> Tensor:
    """discretized_mix_logistic_loss of PixelCNN++ and VDVAE, channels last, per pixel; but log(sigmoid(b) - sigmoid(a))
    as it is, where theirs has a floor of 1e-12 and a density below 1e-5."""
    image = params.ndim > 2
    params, x = (t.movedim(1, -1) if image else t[:, None] for t in (params, 2 * x - 1))
    channels = x.shape[-1]
    mixtures = params.shape[-1] // (10 if channels == 3 else 3)
    log_probs, rest = params[..., :mixtures], params[..., mixtures:]
    rest = rest.reshape(*x.shape, -1)
    means, log_scales = rest[..., :mixtures], clamp(rest[..., mixtures : 2 * mixtures], -7.0)
    x = x[..., None]
    if channels == 3:
        coeffs = torch.tanh(rest[..., 2 * mixtures :])
        red, green = x[..., 0, :], x[..., 1, :]
        m2 = means[..., 1, :] + coeffs[..., 0, :] * red
        m3 = means[..., 2, :] + coeffs[..., 1, :] * red + coeffs[..., 2, :] * green
        means = torch.stack((means[..., 0, :], m2, m3), -2)
    inverse = torch.exp(-log_scales)
    plus, minus = inverse * (x - means + 1 / 255), inverse * (x - means - 1 / 255)
    low, high = -softplus(-plus), -softplus(minus)
    middle = low + high + torch.log(-torch.expm1(-2 / 255 * inverse))
    log_p = torch.where(x < -0.999, low, torch.where(x > 0.999, high, middle)).sum(-2)
    return -torch.logsumexp(log_p + F.log_softmax(log_probs, -1), -1)


def levels(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Images with many blacks and whites."""
    k = (uniform(*shape) * 300 - 22).clamp(0, 255).floor()
    return k.to(torch.uint8) if dtype == torch.uint8 else (k / 255).to(dtype)


def make_params(
    batch: int, channels: int, components: int, *image: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Scales of a few levels to half the range, where training goes."""
    size = components * (3 if channels == 1 else 10)
    params = make(batch, size, *image)
    spread = torch.zeros(size)
    for c in range(channels):
        at = components + c * (size - components) // channels + components
        spread[at : at + components] = -2.5
    return (params * 0.7 + spread.view(-1, *(1,) * len(image))).to(dtype)


def check(params: Tensor, target: Tensor, mask: Tensor | None = None, weight: Tensor | None = None) -> None:
    """Value and gradient against float64; what the mask leaves out is NaN in the parameters that the function gets."""
    dirty = params if mask is None else params.where(mask, math.nan)
    inputs = leaf(dirty)
    nll = vae_fast.discretized_logistic_mixture_nll(inputs, target, mask=mask, weight=weight)
    wide = torch.float64 if torch.float64 in (params.dtype, target.dtype) else torch.float32
    assert nll.dtype == wide and nll.shape == params.shape[:1]
    grad_nll = make(*nll.shape, dtype=wide, seed=5)
    (grad,) = torch.autograd.grad(nll, inputs, grad_nll)
    assert grad.dtype == params.dtype

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        p, x = leaf(params.to(dtype)), target.to(dtype)
        each = pixel_cnn(p, x / 255 if target.dtype == torch.uint8 else x).flatten(1)
        if mask is not None:
            shape = (target.shape[0], 1, *target.shape[2:])
            each = torch.where(mask.expand(shape).reshape(each.shape), each, 0.0)
        out = each.sum(1) * (1 if weight is None else weight.to(dtype))
        return out.detach(), torch.autograd.grad(out, p, grad_nll.to(dtype))[0]

    truth, own = plain(torch.float64), plain(wide)
    assert_accurate("nll", nll.detach(), truth[0], own[0])
    assert_accurate("gradient", grad, truth[1], own[1].to(grad.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_dtypes(backend: str, channels: int, dtype: torch.dtype) -> None:
    for target in {torch.uint8, torch.float32, dtype}:
        check(make_params(3, channels, 4, 5, 7, dtype=dtype), levels(3, channels, 5, 7, dtype=target))


@pytest.mark.parametrize("channels", [1, 3])
def test_components_and_sizes(backend: str, channels: int) -> None:
    for components, *image in ((1, 3), (1,), (2, 17), (5, 4, 4), (10, 8, 8), (3, 1, 2, 3), (13, 33)):
        check(make_params(2, channels, components, *image), levels(2, channels, *image))


def test_layouts(backend: str) -> None:
    for channels in (1, 3):
        params, x = make_params(2, channels, 3, 4, 6), levels(2, channels, 4, 6)
        for of_params in (
            params.contiguous(memory_format=torch.channels_last),
            params.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
            torch.stack((params, params), -1)[..., 0],
            torch.cat((params, params), 1)[:, : params.shape[1]],
        ):
            check(of_params, x)
        for of_x in (
            x.contiguous(memory_format=torch.channels_last),
            x.mT.contiguous().mT,
            x[:1].expand(x.shape),
        ):
            check(params, of_x)


def test_masks_and_weights(backend: str) -> None:
    for channels in (1, 3):
        params, x = make_params(4, channels, 3, 5, 6), levels(4, channels, 5, 6)
        for shape in ((4, 1, 5, 6), (5, 6), (4, 1, 1, 1), (1, 1, 5, 1), ()):
            check(params, x, uniform(*shape, seed=3) > 0.4, uniform(4))
        check(params[:, :, 0, 0], x[:, :, 0, 0], torch.tensor([True, False, True, True])[:, None])
    nll = vae_fast.discretized_logistic_mixture_nll(params, x.float() * math.nan, mask=torch.tensor(False))
    assert torch.equal(nll, torch.zeros(4))


@pytest.mark.parametrize("channels", [1, 3])
def test_extremes(backend: str, channels: int) -> None:
    """Means far away, scales at the bound of -7 and below, where gradients by the scale stop; sure components."""
    params, x = make_params(6, channels, 3, 5), levels(6, channels, 5)
    k = 3
    scales = slice(2 * k, 3 * k)
    params[0] *= 30
    params[1, scales] = -7
    params[2, scales] = -9
    params[3, scales] = 6
    params[4, k : 2 * k] = 40
    params[5, :k] = torch.tensor([80.0, -80, 0])[:, None]
    got, double = leaf(params), leaf(params.double())
    nll = vae_fast.discretized_logistic_mixture_nll(got, x)
    truth = pixel_cnn(double, x.double() / 255).sum(1)
    torch.testing.assert_close(nll.double(), truth, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(nll.sum(), got)
    (want,) = torch.autograd.grad(truth.sum(), double)
    torch.testing.assert_close(grad.double(), want, rtol=1e-3, atol=1e-3)
    assert (grad[2, scales] == 0).all() and (grad[1, scales] != 0).any()


def test_one_channel_and_one_component_is_the_discretized_logistic(backend: str) -> None:
    params, x = make_params(3, 1, 1, 5), levels(3, 1, 5)
    got = vae_fast.discretized_logistic_mixture_nll(params, x)
    want = vae_fast.discretized_logistic_nll(params[:, 1], x[:, 0], params[:, 2])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_probabilities_add_up(backend: str) -> None:
    """Over the 256 levels of one channel, and over those of blue given red and green."""
    params = make_params(1, 1, 4, 1).expand(256, -1, 1)
    nll = vae_fast.discretized_logistic_mixture_nll(
        params, torch.arange(256, dtype=torch.uint8).view(256, 1, 1)
    )
    torch.testing.assert_close((-nll.double()).exp().sum().item(), 1.0, rtol=1e-5, atol=0)
    x = torch.full((256, 3, 1), 40, dtype=torch.uint8)
    params = make_params(1, 3, 1, 1).expand(256, -1, 1)
    x[:, 2, 0] = torch.arange(256, dtype=torch.uint8)
    nll = vae_fast.discretized_logistic_mixture_nll(params, x)
    coefficient, t = torch.tanh(params[0, 3, 0]), 40 / 127.5 - 1
    first = vae_fast.discretized_logistic_nll(
        torch.stack((params[0, 1], params[0, 4] + coefficient * t), 1),
        x[:1, :2, 0],
        params[0, 2::3][:2].view(1, 2),
    )
    torch.testing.assert_close((-nll.double()).exp().sum(), (-first.double()).exp()[0], rtol=1e-5, atol=0)


def test_empty(backend: str) -> None:
    for channels in (1, 3):
        for batch, *image in ((0, 4), (0,), (3, 0), (2, 0, 5)):
            params = leaf(make_params(batch, channels, 2, *image))
            nll = vae_fast.discretized_logistic_mixture_nll(params, levels(batch, channels, *image))
            assert torch.equal(nll, torch.zeros(batch))
            assert torch.equal(torch.autograd.grad(nll.sum(), params)[0], torch.zeros(params.shape))


def test_bad_numbers_stay_in_their_sample(backend: str) -> None:
    params, x = make_params(3, 3, 2, 5), levels(3, 3, 5)
    good = vae_fast.discretized_logistic_mixture_nll(params, x)
    for i in range(20):
        bad = params.clone()
        bad[1, i, 2] = math.nan
        nll = vae_fast.discretized_logistic_mixture_nll(bad, x)
        assert nll[1].isnan()
        assert torch.equal(nll[[0, 2]], good[[0, 2]])


def test_autograd_behaviour(kernels: str) -> None:
    params, x, mask = leaf(make_params(3, 3, 2, 5)), levels(3, 3, 5), uniform(3, 1, 5) > 0.3
    nll = vae_fast.discretized_logistic_mixture_nll(params, x, mask=mask)
    (first,) = torch.autograd.grad(nll.sum(), params, retain_graph=True)
    (again,) = torch.autograd.grad(nll, params, torch.ones(3), create_graph=True)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second derivative"):
        again.sum().backward()
    assert vae_fast.discretized_logistic_mixture_nll(params.detach(), x).grad_fn is None
    for early in (False, True):
        through_op, _ = OP(params, x, mask, False, early)
        torch.testing.assert_close(through_op, nll)
        torch.testing.assert_close(torch.autograd.grad(through_op.sum(), params)[0], first)


def test_gradcheck() -> None:
    """The reference, and in float64 through the library op the closed form that stands for a kernel."""
    nll = vae_fast.discretized_logistic_mixture_nll
    mask = torch.tensor([[[True, False]]])
    for channels in (1, 3):
        params, x = leaf(make_params(1, channels, 2, 2, dtype=torch.float64)), levels(1, channels, 2)
        assert torch.autograd.gradcheck(lambda p, x=x: nll(p, x), params)
        for m, *options in (
            (None, False, False),
            (mask, True, False),
            (mask, False, True),
            (mask, True, True),
        ):
            assert torch.autograd.gradcheck(lambda p, x=x, m=m, o=options: OP(p, x, m, *o)[0], params)


@needs_native
def test_the_gradient_with_the_value_or_after_it() -> None:
    """Two ways through the kernels: the same value, and the same gradient except one rounding more."""
    for channels, dtype in itertools.product((1, 3), (torch.float32, torch.bfloat16)):
        params, x = make_params(3, channels, 4, 70, dtype=dtype), levels(3, channels, 70)
        for mask in (None, uniform(3, 70) > 0.3):
            nll, unit, value = torch.full((3,), math.nan), torch.full_like(params, math.nan), torch.empty(3)
            cpu.mixture_forward(params, x, mask, nll=nll, grad_params=unit)
            cpu.mixture_forward(params, x, mask, nll=value)
            after, grad_nll = torch.full_like(params, math.nan), torch.tensor([1.0, -2.0, 0.5])
            cpu.mixture_backward(params, x, mask, grad_nll, grad_params=after)
            torch.testing.assert_close(nll, value, rtol=1e-6, atol=0)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(
                unit * grad_nll.view(3, 1, 1).to(dtype), after, rtol=2 * eps, atol=1e-6
            )


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    cases = [(leaf(make_params(3, c, 5, 67, 31)), levels(3, c, 67, 31)) for c in (1, 3)]
    grad_nll = torch.tensor([1.0, -2.0, 0.5])

    def compute() -> list[Tensor]:
        result = []
        for params, x in cases:
            nll = vae_fast.discretized_logistic_mixture_nll(params, x)
            result += [nll, *torch.autograd.grad(nll, params, grad_nll)]
        return result

    assert_same_bits_for_threads(compute)


def test_components_that_cannot_be(backend: str) -> None:
    """Logits of finfo.min and -inf leave a component out: the others are as if there were no more of them."""
    for lowest in (torch.finfo(torch.float32).min, -math.inf):
        params, x = make_params(2, 1, 4, 5), levels(2, 1, 5)
        params[:, 1], params[1, 3] = lowest, lowest
        params = leaf(params)
        nll = vae_fast.discretized_logistic_mixture_nll(params, x)
        (grad,) = torch.autograd.grad(nll.sum(), params)
        for i, kept in enumerate(([0, 2, 3], [0, 2])):
            places = [j + k for j in (0, 4, 8) for k in kept]
            some = leaf(params[i : i + 1, places].detach())
            want = vae_fast.discretized_logistic_mixture_nll(some, x[i : i + 1])
            torch.testing.assert_close(nll[i], want[0])
            (slope,) = torch.autograd.grad(want, some)
            torch.testing.assert_close(grad[i, places], slope[0])
            assert not grad[i, [j for j in range(12) if j not in places]].any()
    impossible = torch.full((1, 3, 2), -math.inf)
    assert vae_fast.discretized_logistic_mixture_nll(impossible, levels(1, 1, 2)).isnan()


def test_means_and_scales_beyond_the_range_of_exp(backend: str) -> None:
    """-log p is a number where p is less than float32 holds; it is infinite only where it is itself too large."""
    largest, k = torch.finfo(torch.float32).max, 100 / 255
    level = math.log(255 / 2)  # of a density, which is 1/4 at the mean
    far = 1e38 * math.exp(-88)
    rows = [  # mean, log-scale, x, -log p
        (-0.2, 85.0, k, 85 + level + math.log(4)),
        (-0.2, 300.0, k, 300 + level + math.log(4)),
        (0.3, largest, k, largest),
        (0.3, largest, 0.0, math.log(2)),
        (1e38, 88.0, k, 88 + level + far + 2 * math.log1p(math.exp(-far))),
        (largest, 0.0, k, largest),
        (largest, 0.0, 1.0, 0.0),
        (largest, -7.0, k, math.inf),
    ]
    mean, scale, x, want = map(torch.tensor, zip(*rows, strict=True))
    likely = torch.tensor([[0.0], [-0.2], [-3.0]]).expand(3, len(rows)).T[..., None]  # another component
    one = torch.stack((torch.zeros_like(mean), mean, scale), 1)[..., None]
    for params in (one, one.repeat_interleave(3, 1)):  # alike components are as one
        params = leaf(params)
        nll = vae_fast.discretized_logistic_mixture_nll(params, x[:, None, None])
        torch.testing.assert_close(nll.detach(), want, rtol=1e-6, atol=1e-30)
        (grad,) = torch.autograd.grad(nll[:-1].sum(), params)  # which is not finite where nll is not
        by_scale = torch.tensor([1.0, 1.0, 1.0, 0.0, 1 - far * math.tanh(far / 2), -largest, 0.0])
        components = params.shape[1] // 3
        got = grad[:-1, 2 * components :, 0].double().sum(1)
        torch.testing.assert_close(got, by_scale.double(), rtol=1e-6, atol=1e-6)
    both = torch.stack((likely, one), 2).flatten(1, 2)
    nll = vae_fast.discretized_logistic_mixture_nll(leaf(both), x[:, None, None])
    alone = vae_fast.discretized_logistic_mixture_nll(likely.contiguous(), x[:, None, None])
    torch.testing.assert_close(nll[[0, 1, 2, 4, 5, 7]], alone[[0, 1, 2, 4, 5, 7]] + math.log(2))
