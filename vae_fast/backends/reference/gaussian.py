"""The latent op's closed-form derivatives, of one Gaussian in any of its parametrizations."""

from __future__ import annotations

import torch
from torch import Tensor

from ...likelihoods.numerics import times_exp, widest
from ..contract import Clamp, Parametrization
from . import latent


class Gaussian:
    """N(mu, sigma^2) of mu and raw, in the dtype of the arithmetic and as they come in."""

    def __init__(self, mu: Tensor, raw: Tensor, form: Parametrization, clamp: Clamp) -> None:
        self.form, self.clamp, self.given_mu, self.given_raw = form, clamp, mu, raw
        self.mu = latent.soft_clamped(mu, form.soft_clamp)
        self.raw = latent.soft_clamped(raw if clamp is None else raw.clamp(*clamp), form.soft_clamp)
        self.times = 1 if form.name == "logvar" else 2  # log sigma^2 = times raw, if it is exact

    def by_given(self, by_mu: Tensor, by_raw: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients by mu and raw before the clamps."""
        if (c := self.form.soft_clamp) is not None:
            return by_mu * _soft_slope(self.given_mu, c), by_raw * _soft_slope(self.given_raw, c)
        if self.clamp is not None:  # the bounds belong to the inside, NaN stays NaN
            lo, hi = self.clamp
            by_raw = torch.where((self.given_raw < lo) | (self.given_raw > hi), 0.0, by_raw)
        return by_mu, by_raw

    def times_std_slope(self, d: Tensor) -> Tensor:
        """d dsigma/draw"""
        if self.form.has_exact_logvar:
            return times_exp(0.5 * self.times * d, 0.5 * self.times * self.raw)
        return d * self._std_slope()

    def _std_slope(self) -> Tensor:
        x = self.raw.to(widest(self.raw))
        if self.form.name == "std":
            return torch.ones_like(x)
        if self.form.name == "softplus":
            return torch.sigmoid(x)
        e = torch.exp(x)
        return e if self.form.name == "logstd" else 0.5 * e / latent.std_of(self.raw, self.form).value

    def _log_slope(self) -> Tensor:
        """dlog(sigma)/draw"""
        return self._std_slope() / latent.std_of(self.raw, self.form).value

    def kl_slopes(self, prior: Gaussian) -> tuple[Tensor, Tensor, Tensor]:
        """Of KL(self || prior) by mu, by raw and by the prior's raw; by the prior's mu it is the first with a minus."""
        if self.form.has_exact_logvar:
            lv, lvp = self.times * self.raw, prior.times * prior.raw
            up = latent.half_expm1(lv - lvp)
            scaled = times_exp(self.mu - prior.mu, -0.5 * lvp)
            return (
                times_exp(scaled, -0.5 * lvp),
                self.times * up,
                -prior.times * (up + 0.5 * scaled * scaled),
            )
        inverse = latent.inverse_std(prior.raw, self.form)
        std = latent.std_of(self.raw, self.form).value
        scaled, (_, minus_1) = inverse.times(self.mu - prior.mu), inverse.ratio(std)
        by_raw = minus_1 * (inverse.times(self._std_slope()) + self._log_slope())
        by_log = -(scaled * scaled + minus_1 * (minus_1 + 2))
        return inverse.times(scaled), by_raw, by_log * (prior._log_slope() if self.form.of_prior else 0.5)


def _soft_slope(x: Tensor, limit: float) -> Tensor:
    """Of limit tanh(x / limit)"""
    return 1 - torch.tanh(x.to(widest(x)) / limit) ** 2
