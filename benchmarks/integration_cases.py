"""What `benchmarks.integrations` runs: for each library a piece, a whole epoch, and one step to compare numbers by.

Everything here is code as the library's users write it. Data are synthetic.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """Attributes:
    piece: forward and backward of what is replaced, alone.
    epoch: a training epoch; returns its seconds. None: there is none.
    steps: the pieces of an epoch. None: an epoch's are of another size.
    numbers: a training step's loss and gradients, repeated by the seed.
    patch: (**options) -> a context in which vae_fast computes.
    """

    piece: Step
    numbers: Callable[[], Sequence[Tensor]]
    patch: Callable[..., contextlib.AbstractContextManager[Any]]
    epoch: Callable[[], float] | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Case:
    """Attributes:
    library: its name for pip.
    title: what is trained.
    make: (quick) -> Work.
    wanted: how many times as fast an epoch is to be, or the piece where no epoch is named.
    """

    library: str
    title: str
    make: Callable[[bool], Work]
    wanted: float | None = None
    of_epoch: bool = True


def gradients(loss: Tensor, parameters: Any) -> list[Tensor]:
    """The loss and its gradients; 0 of what did not take part."""
    learning = [p for p in parameters if p.requires_grad]
    found = torch.autograd.grad(loss, learning, allow_unused=True, materialize_grads=True)
    return [loss.detach(), *found]


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def scvi(likelihood: str, batch: int, quick: bool) -> Work:
    import anndata
    import lightning
    import numpy as np
    import scvi as library

    from vae_fast.integrations.scvi import patch

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    library.settings.verbosity = logging.ERROR
    cells, genes, batch = (96, 50, 32) if quick else (4096, 4000, batch)
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 1.0, genes)  # about four of five counts are zeros
    counts = rng.poisson(rates * rng.gamma(2.0, 0.5, (cells, genes))).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    data = anndata.AnnData(counts)
    library.model.SCVI.setup_anndata(data)
    library.settings.seed = 0
    model = library.model.SCVI(data, gene_likelihood=likelihood)
    x = torch.from_numpy(counts[:batch])

    class Clock(lightning.Callback):
        seconds = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    def epoch() -> float:
        clock = Clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train(
                max_epochs=1, batch_size=batch, train_size=1.0, accelerator="cpu", enable_progress_bar=False,
                callbacks=[clock],
            )  # fmt: skip
        return clock.seconds

    def numbers() -> list[Tensor]:
        module = model.module.train()
        index = torch.zeros(len(x), 1, dtype=torch.int64)
        torch.manual_seed(0)
        _, _, losses = module({"X": x, "batch": index, "labels": index})
        return gradients(losses.loss, module.parameters())

    mu, theta, pi = (
        leaf(t) for t in (torch.rand(batch, genes) + 0.01, torch.rand(genes) + 0.5, torch.randn(batch, genes))
    )

    def piece() -> None:
        distributions = library.distributions
        px = (
            distributions.NegativeBinomial(mu=mu, theta=theta)
            if likelihood == "nb"
            else distributions.ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi)
        )
        loss = -px.log_prob(x).sum(-1).mean()
        torch.autograd.grad(loss, (mu, theta) if likelihood == "nb" else (mu, theta, pi))

    return Work(piece, numbers, patch, epoch, cells // batch)


def pythae(batch: int, quick: bool, draws: int | None = None, components: int | None = None) -> Work:
    """A VAE, or IWAE with so many draws, whose piece is a whole step: its forward is what is replaced. Or VAMP with so
    many pseudo-inputs."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import IWAE, VAE, VAMP, IWAEConfig, VAEConfig, VAMPConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    from vae_fast.integrations.pythae import patch

    images, batch = (64, 32) if quick else (16384 if draws is None else 20 * batch, batch)
    data = torch.rand(images, 1, 28, 28).pow(4)
    torch.manual_seed(0)
    options: dict[str, Any] = {"input_dim": (1, 28, 28), "reconstruction_loss": "bce"}
    if draws is not None:
        model = IWAE(IWAEConfig(latent_dim=50, number_samples=draws, **options), *_networks_of_iwae())
    elif components is not None:
        model = VAMP(VAMPConfig(latent_dim=16, number_components=components, **options))
    else:
        model = VAE(VAEConfig(latent_dim=16, **options))
    folder = tempfile.TemporaryDirectory(prefix="vae_fast-")  # gone with the trainer
    config = BaseTrainerConfig(
        output_dir=folder.name, per_device_train_batch_size=batch, no_cuda=True, num_epochs=1
    )
    logging.getLogger("pythae").setLevel(logging.ERROR)
    trainer = BaseTrainer(model, BaseDataset(data, torch.zeros(images)), training_config=config)
    trainer.folder = folder
    trainer.prepare_training()
    x = data[:batch]
    recon, mu, log_var = leaf(x * 0.98 + 0.01), leaf(torch.randn(batch, 16)), leaf(torch.randn(batch, 16))

    def epoch() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # its bars
            start = time.perf_counter()
            trainer.train_step(1)
            return time.perf_counter() - start

    def numbers() -> list[Tensor]:
        torch.manual_seed(0)
        return gradients(model({"data": x}).loss, model.parameters())

    def piece() -> None:
        loss, *_ = model.loss_function(recon, x, mu, log_var, mu, *(() if components is None else (1,)))
        torch.autograd.grad(loss, (recon, mu, log_var))

    return (
        Work(piece, numbers, patch, epoch, images // batch)
        if draws is None
        else Work(numbers, numbers, patch, epoch)
    )


def _networks_of_iwae() -> tuple[Any, Any]:
    """784-200-200-50 and back, as Burda et al. have them."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
            self.mean, self.log_var = nn.Linear(200, 50), nn.Linear(200, 50)

        def forward(self, x: Tensor) -> Any:
            hidden = self.layers(x.flatten(1))
            return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            hidden = (nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
            self.layers = nn.Sequential(*hidden, nn.Linear(200, 784), nn.Sigmoid())

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).view(-1, 1, 28, 28))

    return Encoder(), Decoder()


def pyro(batch: int, quick: bool) -> Work:
    import pyro as library
    import pyro.distributions as dist
    from pyro.infer import SVI, Trace_ELBO
    from torch import nn

    from vae_fast.integrations.pyro import patch

    images, batch = (64, 32) if quick else (16384, batch)
    data = torch.rand(images, 784).pow(4).round()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(784, 400), nn.Softplus(), nn.Linear(400, 100))
    decoder = nn.Sequential(nn.Linear(50, 400), nn.Softplus(), nn.Linear(400, 784), nn.Sigmoid())

    def model(x: Tensor) -> None:
        library.module("decoder", decoder)
        with library.plate("data", len(x)):
            z = library.sample(
                "latent", dist.Normal(x.new_zeros(len(x), 50), x.new_ones(len(x), 50)).to_event(1)
            )
            library.sample("obs", dist.Bernoulli(decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        library.module("encoder", encoder)
        with library.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            library.sample("latent", dist.Normal(loc, torch.exp(log_scale)).to_event(1))

    library.clear_param_store()
    svi = SVI(model, guide, library.optim.Adam({"lr": 1e-3}), loss=Trace_ELBO())

    def epoch() -> float:
        start = time.perf_counter()
        for x in data.split(batch):
            svi.step(x)
        return time.perf_counter() - start

    def numbers() -> list[Tensor]:
        torch.manual_seed(0)
        loss = Trace_ELBO().differentiable_loss(model, guide, data[:batch])
        return gradients(loss, [*encoder.parameters(), *decoder.parameters()])

    x, p = data[:batch], leaf(torch.rand(batch, 784) * 0.98 + 0.01)
    loc, scale = leaf(torch.randn(batch, 50)), leaf(torch.rand(batch, 50) + 0.5)

    def piece() -> None:
        q = dist.Normal(loc, scale).to_event(1)
        z = q.rsample()
        prior = dist.Normal(torch.zeros(batch, 50), torch.ones(batch, 50)).to_event(1)
        px = dist.Bernoulli(p, validate_args=False).to_event(1)
        elbo = px.log_prob(x).sum() + prior.log_prob(z).sum() - q.log_prob(z).sum()
        torch.autograd.grad(elbo, (p, loc, scale))

    return Work(piece, numbers, patch, epoch, images // batch)


def diffusers(quick: bool) -> Work:
    from diffusers import AutoencoderKL
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    from vae_fast.integrations.diffusers import patch

    torch.manual_seed(0)
    widths, size = ((8, 8), 8) if quick else ((16, 32), 64)
    model = AutoencoderKL(
        block_out_channels=widths, norm_num_groups=4, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    images = torch.randn(8, 3, size, size)

    def loss_of(x: Tensor) -> Tensor:
        posterior = model.encode(x).latent_dist
        decoded = model.decode(posterior.sample()).sample
        loss: Tensor = (decoded - x).square().mean() + 1e-6 * posterior.kl().mean()
        return loss

    def epoch() -> float:
        start = time.perf_counter()
        for x in images.split(4):
            optimizer.zero_grad()
            loss_of(x).backward()
            optimizer.step()
        return time.perf_counter() - start

    def numbers() -> list[Tensor]:
        torch.manual_seed(0)
        return gradients(loss_of(images[:4]), model.parameters())

    parameters = leaf(torch.randn((2, 8, 8, 8) if quick else (64, 8, 64, 64)))
    grad = torch.randn_like(parameters[:, ::2])

    def piece() -> None:
        posterior = DiagonalGaussianDistribution(parameters)
        z, kl = posterior.sample(), posterior.kl()
        torch.autograd.grad((z, kl.sum()), parameters, (grad, torch.ones(())))

    return Work(piece, numbers, patch, epoch)


def distributions(quick: bool) -> Work:
    """Other names in an import."""
    from vae_fast import distributions as ours

    rows, columns = (8, 16) if quick else (1024, 4000)
    logits, total = leaf(torch.randn(rows, columns)), leaf(torch.rand(columns) + 0.5)
    counts = torch.poisson(torch.rand(rows, columns).pow(3) * 1.1)
    library: Any = torch.distributions

    @contextlib.contextmanager
    def patch(**_: Any) -> Any:
        nonlocal library
        library = ours
        yield
        library = torch.distributions

    def loss() -> Tensor:
        found: Tensor = library.NegativeBinomial(total, logits=logits).log_prob(counts).sum()
        return found

    learning = (total, logits)
    return Work(lambda: torch.autograd.grad(loss(), learning), lambda: gradients(loss(), learning), patch)


CASES = [
    *(
        Case("scvi-tools", f"SCVI, 4000 genes, {name}, batch {batch}", partial(scvi, key, batch), wanted)
        for key, name, batch, wanted in (
            ("nb", "negative binomial", 128, 1.5),
            ("nb", "negative binomial", 512, 3.5),
            ("zinb", "zero-inflated negative binomial", 128, 2.2),
            ("zinb", "zero-inflated negative binomial", 512, 3.0),
        )
    ),
    Case("pythae", "VAE, 784-512-16, bce, batch 128", partial(pythae, 128), 1.0),
    Case("pythae", "VAE, 784-512-16, bce, batch 4096", partial(pythae, 4096), 1.3),
    Case("pythae", "IWAE, 784-200-200-50, bce, k = 50, batch 100; a step", partial(pythae, 100, draws=50)),
    Case(
        "pythae",
        "VAMP, 784-512-16, bce, 500 pseudo-inputs, batch 1024",
        partial(pythae, 1024, components=500),
    ),
    Case("pyro-ppl", "examples/vae, 784-400-50, Trace_ELBO, batch 4096", partial(pyro, 4096), 1.4),
    Case(
        "diffusers", "sample, kl, backward of 64 × 8 × 64 × 64; AutoencoderKL", diffusers, 4.0, of_epoch=False
    ),
    Case("torch", "NegativeBinomial.log_prob, 1024 × 4000", distributions),
]
