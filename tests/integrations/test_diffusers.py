"""diffusers: the same samples, KL divergences, likelihoods and gradients with and without the patch."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution as Oobleck
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Gaussian

import vae_fast
from integrations.common import check_moved, check_switch, gradients, leaf, randn
from vae_fast.integrations import diffusers as patched

pytestmark = pytest.mark.no_poison
TORCH: Callable[..., Any] = lambda: patched.patch(noise="torch")  # noqa: E731
CONTEXTS = (contextlib.nullcontext, TORCH)
SHAPES = [(3, 8, 5, 7), (3, 8, 6, 4, 5), (3, 8, 9)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}-D")


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def moments(shape: tuple[int, ...], layout: str = "contiguous", scale: float = 1.0) -> Tensor:
    x = scale * randn(*shape)
    if layout == "channels-last":
        order = (0, *range(2, x.ndim), 1)
        return x.permute(order).contiguous().permute(0, x.ndim - 1, *range(1, x.ndim - 1))
    return x


@each_shape
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["inside", "beyond the clamp"])
def test_gaussian(shape: tuple[int, ...], layout: str, scale: float) -> None:
    """Sample, kl and nll, with every gradient. On 3-D diffusers' kl raises; the right one is compared there."""
    found = []
    dims = [1, 2] if len(shape) == 3 else [1, 2, 3]
    for context in CONTEXTS:
        with context():
            x, y = leaf(moments(shape, layout, scale)), leaf(moments(shape, layout).flip(0))
            torch.manual_seed(0)
            p, q = Gaussian(x), Gaussian(y)
            z = p.sample()
            assert z.dtype == x.dtype
            if len(shape) == 3 and not found:
                kl = 0.5 * (p.mean**2 + p.var - 1 - p.logvar).sum([1, 2])
                kl_pq = (p.mean - q.mean) ** 2 / q.var + p.var / q.var - 1 - p.logvar + q.logvar
                kl_pq = 0.5 * kl_pq.sum([1, 2])
            else:
                kl, kl_pq = p.kl(), p.kl(q)
            outputs = [z, kl, p.nll(z.detach(), dims), p.nll(y[:, :4], dims), p.nll(z, dims=[2]), p.mode()]
            outputs += [kl_pq] if scale == 1 else []
            grads = gradients([o / o.detach().abs().clamp(min=1) for o in outputs], [x, y])
            found.append([*outputs, p.std, p.var, p.logvar, *grads, torch.get_rng_state()])
            strides = [z.stride(), p.mean.stride()]
        assert strides == [z.stride(), p.mean.stride()]
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert a.dtype == b.dtype and (i > 0 or a.stride() == b.stride())
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)


def test_shapes_of_kl() -> None:
    """diffusers' by default, (batch, width) of a video; and each sample's on request."""
    for shape in SHAPES:
        p, q = Gaussian(leaf(moments(shape))), Gaussian(moments(shape).flip(0))
        exact = [0.5 * (p.mean**2 + p.var - 1 - p.logvar).flatten(1).sum(1)]
        true = (p.mean - q.mean) ** 2 / q.var + p.var / q.var - 1 - p.logvar + q.logvar
        exact.append(0.5 * true.flatten(1).sum(1))
        o, r = Oobleck(moments(shape)), Oobleck(moments(shape).flip(0))
        exact.append(0.5 * (o.mean**2 + o.var - 1 - o.logvar).flatten(1).sum(1))
        true = (o.mean - r.mean) ** 2 / r.var + o.var / r.var - 1 - o.logvar + r.logvar
        exact.append(0.5 * true.flatten(1).sum(1))
        with patched.patch(kl="sample"):
            for got, want in zip((p.kl(), p.kl(q), o.kl(), o.kl(r)), exact, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            new = Gaussian(leaf(moments(shape)))
            new.sample()
            torch.testing.assert_close(new.kl(), exact[0], rtol=1e-5, atol=1e-5)
    with patched.patch():
        assert Gaussian(moments((3, 8, 6, 4, 5))).kl().shape == (3, 5)


@each_shape
def test_oobleck(shape: tuple[int, ...]) -> None:
    """Its kl, a mean without the factor 1/2, and with the sign of the log-variances that it has."""
    found = []
    for context in CONTEXTS:
        with context():
            x, y = leaf(moments(shape)), leaf(moments(shape).flip(0))
            torch.manual_seed(0)
            p, q = Oobleck(x), Oobleck(y)
            outputs = [p.sample(), p.kl(), p.kl(q), q.kl(), p.mode(), p.scale]
            assert p.kl().shape == ()
            grads = gradients(outputs, [x, y])
            found.append([*outputs, p.std, p.var, p.logvar, *grads, torch.get_rng_state()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("cls", [Gaussian, Oobleck])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit(cls: type, dtype: torch.dtype) -> None:
    """In float32: as exact as the inputs, and finite where sums and variances leave float16."""
    x = moments((2, 8, 64, 64), scale=2.0).to(dtype)
    exact = cls(x.double())
    with patched.patch(noise="torch"):
        mine = leaf(x)
        p = cls(mine)
        torch.manual_seed(0)
        z, kl = p.sample(), p.kl()
        kl.sum().backward()
        assert z.dtype == dtype and kl.dtype == torch.float32 and mine.grad.dtype == dtype
        torch.testing.assert_close(kl.double(), exact.kl(), rtol=1e-5, atol=0)
        torch.manual_seed(0)
        eps = torch.randn(z.shape, dtype=dtype)
        torch.testing.assert_close(z.double(), exact.mean + exact.std * eps.double(), rtol=1e-2, atol=1e-2)
        if cls is Gaussian:
            large = torch.full((1, 64, 128, 128), 1.5, dtype=dtype)
            hot = torch.cat([torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), 15.0)], 1).to(dtype)
            for parameters in (large, hot):
                kl, nll = cls(parameters).kl(), cls(parameters).nll(parameters.chunk(2, 1)[0])
                torch.testing.assert_close(kl.double(), cls(parameters.double()).kl(), rtol=1e-5, atol=0)
                assert nll.isfinite().all()
    if dtype == torch.float16 and cls is Gaussian:
        assert cls(large).kl().isinf() and cls(hot).kl().isinf()  # theirs


@pytest.mark.parametrize("cls", [Gaussian, Oobleck])
def test_generators(cls: type) -> None:
    """One, a list, a list of one; torch's noise and ours."""
    x = moments((3, 8, 4, 4))
    for generators in (
        lambda: seeded(5)[0],
        lambda: seeded(5, 6, 7),
        lambda: seeded(5),
        lambda: None,
    ):
        torch.manual_seed(2)
        want = cls(x).sample(generators())
        with patched.patch(noise="torch"):
            torch.manual_seed(2)
            torch.testing.assert_close(cls(x).sample(generators()), want)
    with patched.patch():
        together = cls(x).sample(generator=seeded(5, 6, 7))
        for i, seed in enumerate((5, 6, 7)):
            assert torch.equal(together[i : i + 1], cls(x[i : i + 1]).sample(seeded(seed)[0]))
            assert torch.equal(together[i : i + 1], cls(x[i : i + 1]).sample(seeded(seed)))
        assert torch.equal(cls(x).sample(seeded(5)), cls(x).sample(seeded(5)[0]))
        torch.manual_seed(2)
        z = cls(x).sample()
        torch.manual_seed(2)
        assert torch.equal(z, cls(leaf(x)).sample())  # alone, and with its KL divergence
        eps = vae_fast.noise(z.shape, vae_fast.draw_rng_state("cpu", seeded(9)[0]))
        torch.testing.assert_close(cls(x).sample(seeded(9)[0]), cls(x).mean + cls(x).std * eps)
        with pytest.raises(
            ValueError, match="list of generators of length 2, but requested an effective batch size of 3"
        ):
            cls(x).sample(seeded(1, 2))


def test_deterministic() -> None:
    x = moments((3, 8, 4, 4))
    found = []
    for context in CONTEXTS:
        with context():
            torch.manual_seed(0)
            p, o, q = Gaussian(x, deterministic=True), Oobleck(x, deterministic=True), Gaussian(x)
            found.append(
                [
                    p.sample(), p.kl(), p.nll(x), p.mode(), p.std, p.var, p.logvar, q.kl(p),
                    o.sample(), o.kl(), torch.get_rng_state(),
                ]
            )  # fmt: skip
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, equal_nan=True)


@pytest.mark.parametrize("cls", [Gaussian, Oobleck])
def test_backward_twice(cls: type) -> None:
    """As a trainer does that weighs the losses by the gradients of the last layer; and sample after sample."""
    found = []
    for context in CONTEXTS:
        with context():
            x = leaf(moments((3, 8, 4, 4)))
            torch.manual_seed(0)
            p = cls(x)
            z, again = p.sample(), p.sample()
            first = torch.autograd.grad((z * again).sum(), x, retain_graph=True)[0]
            second = torch.autograd.grad(p.kl().sum(), x, retain_graph=True)[0]
            (z.square().sum() + p.kl().sum()).backward()
            with torch.no_grad():
                assert not p.kl().requires_grad
            found.append([first, second, x.grad])
    torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("cls", [Gaussian, Oobleck])
def test_objects_outlive_the_patch(cls: type) -> None:
    x = moments((3, 8, 4, 4))
    before = cls(x)
    want = before.kl(), before.std
    with patched.patch():
        during = cls(x)
        assert "std" not in vars(during) and "var" not in vars(during)
        assert isinstance(during, cls) and type(during).__qualname__ == cls.__qualname__
        torch.testing.assert_close((before.kl(), before.std), want)
        before.sample()
    after = cls(x)
    assert type(after) is cls
    for p in (before, during, copy.deepcopy(during), pickle.loads(pickle.dumps(during))):
        torch.testing.assert_close((p.kl(), p.std), want)
        torch.testing.assert_close(p.kl(after), after.kl(p))
        assert p.sample().shape == p.mode().shape and torch.equal(p.mean, after.mean)


def test_subclass() -> None:
    class Mine(Gaussian):
        def __init__(self, parameters: Tensor) -> None:
            super().__init__(parameters)
            self.more = self.std + 1

    x = moments((3, 8, 4, 4))
    with patched.patch():
        torch.testing.assert_close(Mine(x).kl(), Gaussian(x).kl())
        torch.testing.assert_close(Mine(x).more, Gaussian(x).std + 1)


def test_options() -> None:
    for wrong in ({"noise": "numpy"}, {"kl": "batch"}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} to be"):
            patched.patch(**wrong)


def images() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    options = {"in_channels": 3, "out_channels": 3, "block_out_channels": (8,), "norm_num_groups": 4}
    return AutoencoderKL(**options, latent_channels=4, sample_size=8), randn(4, 3, 8, 8)


def sounds() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 2], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=1,
    )  # fmt: skip
    return model, randn(2, 1, 32)


@pytest.mark.parametrize("make", [images, sounds])
def test_training(make: Callable[[], tuple[Any, Tensor]]) -> None:
    """Four steps on a real autoencoder: the same losses and the same parameters."""
    found = []
    for context in CONTEXTS:
        with context():
            model, x = make()
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
            torch.manual_seed(1)
            losses = []
            for _ in range(4):
                posterior = model.encode(x).latent_dist
                decoded = model.decode(posterior.sample()).sample
                loss = (decoded - x).square().mean() + 1e-2 * posterior.kl().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            model.eval()
            again = model(x, sample_posterior=True, generator=seeded(3)[0]).sample
            found.append([*losses, *model.state_dict().values(), again.detach()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_compiled() -> None:
    """In one graph, as without the patch."""

    def step(x: Tensor) -> Tensor:
        p = Gaussian(x)
        return p.sample().square().sum() + p.kl().sum() + p.std.sum()

    found = []
    for context in CONTEXTS:
        with context():
            torch._dynamo.reset()
            x = leaf(moments((3, 8, 4, 4)))
            torch.manual_seed(0)
            loss = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
            loss.backward()
            found.append([loss, x.grad])
    torch._dynamo.reset()
    torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=2e-5)


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_switch(patched._SWITCH, patched.patch)
    check_moved(patched._SWITCH, patched.patch, monkeypatch)
