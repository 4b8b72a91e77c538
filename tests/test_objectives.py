"""Objectives, priors and the hierarchy against a few plain lines in float64: values and every gradient."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

import vae_fast
from vae_fast.nn import (
    IWAE,
    VAE,
    BetaTC,
    Capacity,
    ConditionalPrior,
    CyclicalSchedule,
    FreeBits,
    GaussianPrior,
    HierarchicalVAE,
    KLBalance,
    LinearSchedule,
    MixturePrior,
    MLPDecoder,
    MLPEncoder,
    VampPrior,
    importance_nll,
)

STATE = torch.tensor([3, 5])
BATCH, FEATURES, LATENT = 6, 10, 3
PRIORS: dict[str, Callable[[], Any]] = {
    "standard": lambda: None,
    "pair": lambda: (torch.randn(LATENT), torch.randn(LATENT)),
    "gaussian": lambda: GaussianPrior(LATENT),
    "conditional": lambda: ConditionalPrior(nn.Embedding(4, 2 * LATENT)),
    "mixture": lambda: MixturePrior(5, LATENT),
    "vamp": lambda: VampPrior(torch.rand(4, FEATURES)),
}
GAUSSIAN = ("standard", "pair", "gaussian", "conditional")


def make(prior: str, **options: Any) -> VAE:
    torch.manual_seed(7)
    model = VAE(
        MLPEncoder(FEATURES, 8, LATENT), MLPDecoder(LATENT, 8, FEATURES), prior=PRIORS[prior](), **options
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


def batch() -> dict[str, Tensor]:
    x = (torch.rand(BATCH, FEATURES, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    return {"x": x}


def condition(prior: str) -> dict[str, Tensor]:
    return {"condition": torch.arange(BATCH) % 4} if prior == "conditional" else {}


def prior_of(model: VAE, prior: str) -> Any:
    p: Any = model.prior
    zero = torch.zeros(LATENT, dtype=torch.float64)
    if prior == "mixture":
        parts = Independent(Normal(p.means, (p.logvars / 2).exp()), 1)
        return MixtureSameFamily(Categorical(logits=p.logits), parts)
    if prior == "vamp":
        mu, logvar = model.encoder(p.pseudo_inputs.clamp(0, 1)).chunk(2, 1)
        return MixtureSameFamily(
            Categorical(logits=torch.zeros(4, dtype=torch.float64)),
            Independent(Normal(mu, (logvar / 2).exp()), 1),
        )
    if prior == "conditional":
        mu, logvar = p.network(torch.arange(BATCH) % 4).chunk(2, 1)
    else:
        mu, logvar = (zero, zero) if prior == "standard" else (p.mu, p.logvar)
    return Independent(Normal(mu.expand(BATCH, LATENT), (logvar / 2).exp().expand(BATCH, LATENT)), 1)


class Terms:
    """The plain terms of a pass with k draws, or one."""

    def __init__(self, model: VAE, prior: str, k: int | None = None) -> None:
        x = batch()["x"]
        self.mu, self.logvar = model.encoder(x).chunk(2, 1)
        self.q = Independent(Normal(self.mu, (self.logvar / 2).exp()), 1)
        eps = vae_fast.noise((BATCH, LATENT), STATE, num_samples=k, dtype=torch.float64)
        self.z = self.mu + (self.logvar / 2).exp() * eps
        self.p = prior_of(model, prior)
        self.nll = self.nll_at(model, self.z)
        self.ratio = self.p.log_prob(self.z) - self.q.log_prob(self.z)
        if prior in GAUSSIAN:
            self.kl_elements = kl_divergence(self.q.base_dist, self.p.base_dist)
            self.kl = self.kl_elements.sum(1)
        else:
            normal = Independent(Normal(torch.zeros_like(self.mu), torch.ones_like(self.mu)), 1)
            excess = normal.log_prob(self.z) - self.p.log_prob(self.z)
            self.kl = kl_divergence(self.q, normal) + (excess if k is None else excess.mean(0))

    @staticmethod
    def nll_at(model: VAE, z: Tensor) -> Tensor:
        logits = model.decoder(z.flatten(0, -2)).view(*z.shape[:-1], FEATURES)
        x = batch()["x"].expand_as(logits)
        return nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def compare(model: VAE, prior: str, expected: Tensor, surrogate: Tensor | None = None) -> None:
    """The loss, and the gradients of all parameters, which are those of the `surrogate` where that is another."""
    wanted = torch.autograd.grad(
        expected if surrogate is None else surrogate, list(model.parameters()), allow_unused=True
    )
    loss = model(**batch(), **condition(prior), rng_state=STATE).loss
    got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for (name, _), a, b in zip(model.named_parameters(), got, wanted, strict=True):
        zero = torch.zeros((), dtype=torch.float64)
        a, b = (zero if g is None else g for g in (a, b))
        torch.testing.assert_close(
            a, b.expand_as(a), rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize("prior", PRIORS)
def test_elbo(prior: str, draws: int | None) -> None:
    model = make(prior, beta=0.7, num_samples=draws)
    terms = Terms(model, prior, draws)
    nll = terms.nll if draws is None else terms.nll.mean(0)
    compare(model, prior, (nll + 0.7 * terms.kl).mean())


@pytest.mark.parametrize("prior", PRIORS)
def test_estimate_of_a_kl_is_unbiased(prior: str) -> None:
    """The same for a hundred thousand draws of log q - log p, whatever is known in closed form."""
    model, k = make(prior, num_samples=100_000).float(), 100_000
    x = batch()["x"].float()
    posterior = model._posterior(x, condition(prior).get("condition"), k, None, STATE)
    _, kl = posterior.sample()
    log_w = posterior.log_weights(k)[1]
    error = log_w.std(0) / math.sqrt(k)
    assert bool(((kl + log_w.mean(0)).abs() < 6 * error + 1e-4).all())


@pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
@pytest.mark.parametrize("prior", PRIORS)
def test_iwae(prior: str, gradient: str) -> None:
    k = 4
    model = make(prior, objective=IWAE(k, gradient))
    terms = Terms(model, prior, k)
    log_w = terms.ratio - terms.nll
    expected = (math.log(k) - log_w.logsumexp(0)).mean()
    if gradient == "total":
        return compare(model, prior, expected)
    share = log_w.detach().softmax(0)
    # log q with constant parameters: what is left of the encoder's gradient comes by z.
    fixed = Independent(Normal(terms.mu.detach(), (terms.logvar / 2).exp().detach()), 1)
    by_path = terms.p.log_prob(terms.z) - fixed.log_prob(terms.z) - terms.nll
    if gradient == "path":
        return compare(model, prior, expected, -(share * by_path).sum(0).mean())
    here = terms.z.detach()
    of_models = terms.p.log_prob(here) - terms.nll_at(model, here)  # decoder and prior, at fixed draws
    # By z alone: parameters of prior and decoder are constants.
    leaf = terms.z.detach().requires_grad_()
    value = terms.p.log_prob(leaf) - fixed.log_prob(leaf) - terms.nll_at(model, leaf)
    by_z = torch.autograd.grad((share.square() * value).sum(), leaf, retain_graph=True)[0]
    surrogate = -((share * of_models).sum(0) + (by_z * terms.z).sum((0, 2))).mean()
    return compare(model, prior, expected, surrogate)


@pytest.mark.parametrize("per", ["dimension", "element", "sample"])
@pytest.mark.parametrize("prior", GAUSSIAN)
def test_free_bits(prior: str, per: str) -> None:
    free = {"dimension": 0.2, "element": 0.1, "sample": 0.5}[per]
    model = make(prior, objective=FreeBits(free, per, beta=0.5))
    terms = Terms(model, prior)
    kl = terms.kl_elements
    if per == "dimension":
        cost = kl.mean(0).clamp_min(free).sum()
        below = kl.mean(0) < free
    elif per == "element":
        cost = kl.clamp_min(free).sum(1).mean()
        below = kl < free
    else:
        cost = kl.sum(1).clamp_min(free).mean()
        below = kl.sum(1) < free
    assert int(below.sum()) > 0 or prior == "pair"
    compare(model, prior, terms.nll.mean() + 0.5 * cost)


@pytest.mark.parametrize("prior", ["standard", "mixture"])
def test_free_bits_of_a_sample_and_capacity_take_any_prior(prior: str) -> None:
    model = make(prior, objective=FreeBits(2.0, "sample"))
    terms = Terms(model, prior)
    compare(model, prior, terms.nll.mean() + terms.kl.clamp_min(2.0).mean())
    model = make(prior, objective=Capacity(10.0, capacity=5.0))
    terms = Terms(model, prior)
    compare(model, prior, terms.nll.mean() + 10 * (terms.kl.mean() - 5).abs())


@pytest.mark.parametrize("prior", ["gaussian", "conditional"])
def test_kl_balance(prior: str) -> None:
    model = make(prior, objective=KLBalance(0.8, beta=2.0))
    terms = Terms(model, prior)

    def constant(d: Any) -> Any:
        return Normal(d.base_dist.loc.detach(), d.base_dist.scale.detach())

    of_prior = kl_divergence(constant(terms.q), terms.p.base_dist).sum(1)
    of_posterior = kl_divergence(terms.q.base_dist, constant(terms.p)).sum(1)
    surrogate = (terms.nll + 2 * (0.8 * of_prior + 0.2 * of_posterior)).mean()
    compare(model, prior, (terms.nll + 2 * terms.kl).mean(), surrogate)


@pytest.mark.parametrize("size", [None, 100])
def test_beta_tc(size: int | None) -> None:
    model = make("standard", objective=BetaTC(size, 0.5, 6.0, 2.0))
    terms = Terms(model, "standard")
    z, mu, sigma = terms.z, terms.mu, (terms.logvar / 2).exp()
    pairs = Normal(mu, sigma).log_prob(z[:, None])  # (i, j, d): log q_j(z_i)
    if size is None:  # weighted sampling
        joint = pairs.sum(2).logsumexp(1) - math.log(BATCH * BATCH)
        marginals = (pairs.logsumexp(1) - math.log(BATCH * BATCH)).sum(1)
    else:
        m = BATCH - 1
        w = torch.full((BATCH, BATCH), 1 / m, dtype=torch.float64)
        for i in range(BATCH):
            w[i, i], w[i, (i + 1) % BATCH] = 1 / size, (size - m) / (size * m)
        joint = (w.log() + pairs.sum(2)).logsumexp(1)
        marginals = (w.log()[..., None] + pairs).logsumexp(1).sum(1)
    log_q, log_p = terms.q.log_prob(z), terms.p.log_prob(z)
    loss = terms.nll + 0.5 * (log_q - joint) + 6 * (joint - marginals) + 2 * (marginals - log_p)
    compare(model, "standard", loss.mean())


def test_schedules_count_training_steps() -> None:
    model = make("standard", beta=LinearSchedule(4))
    seen = []
    for _ in range(6):
        out = model(**batch(), rng_state=STATE)
        seen.append(((out.loss - out.nll.mean()) / out.kl.mean()).item())
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([0, 0.25, 0.5, 0.75, 1, 1]))
    model.eval()
    assert int(model.beta.step) == 6
    model(**batch())
    again = make("standard", beta=LinearSchedule(4))
    again.load_state_dict(model.state_dict())
    assert int(again.beta.step) == 6
    again.beta = 2.0
    again.beta = LinearSchedule(1)
    assert again.beta is again.objective.beta and "objective.beta.step" in again.state_dict()
    cyclical = CyclicalSchedule(4, 0.5, 2.0)
    assert [float(cyclical()) for _ in range(9)] == [0, 1, 2, 2, 0, 1, 2, 2, 0]


@pytest.mark.parametrize("options", [{"beta": LinearSchedule(4)}, {"objective": IWAE(2, "dreg")}])
def test_one_graph(options: dict[str, Any]) -> None:
    """With what is not a plain ELBO's: a prior that encodes, a schedule's step, shares that come backward."""
    model = make("vamp", **options)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def run(of: Any) -> list[Tensor]:
        for step in model.objective.buffers():
            step.zero_()
        losses = [of(**batch(), rng_state=STATE).loss for _ in range(3)]
        return [g for loss in losses for g in (loss, *torch.autograd.grad(loss, list(model.parameters())))]

    torch.testing.assert_close(run(compiled), run(model))


def hierarchy(**options: Any) -> HierarchicalVAE:
    torch.manual_seed(7)
    bottom = VAE(
        MLPEncoder(FEATURES, 8, LATENT, conditions=2),
        MLPDecoder(LATENT, 8, FEATURES, conditions=2),
        prior=ConditionalPrior(nn.Linear(2, 2 * LATENT)),
    )
    model = HierarchicalVAE(MLPEncoder(FEATURES, 8, 2), bottom, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_hierarchy(objective: str, k: int | None) -> None:
    if objective == "iwae" and k is None:
        return
    model = hierarchy(objective=objective, num_samples=k)
    x, draws = batch()["x"], k or 1
    second = torch.tensor([3, 5 ^ (1 << 62)])
    eps = [
        vae_fast.noise((BATCH, n), s, num_samples=draws, dtype=torch.float64)
        for n, s in ((2, STATE), (LATENT, second))
    ]
    mu2, logvar2 = model.encoder(x).chunk(2, 1)
    q2 = Independent(Normal(mu2, (logvar2 / 2).exp()), 1)
    z2 = mu2 + (logvar2 / 2).exp() * eps[0]
    nll, ratio, kl = [], [], []
    for i in range(draws):
        mu1, logvar1 = model.bottom.encoder(x, z2[i]).chunk(2, 1)
        q1 = Independent(Normal(mu1, (logvar1 / 2).exp()), 1)
        mu_p, logvar_p = model.bottom.prior.network(z2[i]).chunk(2, 1)
        p1 = Independent(Normal(mu_p, (logvar_p / 2).exp()), 1)
        z1 = mu1 + (logvar1 / 2).exp() * eps[1][i]
        logits = model.bottom.decoder(z1, z2[i])
        nll.append(nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1))
        p2 = Independent(Normal(torch.zeros_like(mu2), torch.ones_like(mu2)), 1)
        ratio.append(p1.log_prob(z1) + p2.log_prob(z2[i]) - q1.log_prob(z1) - q2.log_prob(z2[i]))
        kl.append(kl_divergence(q1, p1) + kl_divergence(q2, p2))
    if objective == "elbo":
        expected = (torch.stack(nll).mean(0) + torch.stack(kl).mean(0)).mean()
    else:
        expected = (math.log(draws) - (torch.stack(ratio) - torch.stack(nll)).logsumexp(0)).mean()
        evaluated = importance_nll(model, x, draws, rng_state=STATE, chunk=2)
        torch.testing.assert_close(evaluated.mean(), expected)
    compare(model, "standard", expected)


def test_hierarchy_generates_from_both_levels() -> None:
    model = hierarchy()
    with torch.no_grad():
        model.bottom.prior.network.bias[:LATENT] = 40
    seen: list[Tensor] = []
    model.bottom.decoder[0].register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    generator = torch.Generator().manual_seed(0)
    assert model.generate(5, generator=generator).shape == (5, FEATURES)
    assert bool((seen[0].mean(1) > 30).all())  # of p(z1 | z2), and not of N(0, 1)


def test_hierarchy_reconstructs_at_draws_of_both_levels() -> None:
    model, x = hierarchy(), batch()["x"]
    generator, again = (torch.Generator().manual_seed(4) for _ in range(2))
    given_back = model.reconstruct(x, sample_z=True, generator=generator)
    with torch.no_grad():
        z2 = vae_fast.reparameterize(*model.encode(x), generator=again)
        z1 = vae_fast.reparameterize(*model.bottom.encode(x, condition=z2), generator=again)
        torch.testing.assert_close(given_back, model.bottom.decode(z1, condition=z2))
    assert not torch.allclose(given_back, model.reconstruct(x))
    assert model.generate(5, temperature=0).unique(dim=0).shape[0] == 1
    with pytest.raises(ValueError, match="no condition"):
        model(**batch(), condition=torch.zeros(BATCH, dtype=torch.int64))
    for objective in (FreeBits(), IWAE(2, "dreg")):
        with pytest.raises(ValueError, match="for a hierarchy"):
            hierarchy(objective=objective)(**batch())


@pytest.mark.parametrize("prior", ["pair", "conditional", "mixture", "vamp"])
def test_generates_from_the_prior(prior: str) -> None:
    """Mean and standard deviation of many draws, and of those with half the temperature."""
    model, n = make(prior).float(), 40_000
    labels: dict[str, Any] = {"condition": 2} if prior == "conditional" else {}
    kept: list[Tensor] = []
    model.decoder[0].register_forward_hook(lambda _m, given, _out: kept.append(given[0]))
    for temperature in (1.0, 0.5, 0.0):
        model.generate(n, temperature=temperature, generator=torch.Generator().manual_seed(0), **labels)
    p = model._p_z(torch.tensor(2) if labels else None)
    if prior in ("pair", "conditional"):
        mu, sigma = p[0].view(-1), (p[1] / 2).exp().view(-1)
        for z, temperature in zip(kept, (1.0, 0.5, 0.0), strict=True):
            torch.testing.assert_close(z.mean(0), mu, atol=0.05, rtol=0)
            torch.testing.assert_close(z.std(0), temperature * sigma, atol=0.05, rtol=0)
        return
    weights = torch.zeros(len(p.means)) if p.logits is None else p.logits
    share = weights.softmax(0)[:, None]
    mean = (share * p.means).sum(0)
    for z, temperature in zip(kept, (1.0, 0.5, 0.0), strict=True):
        second = (share * (p.means.square() + temperature**2 * p.logvars.exp())).sum(0)
        torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)
        torch.testing.assert_close(z.std(0), (second - mean.square()).sqrt(), atol=0.05, rtol=0)


def test_copies_keep_to_their_own_encoder() -> None:
    """A VampPrior has no encoder of its own: not in the state_dict, and a copy's is the copy's."""
    import copy

    model = make("vamp")
    assert [n for n in model.state_dict() if n.startswith("prior")] == ["prior.pseudo_inputs"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder[-1].bias += 3
    assert not torch.allclose(model._p_z(None).means, other._p_z(None).means)


def test_errors() -> None:
    with pytest.raises(ValueError, match="objective to be one of elbo, free_bits"):
        make("standard", objective="elob")
    with pytest.raises(ValueError, match="beta to be given to the objective"):
        make("standard", objective=IWAE(3), beta=2)
    with pytest.raises(TypeError, match=r"prior to be None for N\(0, 1\), a pair"):
        VAE(nn.Identity(), nn.Identity(), prior="vamp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="diagonal Gaussian prior for FreeBits, but got MixturePrior"):
        make("mixture", objective="free_bits")(**batch())
    with pytest.raises(ValueError, match="learned prior for KLBalance"):
        make("standard", objective="kl_balance")(**batch())
    with pytest.raises(ValueError, match=r"prior N\(0, 1\) for BetaTC, but got GaussianPrior"):
        make("gaussian", objective="beta_tc")(**batch())
    with pytest.raises(ValueError, match="num_samples to be given for IWAE"):
        make("standard", objective="iwae")(**batch())
    with pytest.raises(ValueError, match="expected a condition"):
        make("conditional")(**batch())
    with pytest.raises(ValueError, match="temperature"):
        make("standard").generate(2, temperature=-1)
    with pytest.raises(TypeError, match="objective to be a name or a vae_fast"):
        make("standard", objective=IWAE)
    with pytest.raises(ValueError, match='estimator to be "mss", "mws"'):
        BetaTC(10, estimator="msw")
    with pytest.raises(ValueError, match=r"within bounds=\(0.0, 1.0\), but got values from -1 to 2; clamp"):
        VampPrior(torch.tensor([[-1.0, 2.0]]))


def test_a_printed_prior_says_what_it_is() -> None:
    assert repr(MixturePrior(3, 2)) == "MixturePrior(3, latent_shape=(2,))"
    assert repr(GaussianPrior((2, 5))) == "GaussianPrior(latent_shape=(2, 5))"
    assert repr(VampPrior(torch.zeros(4, 3))) == "VampPrior(4 pseudo-inputs, bounds=(0.0, 1.0))"


@pytest.mark.parametrize("objective", ["kl_balance", "free_bits"])
def test_objectives_of_a_part_of_the_kl_refuse_a_hierarchy(objective: str) -> None:
    with pytest.raises(ValueError, match="objective of the whole KL for a hierarchy"):
        hierarchy(objective=objective, prior=GaussianPrior(2))(**batch())
    plain = make("standard")
    with pytest.raises(ValueError, match="takes z2 as its condition"):
        HierarchicalVAE(plain.encoder, plain)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (Normal(0.0, 1.0), ValueError, r"log_prob to have shape \(6,\) for z of shape \(6, 3\)"),
        ([torch.zeros(3), torch.zeros(3)], TypeError, "prior to return None, a tuple"),
    ],
)
def test_priors_of_ones_own_that_do_not_fit(returned: Any, error: type[Exception], message: str) -> None:
    model = make("gaussian")
    model.prior.forward = lambda: returned
    with pytest.raises(error, match=message):
        model(**batch())


@pytest.mark.parametrize("model", [make("mixture"), make("vamp"), hierarchy(num_samples=2), hierarchy()])
def test_no_samples(model: VAE) -> None:
    out = model(torch.zeros(0, FEATURES, dtype=torch.float64))
    out.loss.backward()
    assert out.nll.shape[-1] == 0 and out.z.shape[-2] == 0
    assert model.generate(0).shape == (0, FEATURES)
