"""The mixture of two negative binomials against mpmath, at the edges, and against scvi-tools' own lines."""

from __future__ import annotations

import itertools

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods.counts import EPS, NOTHING

INF, NAN = float("inf"), float("nan")
COUNTS = [0.0, 1e-9, 0.5, 1.0, 7.0, 1000.0, 1e6]
MEANS = [0.0, 1e-6, 1.0, 30.0, 1e5]
THETAS = [0.02, 0.7, 1e4, 1e8]
LOGITS = [-1e30, -100.0, -5.0, 0.0, 0.3, 20.0, 100.0, INF]
GRID = list(itertools.product(COUNTS, MEANS, MEANS, THETAS, LOGITS))
UNITS = 24


def log_nb(x: mp.mpf, mean: mp.mpf, theta: mp.mpf) -> mp.mpf:
    mu, th = mean + EPS, theta + EPS
    log_p = th * mp.log(th / (th + mu))
    if x < NOTHING:
        return log_p
    return log_p + x * mp.log(mu / (th + mu)) + mp.loggamma(x + th) - mp.loggamma(th) - mp.loggamma(x + 1)


def truth(row: tuple[float, ...]) -> tuple[float, float]:
    """-log p, and what a relative error of 1 in either component's -log p does to it."""
    x, mean_1, mean_2, theta, logit = map(mp.mpf, row)
    with mp.workdps(60):
        share = 1 / (1 + mp.exp(-logit))
        first, second = log_nb(x, mean_1, theta), log_nb(x, mean_2, 3 * theta)
        p_1, p_2 = share * mp.exp(first), (1 - share) * mp.exp(second)
        moved = (p_1 * -first + p_2 * -second) / (p_1 + p_2)
        return float(-mp.log(p_1 + p_2)), float(moved)


def columns(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x, mean_1, mean_2, theta, logit = torch.tensor(GRID, dtype=torch.float64).to(dtype).unbind(1)
    return [x, mean_1, mean_2, theta, logit, 3 * theta]


def test_values_at_the_edges(backend: str) -> None:
    """A row a sample."""
    x, mean_1, mean_2, theta, logit, theta_2 = (c[:, None] for c in columns())
    got = vae_fast.negative_binomial_mixture_nll(mean_1, x, mean_2, theta, logit, theta_2).double()
    rows = torch.stack([x, mean_1, mean_2, theta, logit], -1)[:, 0].double().tolist()
    values, moved = torch.tensor([truth(tuple(row)) for row in rows], dtype=torch.float64).unbind(1)
    allowed = UNITS * torch.finfo(torch.float32).eps * torch.maximum(values.abs(), moved)
    wrong = ~((got - values).abs() <= allowed) & ~((values > 3.4e38) & (got == INF))
    assert not wrong.any(), [
        (GRID[i], values[i].item(), got[i].item()) for i in wrong.nonzero().flatten().tolist()[:5]
    ]


def test_gradients_at_the_edges(backend: str) -> None:
    """Against the reference in float64, whose derivatives gradcheck holds to its values."""
    x, *params = (c[:, None] for c in columns())
    inputs, wide = [p.clone().requires_grad_() for p in params], [p.double().requires_grad_() for p in params]
    order = (0, 2, 4)
    got = vae_fast.negative_binomial_mixture_nll(inputs[0], x, *inputs[1:])
    want = reference.negative_binomial_mixture_nll(wide[0], x.double(), *wide[1:])
    grads, true = torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), wide)
    size = want.detach()[:, None]  # P(component | x) is exp of a difference of these
    for i in order:
        error = (grads[i].double() - true[i]).abs()
        allowed = 3e-6 * (1 + size) * true[i].abs() + 3e-6 * (1 + 1 / wide[i].detach().clamp(min=1e-3))
        assert (error <= allowed).all(), (i, GRID[int((error - allowed).argmax())])


def test_gradcheck() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.poisson(3 * torch.rand(4, 5, generator=g, dtype=torch.float64), generator=g)
    params = [torch.rand(4, 5, generator=g, dtype=torch.float64) * s + 0.1 for s in (3, 9)]
    params += [torch.rand(5, generator=g, dtype=torch.float64) + 0.3, torch.randn(4, 5, generator=g).double()]
    params = [p.requires_grad_() for p in params]
    assert torch.autograd.gradcheck(
        lambda m, *others: vae_fast.negative_binomial_mixture_nll(m, x, *others), params
    )


def log_mixture_nb(x: Tensor, mu_1: Tensor, mu_2: Tensor, theta: Tensor, pi_logits: Tensor) -> Tensor:
    """The lines of scvi-tools for one theta."""
    eps, parts = 1e-8, []
    for mu in (mu_1, mu_2):
        log_theta_mu = torch.log(theta + mu + eps)
        parts.append(
            theta * (torch.log(theta + eps) - log_theta_mu)
            + x * (torch.log(mu + eps) - log_theta_mu)
            + torch.lgamma(x + theta)
            - torch.lgamma(theta)
            - torch.lgamma(x + 1)
        )
    mixed = torch.logsumexp(torch.stack((parts[0], parts[1] - pi_logits)), dim=0)
    return mixed - F.softplus(-pi_logits)


def test_the_peer_gives_the_same() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.poisson(4 * torch.rand(8, 30, generator=g), generator=g)
    background, foreground = (2 * torch.rand(8, 30, generator=g), 20 * torch.rand(8, 30, generator=g))
    theta, logits = torch.rand(30, generator=g) + 0.5, torch.randn(8, 30, generator=g)
    want = -log_mixture_nb(*(t.double() for t in (x, background, foreground, theta, logits))).sum(1)
    got = vae_fast.negative_binomial_mixture_nll(background, x, foreground, theta, logits)
    torch.testing.assert_close(got.double(), want, rtol=2e-7, atol=0)


def test_outside_the_domain_and_masked(backend: str) -> None:
    ones = torch.ones(5, 1)
    bad = torch.tensor([[-1.0], [NAN], [1.0], [1.0], [1.0]])
    assert (
        vae_fast.negative_binomial_mixture_nll(bad, ones, 1.0, 1.0, 0.0).isnan().tolist()
        == [True, True] + [False] * 3
    )
    assert vae_fast.negative_binomial_mixture_nll(ones, ones, 1.0, bad, 0.0).isnan()[:2].all()
    assert vae_fast.negative_binomial_mixture_nll(ones, ones, 1.0, 1.0, NAN).isnan().all()
    mask = bad == 1
    leaves = [bad.clone().requires_grad_(), torch.full((5, 1), NAN).requires_grad_()]
    nll = vae_fast.negative_binomial_mixture_nll(leaves[0], bad, 1.0, 1.0, 0.0, mask=mask)
    grads = torch.autograd.grad(nll.sum(), leaves[0])[0]
    assert (nll[:2] == 0).all() and (grads[:2] == 0).all() and nll[2:].isfinite().all()


def test_one_theta_is_both() -> None:
    theta = torch.tensor([0.5, 2.0], requires_grad=True)
    x, mean = torch.tensor([[0.0, 3.0], [2.0, 9.0]]), torch.full((2, 2), 2.5)
    nlls = [
        vae_fast.negative_binomial_mixture_nll(mean, x, 7.0, theta, 0.4, *second)
        for second in ((), (theta,), (theta.detach().clone().requires_grad_(),))
    ]
    first, second, third = (torch.autograd.grad(nll.sum(), theta)[0] for nll in nlls)
    assert torch.equal(nlls[0], nlls[1]) and torch.equal(first, second)
    assert (third != first).any()


def test_the_class_draws_from_both() -> None:
    likelihood = vae_fast.nn.NegativeBinomialMixture(theta=1e4)
    logits = torch.tensor([40.0, -40.0, 0.0]).expand(20_000, 3)
    params = (torch.full((20_000, 3), 0.0), torch.full((20_000, 3), 3.0), logits)
    drawn = likelihood.sample(params, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), likelihood.mean(params)[0], rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="but got 'decoder'"):
        vae_fast.nn.NegativeBinomialMixture(theta="decoder")
    with pytest.raises(ValueError, match="but got 'softmax'"):
        vae_fast.nn.NegativeBinomialMixture(link="softmax")
