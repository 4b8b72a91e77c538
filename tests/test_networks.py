"""Convolutional, residual and recurrent networks: sizes, what depends on what, conditions, the config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.nn import VAE, AddCondition, Categorical, GRUDecoder, GRUEncoder, build_networks, importance_nll
from vae_fast.nn.networks.resnet import group_norm
from vae_fast.nn.networks.sequence import GRU

LATENT, LABELS, LENGTH, CLASSES = 3, 2, 6, 5
SHAPES = [(9,), (3, 12), (7, 10), (1, 1), (3, 5, 6)]
CONVOLUTIONAL = [
    (kind, dims, shape)
    for kind in ("conv", "resnet")
    for dims, shapes in ((1, SHAPES[:2]), (2, SHAPES[2:]), (3, [(2, 3, 4, 5)]))
    for shape in shapes
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def learned(module: Any) -> Any:
    """In float64, with conditions that matter from the start: V begins at 0."""
    for part in module.modules():
        if isinstance(part, AddCondition):
            nn.init.normal_(part.weight)
    return module.double()


def tokens(n: int = 4) -> Tensor:
    return torch.randint(CLASSES, (n, LENGTH))


@pytest.mark.parametrize(("kind", "dims", "shape"), CONVOLUTIONAL, ids=str)
def test_convolutional(kind: str, dims: int, shape: tuple[int, ...]) -> None:
    """All of x reaches mu and logvar, z all of the output, the loss every parameter, the condition both networks."""
    options: dict[str, Any] = {"blocks": 2} if kind == "resnet" else {}
    options |= {"dims": dims, "conditions": LABELS, "hidden": (8, 16)}
    encoder, decoder = map(learned, build_networks(shape, architecture=kind, latent=LATENT, **options))
    model = VAE(encoder, decoder, "gaussian")
    assert model.data_shape == shape
    x, labels = torch.randn((4, *shape), dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    model(x, condition=labels).loss.backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.parameters())

    x.requires_grad_()
    encoder(x, labels).square().sum().backward()
    assert x.grad is not None and x.grad.count_nonzero() == x.numel()
    z = torch.randn((1, LATENT), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: decoder(z, labels[:1])[0], z)
    assert jacobian.abs().sum(-1).count_nonzero() == x[0].numel()

    for network, given in ((encoder, x.detach()), (decoder, z.expand(4, -1))):
        output = network(given, labels)
        torch.testing.assert_close(network(given, F.one_hot(labels).double()), output)
        changed = (network(given, 1 - labels) != output).flatten(1)
        assert changed.all() if network is decoder else changed.any(1).all()
        assert network(given[:0], labels[:0]).shape == (0, *output.shape[1:])
        # Training or not, alone or in a batch: nothing looks at other samples.
        torch.testing.assert_close(network.eval()(given[:1], labels[:1]), output[:1])
        with pytest.raises(ValueError, match="expected condition to be labels"):
            network(given)


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_convolutional_in_other_layouts(kind: str) -> None:
    networks = build_networks((3, 7, 8), "gaussian", architecture=kind, hidden=(8, 16), latent=LATENT)
    model, x = VAE(*networks, "gaussian"), torch.randn(4, 3, 7, 8)
    state = torch.tensor([1, 2])
    want = model(x, rng_state=state)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, rng_state=state).loss, want.loss)
    model.to(memory_format=torch.channels_last)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last, rng_state=state).loss, want.loss)
    assert model.encoder.convolutions(last).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x, rng_state=state).loss, want.loss, rtol=0.02, atol=0)
    model.bfloat16()(x.bfloat16()).loss.backward()


@pytest.mark.parametrize("channels", [1, 4, 12, 20, 32, 36])
def test_groups_have_channels_enough(channels: int) -> None:
    """At a single position a group of one channel would hold nothing but its bias."""
    norm = group_norm(channels)
    assert channels // norm.num_groups >= min(8, channels)
    if channels > 1:
        x = torch.randn(1, channels, 1, 1)
        assert norm(x).std() > 0.5


def test_shift_of_channels() -> None:
    layer, h = learned(AddCondition(LABELS, 3)), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    v = layer.weight
    assert torch.equal(layer(h, torch.tensor([1, 0])), h + v[[1, 0]][:, :, None, None])
    assert torch.equal(layer(h, torch.tensor(1)), h + v[1][:, None, None])
    assert torch.equal(layer(h, torch.tensor([0.5, 2.0])), h + (0.5 * v[0] + 2 * v[1])[:, None, None])


def test_gru_is_torchs() -> None:
    gru, other = GRU(3, 4, 2, True).double(), nn.GRU(3, 4, 2, batch_first=True, bidirectional=True).double()
    other.load_state_dict(gru.state_dict())
    x, state = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(4, 2, 4, dtype=torch.float64)
    for got, want in zip((*gru(x), *gru(x, state)), (*other(x), *other(x, state)), strict=True):
        assert torch.equal(got, want)


def test_padding_does_not_count() -> None:
    encoder, x = learned(GRUEncoder(CLASSES, 4, LATENT)), tokens()
    x[0, 3:] = -100
    outputs, _ = encoder.gru(encoder.embedding(x))
    want = torch.stack((outputs[0, :3].mean(0), *outputs[1:].mean(1)))
    torch.testing.assert_close(encoder(x), encoder.linear(want))
    assert torch.equal(encoder(x.clamp_min(-1)), encoder(x))
    assert not torch.equal(encoder(x.clamp_min(0)), encoder(x))
    assert encoder(torch.full_like(x, -100)).isfinite().all()


@pytest.mark.parametrize("layers", [1, 2])
def test_decoder_is_causal(layers: int) -> None:
    """Logits at t depend on x[:t], on z and on the condition, and not on x[t:]."""
    decoder = learned(GRUDecoder(LATENT, (4,) * layers, (LENGTH, CLASSES), conditions=LABELS)).eval()
    z, x, labels = torch.randn(4, LATENT).double(), tokens(), torch.tensor([0, 1, 1, 0])
    logits = decoder(z, labels, target=x)
    assert logits.shape == (4, LENGTH, CLASSES)
    for t in range(LENGTH):
        other = x.clone()
        other[:, t] = (x[:, t] + 1) % CLASSES
        changed = (decoder(z, labels, target=other) != logits).any(-1)
        assert not changed[:, : t + 1].any() and changed[:, t + 1 :].all()
    assert (decoder(z + 0.1, labels, target=x) != logits).any(-1).all()
    assert (decoder(z, 1 - labels, target=x) != logits).any(-1).all()
    with pytest.raises(ValueError, match="expected target to be the tokens"):
        decoder(z, labels)
    with pytest.raises(ValueError, match="expected condition to be labels"):
        decoder(z, target=x)


def test_word_dropout() -> None:
    """All of x dropped: what the decoder reads is unknown tokens, in training alone."""
    decoder = learned(GRUDecoder(LATENT, 4, (LENGTH, CLASSES), word_dropout=1.0))
    z, x = torch.randn(4, LATENT).double(), tokens()
    assert torch.equal(decoder(z, target=x), decoder(z, target=torch.full_like(x, -100)))
    assert not torch.equal(decoder.eval()(z, target=x), decoder.train()(z, target=x))


def test_generated_tokens() -> None:
    """Greedy tokens are the most likely under their own teacher forcing; drawn ones have the softmax's frequencies."""
    decoder = learned(GRUDecoder(LATENT, 4, (LENGTH, CLASSES), word_dropout=0.5)).eval()
    for p in decoder.parameters():
        nn.init.normal_(p)
    z = torch.randn(50, LATENT).double()
    greedy = decoder.generate(z)
    assert torch.equal(decoder(z, target=greedy).argmax(-1), greedy) and len(greedy.unique()) > 1
    assert decoder.generate(z, length=9)[:, :LENGTH].equal(greedy)
    alike = z[:1].expand(4000, -1)
    drawn = decoder.generate(alike, temperature=2.0, generator=torch.Generator().manual_seed(0), length=2)
    again = decoder.generate(alike, temperature=2.0, generator=torch.Generator().manual_seed(0), length=2)
    assert torch.equal(drawn, again)
    for first in range(CLASSES):
        rows = drawn[drawn[:, 0] == first, 1]
        if len(rows) > 400:
            want = (decoder(z[:1], target=torch.tensor([[first, 0]]))[0, 1] / 2).softmax(-1)
            got = torch.bincount(rows, minlength=CLASSES) / len(rows)
            torch.testing.assert_close(got.double(), want, rtol=0, atol=4 * 0.5 / len(rows) ** 0.5)


@pytest.mark.parametrize("draws", [None, 2])
def test_vae_of_tokens(draws: int | None) -> None:
    """The nll is the cross entropy of teacher forcing, fused or not."""
    p_x, found = Categorical(CLASSES), []
    options: dict[str, Any] = {"hidden": 4, "latent": LATENT, "conditions": LABELS}
    networks = [learned(part) for part in build_networks(LENGTH, p_x, architecture="gru", **options)]
    x, labels, state = tokens(), torch.tensor([0, 1, 1, 0]), torch.tensor([1, 2])
    x[0, 3:] = -100
    for fused in (False, True):
        model = VAE(*networks, p_x, num_samples=draws, fused_head=fused)
        assert model.data_shape == (LENGTH,)
        output = model(x.to(torch.int16), condition=labels, rng_state=state)
        output.loss.backward()
        rows = output.z.flatten(0, -2)
        many = x.repeat(draws or 1, 1)
        logits = model.decoder(rows, labels.repeat(draws or 1), target=many)
        want = F.cross_entropy(logits.transpose(1, 2), many, reduction="none").sum(1)
        torch.testing.assert_close(output.nll, want.view(draws or 1, 4).mean(0))
        assert all(p.grad is not None and p.grad.count_nonzero() for p in model.parameters())
        found.append([p.grad for p in model.parameters()])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    mu, _ = model.encode(x, condition=labels)
    assert torch.equal(model.reconstruct(x, condition=labels), model.decoder.generate(mu, labels))
    assert model.generate(3, condition=1).shape == (3, LENGTH)
    assert model(x[:0], condition=labels[:0]).nll.shape == (0,)
    chunks = [importance_nll(model, x, 5, condition=labels, rng_state=state, chunk=n) for n in (2, 5)]
    torch.testing.assert_close(*chunks)


def test_tokens_compiled_and_in_bfloat16() -> None:
    p_x = Categorical(CLASSES)
    model, x = VAE(*build_networks(LENGTH, p_x, architecture="gru", hidden=4, latent=LATENT), p_x), tokens()
    state = torch.tensor([1, 2])
    want = model(x, rng_state=state).loss
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, rng_state=state).loss, want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x, rng_state=state).loss, want, rtol=0.02, atol=0)
    model.bfloat16()(x).loss.backward()


def test_widths_go_down_and_up() -> None:
    """`hidden` is read from x to z."""
    encoder, decoder = build_networks(12, hidden=(8, 4), latent=LATENT)
    sizes = [
        [(m.in_features, m.out_features) for m in part.modules() if isinstance(m, nn.Linear)]
        for part in (encoder, decoder)
    ]
    assert sizes == [[(12, 8), (8, 4), (4, 6)], [(3, 4), (4, 8), (8, 12)]]
    encoder, decoder = build_networks((8, 8), architecture="conv", hidden=(8, 4), latent=LATENT)
    assert encoder.linear.in_features == decoder.linear.out_features == 4 * 2 * 2


ERRORS = [
    ({"architecture": "rnn"}, ValueError, "expected architecture to be one of mlp, .* but got 'rnn'"),
    ({"word_dropout": 0.1}, ValueError, "expected architecture to be 'gru' for word_dropout, but got 'mlp'"),
    ({"blocks": 1, "architecture": "conv"}, ValueError, "to be 'resnet' for blocks, but got 'conv'"),
    ({"widths": 3}, TypeError, "unexpected keyword argument 'widths'"),
    ({"architecture": "gru"}, ValueError, "expected likelihood to be a Categorical"),
    ({"architecture": "resnet", "dims": 4}, ValueError, "expected dims to be 1, 2 or 3, but got 4"),
    (
        {"architecture": "resnet", "dims": 1},
        ValueError,
        r"to be \(length,\) or \(channels, length\), but got",
    ),
    ({"architecture": "gru", "likelihood": Categorical(3), "word_dropout": 2}, ValueError, "from 0 to 1"),
    (
        {"architecture": "gru", "likelihood": Categorical(3), "hidden": (4, 5)},
        ValueError,
        "same one for every",
    ),
]


@pytest.mark.parametrize(("options", "error", "match"), ERRORS, ids=[str(e[0]) for e in ERRORS])
def test_errors(options: dict[str, Any], error: type[Exception], match: str) -> None:
    shape = 6 if isinstance(options.get("likelihood"), Categorical) else (3, 5, 6)
    with pytest.raises(error, match=match):
        build_networks(shape, **options)
