"""The reference against what others have written: torch.distributions, and numbers worked by hand."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Independent,
    Laplace,
    Multinomial,
    NegativeBinomial,
    Normal,
    Poisson,
    kl_divergence,
)

import vae_fast
from conftest import state
from vae_fast import reference

MODULES = {"distributions", "integrations", "nn", "reference", "training"}
FUNCTIONS = sorted(
    set(vae_fast.__all__) - MODULES - {"Csr", "__version__", "backend", "info", "set_noise_group"}
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def normal(mu: Tensor, logvar: Tensor) -> Independent:
    return Independent(Normal(mu, torch.exp(0.5 * logvar)), mu.ndim - 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_its_twin(name: str) -> None:
    public, plain = (dict(inspect.signature(getattr(m, name)).parameters) for m in (vae_fast, reference))
    assert public.keys() == plain.keys()
    for a, b in zip(public.values(), plain.values(), strict=True):
        assert (a.kind, a.default) == (b.kind, b.default)


def test_kl_against_torch_distributions() -> None:
    mu, logvar, mu_p, logvar_p = (make(5, 3, 4, seed=i) for i in range(4))
    standard = normal(torch.zeros_like(mu), torch.zeros_like(mu))
    torch.testing.assert_close(
        reference.kl_divergence(mu, logvar), kl_divergence(normal(mu, logvar), standard)
    )
    got = reference.kl_divergence(mu, logvar, prior=(mu_p, logvar_p))
    torch.testing.assert_close(got, kl_divergence(normal(mu, logvar), normal(mu_p, logvar_p)))
    per_feature = reference.kl_divergence(mu, logvar, prior=(mu_p[0], logvar_p[0, 0, 0]))
    full = reference.kl_divergence(
        mu, logvar, prior=(mu_p[0].expand(5, 3, 4), logvar_p[0, 0, 0].expand(5, 3, 4))
    )
    torch.testing.assert_close(per_feature, full)


def test_kl_by_hand() -> None:
    mu, logvar = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]])
    torch.testing.assert_close(
        reference.kl_divergence(mu, logvar), torch.tensor([0.5 + 0.5 * (3 - math.log(4.0))])
    )
    torch.testing.assert_close(
        reference.kl_divergence(mu, logvar, clamp=(-1.0, 0.5)),
        torch.tensor([0.5 + 0.5 * (math.exp(0.5) - 1 - 0.5)]),
    )


def test_sample_by_hand() -> None:
    mu, logvar, eps = (
        torch.tensor([[1.0, -2.0]]),
        torch.tensor([[0.0, math.log(9.0)]]),
        torch.tensor([[0.5, -1.0]]),
    )
    torch.testing.assert_close(reference.reparameterize(mu, logvar, noise=eps), torch.tensor([[1.5, -5.0]]))


def test_samples_have_the_distribution_they_should() -> None:
    mu, logvar = torch.tensor([[2.0, -1.0]]), torch.tensor([[-1.0, 1.5]])
    z = reference.reparameterize(mu, logvar, num_samples=100_000, rng_state=state())[:, 0].double()
    error = torch.exp(0.5 * logvar[0]).double() / math.sqrt(100_000)  # the standard error of the mean
    assert ((z.mean(0) - mu[0]).abs() < 4 * error).all()
    torch.testing.assert_close(z.var(0), torch.exp(logvar[0]).double(), rtol=0.02, atol=0)


def test_monte_carlo_agrees_with_the_closed_form() -> None:
    """KL = E[log q(z) - log p(z)] under z ~ q: sample and KL speak of the same distribution."""
    mu, logvar, mu_p, logvar_p = (0.5 * make(3, 4, seed=i) for i in range(4))
    z, kl = reference.reparameterize_kl(
        mu, logvar, num_samples=200_000, prior=(mu_p, logvar_p), rng_state=state()
    )
    estimate = normal(mu, logvar).log_prob(z) - normal(mu_p, logvar_p).log_prob(z)
    assert ((estimate.mean(0) - kl).abs() < 4 * estimate.std(0) / math.sqrt(200_000)).all()


def test_bernoulli_against_torch_distributions() -> None:
    logits = 3 * make(5, 3, 4)
    target = make(5, 3, 4, seed=1) > 0
    want = -Independent(Bernoulli(logits=logits), 2).log_prob(target.double())
    torch.testing.assert_close(reference.bernoulli_nll(logits, target), want)
    torch.testing.assert_close(reference.bernoulli_nll(logits, target.to(torch.uint8) * 255), want)
    grey = torch.rand(5, 3, 4, dtype=torch.float64)
    ones, zeros = (reference.bernoulli_nll(logits, torch.full_like(logits, v)) for v in (1.0, 0.0))
    half = reference.bernoulli_nll(logits, torch.full_like(grey, 0.5))
    torch.testing.assert_close(half, 0.5 * (ones + zeros))


def test_gaussian_against_torch_distributions() -> None:
    mean, target, logvar = (make(5, 3, 4, seed=i) for i in range(3))
    want = -normal(mean, logvar).log_prob(target)
    torch.testing.assert_close(reference.gaussian_nll(mean, target, logvar), want)
    want = -normal(mean, torch.full_like(mean, 0.7)).log_prob(target)
    torch.testing.assert_close(reference.gaussian_nll(mean, target, 0.7), want)
    torch.testing.assert_close(
        reference.gaussian_nll(mean, target, torch.tensor(0.7, dtype=torch.float64)), want
    )
    unit = reference.gaussian_nll(mean, target)
    torch.testing.assert_close(unit, 0.5 * ((mean - target) ** 2).sum((1, 2)) + 6 * math.log(2 * math.pi))


def test_other_numbers_against_torch_distributions() -> None:
    logits, target = 3 * make(5, 3, 4), torch.rand(5, 3, 4, dtype=torch.float64)
    want = -Independent(ContinuousBernoulli(logits=logits), 2).log_prob(target)
    torch.testing.assert_close(reference.continuous_bernoulli_nll(logits, target), want)
    location, target, log_scale = (make(5, 3, 4, seed=i) for i in range(3))
    want = -Independent(Laplace(location, log_scale.exp()), 2).log_prob(target)
    torch.testing.assert_close(reference.laplace_nll(location, target, log_scale), want)
    want = -Independent(Laplace(location, torch.ones(())), 2).log_prob(target)
    torch.testing.assert_close(reference.laplace_nll(location, target), want)


def test_counts_against_torch_distributions() -> None:
    """To 1e-6: torch has no 1e-8 on its parameters."""
    mean, theta = make(5, 3, 4).exp() * 3, make(4, seed=1).exp()
    target = torch.poisson(mean, generator=torch.Generator().manual_seed(1))
    want = -Independent(Poisson(mean), 2).log_prob(target)
    torch.testing.assert_close(reference.poisson_nll(mean, target), want, rtol=1e-6, atol=0)
    nb = NegativeBinomial(theta.expand(mean.shape), logits=(mean / theta).log())
    want = -Independent(nb, 2).log_prob(target)
    torch.testing.assert_close(reference.negative_binomial_nll(mean, target, theta), want, rtol=1e-6, atol=0)
    p = make(5, 3, 4, seed=2)
    chance = torch.sigmoid(p) * (target == 0) + torch.sigmoid(-p) * nb.log_prob(target).exp()
    got = reference.zero_inflated_negative_binomial_nll(mean, target, theta, p)
    torch.testing.assert_close(got, -chance.log().sum((1, 2)), rtol=1e-6, atol=0)
    assert torch.isfinite(reference.poisson_nll(torch.zeros(1, 2), torch.tensor([[0, 3]])))


def test_discretized_logistic_by_hand() -> None:
    """256 levels add up to one; a level's mass is that of the logistic between its edges."""
    x = torch.arange(256, dtype=torch.uint8)
    mean, log_scale = torch.full((256,), 0.1, dtype=torch.float64), -1.5
    nll = reference.discretized_logistic_nll(mean, x, log_scale)
    torch.testing.assert_close((-nll).exp().sum().item(), 1.0)
    edges = torch.sigmoid((torch.arange(257).double() * 2 / 255 - 256 / 255 - 0.1) * math.exp(1.5))
    torch.testing.assert_close((-nll).exp()[1:-1], edges[2:-1] - edges[1:-2])


def test_classes_against_torch_distributions() -> None:
    logits = make(5, 3, 4)
    target = torch.randint(0, 4, (5, 3), generator=torch.Generator().manual_seed(1))
    want = -Independent(Categorical(logits=logits), 1).log_prob(target)
    torch.testing.assert_close(reference.categorical_nll(logits, target), want)
    counts = torch.tensor([[2.0, 0, 1, 4]]).expand(5, 4)
    coefficient = math.lgamma(8) - sum(math.lgamma(x + 1) for x in (2, 0, 1, 4))
    want = -Multinomial(7, logits=logits[:, 0], validate_args=False).log_prob(counts) + coefficient
    torch.testing.assert_close(reference.multinomial_nll(logits[:, 0], counts), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    """Arithmetic in float32 at least; z in mu's dtype; sums in the dtype of the arithmetic."""
    mu, logvar = make(4, 300, dtype=dtype), make(4, 300, seed=1, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z, kl = reference.reparameterize_kl(mu, logvar, rng_state=state())
    z_wide, kl_wide = reference.reparameterize_kl(mu.to(wide), logvar.to(wide), rng_state=state())
    assert torch.equal(z, z_wide.to(dtype)) and torch.equal(kl, kl_wide) and kl.dtype == wide
    nll = reference.bernoulli_nll(mu, torch.sigmoid(logvar))
    assert torch.equal(nll, reference.bernoulli_nll(mu.to(wide), torch.sigmoid(logvar).to(wide)))


def test_packed_is_the_two_halves() -> None:
    moments = make(4, 6, 5)
    for dim, halves in ((1, (moments[:, :3], moments[:, 3:])), (-2, (moments[:, :3], moments[:, 3:]))):
        z, kl = reference.reparameterize_kl_packed(moments, dim=dim, rng_state=state())
        z2, kl2 = reference.reparameterize_kl(*halves, rng_state=state())
        assert torch.equal(z, z2) and torch.equal(kl, kl2)


def test_generator_and_default_generator() -> None:
    mu = torch.zeros(3, 4)
    torch.manual_seed(5)
    first = reference.reparameterize(mu, mu)
    again = reference.reparameterize(mu, mu, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
