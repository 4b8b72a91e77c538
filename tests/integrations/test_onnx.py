"""torch.onnx.export of encoder, sampling encoder and decoder: onnxruntime computes the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

import vae_fast
from integrations.common import randn
from vae_fast.nn import VAE

pytestmark = pytest.mark.no_poison
BATCH = torch.export.Dim("batch")


def make_vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    decoder = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 64))
    return VAE(encoder, decoder, latent_shape=(2,), **options).eval()


class Part(nn.Module):
    """A function of a model as a module, which torch.onnx.export asks for."""

    def __init__(self, model: VAE, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: Tensor) -> Any:
        return self.function(self.model, *args)


def run(
    tmp_path: Path, part: Part, args: tuple[Tensor, ...], *others: tuple[Tensor, ...]
) -> list[list[Tensor]]:
    """onnxruntime's outputs for the args of the export and for those of other batches. The batch is dynamic."""
    dims = tuple({0: BATCH} if a.is_floating_point() else None for a in args)
    path = str(tmp_path / "part.onnx")
    torch.onnx.export(part, args, path, dynamo=True, dynamic_shapes=(dims,), verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [i.name for i in session.get_inputs()]
    return [
        [
            torch.from_numpy(o)
            for o in session.run(None, dict(zip(names, (t.numpy() for t in a), strict=True)))
        ]
        for a in (args, *others)
    ]


STATE = torch.tensor([2**62 + 5, -7])
PARTS: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Tensor, ...]]]] = {
    "encode": (lambda model, x: model.encode(x), lambda n: (randn(n, 64),)),
    "decode": (lambda model, z: model.decode(z), lambda n: (randn(n, 2),)),
    "sample by noise": (
        lambda model, x, eps: vae_fast.reparameterize_kl_packed(model.encoder(x), noise=eps),
        lambda n: (randn(n, 64), randn(n, 2, seed=1)),
    ),
    "sample by rng_state": (
        lambda model, x, state: vae_fast.reparameterize_kl_packed(model.encoder(x), rng_state=state),
        lambda n: (randn(n, 64), STATE),
    ),
    "score": (
        lambda model, x, state: model(x.sigmoid(), rng_state=state),
        lambda n: (randn(n, 64), STATE),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_equal_numbers(name: str, tmp_path: Path) -> None:
    function, make = PARTS[name]
    part = Part(make_vae(), function)
    batches = [make(n) for n in (8, 1, 50)]
    for args, got in zip(batches, run(tmp_path, part, *batches), strict=True):
        want = part(*args)
        want = [want] if isinstance(want, Tensor) else list(want)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("draws", [None, 3])
def test_a_sampling_encoder_draws_by_onnxs_own_op(draws: int | None, tmp_path: Path) -> None:
    """Other noise in every run and element, N(0, 1)."""

    def sample(model: VAE, x: Tensor) -> Any:
        return vae_fast.reparameterize_kl_packed(model.encoder(x), num_samples=draws)

    part, x = Part(make_vae(), sample), randn(5000, 64)
    (_, kl), (z, other_kl), (again, _) = run(tmp_path, part, (x[:8],), (x,), (x,))
    mu, logvar = part.model.encode(x)
    eps = (z - mu) / (logvar / 2).exp()
    assert eps.shape == ((3,) if draws else ()) + (5000, 2)
    assert abs(eps.mean()) < 0.05 and abs(eps.std() - 1) < 0.05 and eps.unique().numel() > 0.99 * eps.numel()
    assert (z != again).float().mean() > 0.99
    torch.testing.assert_close(other_kl, vae_fast.kl_divergence(mu, logvar), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kl, other_kl[:8])
