"""importance_nll and evaluate against closed forms and plain lines in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast
from vae_fast import nn


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Posterior(torch.nn.Module):
    """Of x = W z + b + noise of variance 1 with W's columns orthogonal: diagonal, in closed form."""

    latent_shape = (2,)

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = 1 + self.weight.square().sum(0)
        mu = (x - self.bias) @ self.weight / precision
        return mu, -precision.log().expand_as(mu)


@pytest.fixture
def linear() -> tuple[nn.VAE, Tensor, Tensor]:
    """A linear Gaussian model whose encoder gives the exact posterior; data; their log p(x)."""
    weight, bias = torch.linalg.qr(randn(5, 2))[0] * torch.tensor([2.0, 0.7]), randn(5, seed=1)
    decoder = torch.nn.Linear(2, 5).double()
    decoder.load_state_dict({"weight": weight, "bias": bias})
    model = nn.VAE(Posterior(weight, bias), torch.nn.Sequential(decoder), "gaussian", variance=1.0)
    x = 2 * randn(7, 5, seed=2)
    p_x = torch.distributions.MultivariateNormal(bias, torch.eye(5) + weight @ weight.T)
    return model.eval(), x, p_x.log_prob(x)


@pytest.mark.parametrize(("k", "chunk"), [(1, None), (5, 2), (5, None)])
def test_exact_posterior_gives_the_likelihood(linear: Any, k: int, chunk: int | None) -> None:
    """Every draw's weight is p(x): any k is exact."""
    model, x, log_p = linear
    torch.testing.assert_close(nn.importance_nll(model, x, k, chunk=chunk), -log_p)


def test_evaluation_of_an_exact_posterior(linear: Any) -> None:
    model, x, log_p = linear
    torch.manual_seed(0)
    found = nn.evaluate(model, [x[:3], (x[3:],)], 4000)
    assert found.samples == 7 and found.active_units == 2
    assert found.nll == pytest.approx(-log_p.mean().item(), rel=1e-9)
    assert found.elbo == pytest.approx(log_p.mean().item(), rel=2e-2)
    assert found.elbo == pytest.approx(-found.rate - found.distortion)
    mu, logvar = model.encode(x)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
    torch.testing.assert_close(found.kl_per_dimension, kl.mean(0).detach())
    assert found.rate == pytest.approx(kl.sum(1).mean().item())


def mlp(**options: Any) -> nn.VAE:
    torch.manual_seed(0)
    return nn.VAE(nn.MLPEncoder(6, 8, 3), nn.MLPDecoder(3, 8, 6), **options).double().eval()


@pytest.mark.parametrize("fused_head", [False, True])
def test_bound_in_plain_lines(fused_head: bool) -> None:
    """Another draw order, chunk or sign would differ; chunks do not."""
    model, x, k = mlp(fused_head=fused_head), torch.rand(4, 6, dtype=torch.float64).round(), 7
    state = vae_fast.draw_rng_state("cpu")
    eps = vae_fast.noise((4, 3), rng_state=state, num_samples=k, dtype=torch.float64)
    mu, logvar = model.encode(x)
    z = mu + (0.5 * logvar).exp() * eps
    log_p_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_q_z = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(-1)
    logits = model.decoder(z.flatten(0, 1)).view(k, 4, 6)
    log_p_x = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x.expand(k, 4, 6), reduction="none"
    ).sum(-1)
    want = math.log(k) - (log_p_x + log_p_z - log_q_z).logsumexp(0)
    for chunk in (None, 1, 3, 100):
        got = nn.importance_nll(model, x, k, rng_state=state, chunk=chunk)
        torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-6)
        score = nn.reconstruction_nll(model, x, k, rng_state=state, chunk=chunk)
        torch.testing.assert_close(score, -log_p_x.mean(0).detach(), rtol=1e-6, atol=1e-6)
    assert not got.requires_grad


def test_more_draws_bound_tighter() -> None:
    model, x = mlp(), torch.rand(512, 6, dtype=torch.float64).round()
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.mul_(3)  # far from the posterior
    bounds = [nn.importance_nll(model, x, k).mean().item() for k in (1, 5, 500)]
    assert bounds[0] > bounds[1] + 0.01 > bounds[2] + 0.02


def test_conditions_and_seeds() -> None:
    torch.manual_seed(0)
    encoder, decoder = nn.MLPEncoder(6, 8, 3, conditions=2), nn.MLPDecoder(3, 8, 6, conditions=2)
    for module in (encoder, decoder):
        for name, p in module.named_parameters():
            if name.endswith("1.weight"):
                torch.nn.init.normal_(p)
    model, x = nn.VAE(encoder, decoder).eval(), torch.rand(4, 6).round()
    labels = torch.tensor([0, 1, 1, 0])
    seeded = [
        nn.importance_nll(model, x, 3, condition=c, generator=torch.Generator().manual_seed(1))
        for c in (labels, labels, 1 - labels)
    ]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    found = nn.evaluate(model, [(x, labels)], 3, generator=torch.Generator().manual_seed(1))
    assert found.nll == pytest.approx(seeded[0].mean().item())


def test_labels_of_a_loader_have_no_part_in_a_model_without_condition() -> None:
    model, x = mlp(), torch.rand(4, 6, dtype=torch.float64)
    found = [
        nn.evaluate(model, batches, 3, generator=torch.Generator().manual_seed(1)).elbo
        for batches in ([x], [(x, torch.arange(4))])
    ]
    assert found[0] == found[1]


def test_binarization_draws_x_once() -> None:
    """Encoder and all draws see the same bits."""
    model = mlp(likelihood="bernoulli", binarize=True)
    x = torch.full((64, 6), 0.5, dtype=torch.float64)
    state = vae_fast.draw_rng_state("cpu")
    bits = model.likelihood.observe(x, state)
    assert 0 < bits.mean() < 1
    plain = mlp()
    want = nn.importance_nll(plain, bits, 5, rng_state=state)
    torch.testing.assert_close(nn.importance_nll(model, x, 5, rng_state=state), want)


def test_the_rate_is_that_of_the_bits() -> None:
    model, x = mlp(likelihood="bernoulli", binarize=True), torch.full((64, 6), 0.5, dtype=torch.float64)
    found = nn.evaluate(model, [x], 2, generator=torch.Generator().manual_seed(1))
    bits = model.likelihood.observe(x, vae_fast.draw_rng_state("cpu", torch.Generator().manual_seed(1)))
    want = nn.kl_per_dimension(*model.encode(bits))
    torch.testing.assert_close(found.kl_per_dimension, want.detach())
    assert (want - nn.kl_per_dimension(*model.encode(x))).abs().max() > 1e-4


def test_errors() -> None:
    model, x = mlp(), torch.zeros(4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected num_samples to be at least 1, but got 0"):
        nn.importance_nll(model, x, 0)
    with pytest.raises(ValueError, match="expected chunk to be at least 1, but got 0"):
        nn.importance_nll(model, x, 2, chunk=0)
    with pytest.raises(ValueError, match="expected batches with at least two samples, but got 1"):
        nn.evaluate(model, [x[:1]])
    with pytest.raises(ValueError, match="expected no condition"):
        nn.importance_nll(model, x, 2, condition=torch.zeros(4))
