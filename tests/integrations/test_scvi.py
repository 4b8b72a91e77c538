"""scvi-tools: the same numbers with and without the patch, of the pieces and of whole trainings."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

scvi = pytest.importorskip("scvi")
anndata = pytest.importorskip("anndata")

from scvi.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from scvi.nn import Encoder, EncoderTOTALVI

import vae_fast
from integrations.common import check_moved, check_switch, gradients, leaf, randn
from vae_fast.integrations import scvi as patched

pytestmark = pytest.mark.no_poison
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
scvi.settings.verbosity = logging.ERROR
COUNTS = torch.poisson(3 * randn(6, 40, seed=9).abs(), generator=torch.Generator().manual_seed(0))
DISTRIBUTIONS: dict[str, tuple[Callable[..., Any], list[Callable[[], Tensor]]]] = {
    "nb": (
        lambda mu, theta: NegativeBinomial(mu=mu, theta=theta),
        [lambda: randn(6, 40).exp(), lambda: randn(40, seed=1).exp()],
    ),
    "nb of each cell": (
        lambda mu, theta: NegativeBinomial(mu=mu, theta=theta),
        [lambda: randn(6, 40).exp(), lambda: randn(6, 40, seed=1).exp()],
    ),
    "nb of draws": (
        lambda mu, theta: NegativeBinomial(mu=mu, theta=theta),
        [lambda: randn(3, 6, 40).exp(), lambda: randn(40, seed=1).exp()],
    ),
    "nb of counts and logits": (
        lambda total, logits: NegativeBinomial(total_count=total, logits=logits),
        [lambda: randn(6, 40).exp(), lambda: randn(6, 40, seed=1)],
    ),
    "zinb": (
        lambda mu, theta, pi: ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi),
        [lambda: randn(6, 40).exp(), lambda: randn(40, seed=1).exp(), lambda: randn(6, 40, seed=2)],
    ),
    "mixture": (
        lambda mu1, mu2, theta, pi: NegativeBinomialMixture(mu1, mu2, theta, pi),
        [
            lambda: randn(6, 40).exp(),
            lambda: randn(6, 40, seed=1).exp(),
            lambda: randn(40, seed=2).exp(),
            lambda: randn(6, 40, seed=3),
        ],
    ),
    "poisson": (lambda rate: Poisson(rate), [lambda: randn(6, 40).exp()]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_log_prob(name: str) -> None:
    """And every gradient, against scvi-tools' own in float64."""
    make, params = DISTRIBUTIONS[name]
    mine, exact = [leaf(p()) for p in params], [leaf(p().double()) for p in params]
    want = make(*exact).log_prob(COUNTS.double())
    with patched.patch():
        got = make(*mine).log_prob(COUNTS)
        assert got.dtype == torch.float32 and got.shape == want.shape
        grads = gradients(got, mine)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for g, w in zip(grads, gradients(want, exact), strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_logits_of_dropping_out_are_computed_where_they_are_taken(likelihood: str) -> None:
    torch.manual_seed(0)
    module = scvi.module.VAE(40, gene_likelihood=likelihood).eval()
    calls: list[int] = []
    module.decoder.px_dropout_decoder.register_forward_hook(lambda *_: calls.append(1))
    z, library, batch = randn(6, 10), randn(6, 1, seed=1), torch.zeros(6, 1)
    want = module.generative(z, library, batch)["px"].log_prob(COUNTS)
    calls.clear()
    with patched.patch():
        got = module.generative(z, library, batch)["px"].log_prob(COUNTS)
        assert len(calls) == (likelihood == "zinb")
        *_, dropout = module.decoder("gene", z, library, batch)
    assert dropout.shape == (6, 40)  # asked by itself, the decoder gives all
    torch.testing.assert_close(got, want)


def test_a_dispersion_of_each_gene_is_never_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_fast.ops import likelihood as op

    sizes, empty = [], op._common.empty_gradient
    monkeypatch.setattr(
        op._common, "empty_gradient", lambda b, p, *rest: sizes.append(tuple(p.shape)) or empty(b, p, *rest)
    )
    mu, theta = leaf(randn(6, 40).exp()), leaf(randn(40, seed=1).exp())
    with patched.patch():
        NegativeBinomial(mu=mu, theta=theta).log_prob(COUNTS).sum().backward()
    assert sizes == [(6, 40), (40,)]


@pytest.mark.parametrize("distribution", ["normal", "ln"])
@pytest.mark.parametrize("activation", [None, torch.nn.functional.softplus], ids=["exp", "softplus"])
def test_encoder(distribution: str, activation: Any) -> None:
    """The posterior, its sample and its KL divergence; the state of torch's generator afterwards is the same, too."""
    torch.manual_seed(0)
    encoder = Encoder(
        40, 5, distribution=distribution, var_activation=activation, return_dist=True, dropout_rate=0.0
    )
    totalvi = EncoderTOTALVI(40, 5, distribution=distribution, dropout_rate=0.0)
    prior = torch.distributions.Normal(torch.zeros(6, 5), torch.ones(6, 5))
    x, found = randn(6, 40), []
    for context in (contextlib.nullcontext, lambda: patched.patch(noise="torch")):
        with context():
            torch.manual_seed(3)
            dist, z = encoder(x)
            q_z, q_l, latent, untransformed = totalvi(x)
            draws = dist.sample((4,))
            outputs = [
                z, kl_divergence(dist, prior), dist.log_prob(z), dist.loc, dist.scale, dist.variance,
                kl_divergence(q_z, torch.distributions.Normal(0, 1)), q_z.scale, q_l.scale,
                *latent.values(), *untransformed.values(),
            ]  # fmt: skip
            parameters = [*encoder.parameters(), *totalvi.parameters()]
            grads = gradients(outputs, parameters)
            assert isinstance(dist, vae_fast.distributions.Normal) == bool(found)
            found.append([*outputs, draws, *grads, torch.get_rng_state()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-5)


def test_encoder_without_distribution_and_own_noise() -> None:
    encoder = Encoder(40, 5)
    with patched.patch():
        torch.manual_seed(0)
        mean, variance, z = encoder(randn(6, 40))
        torch.manual_seed(0)
        assert torch.equal(z, encoder(randn(6, 40))[2])  # by torch.manual_seed; batch norm and dropout, too
    assert mean.shape == variance.shape == z.shape == (6, 5) and (variance > 1e-4).all()
    with pytest.raises(ValueError, match='"vae_fast" or "torch"'):
        patched.patch(noise="jax")


def test_nan_is_told_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.distributions.Normal does, whose error users know."""
    monkeypatch.setattr(
        torch.distributions.Distribution, "_validate_args", True
    )  # Pyro may have turned it off
    encoder = Encoder(40, 5)
    with patched.patch(), pytest.raises(ValueError, match="Expected parameter loc"):
        encoder(torch.full((6, 40), torch.nan))


def make_data(cells: int = 160, genes: int = 30) -> Any:
    rng = np.random.default_rng(0)
    data = anndata.AnnData(rng.negative_binomial(2, 0.3, (cells, genes)).astype(np.float32))
    data.obs["label"] = rng.choice(["a", "b", "unknown"], cells)
    data.obsm["protein"] = rng.negative_binomial(5, 0.3, (cells, 4)).astype(np.float32)
    return data


def build(name: str, **options: Any) -> Any:
    data, cls = make_data(), getattr(scvi.model, name)
    scvi.settings.seed = 0
    if name == "TOTALVI":
        cls.setup_anndata(data, protein_expression_obsm_key="protein")
    elif name == "SCANVI":
        cls.setup_anndata(data, labels_key="label", unlabeled_category="unknown")
    else:
        cls.setup_anndata(data)
    return cls(data, n_latent=4, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SCVI", {"gene_likelihood": "nb"}),
        ("SCVI", {"gene_likelihood": "zinb", "use_observed_lib_size": False}),
        ("SCVI", {"gene_likelihood": "poisson", "dispersion": "gene"}),
        ("LinearSCVI", {}),
        ("SCANVI", {}),
        ("TOTALVI", {}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)
def test_training(name: str, options: dict[str, Any]) -> None:
    """Two epochs: the same losses, and the same model at their end."""
    found = []
    for context in (contextlib.nullcontext, lambda: patched.patch(noise="torch")):
        with context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build(name, **options)
            model.train(max_epochs=2, batch_size=64, accelerator="cpu", enable_progress_bar=False)
            history = {k: v.to_numpy(dtype=float).ravel() for k, v in model.history.items()}
            state = dict(model.module.state_dict())
            latent = torch.as_tensor(model.get_latent_representation())
            found.append((history, state, latent, float(model.get_elbo())))
    (history, state, latent, elbo), (mine, my_state, my_latent, my_elbo) = found
    assert history.keys() == mine.keys() and any("loss" in k or "elbo" in k for k in mine)
    for key, values in history.items():
        np.testing.assert_allclose(mine[key], values, rtol=1e-4, atol=1e-4, err_msg=key)
    for key, tensor in state.items():
        torch.testing.assert_close(my_state[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
    torch.testing.assert_close(my_latent, latent, rtol=1e-3, atol=1e-3)
    assert my_elbo == pytest.approx(elbo, rel=1e-4)


def test_training_with_own_noise_and_draws() -> None:
    """Other noise, the same expectation: not far from the unpatched loss; and importance samples."""
    losses = []
    for context in (contextlib.nullcontext, lambda: patched.patch()):
        with context():
            model = build("SCVI", gene_likelihood="nb")
            model.train(max_epochs=3, batch_size=64, accelerator="cpu", enable_progress_bar=False)
            losses.append(model.get_marginal_ll(n_mc_samples=200, n_mc_samples_per_pass=50))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_compiled() -> None:
    """ZINB in one graph: scvi-tools' own log_prob looks at the values, and breaks it."""

    def loss(mu: Tensor, theta: Tensor, pi: Tensor) -> Tensor:
        px = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi, validate_args=False)
        return -px.log_prob(COUNTS).sum()

    params = [p() for p in DISTRIBUTIONS["zinb"][1]]
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(*params)
    with patched.patch():
        torch._dynamo.reset()
        mine, compiled = [leaf(p) for p in params], [leaf(p) for p in params]
        got = torch.compile(loss, fullgraph=True, backend="aot_eager")(*compiled)
        want = loss(*mine)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, compiled), torch.autograd.grad(want, mine))
    torch._dynamo.reset()


def test_validation() -> None:
    """On request, with a warning, as scvi-tools does it."""
    px = NegativeBinomial(mu=torch.ones(3), theta=torch.ones(3), validate_args=True)
    with patched.patch(), pytest.warns(UserWarning, match="within the support"):
        px.log_prob(torch.tensor([0.5, 1.0, 2.0]))
    with patched.patch(), pytest.raises(ValueError, match="within the support"):
        Poisson(torch.ones(3), validate_args=True).log_prob(torch.tensor([0.5, 1.0, 2.0]))


def test_another_epsilon_is_theirs() -> None:
    px = NegativeBinomial(mu=torch.zeros(3), theta=torch.ones(3))
    px._eps = 1e-4
    want = px.log_prob(torch.ones(3))
    with patched.patch():
        assert torch.equal(px.log_prob(torch.ones(3)), want)


def test_argument_order() -> None:
    """x is first, as in scvi-tools; counts where mu belongs, and parameters where x does, are refused."""
    from scvi.distributions import _negative_binomial as theirs

    x, mu, theta, pi = COUNTS, randn(6, 40).exp(), randn(40, seed=1).exp(), randn(6, 40, seed=2)
    torch.testing.assert_close(patched.log_nb_positive(x, mu, theta), theirs.log_nb_positive(x, mu, theta))
    torch.testing.assert_close(
        patched.log_zinb_positive(x, mu, theta, pi), theirs.log_zinb_positive(x, mu, theta, pi)
    )
    for theta_2 in (None, theta + 1):
        args = (x, mu, mu + 1, theta, theta_2, pi)
        torch.testing.assert_close(
            patched.log_mixture_nb(*args), theirs.log_mixture_nb(*args), rtol=1e-5, atol=1e-5
        )
    with pytest.raises(TypeError, match="x, the counts, first"):
        patched.log_nb_positive(mu, x.int(), theta)
    with pytest.raises(ValueError, match="x, the counts, first"):
        patched.log_nb_positive(leaf(mu), x, theta)
    with patched.patch():  # a class's value is what it is called
        value = leaf(x)
        NegativeBinomial(mu=mu, theta=theta).log_prob(value).sum().backward()
    assert value.grad is not None and value.grad.isfinite().all()


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_switch(patched._SWITCH, patched.patch)
    check_moved(patched._SWITCH, patched.patch, monkeypatch)
