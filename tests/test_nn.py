"""vae_fast.nn: what the VAE returns, against the formulas written out in float64 with the op's own noise."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_fast
from conftest import state
from vae_fast.nn import (
    VAE,
    Bernoulli,
    Categorical,
    ConvDecoder,
    ConvEncoder,
    Gaussian,
    MLPDecoder,
    MLPEncoder,
    Poisson,
    VAEOutput,
)

GAUSSIANS = [0.3, "learned", "decoder"]
LIKELIHOODS: list[tuple[str, dict[str, Any]]] = [
    ("bernoulli", {}),
    *(("gaussian", {"variance": v}) for v in GAUSSIANS),
]
IDS = ["bernoulli", "gaussian-fixed", "gaussian-learned", "gaussian-decoder"]


class Pair(nn.Module):
    """Two tensors from a network that gives them side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network(x).chunk(2, dim=1)


def make(likelihood: str = "bernoulli", options: dict[str, Any] | None = None, **kwargs: Any) -> VAE:
    torch.manual_seed(0)
    options = options or {}
    n = 2 if options.get("variance") == "decoder" else 1
    model = VAE(MLPEncoder(12, 16, 3), MLPDecoder(3, 16, (4, 3), n), likelihood, **options, **kwargs)
    if isinstance(getattr(model.likelihood, "logvar", None), nn.Parameter):
        nn.init.constant_(model.likelihood.logvar, -0.7)
    return model


def batch(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand((n, 4, 3), generator=torch.Generator().manual_seed(1)).to(dtype)


def expected(model: VAE, x: Tensor, draws: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """nll, kl and z from the formulas, in float64, with the noise of `state()`."""
    encoder, decoder = model.encoder, model.decoder
    mu, logvar = encoder(x).double().chunk(2, dim=1)
    kl = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)
    eps = vae_fast.noise(mu.shape, state(), num_samples=draws, dtype=torch.float64)
    z = mu + (0.5 * logvar).exp() * eps
    nlls = []
    for one in z if draws else [z]:
        output = decoder(one.float()).double()
        target = x.double()
        if isinstance(model.likelihood, Bernoulli):
            nll = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        else:
            assert isinstance(model.likelihood, Gaussian)
            variance = model.likelihood.variance
            mean, lv = output, torch.tensor(0.0)
            if variance == "decoder":
                mean, lv = output.chunk(2, dim=1)
            elif variance == "learned":
                lv = torch.as_tensor(model.likelihood.logvar).double()
            else:
                lv = torch.tensor(math.log(variance), dtype=torch.float64)
            nll = 0.5 * (math.log(2 * math.pi) + lv + (target - mean) ** 2 / lv.exp())
        nlls.append(nll.flatten(1).sum(1))
    return torch.stack(nlls).mean(0), kl, z


@pytest.mark.parametrize("draws", [None, 4])
@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_output_is_the_formula(likelihood: str, options: dict[str, Any], draws: int | None) -> None:
    model, x = make(likelihood, options, beta=0.5, num_samples=draws), batch()
    output = model(x, rng_state=state())
    nll, kl, z = expected(model, x, draws)
    assert output.nll.shape == output.kl.shape == (5,)
    assert output.z.shape == ((4, 5, 3) if draws else (5, 3))
    torch.testing.assert_close(output.nll.double(), nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.kl.double(), kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.z.double(), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss.double(), (nll + 0.5 * kl).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_gradients_are_the_formulas(likelihood: str, options: dict[str, Any], draws: int | None) -> None:
    model, x = make(likelihood, options, beta=0.5, num_samples=draws), batch()
    got = torch.autograd.grad(model(x, rng_state=state()).loss, list(model.parameters()))
    nll, kl, _ = expected(model, x, draws)
    want = torch.autograd.grad((nll + 0.5 * kl).mean(), list(model.parameters()))
    for (name, _), g, w in zip(model.named_parameters(), got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_elbo_leaves_beta_out() -> None:
    model, x = make(beta=7.0), batch()
    nll, kl, _ = expected(model, x)
    torch.testing.assert_close(model.elbo(x, rng_state=state()).double(), -(nll + kl), rtol=1e-5, atol=1e-5)
    nll, kl, _ = expected(model, x, 6)
    elbo = model.elbo(x, num_samples=6, rng_state=state())
    torch.testing.assert_close(elbo.double(), -(nll + kl), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_integers_mean_255ths_and_bools_mean_0_and_1(likelihood: str, options: dict[str, Any]) -> None:
    model = make(likelihood, options)
    grey = (batch() * 255).to(torch.uint8)
    for x, value in ((grey, grey.float() / 255), (grey > 100, (grey > 100).float())):
        got, want = model(x, rng_state=state()), model(value, rng_state=state())
        torch.testing.assert_close(got.nll, want.nll)
        torch.testing.assert_close(got.kl, want.kl)
        torch.testing.assert_close(model.reconstruct(x), model.reconstruct(value))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_two_tensors_or_one_with_both(side: str) -> None:
    one = make("gaussian", {"variance": "decoder"}, clamp=(-0.1, 0.1))
    two = make("gaussian", {"variance": "decoder"}, clamp=(-0.1, 0.1))
    setattr(two, side, Pair(getattr(two, side)))
    x = batch()
    for a, b in zip(one(x, rng_state=state()), two(x, rng_state=state()), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.encode(x), two.encode(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.reconstruct(x), two.reconstruct(x))


def test_clamp_bounds_the_posterior() -> None:
    x = batch()
    free, bound = make(), make(clamp=(-0.05, 0.05))
    assert free.encode(x)[1].abs().max() > 0.05
    mu, logvar = bound.encode(x)
    assert logvar.abs().max() <= 0.05
    torch.testing.assert_close(bound(x).kl, vae_fast.kl_divergence(mu, logvar))


def test_mlp_is_the_network_of_pytorch_examples() -> None:
    """fc1, fc21, fc22, fc3, fc4 of its main.py, with our weights."""
    torch.manual_seed(3)
    model = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784))
    assert [tuple(p.shape) for p in model.parameters()] == [
        *((400, 784), (400,), (40, 400), (40,)),
        *((400, 20), (400,), (784, 400), (784,)),
    ]
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    for w, b in (
        (w1, b1),
        (w2, b2),
        (w3, b3),
        (w4, b4),
    ):  # nn.Linear's own start: uniform to 1 / sqrt(inputs)
        bound = w.shape[1] ** -0.5
        assert 0.98 * bound < w.abs().max() <= bound
        assert b.abs().max() <= bound
    x = torch.rand((6, 784))
    h1 = F.relu(F.linear(x, w1, b1))
    mu, logvar = F.linear(h1, w2[:20], b2[:20]), F.linear(h1, w2[20:], b2[20:])
    z = mu + vae_fast.noise(mu.shape, state()) * torch.exp(0.5 * logvar)
    recon = torch.sigmoid(F.linear(F.relu(F.linear(z, w3, b3)), w4, b4))
    bce = F.binary_cross_entropy(recon, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    torch.testing.assert_close(model(x, rng_state=state()).loss * 6, bce + kld, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("parameters", [1, 2])
@pytest.mark.parametrize("shape", [(28, 20), (1, 8, 8), (3, 9, 7)], ids=str)
def test_convolutions_keep_any_size(shape: tuple[int, ...], parameters: int) -> None:
    variance = "decoder" if parameters == 2 else 1.0
    encoder, decoder = ConvEncoder(shape, (4, 6), 5), ConvDecoder(5, (4, 6), shape, parameters)
    model = VAE(encoder, decoder, "gaussian", variance=variance, num_samples=2)
    model(torch.rand((3, *shape))).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.generate(2).shape == (2, *shape)
    assert model(torch.rand((0, *shape))).nll.shape == (0,)


def test_generate_follows_its_generator() -> None:
    model = make()
    one, two, other = (model.generate(4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (4, 4, 3)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.min() > 0
    assert one.max() < 1
    assert not one.requires_grad


def test_forward_follows_torchs_generator() -> None:
    model, x = make(), batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(x).loss.item())
    assert losses[0] == losses[1] != losses[2]
    generator = torch.Generator().manual_seed(1)
    assert model(x, generator=generator).loss.item() == losses[0]


@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_samples_have_the_mean_and_variance(likelihood: str, options: dict[str, Any]) -> None:
    model = make(likelihood, options)
    params = model.likelihood.split(model.decoder(torch.randn((1, 3)).expand(20_000, 3)))
    draws = model.likelihood.sample(params, torch.Generator().manual_seed(0))
    mean = model.likelihood.mean(params)[0]
    variance = {
        "bernoulli": lambda: mean * (1 - mean),
        "decoder": lambda: params[1][0].exp(),
        "learned": lambda: torch.full_like(mean, math.exp(-0.7)),
        0.3: lambda: torch.full_like(mean, 0.3),
    }[options.get("variance", likelihood)]()
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=5 * (variance.max() / 20_000).sqrt().item())
    torch.testing.assert_close(draws.var(0), variance, rtol=0.06, atol=0.01)


def test_learned_variance_settles_at_the_mean_squared_error() -> None:
    likelihood = Gaussian("learned")
    mean, x = torch.randn((50, 6)), torch.randn((50, 6))
    nn.init.constant_(likelihood.logvar, (x - mean).pow(2).mean().log().item())
    likelihood.nll((mean,), x).sum().backward()
    assert abs(likelihood.logvar.grad.item()) < 1e-3  # of 150 for either half of it


@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_autocast(likelihood: str, options: dict[str, Any]) -> None:
    model, x = make(likelihood, options), batch()
    exact = model(x, rng_state=state())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, rng_state=state())
    assert output.z.dtype == torch.bfloat16
    assert output.nll.dtype == output.kl.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.nll, exact.nll, rtol=0.03, atol=0.1)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


# What the encoder is given


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
GREY = (batch() * 255).to(torch.uint8)
GIVEN: list[tuple[str, Tensor]] = [
    *(("bernoulli", x) for x in (GREY, GREY > 100, (GREY > 100).long(), (GREY > 100).short())),
    *(("bernoulli", batch(5, d)) for d in DTYPES),
    *(("gaussian", x) for x in (GREY, GREY > 100, (GREY > 100).int(), batch(5, torch.float64))),
    *(("poisson", (GREY // 50).to(d)) for d in (torch.uint8, torch.int16, torch.int32, torch.int64, *DTYPES)),
    *(("multinomial", (GREY // 50).flatten(1).to(d)) for d in (torch.uint8, torch.int64, torch.float64)),
]


def given_to(model: VAE, x: Tensor, **kwargs: Any) -> tuple[Tensor, VAEOutput]:
    """What the encoder was given, and the output."""
    seen: list[Tensor] = []
    handle = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = model(x, **kwargs)
    handle.remove()
    return seen[0], output


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "x"), GIVEN, ids=[f"{n}-{x.dtype}" for n, x in GIVEN])
def test_encoder_is_given_its_own_dtype(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """And the likelihood is given x itself."""
    torch.manual_seed(0)
    model = VAE(MLPEncoder(12, 8, 3), MLPDecoder(3, 8, x.shape[1:]), name).to(dtype)
    given, output = given_to(model, x)
    exact = x.double() / 255 if x.dtype == torch.uint8 and name in ("bernoulli", "gaussian") else x.double()
    assert given.dtype == dtype
    assert torch.equal(given, exact.to(dtype))
    assert output.z.dtype == dtype
    params = model.likelihood.split(model.decoder(output.z))
    assert torch.equal(output.nll, model.likelihood.nll(params, x))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.reconstruct(x).isfinite().all()
    assert torch.equal(model.decode(torch.ones((2, 3))), model.decode(torch.ones((2, 3), dtype=dtype)))
    assert model.generate(2).isfinite().all()


@pytest.mark.no_poison
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoder_is_given_its_own_dtype_when_compiled(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for x in (GREY, GREY > 100, batch(5, torch.float64)):
        torch.testing.assert_close(compiled(x, rng_state=state()).loss, model(x, rng_state=state()).loss)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [GREY, GREY > 100, *(batch(5, d) for d in DTYPES)], ids=lambda x: str(x.dtype))
def test_encoder_under_autocast(x: Tensor, dtype: torch.dtype, autocast: torch.dtype) -> None:
    model = make().to(dtype)
    with torch.autocast("cpu", autocast):
        given, output = given_to(model, x)
    assert output.loss.isfinite()
    if dtype == torch.float64 or x.dtype == torch.float64:  # which autocast leaves alone
        assert given.dtype == dtype
    elif x.dtype in (torch.float32, autocast):  # which it converts
        assert given is x


class OwnFirst(nn.Module):
    """Reads x in float32, though its first parameter is of another dtype."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.linear = first.bfloat16(), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :6]


class OneHot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x, 5).flatten(1).float()


CLASSES = (GREY // 60).flatten(1)
EMBEDDED = (nn.Embedding(5, 2), nn.Flatten(), nn.Linear(24, 6))
# encoder, likelihood, x, the dtype that the encoder is given
UNUSUAL: dict[str, tuple[nn.Module, str, Tensor, torch.dtype]] = {
    "embedding": (nn.Sequential(*EMBEDDED), "categorical", CLASSES, torch.int64),
    "embedding of bits": (nn.Sequential(*EMBEDDED), "bernoulli", (CLASSES > 1).long(), torch.int64),
    "embedding of int32": (nn.Sequential(*EMBEDDED), "categorical", CLASSES.int(), torch.int32),
    "one-hot": (nn.Sequential(OneHot(), nn.Linear(60, 6)), "categorical", CLASSES.short(), torch.int64),
    "classes as numbers": (MLPEncoder(12, 8, 3), "categorical", CLASSES.long(), torch.float32),
    "no parameters": (NoParameters(), "bernoulli", GREY.flatten(1), torch.float32),
    "no parameters, float64": (NoParameters(), "gaussian", batch(5, torch.float64).flatten(1), torch.float64),
    "an unused embedding": (OwnFirst(nn.Embedding(3, 3)), "bernoulli", GREY.flatten(1), torch.float32),
    "several dtypes": (OwnFirst(nn.Linear(2, 2)), "bernoulli", batch().flatten(1), torch.float32),
    "lazy": (nn.Sequential(nn.Flatten(), nn.LazyLinear(6)), "bernoulli", GREY.flatten(1), torch.float32),
}


@pytest.mark.parametrize(("encoder", "name", "x", "dtype"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_encoders(encoder: nn.Module, name: str, x: Tensor, dtype: torch.dtype) -> None:
    shape = (12, 5) if name == "categorical" else 12
    decoder = MLPDecoder(3, 8, shape)
    if x.dtype == torch.float64:
        decoder.double()
    given, output = given_to(VAE(encoder, decoder, name, latent_shape=(3,)), x)
    assert given.dtype == dtype
    assert output.loss.isfinite()


# A sample without its batch dimension, x of another shape


def conv(*shape: int) -> VAE:
    return VAE(ConvEncoder(shape, (4,), 2), ConvDecoder(2, (4,), shape))


def own(n: int = 12) -> VAE:
    """Networks that tell nothing of their shapes but the decoder's last layer."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 6))
    return VAE(encoder, nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, n)))


WRONG_SHAPES: dict[str, tuple[Callable[[], VAE], tuple[int, ...], str]] = {
    "mlp": (make, (4, 3), r"\(batch, 4, 3\), but got \(4, 3\); x.unsqueeze\(0\)"),
    "conv": (lambda: conv(8, 6), (8, 6), r"\(batch, 8, 6\), but got \(8, 6\)"),
    "channels": (lambda: conv(3, 8, 6), (3, 8, 6), r"\(batch, 3, 8, 6\), but got \(3, 8, 6\)"),
    "one channel": (lambda: conv(1, 8, 6), (1, 8, 6), r"\(batch, 1, 8, 6\), but got \(1, 8, 6\)"),
    "flat": (own, (12,), r"\(batch, 12\), but got \(12,\)"),
    "image for flat": (own, (3, 4), r"\(batch, 12\) as the decoder's output, but got \(3, 4\)"),
    "too many": (make, (5, 13), r"\(batch, 4, 3\) as the decoder's output, but got \(5, 13\)"),
    "colours": (lambda: conv(8, 6), (2, 3, 8, 6), r"\(batch, 8, 6\).*got \(2, 3, 8, 6\)"),
    "no dims": (make, (), r"\(batch, 4, 3\), but got \(\)"),
}


@pytest.mark.parametrize("method", ["forward", "elbo", "encode", "reconstruct"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("model", "shape", "match"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_shapes_are_named(
    model: Callable[[], VAE], shape: tuple[int, ...], match: str, train: bool, method: str
) -> None:
    with pytest.raises(ValueError, match="expected x to have shape " + match) as caught:
        getattr(model().train(train), method)(torch.rand(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("own", "given"), [("meta", "cpu"), ("cpu", "meta")])
def test_another_device_is_named(own: str, given: str) -> None:
    match = f"expected x to be on {own} like the encoder's parameters, but got {given}; the encoder says: "
    with pytest.raises(ValueError, match=match):
        make().to(own).encode(batch().to(given))


def test_a_latent_without_its_batch() -> None:
    with pytest.raises(ValueError, match=r"expected z to have shape \(batch, 3\), but got \(3,\)"):
        make().decode(torch.zeros(3))


def test_other_errors_of_an_encoder_are_its_own() -> None:
    """Whatever they are, where x has the decoder's shape or this is not known."""
    model = make()
    model.encoder[1] = nn.Linear(7, 16)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        model(batch())
    model = VAE(nn.Linear(4, 4), Pair(nn.Linear(2, 8)), "gaussian", variance="decoder")
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes.*\n.*x has shape \(3, 5\)"):
        model(torch.rand(3, 5))


def test_networks_that_are_no_modules() -> None:
    model = VAE(lambda x: x[:, :6], lambda z: z.repeat(1, 4), latent_shape=3)
    assert model(GREY.flatten(1)).loss.isfinite()
    assert model.reconstruct(GREY.flatten(1)).shape == (5, 12)
    assert model.generate(2).shape == (2, 12)


def test_sizes_may_vary() -> None:
    """latent_shape is that of `generate`: a fully convolutional model takes images of other sizes."""
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1))
    decoder = nn.Sequential(nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1))
    model = VAE(encoder, decoder, latent_shape=(2, 4, 4))
    assert model.data_shape == (1, 8, 8)
    for size in (8, 12):
        x = torch.rand((3, 1, size, size))
        assert model(x).nll.shape == (3,)
        assert model.reconstruct(x).shape == x.shape


def test_a_time_distributed_decoder() -> None:
    """Its last layer alone does not tell that x has positions."""

    class Positions(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.chunk(2, dim=-1)

    encoder = nn.Sequential(nn.Linear(6, 4), Positions())
    model = VAE(encoder, nn.Sequential(nn.Linear(2, 6)), "gaussian")
    assert model(torch.rand((3, 5, 6))).nll.shape == (3,)


@pytest.mark.no_poison
@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_compiles_without_a_break(likelihood: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()  # what other tests compiled counts against its limit
    model = make(likelihood, options, num_samples=2 if likelihood == "bernoulli" else None)
    x = (batch() * 255).to(torch.uint8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, rng_state=state()), model(x, rng_state=state())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    parameters = list(model.parameters())
    grads = zip(
        torch.autograd.grad(got.loss, parameters), torch.autograd.grad(want.loss, parameters), strict=True
    )
    for a, b in grads:
        torch.testing.assert_close(a, b)
    assert compiled(x).loss.item() != compiled(x).loss.item()  # fresh noise in every call


def test_state_dict_and_eval() -> None:
    model = make("gaussian", {"variance": "learned"})
    other = make("gaussian", {"variance": "learned"})
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert "likelihood.logvar" in model.state_dict()
    other.load_state_dict(model.state_dict())
    x = batch()
    assert torch.equal(other.eval()(x, rng_state=state()).loss, model(x, rng_state=state()).loss)


def _decoder(x: Tensor) -> tuple[Tensor, ...]:
    return (x, x, x)


ERRORS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("name", lambda: make("bernouli"), ValueError, "'bernouli'"),
    ("option", lambda: VAE(nn.Identity(), nn.Identity(), variance=1.0), TypeError, "variance"),
    (
        "zero",
        lambda: Gaussian(0.0),
        ValueError,
        'expected variance to be a finite number above 0, "learned", "feature" or "decoder", but got 0.0',
    ),
    (
        "nan",
        lambda: Gaussian(math.nan),
        ValueError,
        'expected variance to be a finite number above 0, "learned", "feature" or "decoder", but got nan',
    ),
    ("word", lambda: Gaussian("lerned"), ValueError, "'lerned'"),
    ("module", lambda: VAE(nn.Identity(), nn.Identity(), Gaussian(), variance=2.0), TypeError, "variance"),
    (
        "outputs",
        lambda: Gaussian("decoder").split(_decoder(torch.ones(2, 2))),
        ValueError,
        r"expected decoder to return 2 tensors for Gaussian\(variance='decoder'\), but got 3",
    ),
    ("odd", lambda: Gaussian("decoder").split(torch.ones(2, 3)), ValueError, r"shape \(2, 3\)"),
    ("latent", lambda: VAE(nn.Identity(), nn.Linear(2, 2)).generate(1), ValueError, "latent_shape"),
    (
        "x",
        lambda: make()(torch.rand(5, 2, 6)),
        ValueError,
        r"expected x to have shape \(batch, 4, 3\) .* Bernoulli\(\) of \(4, 3\) .*, but got \(5, 2, 6\)",
    ),
    (
        "image",
        lambda: ConvEncoder((784,), (4,), 2),
        ValueError,
        r"expected shape to be \(height, width\) or \(channels, height, width\), but got \(784,\)",
    ),
    (
        "priors",
        lambda: make(priors=None),
        TypeError,
        r"does not take priors \(it takes binarize\), nor",
    ),
    (
        "typo",
        lambda: make("gaussian", {"variance": 1.0, "varience": 2}),
        TypeError,
        "take varience .it takes variance, features",
    ),
    (
        "priors, module",
        lambda: VAE(nn.Identity(), nn.Identity(), Gaussian(), priors=1),
        TypeError,
        "not take priors.*option of the model",
    ),
    (
        "beta",
        lambda: make(beta=-1),
        ValueError,
        "expected beta to be a finite number of at least 0, but got -1",
    ),
    ("beta nan", lambda: make(beta=math.nan), ValueError, "but got nan"),
    ("beta inf", lambda: make(beta=math.inf), ValueError, "but got inf"),
    (
        "beta str",
        lambda: make(beta="1"),
        TypeError,
        "expected beta to be a number or a vae_fast.nn.Schedule, but got '1'",
    ),
    ("beta None", lambda: make(beta=None), TypeError, "expected beta to be a number or .*, but got None"),
    ("beta bool", lambda: make(beta=True), TypeError, "but got True"),
    ("beta tensor", lambda: make(beta=torch.tensor(-1.0)), ValueError, "but got -1.0"),
    ("beta list", lambda: make(beta=[1.0]), TypeError, "expected beta to be a number"),
    ("draws", lambda: make(num_samples=0), ValueError, "expected num_samples to be at least 1, but got 0"),
    (
        "draws float",
        lambda: make(num_samples=2.0),
        TypeError,
        "expected num_samples to be an int, but got float",
    ),
    (
        "draws bool",
        lambda: make(num_samples=True),
        TypeError,
        "expected num_samples to be an int, but got bool",
    ),
    (
        "draws of elbo",
        lambda: make().elbo(batch(), num_samples=0),
        ValueError,
        "expected num_samples to be at least 1, but got 0",
    ),
    (
        "clamp",
        lambda: make(clamp=(5, -5)),
        ValueError,
        r"expected clamp to have lo <= hi, but got \(5.0, -5.0\)",
    ),
    (
        "clamp nan",
        lambda: make(clamp=(math.nan, 1)),
        ValueError,
        r"expected clamp to have lo <= hi, but got \(nan, 1.0\)",
    ),
    (
        "clamp one",
        lambda: make(clamp=3),
        TypeError,
        r"expected clamp to be a pair of numbers \(lo, hi\), but got 3",
    ),
    (
        "clamp str",
        lambda: make(clamp=("-1", "1")),
        TypeError,
        r"expected clamp to be a pair of numbers \(lo, hi\), but got \('-1', '1'\)",
    ),
    (
        "clamp word",
        lambda: make(clamp="12"),
        TypeError,
        r"expected clamp to be a pair of numbers \(lo, hi\), but got '12'",
    ),
    ("latent word", lambda: make(latent_shape="3"), TypeError, "expected latent_shape to be an int"),
    ("latent float", lambda: make(latent_shape=(3.5,)), TypeError, "latent_shape .* got 3.5"),
    (
        "fused",
        lambda: make(fused_head=1),
        ValueError,
        'expected fused_head to be True, False or "auto", but got 1',
    ),
    ("validate", lambda: make(validate=1), TypeError, "expected validate to be a bool, but got 1"),
    ("validate set", lambda: setattr(make(), "validate", "no"), TypeError, "expected validate to be a bool"),
    ("binarize", lambda: make("bernoulli", {"binarize": "yes"}), TypeError, "expected binarize to be a bool"),
    (
        "None",
        lambda: make("gaussian", {"variance": None}),
        ValueError,
        'expected variance to be a finite number above 0, "learned", "feature" or "decoder", but got None',
    ),
    (
        "pair",
        lambda: make("gaussian", {"variance": (1, 2)}),
        ValueError,
        r'expected variance to be a finite number above 0, "learned", "feature" or "decoder", but got \(1, 2\)',
    ),
    (
        "minus",
        lambda: make("gaussian", {"variance": torch.tensor(-1.0)}),
        ValueError,
        'expected variance to be a finite number above 0, "learned", "feature" or "decoder", but got -1.0',
    ),
    ("features", lambda: Gaussian("feature", features="12"), TypeError, "expected features to be an int"),
    (
        "library",
        lambda: Poisson(library="3"),
        ValueError,
        "expected library to be a finite number above 0, but got '3'",
    ),
    (
        "link",
        lambda: Poisson(link=None),
        ValueError,
        "expected link to be one of softmax, exp, softplus, but got None",
    ),
    (
        "list",
        lambda: make(["bernoulli"]),
        ValueError,
        r"expected likelihood to be one of bernoulli, .*, but got \['bernoulli'\]",
    ),
    (
        "class",
        lambda: make(Bernoulli),
        ValueError,
        "expected likelihood to be one of bernoulli, .*, but got <class '.*Bernoulli'>",
    ),
    (
        "encoder",
        lambda: VAE(None, nn.Linear(3, 12)),
        TypeError,
        "expected encoder to be an nn.Module, but got None",
    ),
    (
        "decoder",
        lambda: VAE(nn.Linear(12, 6), 3),
        TypeError,
        "expected decoder to be an nn.Module, but got 3",
    ),
    ("n", lambda: make().generate(-1), ValueError, "expected n to be at least 0, but got -1"),
    ("n float", lambda: make().generate(2.5), TypeError, "expected n to be an int, but got 2.5"),
    ("hidden", lambda: MLPEncoder(12, "8", 3), TypeError, "expected hidden to be an int, but got '8'"),
    (
        "latents",
        lambda: MLPDecoder((3, 4), 8, 12),
        TypeError,
        r"expected latent to be an int, but got \(3, 4\)",
    ),
    ("numpy x", lambda: make()(batch().numpy()), TypeError, "expected x to be a tensor, but got ndarray"),
    ("list x", lambda: make().encode([batch()]), TypeError, "expected x to be a tensor, but got list"),
    (
        "rng_state",
        lambda: make()(batch(), rng_state=5),
        TypeError,
        "expected rng_state to be an int64 tensor, but got int",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_errors(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


# the same with a number of Python's, of numpy's and of torch's
NUMBERS: dict[str, Callable[[Callable[[float], Any]], Any]] = {
    "beta": lambda n: make(beta=n(2)).beta,
    "num_samples": lambda n: make(num_samples=n(2)).num_samples,
    "clamp": lambda n: make(clamp=(n(-2), n(2))).clamp,
    "latent_shape": lambda n: make(latent_shape=n(3)).latent_shape,
    "latent_shape, several": lambda n: make(latent_shape=[n(3)]).latent_shape,
    "variance": lambda n: make("gaussian", {"variance": n(2)}).likelihood.variance,
    "features": lambda n: tuple(Gaussian("feature", features=n(12)).logvar.shape),
    "classes": lambda n: Categorical(n(5)).classes,
    "library": lambda n: Poisson(library=n(5)).default_library,
    "mlp": lambda n: MLPEncoder(n(12), n(8), n(3)).in_features,
    "decoder": lambda n: tuple(MLPDecoder(n(3), [n(8)], n(12), n(2))(torch.ones(1, 3)).shape),
    "conv": lambda n: ConvEncoder((n(8), n(6)), (n(4),), n(2)).latent_shape,
    "conv decoder": lambda n: ConvDecoder(n(2), (n(4),), (n(8), n(6))).shape,
}


@pytest.mark.parametrize("number", [np.int64, np.int32])
@pytest.mark.parametrize("use", NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_numpy(use: Callable[[Callable[[float], Any]], Any], number: Any) -> None:
    assert repr(use(number)) == repr(use(int))


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor])
def test_fractions_of_numpy(number: Any) -> None:
    model = make("gaussian", {"variance": number(0.5)}, beta=number(1.5), clamp=(number(-0.5), number(0.5)))
    other = make("gaussian", {"variance": 0.5}, beta=1.5, clamp=(-0.5, 0.5))
    assert model(batch(), rng_state=state()).loss == other(batch(), rng_state=state()).loss
    assert make(fused_head=np.True_, validate=np.False_, binarize=np.False_).fused_head is True


def test_functions_take_numbers_of_numpy() -> None:
    mu = torch.zeros((3, 4))
    assert vae_fast.reparameterize_kl(mu, mu, num_samples=np.int64(2))[0].shape == (2, 3, 4)
    assert vae_fast.reparameterize_kl_packed(mu, dim=np.int64(-1))[0].shape == (3, 2)
    assert torch.equal(vae_fast.gaussian_nll(mu, mu, np.float32(0.5)), vae_fast.gaussian_nll(mu, mu, 0.5))
    with pytest.raises(TypeError, match="expected clamp to be a pair of numbers"):
        vae_fast.reparameterize_kl(mu, mu, clamp=("-1", "1"))


def test_beta_as_a_tensor_can_be_changed_in_place() -> None:
    beta = torch.tensor(2.0)
    model = make(beta=beta)
    output = model(batch(), rng_state=state())
    torch.testing.assert_close(output.loss, (output.nll + 2 * output.kl).mean())
    beta.fill_(3)
    torch.testing.assert_close(model(batch(), rng_state=state()).loss, (output.nll + 3 * output.kl).mean())


def test_needs_torch_alone() -> None:
    code = "import sys, vae_fast.nn; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    for name in ("accelerate", "huggingface_hub", "safetensors", "matplotlib", "typer", "rich", "triton"):
        assert name not in modules
