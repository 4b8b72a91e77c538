"""Pyro: the fused distributions in its models, guides, plates and ELBOs, against Pyro's own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from torch.distributions import kl_divergence

import vae_fast
from integrations.common import check_moved, check_switch, leaf, randn
from vae_fast.integrations import pyro as patched

pytestmark = pytest.mark.no_poison
OWN = {name: getattr(dist, name) for name in vae_fast.distributions.__all__}
X = torch.bernoulli(torch.full((12, 20), 0.4), generator=torch.Generator().manual_seed(0))
ELBOS = {
    "Trace_ELBO": lambda: Trace_ELBO(num_particles=2),
    "vectorized": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "RenyiELBO": lambda: RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
}


@pytest.fixture(autouse=True)
def clean() -> Any:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    assert {name: getattr(dist, name) for name in OWN} == OWN


class VAE(nn.Module):
    """examples/vae, with what an observation is and a part of the batch to choose."""

    def __init__(self, likelihood: str, size: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(20, 8), nn.Linear(4, 40)
        self.likelihood, self.size = likelihood, size

    def observation(self, z: Tensor) -> Any:
        first, second = self.decoder(z).chunk(2, -1)
        if self.likelihood == "probs":
            return dist.Bernoulli(torch.sigmoid(first), validate_args=False)
        if self.likelihood == "logits":
            return dist.Bernoulli(logits=first)
        if self.likelihood == "zinb":
            return dist.ZeroInflatedNegativeBinomial(second.exp(), logits=first, gate_logits=second)
        if self.likelihood == "normal":
            return dist.Normal(first, second.exp())
        return getattr(dist, self.likelihood)(first.exp())

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), subsample_size=self.size) as index:
            z = pyro.sample(
                "latent", dist.Normal(x.new_zeros(len(index), 4), x.new_ones(len(index), 4)).to_event(1)
            )
            mask = (torch.arange(len(x)) != 2)[index]
            pyro.sample("obs", self.observation(z).to_event(1).mask(mask), obs=x[index])

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), subsample_size=self.size) as index:
            loc, log_scale = self.encoder(x[index]).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def losses_and_gradients(elbo: str, **options: Any) -> list[Tensor]:
    pyro.clear_param_store()
    model = VAE(**options)
    torch.manual_seed(1)
    loss = ELBOS[elbo]().loss_and_grads(model.model, model.guide, X)
    return [torch.tensor(loss), *(p.grad for p in model.parameters()), torch.get_rng_state()]


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("likelihood", ["probs", "logits", "normal", "zinb", "Poisson"])
@pytest.mark.parametrize("size", [None, 5], ids=["all", "subsample"])
def test_elbos(elbo: str, likelihood: str, size: int | None) -> None:
    """Loss and every gradient, with plates, a part of the data, events and a mask."""
    want = losses_and_gradients(elbo, likelihood=likelihood, size=size)
    with patched.patch(noise="torch"):
        assert dist.Normal is patched.TorchNoiseNormal and dist.Bernoulli is patched.Bernoulli
        got = losses_and_gradients(elbo, likelihood=likelihood, size=size)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_training() -> None:
    """Ten steps of SVI: the same losses, the same parameters."""
    found = []
    for context in (contextlib.nullcontext, lambda: patched.patch(noise="torch")):
        with context():
            pyro.clear_param_store()
            model = VAE("logits", size=5)
            svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
            torch.manual_seed(2)
            losses = [svi.step(X) for _ in range(10)]
            found.append([torch.tensor(losses), *(p.detach().clone() for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


def test_own_noise_and_autoguide() -> None:
    with patched.patch():
        model = VAE("logits")
        guide = pyro.infer.autoguide.AutoNormal(model.model)
        svi = SVI(model.model, guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO())
        torch.manual_seed(0)
        losses = [svi.step(X) for _ in range(60)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_enumeration() -> None:
    """A mixture whose classes are summed out: of the support, log_prob is Pyro's view of the logits."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.1, -0.4, 0.6]))
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 2.0]))
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Categorical(logits=weights))
            pyro.sample("x", dist.Normal(locs[which], 1.0), obs=x)

    x, found = randn(9), []
    for context in (contextlib.nullcontext, patched.patch):
        with context():
            pyro.clear_param_store()
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            loss = elbo.loss_and_grads(config_enumerate(model), lambda x: None, x)
            found.append([torch.tensor(loss), *(pyro.param(n).grad for n in ("weights", "locs"))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_classes() -> None:
    """Of Pyro's kind and with its methods; a KL divergence with one of Pyro's own, too."""
    for name, own in OWN.items():
        cls = getattr(patched, name)
        assert issubclass(cls, own) and issubclass(cls, TorchDistributionMixin) and cls is not own
    loc, scale = leaf(randn(3, 4)), leaf(randn(3, 4, seed=1).exp())
    mine, other = patched.Normal(loc, scale), OWN["Normal"](loc, scale)
    assert mine.to_event(1).event_shape == (4,) and mine().shape == (3, 4)
    assert mine.expand_by([2]).log_prob(torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert mine.mask(torch.tensor(False)).log_prob(loc).abs().sum() == 0
    standard = OWN["Normal"](torch.zeros(4), torch.ones(4))
    for p, q in ((mine, standard), (standard.expand((3, 4)), mine)):
        own = [OWN["Normal"](d.loc, d.scale) for d in (p, q)]
        torch.testing.assert_close(kl_divergence(p, q), kl_divergence(*own), rtol=1e-5, atol=1e-5)
    x = torch.tensor([0.0, 3.0, 1.0])
    sparse = patched.Poisson(torch.tensor([0.5, 2.0, 1.0]), is_sparse=True)
    torch.testing.assert_close(sparse.log_prob(x), patched.Poisson(sparse.rate).log_prob(x))
    assert sparse.expand((2, 3)).is_sparse
    torch.testing.assert_close(other.log_prob(loc), mine.log_prob(loc))


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_switch(patched._SWITCH, patched.patch)
    check_moved(patched._SWITCH, patched.patch, monkeypatch)
