"""pythae: the same numbers with and without the patch, of the losses and of whole trainings."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pythae = pytest.importorskip("pythae")

from pythae.models import (
    CIWAE,
    IWAE,
    VAE,
    VAMP,
    AutoModel,
    BetaVAE,
    BetaVAEConfig,
    CIWAEConfig,
    IWAEConfig,
    VAEConfig,
    VAMPConfig,
)
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig

import vae_fast
from integrations.common import check_moved, check_switch, gradients, leaf
from vae_fast.integrations import pythae as patched

pytestmark = pytest.mark.no_poison
CONTEXTS = (contextlib.nullcontext, lambda: patched.patch(noise="torch"))
IMAGES = torch.rand(48, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def make(cls: type, config: type, loss: str = "bce", **options: Any) -> Any:
    torch.manual_seed(0)
    return cls(config(input_dim=(1, 6, 6), latent_dim=4, reconstruction_loss=loss, **options))


LOSSES = {"VAE": (VAE, VAEConfig, {}), "BetaVAE": (BetaVAE, BetaVAEConfig, {"beta": 3.0})}
MODELS = {
    **LOSSES,
    "VAMP": (VAMP, VAMPConfig, {"number_components": 7, "linear_scheduling_steps": 3}),
    "IWAE": (IWAE, IWAEConfig, {"number_samples": 5}),
}
each = pytest.mark.parametrize("name", MODELS)


@each
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_step(name: str, loss: str) -> None:
    """Every output, every gradient, and the state of torch's generator afterwards."""
    cls, config, options = MODELS[name]
    found = []
    for context in CONTEXTS:
        with context():
            model = make(cls, config, loss, **options)
            torch.manual_seed(1)
            output = model({"data": IMAGES}, epoch=2)  # VAMP's KL divergence counts 2/3
            values = [output.loss, output.recon_loss, output.reg_loss, output.recon_x, output.z]
            grads = gradients(values, model.parameters())
            found.append([*values, *grads, torch.get_rng_state()])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_of_0_and_1(name: str) -> None:
    """Logarithms are held at -100, as in F.binary_cross_entropy, and no gradient is NaN."""
    cls, config, options = MODELS[name]
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1e-30, 1 - 2**-24, 0.5]])
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.3]])
    mu = torch.zeros(1, 4)
    want, got = leaf(p), leaf(p)
    F.binary_cross_entropy(want, x, reduction="sum").backward()
    with patched.patch():
        loss, recon, kl = make(cls, config, **options).loss_function(got, x, mu, mu, mu)
        loss.backward()
    torch.testing.assert_close(recon, F.binary_cross_entropy(p, x, reduction="sum"))
    assert kl == 0 and got.grad.isfinite().all()
    torch.testing.assert_close(got.grad, want.grad)


@each
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_training_and_reload(name: str, loss: str, tmp_path: Path) -> None:
    """Two epochs give the same model; one that is loaded afterwards is patched, too."""
    cls, config, options = MODELS[name]
    states = []
    for i, context in enumerate(CONTEXTS):
        with context():
            model = make(cls, config, loss, **options)
            trainer = BaseTrainerConfig(
                output_dir=str(tmp_path / str(i)),
                num_epochs=2,
                per_device_train_batch_size=16,
                seed=3,
                no_cuda=True,
            )
            TrainingPipeline(model=model, training_config=trainer)(train_data=IMAGES, eval_data=IMAGES[:16])
            (folder,) = (tmp_path / str(i)).iterdir()
            loaded = AutoModel.load_from_folder(str(folder / "final_model")).eval()
            assert type(loaded) is cls
            torch.manual_seed(5)
            output = loaded({"data": IMAGES})
            states.append([*model.state_dict().values(), output.loss.detach(), output.z.detach()])
            if i:
                torch.manual_seed(5)
                with patched.patch(), vae_fast.backend("reference"):
                    rng_state = vae_fast.draw_rng_state("cpu")
                    torch.manual_seed(5)
                    encoded = loaded.encoder(IMAGES)
                    mine = loaded({"data": IMAGES}).z
                    moments = encoded.embedding, encoded.log_covariance
                    want = vae_fast.reparameterize(*moments, num_samples=1, rng_state=rng_state)[0]
                    torch.testing.assert_close(mine, want)
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_own_noise() -> None:
    """Repeated by torch.manual_seed, standard normal, other numbers than torch's."""
    model, x = make(VAE, VAEConfig).eval(), IMAGES[:1].expand(4000, -1, -1, -1)
    with patched.patch(), torch.no_grad():
        torch.manual_seed(0)
        z = model({"data": x}).z
        torch.manual_seed(0)
        assert torch.equal(z, model({"data": x}).z)
        encoded = model.encoder(x)
        eps = (z - encoded.embedding) * torch.exp(-0.5 * encoded.log_covariance)
    assert eps.mean().abs() < 4 / math.sqrt(16000) and abs(eps.std() - 1) < 4 / math.sqrt(32000)
    with pytest.raises(ValueError, match='"vae_fast" or "torch"'):
        patched.patch(noise="numpy")


@pytest.mark.parametrize("base", [VAE, VAMP, IWAE])
def test_own_methods_are_kept(base: type) -> None:
    """A class that overrides the sampler or the loss, and inherits forward."""

    class Mine(base):  # type: ignore[misc, valid-type]
        def _sample_gauss(self, mu, std):  # type: ignore[no-untyped-def]
            return mu + 2 * std, None

        def loss_function(self, recon_x, x, mu, log_var, z, *epoch):  # type: ignore[no-untyped-def]
            return recon_x.sum(), recon_x.mean(), mu.sum()

    outputs = []
    for context in CONTEXTS:
        with context():
            config = {VAE: VAEConfig, VAMP: VAMPConfig, IWAE: IWAEConfig}[base]
            outputs.append(make(Mine, config)({"data": IMAGES}))
    torch.testing.assert_close(outputs[1].z, outputs[0].z)
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss)


def test_other_models_are_untouched() -> None:
    found = []
    for context in CONTEXTS:
        with context():
            model = make(CIWAE, CIWAEConfig)
            torch.manual_seed(1)
            found.append(model({"data": IMAGES}).loss)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["VAE", "VAMP"])
def test_importance_sampling(name: str) -> None:
    """get_nll has pythae's sampler, with its pair of results, and VAMP's prior with its constants."""
    cls, config, options = MODELS[name]
    found = []
    for context in CONTEXTS:
        with context():
            torch.manual_seed(1)
            model = make(cls, config, **options)
            found.append(model.get_nll(IMAGES[:2], n_samples=10, batch_size=10))
    assert found[0] == (pytest.approx(found[1], rel=1e-6) if cls is VAMP else found[1])


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_switch(patched._SWITCH, patched.patch)
    check_moved(patched._SWITCH, patched.patch, monkeypatch)
