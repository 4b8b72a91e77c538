"""nn.VAE's condition, and batch norm and dropout of the MLPs, against the linear layers of [h | c] written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import state
from vae_fast.nn import VAE, AddCondition, ConditionalSequential, MLPDecoder, MLPEncoder

BATCH, FEATURES, LATENT, LABELS = 6, 7, 2, 3
labels = torch.tensor([0, 2, 1, 2, 2, 0])


def make(encoder: int | None = LABELS, decoder: int | None = LABELS, **options: Any) -> VAE:
    torch.manual_seed(0)
    model = VAE(
        MLPEncoder(FEATURES, (5, 4), LATENT, log1p=True, conditions=encoder),
        MLPDecoder(LATENT, (4, 5), FEATURES, conditions=decoder),
        "negative_binomial",
        **options,
    )
    for module in model.modules():
        if isinstance(module, AddCondition):
            nn.init.normal_(module.weight)
    return model


def counts() -> Tensor:
    return torch.randint(0, 9, (BATCH, FEATURES), generator=torch.Generator().manual_seed(1))


def concatenated(layers: nn.Sequential, x: Tensor, c: Tensor) -> Tensor:
    """The MLP with one linear layer of [h | c] in place of each linear layer and what adds the condition to it."""
    *hidden, last = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for linear, add in zip(
        hidden, (layer for layer in layers if isinstance(layer, AddCondition)), strict=True
    ):
        weight = torch.cat([linear.weight, add.weight.T], 1)
        x = F.linear(torch.cat([x, c], 1), weight, linear.bias).relu()
    return last(x)


@pytest.mark.parametrize("draws", [None, 2])
def test_is_a_linear_layer_of_both(draws: int | None) -> None:
    model, x = make(num_samples=draws), counts()
    one_hot = F.one_hot(labels, LABELS).float()
    moments = concatenated(model.encoder, x.float().log1p(), one_hot)
    torch.testing.assert_close(torch.cat(model.encode(x, condition=labels), 1), moments)
    output = model(x, condition=labels, rng_state=state())
    rows = output.z if draws is None else output.z.flatten(0, 1)
    logits = concatenated(model.decoder, rows, one_hot.repeat(draws or 1, 1)).unflatten(0, (-1, BATCH))
    nll = torch.stack([model.likelihood.nll((one,), x) for one in logits]).mean(0)
    torch.testing.assert_close(output.nll, nll)
    rates = model.decode(rows[:BATCH], condition=labels, library=x.sum(1))
    torch.testing.assert_close(rates, logits[0].softmax(1) * x.sum(1, keepdim=True))


def test_forms_and_calls_agree() -> None:
    model, x = make(), counts()
    fused = make(fused_head=True)
    want = model(x, condition=labels, rng_state=state())
    got = fused(x, condition=F.one_hot(labels, LABELS), rng_state=state())
    torch.testing.assert_close(got.nll, want.nll)
    torch.testing.assert_close(model.elbo(x, condition=labels, rng_state=state()), -(want.nll + want.kl))
    ones = torch.full((BATCH,), 1, dtype=torch.uint8)
    for form in (1, torch.tensor(1), torch.eye(3)[1], torch.eye(3)[1:2]):
        assert torch.equal(model.reconstruct(x, condition=form), model.reconstruct(x, condition=ones))
    drawn = []
    for condition in (0, 1, torch.tensor([0, 1])):
        drawn.append(model.generate(2, condition=condition, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(drawn[0], drawn[1])
    torch.testing.assert_close(drawn[2], torch.stack([drawn[0][0], drawn[1][1]]))
    gradients = []
    for one, result in ((model, want), (fused, got)):
        result.loss.backward()
        gradients.append([p.grad for p in one.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert all(g.abs().sum() > 0 for g in gradients[0])


def test_of_the_decoder_alone() -> None:
    model, x = make(encoder=None), counts()
    torch.testing.assert_close(model.encode(x, condition=labels), model.encode(x))
    zero, one = (model(x, condition=label, rng_state=state()) for label in (0, 1))
    assert torch.equal(zero.z, one.z) and not torch.allclose(zero.nll, one.nll)


class Scaled(nn.Module):
    takes_condition = True

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return z * condition


def test_of_a_module_of_ones_own() -> None:
    decoder = ConditionalSequential(Scaled(), nn.Linear(LATENT, FEATURES))
    model = VAE(MLPEncoder(FEATURES, 4, LATENT), decoder, "poisson", fused_head=True)
    scale, z = torch.rand(BATCH, 1), torch.randn(BATCH, LATENT)
    torch.testing.assert_close(
        model.decode(z, condition=scale), model.likelihood.mean((decoder[1](z * scale),))
    )
    model(counts(), condition=scale).loss.backward()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "expected condition to be labels from 0 to 2 or 3 numbers for each sample, but got None"),
        (labels[:4], r"expected condition to have the 6 samples of x in its first dim, but got \(4,\)"),
        (labels + 1, "expected condition to hold labels from 0 to 2, but got 1 to 3"),
        (torch.rand(BATCH, 2), r"expected condition to have shape \(batch, 3\) or to be labels"),
        ("a", "expected condition to be a tensor, but got str"),
    ],
)
def test_errors(condition: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()(counts(), condition=condition)


def test_networks_without_one() -> None:
    with pytest.raises(
        ValueError, match="expected no condition, because neither encoder nor decoder nor prior takes one"
    ):
        make(None, None)(counts(), condition=labels)


@pytest.mark.no_poison
def test_compiles() -> None:
    model, x = make(fused_head=True), counts()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for condition in (labels, F.one_hot(labels, LABELS).float()):
        want, got = (one(x, condition=condition, rng_state=state()) for one in (model, compiled))
        torch.testing.assert_close(got.loss, want.loss)


def test_batch_norm_and_dropout() -> None:
    torch.manual_seed(0)
    encoder = MLPEncoder(FEATURES, (5, 4), LATENT, conditions=LABELS, batch_norm=True, dropout=0.5)
    kinds = [type(layer).__name__ for layer in encoder]
    hidden = ["Linear", "AddCondition", "BatchNorm1d", "InPlaceReLU", "Dropout"]
    assert kinds == ["Flatten", *hidden, *hidden, "Linear"]
    norm = encoder[3]
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    x = torch.rand(BATCH, FEATURES)
    encoder(x, labels).sum().backward()
    moved = 0.01 * encoder[1](x).mean(0)
    torch.testing.assert_close(norm.running_mean, moved.detach())
    assert not torch.equal(encoder(x, labels), encoder(x, labels))
    encoder.eval()
    assert torch.equal(encoder(x, labels), encoder(x, labels))
