"""beta-TCVAE's terms next to those of pythae's own loss."""

from __future__ import annotations

import pytest
import torch

pythae = pytest.importorskip("pythae")

from pythae.models import BetaTCVAE, BetaTCVAEConfig

import vae_fast

BATCH, DIMS, N = 24, 4, 500


@pytest.mark.parametrize("use_mss", [True, False])
def test_loss(use_mss: bool) -> None:
    """The weighted sum of the terms, and its gradients, with pythae's lines in float64 for the truth: its own
    stratified weights are "mss_columns"."""
    options = {"alpha": 1.5, "beta": 6.0, "gamma": 0.5}
    model = BetaTCVAE(BetaTCVAEConfig(input_dim=(1, 6, 6), latent_dim=DIMS, use_mss=use_mss, **options))
    generator = torch.Generator().manual_seed(0)
    z, mu, logvar = (torch.randn(BATCH, DIMS, generator=generator) for _ in range(3))
    images = torch.rand(BATCH, 1, 6, 6, generator=generator)
    ours = [t.clone().requires_grad_() for t in (z, mu, logvar)]
    theirs = [t.double().requires_grad_() for t in (z, mu, logvar)]
    _, _, want = model.loss_function(images.double(), images.double(), theirs[1], theirs[2], theirs[0], N)
    information, correlation, kl = vae_fast.aggregate_posterior(*ours, N, "mss_columns" if use_mss else "mws")
    got = (1.5 * information + 6.0 * correlation + 0.5 * kl).mean()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(got, ours)
    wanted = torch.autograd.grad(want, theirs)
    torch.testing.assert_close([g.double() for g in grads], list(wanted), rtol=1e-4, atol=1e-5)
