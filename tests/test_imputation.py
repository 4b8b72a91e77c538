"""Imputation and anomaly maps: against the conditional distributions of a linear Gaussian model, and plain lines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import state
from vae_fast import nn

K = 5


class Posterior(torch.nn.Module):
    """q(z | x) of x = W z + b + noise of variance 1 for whole x, W's columns being orthogonal, with `widened`
    log-variance. Of x with missing entries it is wrong."""

    latent_shape = (2,)

    def __init__(self, weight: Tensor, bias: Tensor, widened: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.widened = widened

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = 1 + self.weight.square().sum(0)
        mu = (x - self.bias) @ self.weight / precision
        return mu, (self.widened - precision.log()).expand_as(mu)


def linear(likelihood: Any = "gaussian", widened: float = 0.0) -> tuple[nn.VAE, Tensor, Tensor]:
    """The model; the mean and covariance of its x."""
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(K, 2, generator=g, dtype=torch.float64))[0]
    weight, bias = q * torch.tensor([2.0, 1.2]), torch.randn(K, generator=g, dtype=torch.float64)
    decoder = torch.nn.Linear(2, K).double()
    decoder.load_state_dict({"weight": weight, "bias": bias})
    model = nn.VAE(Posterior(weight, bias, widened), torch.nn.Sequential(decoder), likelihood)
    return model.double().eval(), bias, torch.eye(K) + weight @ weight.T


MASK = torch.tensor([True, False, True, True, False])


def conditional(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (batch, missing) and covariance of the missing entries, given the others."""
    o, m = MASK, ~MASK
    gain = covariance[m][:, o] @ covariance[o][:, o].inverse()
    return mean[m] + (x[:, o] - mean[o]) @ gain.T, covariance[m][:, m] - gain @ covariance[o][:, m]


def data(n: int = 4) -> Tensor:
    return 2 * torch.randn(n, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("missing", ["mask", "nan", "columns"])
def test_mean_is_that_of_the_conditional(missing: str) -> None:
    likelihood = nn.MixedColumns([("gaussian", K)]) if missing == "columns" else "gaussian"
    model, mean, covariance = linear(likelihood, widened=1.5)  # a narrow q would need many more draws
    x = data()
    want, spread = conditional(x, mean, covariance)
    given = x.masked_fill(~MASK, math.nan)
    mask = MASK if missing == "mask" else None
    got = [
        nn.impute(
            model, given, mask, num_samples=20_000, generator=torch.Generator().manual_seed(2), chunk=chunk
        )
        for chunk in (None, 6000)
    ]
    torch.testing.assert_close(*got, rtol=1e-9, atol=1e-9)
    assert torch.equal(got[0][:, MASK], x[:, MASK])
    if missing == "columns":  # NaN is missing whatever a mask says
        both = nn.impute(
            model, given, MASK | True, num_samples=20_000, generator=torch.Generator().manual_seed(2)
        )
        assert torch.equal(both, got[0])
    error = (got[0][:, ~MASK] - want).abs().max()
    assert error < 0.06 < 0.06 * spread.diagonal().sqrt().min()
    few = nn.impute(model, given, mask, num_samples=1, generator=torch.Generator().manual_seed(2))
    assert (few[:, ~MASK] - want).abs().max() > 0.2  # the encoder by itself is wrong


@pytest.mark.parametrize(("num_samples", "num_iterations"), [(3000, 0), (1, 60)], ids=["importance", "gibbs"])
def test_draws_are_those_of_the_conditional(num_samples: int, num_iterations: int) -> None:
    """For the exact posterior of whole samples pseudo-Gibbs has the conditional as its stationary distribution."""
    model, mean, covariance = linear(widened=0.0 if num_iterations else 1.5)
    x = data(1)
    want, spread = conditional(x, mean, covariance)
    if num_iterations:
        options, given = {"draws": 1}, x.expand(6000, K)
    else:
        options, given = {"draws": 6000}, x
    generator = torch.Generator().manual_seed(3)
    got = nn.impute(
        model,
        given,
        MASK,
        num_samples=num_samples,
        num_iterations=num_iterations,
        generator=generator,
        **options,
    )
    assert got.shape == (options["draws"], len(given), K)
    rows = got.flatten(0, 1)
    assert torch.equal(rows[:, MASK], x[:, MASK].expand(6000, 3))
    torch.testing.assert_close(rows[:, ~MASK].mean(0), want[0], rtol=0.05, atol=0.1)
    torch.testing.assert_close(rows[:, ~MASK].T.cov(), spread, rtol=0.12, atol=0.08)


def small(name: str, shape: tuple[int, ...], **options: Any) -> nn.VAE:
    torch.manual_seed(0)
    likelihood = nn.LIKELIHOODS[name](**options)
    decoder = nn.MLPDecoder(2, 8, likelihood.parameter_shape(shape), likelihood.num_parameters)
    encoder = nn.MLPEncoder(math.prod(shape), 8, 2)
    return nn.VAE(encoder, decoder, likelihood, latent_shape=(2,)).eval()


def test_images_counts_and_classes() -> None:
    """Known entries are x's own, others of the support; what x holds there does not matter."""
    for name, shape, options, x in (
        ("bernoulli", (4, 3), {}, torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8)),
        ("bernoulli", (4, 3), {"binarize": True}, torch.rand(5, 4, 3)),
        ("discretized_logistic_mixture", (3, 2, 2), {"components": 2}, torch.rand(5, 3, 2, 2)),
        ("negative_binomial", (12,), {}, torch.randint(0, 9, (5, 12))),
        ("categorical", (12,), {"classes": 4}, torch.randint(0, 4, (5, 12))),
    ):
        model = small(name, shape, **options)
        mask = torch.rand(5, *(1 if "mixture" in name else n for n in shape[:1]), *shape[1:]) > 0.4
        known = mask.expand(x.shape)
        numbers = x / 255 if x.dtype is torch.uint8 else x
        found = []
        for filler in (x, torch.zeros_like(x)):
            given = torch.where(known, x, filler)
            generator = torch.Generator().manual_seed(4)
            filled = nn.impute(model, given, mask, num_samples=20, num_iterations=2, generator=generator)
            drawn = nn.impute(model, given, mask, draws=3, generator=generator)
            assert filled.shape == x.shape and drawn.shape == (3, *x.shape)
            for one in (filled, *drawn):
                torch.testing.assert_close(one[known], numbers[known].to(one.dtype), rtol=0, atol=0)
            found += [filled, drawn]
        torch.testing.assert_close(found[:2], found[2:])
        if name == "bernoulli":
            assert ((drawn == 0) | (drawn == 1))[:, ~known].all()
        assert filled.is_floating_point() == (name != "categorical")
        assert nn.impute(model, x[:0], mask[:0]).shape == (0, *shape)


def test_map_sums_to_the_score() -> None:
    model, x = small("bernoulli", (4, 3)), torch.rand(5, 4, 3).round()
    got = nn.feature_nll(model, x, 7, rng_state=state(), chunk=3)
    assert got.shape == x.shape and not got.requires_grad
    torch.testing.assert_close(got.flatten(1).sum(1), nn.reconstruction_nll(model, x, 7, rng_state=state()))
    mask = torch.rand(4, 3) > 0.5
    masked = nn.feature_nll(model, x, 7, mask=mask, rng_state=state())
    torch.testing.assert_close(masked, got.masked_fill(~mask, 0.0))
    logits = model.decoder(model._posterior(x, None, 7, None, state()).sample()[0].flatten(0, 1))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    want = bce(logits, x.repeat(7, 1, 1), reduction="none").view(7, 5, 4, 3).mean(0)
    torch.testing.assert_close(got, want.detach())


def hierarchy() -> tuple[nn.HierarchicalVAE, Tensor]:
    torch.manual_seed(0)
    columns = nn.MixedColumns([("gaussian", 3), ("categorical", 1, {"classes": 3}), ("poisson", 2)])
    features = columns.encoder_features
    bottom = nn.VAE(
        nn.MLPEncoder(features, 8, 2, conditions=1),
        nn.MLPDecoder(2, 8, columns.decoder_features, conditions=1),
        columns,
        prior=nn.ConditionalPrior(torch.nn.Linear(1, 4)),
    )
    x = torch.randn(5, 6)
    x[:, 3:] = x[:, 3:].abs().floor().clamp(max=2)
    x[torch.rand(5, 6) < 0.3] = math.nan
    return nn.HierarchicalVAE(nn.MLPEncoder(features, 8, 1), bottom).eval(), x


def test_a_hierarchy_of_a_table() -> None:
    model, x = hierarchy()
    got = nn.feature_nll(model, x, 7, rng_state=state(), chunk=3)
    assert (got[x.isnan()] == 0).all() and x.isnan().any()
    torch.testing.assert_close(got.sum(1), nn.reconstruction_nll(model, x, 7, rng_state=state()))
    filled = nn.impute(model, x, num_samples=9, num_iterations=2, draws=3)
    assert torch.equal(filled.where(~x.isnan(), 0), x.nan_to_num(0).expand(3, 5, 6))
    assert torch.equal(filled[..., 3:], filled[..., 3:].round())


def test_generated_draws() -> None:
    """decode and generate give draws of p(x | z), the same for the same generator."""
    for model in (small("bernoulli", (4, 3)), small("negative_binomial", (12,)), hierarchy()[0]):
        z = torch.randn(6, *model.latent_shape)
        seeded = [torch.Generator().manual_seed(1) for _ in range(4)]
        drawn = model.decode(z, sample=True, generator=seeded[0])
        assert torch.equal(drawn, model.decode(z, sample=True, generator=seeded[1]))
        assert drawn.shape == model.decode(z).shape and not torch.equal(drawn, model.decode(z))
        if not isinstance(model, nn.HierarchicalVAE):
            params = model.likelihood.split(model.decoder(z))
            assert torch.equal(drawn, model.likelihood.sample(params, torch.Generator().manual_seed(1)))
        generated = [model.generate(6, sample=True, generator=g) for g in seeded[2:]]
        assert torch.equal(*generated)
        counts = generated[0][..., 3:]
        assert torch.equal(counts, counts.round())


def test_text() -> None:
    """Of a decoder that takes x: a map, draws, and no imputation, for which entries have to be independent given z."""
    torch.manual_seed(0)
    decoder = nn.GRUDecoder(2, 8, (5, 4))
    model = nn.VAE(nn.GRUEncoder(4, 8, 2), decoder, "categorical").eval()
    x, z = torch.randint(4, (3, 5)), torch.randn(3, 2)
    got = nn.feature_nll(model, x, 7, rng_state=state(), chunk=3)
    torch.testing.assert_close(got.sum(1), nn.reconstruction_nll(model, x, 7, rng_state=state()))
    drawn = model.decode(z, sample=True, generator=torch.Generator().manual_seed(1))
    want = decoder.generate(z, temperature=1.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, want) and not torch.equal(drawn, model.decode(z))
    with pytest.raises(ValueError, match="expected a decoder of z alone"):
        nn.impute(model, x, x > 0)


def test_scores_by_name() -> None:
    model, mean, covariance = linear()
    x = data()
    log_p = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    torch.testing.assert_close(nn.anomaly_score(model, x, "iwae", 3), -log_p)  # the posterior is exact
    found = {
        name: nn.anomaly_score(model, x, name, 2000, generator=torch.Generator().manual_seed(1))
        for name in ("elbo", "reconstruction")
    }
    torch.testing.assert_close(found["elbo"], -log_p, rtol=0.02, atol=0.1)
    mu, logvar = model.encode(x)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
    torch.testing.assert_close(found["elbo"] - found["reconstruction"], kl, rtol=0.02, atol=0.1)


def test_errors() -> None:
    model, x = linear()[0], data()
    with pytest.raises(
        ValueError, match="expected score to be one of elbo, reconstruction, iwae, but got 'mse'"
    ):
        nn.anomaly_score(model, x, "mse")
    for options, match in (
        ({"num_samples": 0}, "expected num_samples to be at least 1"),
        ({"draws": 0}, "expected draws to be at least 1"),
        ({"num_iterations": -1}, "expected num_iterations to be at least 0"),
        ({"mask": MASK[:3]}, "expected mask to"),
    ):
        with pytest.raises(ValueError, match=match):
            nn.impute(model, x, **options)
    with pytest.raises(TypeError, match="sparse_csr"):
        nn.impute(model, x.to_sparse_csr())
