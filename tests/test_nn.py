"""vae_fast.nn: what the VAE returns, against the formulas written out in float64 with the op's own noise."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_fast
from conftest import state
from vae_fast.nn import (
    VAE,
    Bernoulli,
    ConvDecoder,
    ConvEncoder,
    Gaussian,
    MLPDecoder,
    MLPEncoder,
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


@pytest.mark.no_poison
@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS, ids=IDS)
def test_compiles_without_a_break(likelihood: str, options: dict[str, Any]) -> None:
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
    ("zero", lambda: Gaussian(0.0), ValueError, "variance is 0.0"),
    ("nan", lambda: Gaussian(math.nan), ValueError, "variance is nan"),
    ("word", lambda: Gaussian("lerned"), ValueError, "'lerned'"),
    ("module", lambda: VAE(nn.Identity(), nn.Identity(), Gaussian(), variance=2.0), TypeError, "variance"),
    ("outputs", lambda: Gaussian("decoder").split(_decoder(torch.ones(2, 2))), ValueError, "3 tensors"),
    ("odd", lambda: Gaussian("decoder").split(torch.ones(2, 3)), ValueError, r"shape \(2, 3\)"),
    ("latent", lambda: VAE(nn.Identity(), nn.Linear(2, 2)).generate(1), ValueError, "latent_shape"),
    ("x", lambda: make()(torch.rand(5, 2, 6)), ValueError, r"x has shape \(5, 2, 6\).*\(4, 3\)"),
    ("image", lambda: ConvEncoder((784,), (4,), 2), ValueError, r"shape is \(784,\)"),
]


@pytest.mark.parametrize(("call", "error", "match"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_errors(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_needs_torch_alone() -> None:
    code = "import sys, vae_fast.nn; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    for name in ("accelerate", "huggingface_hub", "safetensors", "matplotlib", "typer", "rich", "triton"):
        assert name not in modules
