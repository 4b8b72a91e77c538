"""Models in a folder: what comes back is the same bit for bit, and what cannot is said when it is saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("safetensors")

import vae_fast
import vae_fast.nn as vnn
from vae_fast.nn import VAE

STATE = torch.tensor([3, 4])


def images(n: int) -> Tensor:
    return torch.rand(n, 4, 3, generator=torch.Generator().manual_seed(n))


def counts(n: int) -> Tensor:
    return (5 * images(n)).floor()


def mlp(likelihood: Any = "bernoulli", condition: int | None = None, **options: Any) -> VAE:
    networks = vnn.build_networks((4, 3), likelihood, hidden=(5, 4), latent=2, conditions=condition)
    return VAE(*networks, likelihood, **options)


def networks(architecture: str, likelihood: Any = "bernoulli", shape: Any = (4, 3), **options: Any) -> VAE:
    made = vnn.build_networks(shape, likelihood, architecture=architecture, latent=2, **options)
    return VAE(*made, likelihood)


def of_torch() -> VAE:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.GELU("tanh"), nn.Linear(5, 4))
    decoder = nn.Sequential(nn.Linear(2, 5), nn.LeakyReLU(0.3), nn.Linear(5, 12), nn.Unflatten(1, (4, 3)))
    return VAE(encoder, decoder, latent_shape=(2,), clamp=(-3, 2), num_samples=2, fused_head=True)


def table() -> VAE:
    groups = [("gaussian", 2, {"variance": "feature"}), (vnn.Poisson(link="softplus"), 1), ("bernoulli", 1)]
    p_x = vnn.MixedColumns(groups, encoder_mask=True)
    encoder = vnn.MLPEncoder(p_x.encoder_features, 5, 2, activation=nn.SiLU)
    return VAE(encoder, vnn.MLPDecoder(2, 5, p_x.decoder_features), p_x)


def hierarchy() -> VAE:
    encoder, decoder = vnn.build_networks((4, 3), hidden=5, latent=2, conditions=3)
    prior = vnn.ConditionalPrior(nn.Linear(3, 4))
    bottom = VAE(encoder, decoder, prior=prior)
    return vnn.HierarchicalVAE(vnn.MLPEncoder(12, 5, 3), bottom, prior=vnn.MixturePrior(2, 3), beta=0.5)


def beta_set_later() -> VAE:
    model = mlp()
    model.objective.beta = vnn.CyclicalSchedule(7, end=0.25)
    model.objective.beta.step += 3
    return model


Case = tuple[Callable[[], VAE], Callable[[int], Tensor]]
CASES: dict[str, Case] = {
    "sparse mlp, batch norm": (
        lambda: networks("mlp", "poisson", sparse=True, batch_norm=True, dropout=0.2),
        counts,
    ),
    "conv": (lambda: networks("conv", vnn.Gaussian("decoder"), hidden=(3, 2)), images),
    "resnet": (lambda: networks("resnet", shape=(4, 3), hidden=(3, 2), blocks=2, dims=1), images),
    "gru": (
        lambda: networks("gru", vnn.Categorical(5), (6,), hidden=4, word_dropout=0.3),
        lambda n: torch.arange(6 * n).view(n, 6) % 5,
    ),
    "torch": (of_torch, images),
    "float64": (lambda: mlp("gaussian", variance="learned").double(), lambda n: images(n).double()),
    "gaussian": (lambda: mlp("gaussian", variance="feature", validate=False), images),
    "laplace": (lambda: mlp(vnn.Laplace("feature", (3,))), images),
    "logistic": (lambda: mlp(vnn.DiscretizedLogistic("learned")), images),
    "mixture of logistics": (
        lambda: networks("conv", vnn.DiscretizedLogisticMixture(2), (1, 4, 3), hidden=(3,)),
        lambda n: images(n).unsqueeze(1),
    ),
    "binarize": (lambda: mlp(vnn.Bernoulli(binarize=True)), images),
    "negative binomial": (lambda: mlp(vnn.NegativeBinomial("decoder", library=50.0)), counts),
    "zinb": (lambda: mlp(vnn.ZeroInflatedNegativeBinomial(link="exp")), counts),
    "nb mixture": (lambda: mlp(vnn.NegativeBinomialMixture(theta=2.0)), counts),
    "multinomial": (lambda: mlp(vnn.Multinomial(library=20.0)), counts),
    "continuous": (lambda: mlp("continuous_bernoulli"), images),
    "table": (table, lambda n: images(n)[:, :, 0].round()),
    "fixed prior": (lambda: mlp(prior=(torch.ones(2), torch.full((2,), -0.5))), images),
    "gaussian prior": (lambda: mlp(prior=vnn.GaussianPrior(2), objective=vnn.KLBalance(0.6, 2.0)), images),
    "vamp prior": (lambda: mlp(prior=vnn.VampPrior(images(3).clamp(0.1, 0.9), bounds=(0.1, 0.9))), images),
    "free bits": (lambda: mlp(objective=vnn.FreeBits(0.2, "element", vnn.LinearSchedule(9, 0.1, 2))), images),
    "capacity": (lambda: mlp(objective=vnn.Capacity(30.0)), images),
    "beta-tc": (lambda: mlp(objective=vnn.BetaTC(1000, beta=torch.tensor(4.0))), images),
    "iwae": (lambda: mlp(objective=vnn.IWAE(4, "path")), images),
    "beta set later": (beta_set_later, images),
    "hierarchy": (hierarchy, images),
}


@pytest.mark.parametrize("name", CASES)
def test_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    build, data = CASES[name]
    torch.manual_seed(0)
    model = build()
    before = torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    back = VAE.from_pretrained(tmp_path)
    assert type(back) is type(model) and not back.training and repr(back) == repr(model)
    assert back.to_config() == model.to_config() == json.loads((tmp_path / "config.json").read_text())
    state, again = model.state_dict(), back.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(t, again[n]) and t.dtype == again[n].dtype for n, t in state.items())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in back.parameters()]
    # In training mode, so that schedules, dropout and word dropout are what they were too.
    outputs = []
    for m in (model.train(), back.train(), copy.deepcopy(back)):
        torch.manual_seed(1)
        outputs.append(m(data(6), rng_state=STATE))
        outputs[-1].loss.backward()
    want, *others = outputs
    grads = [p.grad for p in model.parameters()]
    for got in others:
        assert (
            torch.equal(got.loss, want.loss) and torch.equal(got.z, want.z) and torch.equal(got.nll, want.nll)
        )
    for p, grad in zip(back.parameters(), grads, strict=True):
        assert grad is None or torch.equal(p.grad, grad)


def test_conditions_and_another_backend(tmp_path: Path) -> None:
    prior = vnn.ConditionalPrior(nn.Embedding(3, 4))
    model = mlp("negative_binomial", condition=3, prior=prior)
    with vae_fast.backend("reference"):
        want = model(counts(6), condition=torch.arange(6) % 3, rng_state=STATE)
        model.save_pretrained(tmp_path)
    back = VAE.from_pretrained(str(tmp_path))
    with vae_fast.backend("cpu"):
        got = back(counts(6), condition=torch.arange(6) % 3, rng_state=STATE)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.z, want.z, rtol=1e-5, atol=1e-5)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class OwnLikelihood(vnn.Gaussian):
    pass


class OwnVAE(VAE):
    pass


def test_a_part_of_the_users_own_is_given(tmp_path: Path) -> None:
    model = VAE(Own(), vnn.MLPDecoder(2, 5, (4, 3)), latent_shape=(2,))
    with pytest.raises(ValueError, match=r"encoder is .*\.Own, .*omit=\['encoder'\].*state_dict"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, omit=["encoder"])
    back = VAE.from_pretrained(tmp_path, encoder=Own())
    assert torch.equal(back(images(5), rng_state=STATE).loss, model(images(5), rng_state=STATE).loss)
    with pytest.raises(ValueError, match="expected encoder to be given, a Own"):
        VAE.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit.*encoder"):
        VAE.from_pretrained(tmp_path, encoder=vnn.MLPEncoder(12, 5, 2))
    with pytest.raises(TypeError, match=r"some of encoder, .*but got network"):
        VAE.from_pretrained(tmp_path, network=Own())
    with pytest.raises(ValueError, match=r"some of encoder, .*but got network"):
        model.save_pretrained(tmp_path, omit=["encoder", "network"])


def changed() -> VAE:
    model = mlp()
    model.encoder[1] = nn.Linear(12, 7)
    return model


def parametrized() -> VAE:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model.decoder[0])
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(OwnLikelihood()), "likelihood is .*OwnLikelihood"),
        (lambda: mlp(prior=vnn.ConditionalPrior(Own())), r"prior\.network is .*Own"),
        (lambda: OwnVAE(*vnn.build_networks((4, 3))), "the model is .*OwnVAE.*state_dict"),
        (lambda: VAE(vnn.MLPEncoder(12, 5, 2, lambda: nn.ReLU()), nn.Linear(2, 12)), r"encoder\.activation"),
        (lambda: VAE(nn.Sequential(nn.Linear(12, 4), Own()), nn.Linear(2, 12)), r"encoder\[1\] is"),
        (changed, r"encoder.*changed.*state_dict"),
        (parametrized, r"decoder.*changed.*state_dict"),
    ],
)
def test_what_cannot_be_described_is_said(build: Callable[[], VAE], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build().save_pretrained(tmp_path)


def damaged(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> None:
    """The folder with another config and other tensors."""
    from vae_fast.nn import pretrained

    tensors, config, _ = pretrained.read(folder)
    change(config, tensors)
    pretrained.write(folder, tensors, config)


ERRORS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "missing": (lambda config, t: t.pop("encoder.1.bias"), r"do not fit.*encoder\.1\.bias"),
    "unexpected": (lambda config, t: t.update(more=torch.ones(2)), "do not fit.*more"),
    "shape": (lambda config, t: t.update({"encoder.1.bias": torch.ones(9)}), r"do not fit.*encoder\.1\.bias"),
    "newer": (lambda config, t: config.update(format=2, vae_fast="9.0"), "vae_fast 9.0 in format 2.*newer"),
    "class": (
        lambda config, t: config["arguments"]["prior"].update({"class": "os.system"}),
        "not the config.*os.sys",
    ),
    "not a model": (
        lambda config, t: config.update(config["arguments"]["encoder"]),
        "not the config.*MLPEncoder",
    ),
    "argument": (lambda config, t: config["arguments"].update(colour=1), "not the config.*colour"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(name: str, tmp_path: Path) -> None:
    change, message = ERRORS[name]
    mlp().save_pretrained(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        VAE.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        VAE.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        VAE.from_pretrained(tmp_path)
    hub = pytest.importorskip("huggingface_hub")
    mlp().save_pretrained(tmp_path / "ours")
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        if name != "someone/ours":
            raise OSError("offline")
        return str(tmp_path / "ours")

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert VAE.from_pretrained("someone/ours", revision="v1").latent_shape == (2,)
    with pytest.raises(FileNotFoundError, match=r"runs/none: no such folder.*offline"):
        VAE.from_pretrained("runs/none")
    assert asked == [("someone/ours", "v1"), ("runs/none", None)]


def test_a_run_is_a_model_too(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from vae_fast.training import HubVAE

    model = HubVAE((4, 3), hidden=(5,), latent=2, likelihood="gaussian", variance="learned")
    model.save_pretrained(tmp_path)
    back = VAE.from_pretrained(tmp_path)
    assert isinstance(back, HubVAE) and back.config == model.config
    assert torch.equal(back(images(5), rng_state=STATE).loss, model(images(5), rng_state=STATE).loss)
    mlp().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of a VAE, not of a HubVAE"):
        HubVAE.from_pretrained(tmp_path)


def test_push_to_hub_uploads_what_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[Any] = []

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append((repo_id, options))

        def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
            calls.append((repo_id, VAE.from_pretrained(Path(folder_path)).to_config()))

    monkeypatch.setattr(hub, "HfApi", Api)
    model = mlp()
    model.push_to_hub("someone/ours", private=True)
    created = ("someone/ours", {"private": True, "exist_ok": True})
    assert calls == [created, ("someone/ours", model.to_config())]
