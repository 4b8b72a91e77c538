"""Objectives for `VAE(objective=...)`: what is minimised, from the terms of one pass.

All sums run over the dims of a sample and all means over the batch, as the ELBO's: a loss that takes the mean over the
elements of x instead weights the KL with their number, which is another beta. All are in nats.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..checks import check_int, check_num_samples
from ..likelihoods.numerics import per_sample
from ..output import VAEOutput
from .checks import check_beta
from .describe import Described
from .posterior import Posterior
from .schedules import LinearSchedule, Schedule, check_finite

__all__ = ["ELBO", "IWAE", "OBJECTIVES", "BetaTC", "Capacity", "FreeBits", "KLBalance", "Objective"]

Weight = float | Tensor | Schedule


class Objective(Described, nn.Module):
    """Base class. `forward(posterior)` returns the `VAEOutput` of a pass; a `Posterior` has the terms.

    num_samples: the draws that it takes where the model is given none.
    is_mean_of_samples: whether the loss is the mean of a term of each sample. Then parts of a batch, on several
        processes or one after another, add up to the whole batch's loss and gradients.
    """

    num_samples: int | None = None
    is_mean_of_samples = False

    def forward(self, posterior: Posterior) -> VAEOutput:
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        # Weights may be set after the objective was made.
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


class ELBO(Objective):
    """loss = mean of  -log p(x | z) + beta KL(q(z | x) || p(z)).

    Args:
        beta: the KL's weight: a number or tensor, or a `Schedule` (`LinearSchedule`, `CyclicalSchedule`: warm-up).

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014; Higgins et al., "beta-VAE", 2017.
    """

    beta: Weight
    is_mean_of_samples = True

    def __init__(self, beta: Weight = 1.0) -> None:
        super().__init__()
        self.beta = _weight(beta)

    def extra_repr(self) -> str:
        return "" if isinstance(self.beta, Schedule) else f"beta={self.beta}"

    def forward(self, posterior: Posterior) -> VAEOutput:
        z, kl = posterior.sample()
        nll = posterior.mean_nll(z)
        return VAEOutput((nll + _value(self.beta) * kl).mean(), nll, kl, z)


class FreeBits(Objective):
    """The ELBO with a KL that costs nothing below `nats`, so that latents are not given up early in training. KL_bj is
    that of dim j for sample b:

        per="dimension"   sum_j max(nats, mean_b KL_bj)     Kingma et al., 2016, with single dims as the groups
        per="element"     mean_b sum_j max(nats, KL_bj)     Li et al., 2019
        per="sample"      mean_b max(nats, sum_j KL_bj)     a floor of the whole KL

    Args:
        nats: lambda, at least 0; each dim's for the first two.
        beta: as `ELBO`'s; it multiplies the whole term.

    The mean over the batch is a process's own where there are several. The prior has to be a Gaussian for the first
    two. Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016, section C.8;
    Li et al., "A surprisingly effective fix for deep latent variable modeling of text", 2019.
    """

    beta: Weight

    def __init__(self, nats: float = 0.5, per: str = "dimension", beta: Weight = 1.0) -> None:
        super().__init__()
        self.nats, self.per, self.beta = _not_negative("nats", nats), per, _weight(beta)
        if per not in ("dimension", "element", "sample"):
            raise ValueError(f'expected per to be "dimension", "element" or "sample", but got {per!r}')
        self.is_mean_of_samples = per != "dimension"

    def extra_repr(self) -> str:
        return f'{self.nats:g}, per="{self.per}"'

    def forward(self, posterior: Posterior) -> VAEOutput:
        z, kl = posterior.sample("sample" if self.per == "sample" else "none")
        nll = posterior.mean_nll(z)
        if self.per == "dimension":
            cost = kl.mean(0).clamp_min(self.nats).sum()
        else:
            cost = per_sample(kl.clamp_min(self.nats), kl.ndim).mean()
        return VAEOutput(nll.mean() + _value(self.beta) * cost, nll, per_sample(kl, kl.ndim), z)


class Capacity(Objective):
    """loss = mean of -log p(x | z)  +  gamma |mean KL - C|, with a capacity C in nats that grows.

    Source: Burgess et al., "Understanding disentangling in beta-VAE", 2018, equation 8; its numbers are the defaults.
    """

    capacity: Weight

    def __init__(self, gamma: float = 1000.0, capacity: Weight | None = None) -> None:
        super().__init__()
        self.gamma = _not_negative("gamma", gamma)
        self.capacity = LinearSchedule(100_000, 0, 25) if capacity is None else _weight(capacity, "capacity")

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"

    def forward(self, posterior: Posterior) -> VAEOutput:
        z, kl = posterior.sample()
        nll = posterior.mean_nll(z)
        loss = nll.mean() + self.gamma * (kl.mean() - _value(self.capacity)).abs()
        return VAEOutput(loss, nll, kl, z)


class KLBalance(Objective):
    """The ELBO whose KL moves the prior with weight alpha and the posterior with 1 - alpha, for a learned prior:

        kl = alpha KL(stop(q) || p) + (1 - alpha) KL(q || stop(p))

    Its value is that of the KL. Source: Hafner et al., "Mastering Atari with discrete world models", 2021, algorithm 2.
    """

    beta: Weight
    is_mean_of_samples = True

    def __init__(self, alpha: float = 0.8, beta: Weight = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta = _not_negative("alpha", alpha), _weight(beta)
        if self.alpha > 1:
            raise ValueError(f"expected alpha to be at most 1, but got {self.alpha:g}")

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"

    def forward(self, posterior: Posterior) -> VAEOutput:
        prior = posterior.gaussian_prior
        if prior is None:
            raise ValueError("expected a learned prior for KLBalance, but got N(0, 1)")
        z, _ = posterior.sample()
        mu, logvar = posterior.mu, posterior.logvar
        nll = posterior.mean_nll(z)
        of_prior = functional.kl_divergence(mu.detach(), logvar.detach(), prior=prior)
        fixed = prior[0].detach(), prior[1].detach()
        kl = self.alpha * of_prior + (1 - self.alpha) * functional.kl_divergence(mu, logvar, prior=fixed)
        return VAEOutput((nll + _value(self.beta) * kl).mean(), nll, kl, z)


class BetaTC(Objective):
    """loss = mean of  -log p(x | z) + alpha MI + beta TC + gamma DW: the KL's three parts, mutual information, total
    correlation and dimension-wise KL, weighted apart (`vae_fast.aggregate_posterior`).

    Args:
        dataset_size: N, the number of training samples. None: the batch's, with estimator "mws", of which N changes the
            value and not the gradient.
        alpha, beta, gamma: numbers, tensors or schedules. All 1 is the ELBO, up to the estimator.
        estimator: "mss", "mws" or "mss_columns", as there. None: "mss" where dataset_size is given.
        group: a torch.distributed process group whose batches are one.

    One draw per sample and the prior N(0, 1). Source: Chen et al., "Isolating sources of disentanglement in variational
    autoencoders", 2018.
    """

    beta: Weight

    def __init__(
        self,
        dataset_size: int | None = None,
        alpha: Weight = 1.0,
        beta: Weight = 1.0,
        gamma: Weight = 1.0,
        estimator: str | None = None,
        *,
        group: Any = None,
    ) -> None:
        super().__init__()
        self.dataset_size = None if dataset_size is None else check_int("dataset_size", dataset_size, 1)
        self.estimator = estimator or ("mws" if dataset_size is None else "mss")
        if self.dataset_size is None and self.estimator != "mws":
            raise ValueError(f'expected dataset_size to be given for estimator="{self.estimator}"')
        if self.estimator not in ("mss", "mws", "mss_columns"):
            raise ValueError(f'expected estimator to be "mss", "mws" or "mss_columns", but got {estimator!r}')
        self.alpha, self.beta, self.gamma = _weight(alpha, "alpha"), _weight(beta), _weight(gamma, "gamma")
        self.group = group

    def extra_repr(self) -> str:
        return f'{self.dataset_size}, estimator="{self.estimator}"'

    def forward(self, posterior: Posterior) -> VAEOutput:
        if posterior.prior is not None:
            raise ValueError(
                f"expected the prior N(0, 1) for BetaTC, but got {type(posterior.model.prior).__name__}"
            )
        if posterior.num_samples is not None:
            raise ValueError(f"expected num_samples to be None for BetaTC, but got {posterior.num_samples}")
        z, kl = posterior.sample()
        nll = posterior.mean_nll(z)
        size = max(1, z.shape[0]) if self.dataset_size is None else self.dataset_size
        parts = functional.aggregate_posterior(
            z, posterior.mu, posterior.logvar, size, self.estimator, group=self.group
        )
        weighted = (
            _value(w) * part for w, part in zip((self.alpha, self.beta, self.gamma), parts, strict=True)
        )
        return VAEOutput((nll + sum(weighted)).mean(), nll, kl, z)


class IWAE(Objective):
    """loss = mean of  -log 1/k sum_i w_i,  w_i = p(x | z_i) p(z_i) / q(z_i | x), over k draws: tighter than the ELBO.

    Args:
        num_samples: k. None: the model's `num_samples`.
        gradient: of the encoder. "total": the derivative of the loss, whose signal in the encoder falls as k grows;
            "path": without that of log q at a fixed z ("sticking the landing", biased for k above 1); "dreg": doubly
            reparameterised, unbiased and of lower variance. The decoder's and the prior's are the same for all.

    In the output nll is the mean over the draws, and kl that of log q(z | x) - log p(z); "dreg" gives both without
    gradients.

    Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", 2016; Roeder, Wu & Duvenaud, "Sticking
    the landing", 2017; Tucker et al., "Doubly reparameterized gradient estimators for Monte Carlo objectives", 2019.
    """

    is_mean_of_samples = True

    def __init__(self, num_samples: int | None = None, gradient: str = "total") -> None:
        super().__init__()
        self.num_samples = None if num_samples is None else check_num_samples(num_samples)
        self.gradient = gradient
        if gradient not in ("total", "path", "dreg"):
            raise ValueError(f'expected gradient to be "total", "path" or "dreg", but got {gradient!r}')

    def extra_repr(self) -> str:
        return f'{self.num_samples}, gradient="{self.gradient}"'

    def forward(self, posterior: Posterior) -> VAEOutput:
        if posterior.num_samples is None:
            raise ValueError("expected num_samples to be given for IWAE, to it or to the model, but got None")
        z, ratio = posterior.log_weights(posterior.num_samples, path_derivative=self.gradient != "total")
        if self.gradient == "dreg":
            return self._dreg(posterior, z, ratio)
        nll = posterior.nll(z)
        loss = math.log(z.shape[0]) - (ratio - nll).logsumexp(0)
        return VAEOutput(loss.mean(), nll.mean(0), -ratio.mean(0), z)

    def _dreg(self, posterior: Posterior, z: Tensor, ratio: Tensor) -> VAEOutput:
        """A draw's share of the weight multiplies its gradient once more on the way to the encoder."""
        given, zeros = _TimesShare.apply(z, torch.zeros_like(ratio.detach()))
        nll = posterior.nll(given)
        log_w = (ratio - nll).detach()
        share = log_w.softmax(0)
        value = math.log(z.shape[0]) - log_w.logsumexp(0)
        of_decoder = (share * (nll + zeros)).sum(0)
        of_encoder = -(share.square() * ratio).sum(0)
        surrogate = of_decoder + of_encoder + self._of_prior(posterior, share, z)
        loss = value + (surrogate - surrogate.detach())
        return VAEOutput(loss.mean(), nll.detach().mean(0), -ratio.detach().mean(0), z)

    @staticmethod
    def _of_prior(posterior: Posterior, share: Tensor, z: Tensor) -> Tensor | float:
        """What a learned prior's parameters lack: `ratio` has the square of the share for them, too."""
        prior = posterior.prior
        if prior is None:
            return 0.0
        at = z.detach()
        if isinstance(prior, tuple):
            mu, logvar = prior
            squares = (at.to(torch.result_type(at, mu)) - mu).square() * (-logvar).exp()
            terms = -0.5 * (squares + logvar)
            log_p = per_sample(terms, terms.ndim - 1)
        else:
            log_p = prior.log_prob(at)
        return ((share.square() - share) * log_p).sum(0)


class _TimesShare(torch.autograd.Function):
    """z, whose gradient is multiplied by each draw's share. The shares are known only after z was used: they come with
    the gradient of `zeros` (draws, batch), times one factor for each sample, and their sum is 1."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
        return z.view_as(z), zeros.view_as(zeros)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, share: Tensor) -> tuple[Tensor, None]:
        factor = share.sum(0)
        share = share / factor.where(factor != 0, 1)
        return grad * share.to(grad.dtype).view(*share.shape, *[1] * (grad.ndim - 2)), None


OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
    "free_bits": FreeBits,
    "capacity": Capacity,
    "kl_balance": KLBalance,
    "beta_tc": BetaTC,
    "iwae": IWAE,
}


def make_objective(objective: Any, beta: Any) -> Objective:
    """What `VAE(objective=..., beta=...)` was given, as a module."""
    beta = check_beta(beta)
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise ValueError(
                f"expected objective to be one of {', '.join(OBJECTIVES)}, but got {objective!r}"
            )
        kind = OBJECTIVES[objective]
        if "beta" in kind.__annotations__:
            return kind(beta=beta)
        made: Any = kind()
    else:
        made = objective
    if not callable(made) or isinstance(made, type):
        raise TypeError(f"expected objective to be a name or a vae_fast.nn.Objective, but got {objective!r}")
    if isinstance(beta, (Tensor, Schedule)) or beta != 1:
        raise ValueError(
            f"expected beta to be given to the objective itself, if it has one, but got beta={beta}"
        )
    return made


def _value(weight: Weight) -> float | Tensor:
    return weight() if isinstance(weight, Schedule) else weight


def _weight(weight: Weight, name: str = "beta") -> Weight:
    return check_beta(weight, name)


def _not_negative(name: str, value: Any) -> float:
    number = check_finite(name, value)
    if number < 0:
        raise ValueError(f"expected {name} to be at least 0, but got {number:g}")
    return number
