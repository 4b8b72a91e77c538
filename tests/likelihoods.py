"""The likelihoods as a user would write them, and data for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from conftest import DTYPES, assert_accurate, truth_and_scale

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
EPS = 1e-8  # of scvi-tools


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def uniform(*shape: int, seed: int = 9) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def clamp(x: Tensor, low: float | Tensor, high: float | Tensor = math.inf) -> Tensor:
    """torch.clamp with a gradient of 1 at the bounds, where torch 2.14's own has 0; 0 of NaN, which stays NaN."""
    held = torch.where(x < low, low, torch.where(x > high, high, x))
    return torch.where(x.isnan(), x.detach(), held)


def softplus(v: Tensor) -> Tensor:
    return torch.logaddexp(v, torch.zeros_like(v))  # F.softplus is linear from 20 on


def continuous_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    c = torch.where(logits == 0, 2.0, logits / torch.tanh(logits / 2))
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none") - torch.log(c)


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 / logvar.exp())


def laplace(location: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    return math.log(2) + log_scale + (x - location).abs() / log_scale.exp()


def discretized_logistic(mean: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """PixelCNN++'s, with log1p(-exp(a - b)) + logsigmoid(b) + logsigmoid(-a) for the log of the difference."""
    inverse = torch.exp(-clamp(log_scale, -7.0))
    far = 2 * x - 1 - mean
    b, a = (far + 1 / 255) * inverse, (far - 1 / 255) * inverse
    middle = softplus(-b) + softplus(a)
    middle = middle - torch.log(-torch.expm1(-2 / 255 * inverse))
    low, high = softplus(-b), softplus(a)
    return torch.where(x < 0.0005, low, torch.where(x > 0.9995, high, middle))


def poisson(mean: Tensor, x: Tensor) -> Tensor:
    return F.poisson_nll_loss(mean + EPS, x, log_input=False, eps=0, reduction="none") + torch.lgamma(x + 1)


def negative_binomial(mean: Tensor, x: Tensor, theta: Tensor) -> Tensor:
    """The lines of scvi-tools' log_nb_positive."""
    mu, th = mean + EPS, theta + EPS
    log_theta_mu = torch.log(th + mu)
    return -(
        th * (torch.log(th) - log_theta_mu)
        + x * (torch.log(mu) - log_theta_mu)
        + torch.lgamma(x + th)
        - torch.lgamma(th)
        - torch.lgamma(x + 1)
    )


def zero_inflated_negative_binomial(mean: Tensor, x: Tensor, theta: Tensor, pi: Tensor) -> Tensor:
    """The lines of scvi-tools' log_zinb_positive."""
    mu, th = mean + EPS, theta + EPS
    softplus_pi = softplus(-pi)
    log_theta_mu = torch.log(th + mu)
    pi_theta_log = -pi + th * (torch.log(th) - log_theta_mu)
    zero = softplus(pi_theta_log) - softplus_pi
    more = -softplus_pi + pi_theta_log + x * (torch.log(mu) - log_theta_mu)
    more = more + torch.lgamma(x + th) - torch.lgamma(th) - torch.lgamma(x + 1)
    return -torch.where(x < EPS, zero, more)


def negative_binomial_mixture(
    m: Tensor, x: Tensor, m_2: Tensor, theta: Tensor, logits: Tensor, theta_2: Tensor
) -> Tensor:
    first, second = negative_binomial(m, x, theta), negative_binomial(m_2, x, theta_2)
    return -torch.logaddexp(F.logsigmoid(logits) - first, F.logsigmoid(-logits) - second)


@dataclass(frozen=True)
class Likelihood:
    """How to write it, what its parameters may be, and whether its target counts."""

    textbook: Callable[..., Tensor]
    params: tuple[Callable[[Tensor], Tensor], ...]  # from standard normal numbers
    counts: bool = False


def identity(n: Tensor) -> Tensor:
    return n


def away_from_zero(n: Tensor) -> Tensor:
    """Where the textbook is as good as its dtype; around 0 there is a test of its own."""
    return 3 * n + torch.sign(n)


LIKELIHOODS = {
    "bernoulli": Likelihood(
        lambda p, x: F.binary_cross_entropy_with_logits(p, x, reduction="none"), (lambda n: 3 * n,)
    ),
    "bernoulli_probs": Likelihood(
        lambda p, x: F.binary_cross_entropy(p, x, reduction="none"), (torch.sigmoid,)
    ),
    "continuous_bernoulli": Likelihood(continuous_bernoulli, (away_from_zero,)),
    "gaussian": Likelihood(gaussian, (identity, identity)),
    "unit_gaussian": Likelihood(lambda m, x: gaussian(m, x, torch.zeros_like(m)), (identity,)),
    "laplace": Likelihood(laplace, (identity, identity)),
    "discretized_logistic": Likelihood(discretized_logistic, (lambda n: n / 2, lambda n: n - 3)),
    "poisson": Likelihood(poisson, (lambda n: (2 * n).exp(),), counts=True),
    "negative_binomial": Likelihood(negative_binomial, (lambda n: (2 * n).exp(), torch.exp), counts=True),
    "zero_inflated_negative_binomial": Likelihood(
        zero_inflated_negative_binomial, (lambda n: (2 * n).exp(), torch.exp, identity), counts=True
    ),
    "negative_binomial_mixture": Likelihood(
        negative_binomial_mixture,
        # Means near the counts: P(component | x) is exp of a difference, and rounded as its large terms are.
        (lambda n: (2 + n / 2).exp(), lambda n: (2 + n / 2).exp(), torch.exp, identity, torch.exp),
        counts=True,
    ),
}
WITH_OTHERS = [name for name, likelihood in LIKELIHOODS.items() if len(likelihood.params) > 1]


def make_params(name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The likelihood's parameters; the last shape serves those for which none is given."""
    maps = LIKELIHOODS[name].params
    shapes = shapes + shapes[-1:] * len(maps)
    return [f(make(*shapes[i], seed=i)).to(dtype) for i, f in enumerate(maps)]


def make_target(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = uniform(*shape)
    if dtype == torch.bool:
        return x > 0.5
    if LIKELIHOODS[name].counts:
        return (60 * x**3).floor().to(dtype)  # nothing in every fourth place
    if dtype in INTEGERS:
        return (x * 256).to(dtype) if dtype == torch.uint8 else (x > 0.5).to(dtype)
    if name == "discretized_logistic":
        return ((x * 256).floor() / 255).to(dtype)
    return x.to(dtype)


def function(name: str) -> Callable[..., Tensor]:
    if name == "bernoulli_probs":
        return vae_fast.bernoulli_nll_from_probs
    if name == "unit_gaussian":
        return vae_fast.gaussian_nll
    return getattr(vae_fast, f"{name}_nll")  # type: ignore[no-any-return]


def per_sample(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1) if terms.ndim > 1 else terms


def check(
    name: str,
    target: Tensor,
    *params: Tensor,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> None:
    """Value and gradients against float64, next to the textbook lines in the dtype of the arithmetic.

    Where the mask says no, the function gets NaN in every input that has the shape of the target.
    """
    likelihood = LIKELIHOODS[name]
    shape = target.shape
    dirty = [p if mask is None or p.shape != shape else p.where(mask, math.nan) for p in params]
    dirty_target = target if mask is None or not target.is_floating_point() else target.where(mask, math.nan)
    inputs = [leaf(p) for p in dirty]
    options = {"mask": mask, "weight": weight, "reduction": reduction}
    nll = function(name)(inputs[0], dirty_target, *inputs[1:], **options)
    double = any(t.dtype == torch.float64 for t in (target, *params))
    wide = torch.float64 if double else torch.float32
    assert nll.dtype == wide and nll.shape == (shape if reduction == "none" else shape[:1])
    grad_nll = make(*nll.shape, dtype=nll.dtype, seed=5)
    got = (nll, *torch.autograd.grad(nll, inputs, grad_nll))

    def plain(*p: Tensor) -> tuple[Tensor]:
        x = target.to(p[0].dtype)
        terms = likelihood.textbook(
            p[0], x / 255 if target.dtype == torch.uint8 and not likelihood.counts else x, *p[1:]
        )
        terms = terms.expand(shape) if mask is None else torch.where(mask, terms, 0.0)
        if reduction == "sample":
            terms = per_sample(terms)
        factor = 1 if weight is None else weight.to(terms.dtype).view(-1, *(1,) * (terms.ndim - 1))
        return (terms * factor,)

    truths, scales = truth_and_scale(plain, params, (grad_nll,), shape)
    wides = [leaf(p.to(wide)) for p in params]
    own = plain(*wides)
    grads = torch.autograd.grad(own, wides, grad_nll)
    own = (*own, *(g.to(p.dtype) for g, p in zip(grads, params, strict=True)))
    for i, row in enumerate(zip(got, truths, own, scales, strict=True)):
        assert_accurate(f"{name}: {f'gradient {i}' if i else 'nll'}", *row)
    for g, p in zip(got[1:], params, strict=True):
        assert g.dtype == p.dtype


# Parameters and target in one dtype, then every other target under float32, and some that differ.
PAIRS = (
    *((d, d) for d in DTYPES),
    *((torch.float32, t) for t in (torch.bfloat16, torch.bool, *INTEGERS)),
    (torch.bfloat16, torch.uint8),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.int32),
    (torch.float32, torch.float64),
    (torch.float64, torch.uint8),
)
