"""What a backend is: the kernels that every one of them has, their names and signatures.

Kernels fill outputs that `ops` allocated. A gradient's own shape says what it is: the parameter's full shape, shape[1:]
(summed over the batch), or () (summed over everything). An output of None is not wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..likelihoods.csr import Csr

Generators = torch.Generator | Sequence[torch.Generator] | None  # several: one for each sample
Prior = tuple[Tensor, Tensor] | None
Clamp = tuple[float, float] | None


PARAMETRIZATIONS = ("logvar", "logstd", "softplus", "std")


class Parametrization(NamedTuple):
    """How `latent` reads its second argument, raw, as sigma.

    logvar: sigma^2 = exp(raw) + epsilon; logstd: sigma = exp(raw) + epsilon; softplus: sigma = softplus(raw) + epsilon;
    std: sigma = raw + epsilon. Before that soft_clamp = c makes c tanh(x / c) of raw and of mu, and a clamp bounds raw.
    """

    name: str = "logvar"
    epsilon: float = 0.0
    soft_clamp: float | None = None
    of_prior: bool = False  # the prior is read likewise, clamps included; else it is (mu_p, logvar_p)

    @property
    def has_exact_logvar(self) -> bool:
        """Whether log sigma^2 is a multiple of raw."""
        return self.epsilon == 0 and self.name in ("logvar", "logstd")


class OwnColumn(NamedTuple):
    """Of the rows of `pairwise`: row i is a sample of column first + i, around the end.

    With a dataset_size the columns have the weights of the stratified estimator (Chen et al., 2018, appendix C.2),
    which take the place of log_weights.
    """

    first: int
    dataset_size: int | None = None

    def log_weights(self, columns: int) -> tuple[float, float, float] | None:
        """Of all other columns 1 / M, of the row's own 1 / N, of the next (N - M) / (N M), where M = columns - 1."""
        if self.dataset_size is None:
            return None
        n, m = self.dataset_size, columns - 1
        if m < 1:  # nothing but the own sample
            return 0.0, 0.0, 0.0
        return -math.log(m), -math.log(n), math.log((n - m) / (n * m)) if n > m else -math.inf


class Kernels(Protocol):
    """Shapes: mu (batch, ...), draws (num_samples, batch, ...) or (batch, ...), kl and nll (batch,).

    form: None is Parametrization(). shift and scale have mu's shape, by strides of 0 where they broadcast.

    rng_state: int64 (2,), (4,) or (batch, 2), read on the device: see `reference.rng`.
    """

    def latent_forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior,
        rng_state: Tensor | None,
        noise: Tensor | None,
        clamp: Clamp,
        *,
        z: Tensor | None,
        kl: Tensor | None,
        form: Parametrization | None = None,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """z = (mu + exp(logvar / 2) eps - shift) scale, and KL(N(mu, exp logvar) || prior)."""

    def latent_backward(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior,
        rng_state: Tensor | None,
        noise: Tensor | None,
        clamp: Clamp,
        *,
        grad_mu: Tensor | None,
        grad_logvar: Tensor | None,
        grad_prior: tuple[Tensor | None, Tensor | None] | None,
        form: Parametrization | None = None,
        scale: Tensor | None = None,
    ) -> None: ...

    def importance_forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior,
        rng_state: Tensor | None,
        noise: Tensor | None,
        clamp: Clamp,
        *,
        z: Tensor | None,
        weights: Tensor,
        first_draw: int = 0,
    ) -> None:
        """z = mu + exp(logvar / 2) eps (draws, batch, ...) and log p(z) - log N(z; mu, exp logvar), summed over each
        sample, (draws, batch): draws first_draw and on of the noise that is drawn."""

    def importance_backward(
        self,
        grad_z: Tensor | None,
        grad_weights: Tensor | None,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior,
        rng_state: Tensor | None,
        noise: Tensor | None,
        clamp: Clamp,
        *,
        grad_mu: Tensor | None,
        grad_logvar: Tensor | None,
        grad_prior: tuple[Tensor | None, Tensor | None] | None,
        path_derivative: bool = False,
        first_draw: int = 0,
    ) -> None:
        """With path_derivative mu and logvar act on the weights through z alone."""

    def noise_fill(self, eps: Tensor, rng_state: Tensor) -> None:
        """eps (num_samples, batch, ...)"""

    def likelihood_forward(
        self,
        likelihood: str,
        params: tuple[Tensor, ...],
        target: Tensor | Csr,
        mask: Tensor | None,
        rng_state: Tensor | None,
        *,
        nll: Tensor,
        draws: int | None = None,
    ) -> None:
        """params, target and mask of one shape, by strides of 0 where they broadcast. With rng_state the target is
        binarized: 1 with the probability that it is. With draws, nll and some of params have them before that shape;
        all draws of a sample meet one target, with the same bits. A target of counts may be sparse."""

    def likelihood_backward(
        self,
        likelihood: str,
        params: tuple[Tensor, ...],
        target: Tensor | Csr,
        mask: Tensor | None,
        rng_state: Tensor | None,
        grad_nll: Tensor,
        *,
        grads: tuple[Tensor | None, ...],
        draws: int | None = None,
    ) -> None:
        """With draws, grad_nll has them; the gradient of a parameter without is summed over them, too, in float32."""

    def categorical_forward(
        self, logits: Tensor, target: Tensor | Csr, *, nll: Tensor, lse: Tensor, total: Tensor
    ) -> None:
        """logits (batch, positions, classes); target without classes is a class, else counts; a sparse one has a row
        for every position, whatever the sample. lse: log sum exp of the logits; total: the counts' sum, times exp of
        what lse lost by rounding."""

    def categorical_backward(
        self,
        logits: Tensor,
        target: Tensor | Csr,
        lse: Tensor,
        total: Tensor,
        grad_nll: Tensor,
        *,
        grad_logits: Tensor,
    ) -> None: ...

    def mixture_forward(
        self,
        params: Tensor,
        target: Tensor,
        mask: Tensor | None,
        *,
        nll: Tensor,
        grad_params: Tensor | None = None,
    ) -> None:
        """params (batch, parameters, pixels), target (batch, channels, pixels), mask (batch, pixels). With grad_params
        also the gradient of the sum of nll."""

    def mixture_backward(
        self, params: Tensor, target: Tensor, mask: Tensor | None, grad_nll: Tensor, *, grad_params: Tensor
    ) -> None: ...

    def pairwise_forward(
        self,
        z: Tensor,
        mu: Tensor,
        logvar: Tensor,
        log_weights: Tensor | None,
        own: OwnColumn | None,
        *,
        joint: Tensor,
        dims: Tensor | None,
    ) -> None:
        """z (rows, dims), mu and logvar (columns, dims), log_weights (columns,), float32 and dense: logsumexp over the
        columns of log N(z; mu, exp logvar) and their weights, joint (rows,) of the sum over dims, dims (rows, dims) of
        each."""

    def pairwise_backward(
        self,
        grad_joint: Tensor | None,
        grad_dims: Tensor | None,
        z: Tensor,
        mu: Tensor,
        logvar: Tensor,
        log_weights: Tensor | None,
        own: OwnColumn | None,
        joint: Tensor,
        dims: Tensor | None,
        *,
        grad_z: Tensor | None,
        grad_mu: Tensor | None,
        grad_logvar: Tensor | None,
        grad_log_weights: Tensor | None,
    ) -> None: ...


KERNELS: tuple[str, ...] = tuple(name for name in vars(Kernels) if not name.startswith("_"))


def _compute_nothing(*args: Any, **kwargs: Any) -> None: ...


# The backend of fake kernels: shapes and strides agree with the real ones, and that is all.
FakeBackend: Any = type("FakeBackend", (), dict.fromkeys(KERNELS, staticmethod(_compute_nothing)))
