"""Every likelihood in vae_fast.nn: what it asks of a decoder, its mean and samples, fused heads, and training."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vae_fast
from conftest import needs_native, state
from vae_fast.likelihoods import LIKELIHOODS as SPECS
from vae_fast.nn import (
    LIKELIHOODS,
    VAE,
    Categorical,
    ConvDecoder,
    ConvEncoder,
    DiscretizedLogisticMixture,
    Gaussian,
    GRUDecoder,
    GRUEncoder,
    Likelihood,
    MLPDecoder,
    MLPEncoder,
    Multinomial,
    NegativeBinomial,
    Poisson,
)
from vae_fast.nn.likelihoods import make_likelihood

Options = dict[str, Any]
SHAPE = (4, 3)
# name, options, whether a linear layer fuses with it
OPTIONS: list[tuple[str, Options, bool]] = [
    ("bernoulli", {}, True),
    ("bernoulli", {"binarize": True}, True),
    ("continuous_bernoulli", {}, True),
    ("gaussian", {"variance": "feature"}, True),
    ("gaussian", {"variance": "decoder"}, True),
    ("laplace", {"scale": 0.5}, True),
    ("laplace", {"scale": "decoder"}, True),
    ("discretized_logistic", {"scale": "learned"}, True),
    ("discretized_logistic", {"scale": "decoder"}, True),
    ("discretized_logistic_mixture", {"components": 2}, False),
    ("categorical", {"classes": 5}, True),
    ("multinomial", {}, True),
    ("poisson", {}, True),
    ("poisson", {"link": "softplus"}, False),
    ("negative_binomial", {}, True),
    ("negative_binomial", {"theta": "decoder", "link": "exp"}, True),
    ("zero_inflated_negative_binomial", {"theta": 2.0}, True),
    ("zero_inflated_negative_binomial", {"theta": "decoder"}, True),
    ("negative_binomial_mixture", {}, True),
    ("negative_binomial_mixture", {"theta": 2.0, "link": "softplus"}, False),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options, _ in OPTIONS]
FUSED = [(name, options) for name, options, fused in OPTIONS if fused]
FUSED_IDS = [i for i, (*_, fused) in zip(IDS, OPTIONS, strict=True) if fused]


def shape_of(name: str) -> tuple[int, ...]:
    return {"discretized_logistic_mixture": (3, 2, 2), "multinomial": (12,)}.get(name, SHAPE)


def data(likelihood: Likelihood, shape: tuple[int, ...], n: int = 6) -> Tensor:
    u = torch.rand((n, *shape), generator=torch.Generator().manual_seed(1))
    if likelihood.support == "unit":
        return (u * 255).to(torch.uint8)
    if likelihood.support == "counts":
        return (u * 5).to(torch.int32)
    return (u * 5).long() if likelihood.support == "classes" else u


def make(name: str, options: Options, **kwargs: Any) -> tuple[VAE, Tensor]:
    """A model whose decoder ends in a linear layer, and data for it."""
    torch.manual_seed(0)
    likelihood, shape = make_likelihood(name, **options), shape_of(name)
    x = data(likelihood, shape)
    encoder = MLPEncoder(12, 8, 3)
    if name == "categorical":
        encoder[0] = nn.Sequential(nn.Flatten(), nn.Embedding(5, 1), nn.Flatten())
        decoder: nn.Sequential = nn.Sequential(
            nn.Linear(3, 8), nn.Tanh(), nn.Unflatten(1, (*SHAPE[:1], 2)), nn.Linear(2, 5)
        )
        x = x[:, :, 0]
        encoder[1] = nn.Linear(4, 8)
        del encoder.in_features
    else:
        decoder = MLPDecoder(3, 8, likelihood.parameter_shape(shape), likelihood.num_parameters)
    model = VAE(encoder, decoder, likelihood, **kwargs)
    with torch.no_grad():
        for p in likelihood.parameters():
            p.copy_(torch.linspace(-1.0, 0.5, p.numel()).view_as(p))
    return model, x


def results(model: VAE, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    output = model(x, rng_state=state())
    return output.nll, list(torch.autograd.grad(output.loss, list(model.parameters())))


def assert_alike(got: tuple[Tensor, list[Tensor]], want: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draws", [None, 2])
@pytest.mark.parametrize(("name", "options"), FUSED, ids=FUSED_IDS)
def test_fused_head_changes_nothing(
    name: str, options: Options, draws: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, x = make(name, options, num_samples=draws, fused_head=False)
    fused, _ = make(name, options, num_samples=draws, fused_head=True)
    fused.load_state_dict(plain.state_dict())
    want = results(plain, x)
    last = next(m for m in reversed(fused.decoder) if isinstance(m, nn.Linear))
    forward = nn.Linear.forward
    with monkeypatch.context() as patch:

        def refuse(layer: nn.Linear, h: Tensor) -> Tensor:
            assert layer is not last, "the linear layer was called"
            return forward(layer, h)

        patch.setattr(nn.Linear, "forward", refuse)
        assert_alike(results(fused, x), want)
    seen: list[Tensor] = []  # a hook wants to see the layer's output
    last.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    with pytest.warns(UserWarning, match="computed apart: torch.nn.modules.linear.Linear has a hook"):
        assert_alike(results(fused, x), want)
    assert len(seen) == 1


class LoRALinear(nn.Linear):
    """Adds to what the weight gives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Wrapped(nn.Module):
    """As peft does: no nn.Linear, but it has one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 1


class Quantized(Tensor):
    """A weight that is another tensor inside."""

    def __new__(cls, inner: Tensor) -> Quantized:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=False)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Quantized:
        return Quantized(inner["inner"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return func(args[0], args[1].inner + 1, *args[2:])
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(func)


def quantize(decoder: nn.Sequential) -> None:
    weight = decoder[2].weight.detach()
    decoder[2].weight = nn.Parameter(Quantized(weight), requires_grad=False)


def set_forward(decoder: nn.Sequential) -> None:
    layer = decoder[2]
    layer.forward = lambda h: nn.functional.linear(h, layer.weight + 1, layer.bias)


def subclass(decoder: nn.Sequential) -> None:
    decoder[2].__class__ = LoRALinear


# what comes to a decoder, and why its last layer is not fused then
WATCHES: dict[str, tuple[Callable[[nn.Sequential], Any], str]] = {
    "forward hook": (lambda d: d[2].register_forward_hook(lambda *_: None), "Linear has a hook"),
    "forward pre-hook": (lambda d: d[2].register_forward_pre_hook(lambda *_: None), "Linear has a hook"),
    "backward hook": (lambda d: d[2].register_full_backward_hook(lambda *_: None), "Linear has a hook"),
    "backward pre-hook": (
        lambda d: d[2].register_full_backward_pre_hook(lambda *_: None),
        "Linear has a hook",
    ),
    "of the decoder": (lambda d: d.register_forward_hook(lambda *_: None), "MLPDecoder has a hook"),
    "of the unflatten": (lambda d: d[3].register_forward_hook(lambda *_: None), "Unflatten has a hook"),
    "subclass": (subclass, "the last layer is .*LoRALinear, not a plain nn.Linear"),
    "wrapped": (lambda d: d.__setitem__(2, Wrapped(d[2])), "the last layer is .*Wrapped, not"),
    "activation": (lambda d: d.append(nn.Tanh()), "the last layer is .*Tanh, not"),
    "forward": (set_forward, "Linear has a forward of its own"),
    "weight": (quantize, "the last layer's weight is .*Quantized, not a plain tensor"),
}


@pytest.mark.parametrize("fused_head", [True, "auto"])
@pytest.mark.parametrize(("watch", "reason"), WATCHES.values(), ids=WATCHES)
def test_what_comes_to_the_head_is_called_and_said(
    watch: Callable[[nn.Sequential], Any], reason: str, fused_head: bool | str
) -> None:
    model, x = make("bernoulli", {}, fused_head=fused_head)
    model(x)
    assert model.fused_head_reason is None
    watch(model.decoder)
    assert re.search(reason, model.fused_head_reason or "")
    plain = VAE(model.encoder, model.decoder, fused_head=False)
    want = plain(x, rng_state=state()).loss
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [model(x, rng_state=state()).loss for _ in range(3)]
    assert all(torch.equal(loss, want) for loss in losses)
    assert len(caught) == (fused_head is True)  # once
    for warning in caught:
        assert re.search("fused_head is True, but .*" + reason, str(warning.message))
        assert warning.filename == __file__


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


PARAMETRIZATIONS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "of the bias": lambda layer: nn.utils.parametrize.register_parametrization(layer, "bias", Doubled()),
}


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_a_parametrized_head_is_fused(
    parametrization: Callable[[nn.Linear], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass computes the weight once, as a call of the layer does: spectral_norm changes its state each time."""
    pairs = [make("bernoulli", {}, fused_head=fused_head) for fused_head in (False, True)]
    for model, _ in pairs:
        torch.manual_seed(1)
        parametrization(model.decoder[2])
    (plain, x), (fused, _) = pairs
    fused.load_state_dict(plain.state_dict())
    want = [results(plain, x) for _ in range(2)]
    last, forward = fused.decoder[2], nn.Linear.forward

    def refuse(layer: nn.Linear, h: Tensor) -> Tensor:
        assert layer is not last, "the linear layer was called"
        return forward(layer, h)

    monkeypatch.setattr(nn.Linear, "forward", refuse)
    for wanted in want:
        assert_alike(results(fused, x), wanted)
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


def quantized(decoder: nn.Sequential) -> None:
    linear = torch.ao.nn.quantized.dynamic.Linear.from_float
    decoder[2].qconfig = torch.ao.quantization.default_dynamic_qconfig
    decoder[2] = linear(decoder[2])


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize(
    ("watch", "reason"),
    [WATCHES["forward hook"], WATCHES["subclass"], (quantized, "the last layer is .*quantized")],
    ids=["hook", "subclass", "quantized"],
)
def test_auto_says_what_it_costs(
    watch: Callable[[nn.Sequential], Any], reason: str, likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and where the layer would be fused: not of a small batch, nor of a likelihood without a fused head."""
    options = {"link": "softplus"} if likelihood == "poisson" else {}
    model, x = make(likelihood, options)
    watch(model.decoder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(x)
        assert not caught
        monkeypatch.setattr("vae_fast.nn.fused.FUSED_NUMBERS", x.numel())
        for _ in range(2):
            model(x)
    assert len(caught) == (likelihood == "bernoulli")
    for warning in caught:
        assert re.search(f"computed apart, .*{reason}", str(warning.message))
        assert warning.filename == __file__


def test_fused_head_reason() -> None:
    def reason(decoder: nn.Module, name: str = "bernoulli", **options: Any) -> str | None:
        return vae(decoder, name, **options).fused_head_reason

    assert reason(MLPDecoder(3, 8, 12)) is None
    assert reason(MLPDecoder(3, 8, 12), fused_head=False) == "fused_head is False"
    assert reason(MLPDecoder(3, 8, 12), "poisson", link="softplus") == "Poisson has no fused head"
    assert "several softmaxes" in str(reason(MLPDecoder(3, 8, SHAPE), "multinomial"))
    assert "Linear, not an nn.Sequential" in str(reason(nn.Linear(3, 12)))
    unflatten = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Linear(3, 12), nn.Unflatten(2, SHAPE))
    assert "nn.Unflatten of dim 2" in str(reason(unflatten))
    assert "the last layer is missing" in str(reason(nn.Sequential()))
    model, _ = make("bernoulli", {}, fused_head=True)
    handle = model.decoder[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"fused_head=True.*Linear has a hook"):
        VAE(model.encoder, model.decoder, fused_head=True)
    handle.remove()
    assert model.fused_head_reason is None


def test_fused_head_is_chosen_by_size() -> None:
    model = VAE(MLPEncoder(1 << 12, 2, 2), MLPDecoder(2, 2, 1 << 12))
    assert vae(MLPDecoder(3, 8, SHAPE), "multinomial").fused_head_reason  # four softmaxes from one layer
    places = [model._fused_place(torch.empty((n, 1 << 12), device="meta")) for n in (1 << 9, 1 << 10)]
    assert places == [None, 2]
    model.decoder.append(nn.Tanh())
    assert model._fused_place(torch.empty((1 << 10, 1 << 12), device="meta")) is None


@pytest.mark.no_poison
def test_fused_head_compiles_and_autocasts() -> None:
    torch._dynamo.reset()  # what other tests compiled counts against its limit
    for name, options in (("negative_binomial", {}), ("gaussian", {"variance": "decoder"})):
        model, x = make(name, options, fused_head=True)
        want = results(model, x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_alike(results(compiled, x), want)
        with torch.autocast("cpu", torch.bfloat16):
            nll, grads = results(model, x)
        assert nll.dtype == torch.float32
        torch.testing.assert_close(nll, want[0], rtol=0.03, atol=0.1)
        assert all(g.dtype == torch.float32 for g in grads)


@pytest.mark.parametrize(("name", "options", "_fused"), OPTIONS, ids=IDS)
def test_nll_of_each_element_and_of_some(name: str, options: Options, _fused: bool) -> None:
    model, x = make(name, options)
    params = model.likelihood.split(model.decoder(torch.randn((len(x), 3))))
    each = model.likelihood.nll(params, x, reduction="none")
    torch.testing.assert_close(each.reshape(len(x), -1).sum(1), model.likelihood.nll(params, x))
    mask = torch.rand(each.shape) > 0.4
    some = model.likelihood.nll(params, x, mask.unsqueeze(1) if "logistic_mixture" in name else mask)
    torch.testing.assert_close(some, each.where(mask, 0.0).reshape(len(x), -1).sum(1))


@pytest.mark.parametrize(("name", "options", "_fused"), OPTIONS, ids=IDS)
def test_samples_have_the_mean(name: str, options: Options, _fused: bool) -> None:
    """Of one z, the average over many draws; and the mean's shape is x's."""
    model, x = make(name, options)
    n = 20_000
    output = model.decoder(torch.randn((1, 3)))
    params = tuple(p.expand(n, *p.shape[1:]) for p in model.likelihood.split(3 * output))
    library = {"library": 30.0} if model.likelihood.library(x) is not None else {}
    with torch.no_grad():
        draws = model.likelihood.sample(params, torch.Generator().manual_seed(0), **library)
        mean = model.likelihood.mean(params, **library)[0]
    if name == "categorical":
        draws = nn.functional.one_hot(draws, 5)
    assert draws.shape[1:] == mean.shape
    draws = draws.float()
    if model.likelihood.support in ("counts", "classes"):
        assert torch.equal(draws, draws.round())
        assert draws.min() >= 0
    elif "discretized" in name:
        torch.testing.assert_close(draws * 255, (draws * 255).round())
    deviation = (draws.std(0) / n**0.5).clamp_min(1e-6)
    slack = {"discretized_logistic_mixture": 0.01}.get(name, 5e-4)  # cut off channels; rounding to a level
    assert ((draws.mean(0) - mean).abs() <= 4.5 * deviation + slack).all()
    if library and name != "multinomial":
        rate = model.likelihood.rate(params[0], 30.0)
        torch.testing.assert_close(rate.flatten(1).sum(1), torch.full((n,), 30.0))


def test_library_is_the_samples_own() -> None:
    """Reconstructions have as many counts as x, generated ones as many as asked for."""
    model, x = make("negative_binomial", {"library": 70.0})
    totals = model.reconstruct(x).flatten(1).sum(1)
    torch.testing.assert_close(totals, x.flatten(1).sum(1).float())
    torch.testing.assert_close(model.generate(3).flatten(1).sum(1), torch.full((3,), 70.0))
    asked = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(model.generate(3, library=asked).flatten(1).sum(1), asked)
    model, x = make("multinomial", {})
    torch.testing.assert_close(model.reconstruct(x).sum(-1), x.sum(-1).float())
    with pytest.raises(ValueError, match="softmax"):
        make("poisson", {"link": "exp"})[0].generate(3, library=2.0)


def test_binarized_x_is_the_same_for_both_and_new_in_every_pass() -> None:
    model, x = make("bernoulli", {"binarize": True})
    plain, _ = make("bernoulli", {})
    bits = vae_fast.binarize(x, state())
    for a, b in zip(model(x, rng_state=state()), plain(bits, rng_state=state()), strict=True):
        assert torch.equal(a, b)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for generator in (None, torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)):
        model.eval()(x, generator=generator)
    model.elbo(x)
    assert all(((s == 0) | (s == 1)).all() for s in seen)
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[3])


class Opaque(nn.Module):
    """A decoder that says nothing of its output, and cannot be tried out."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.linear, self.shape = nn.Linear(3, int(np.prod(shape))), shape

    def forward(self, z: Tensor) -> Tensor:
        assert z.abs().sum().item() >= 0
        return self.linear(z).unflatten(1, self.shape)


class Loose(MLPEncoder):
    def __init__(self) -> None:
        super().__init__(12, 8, 3)
        del self.in_features


def vae(
    decoder: nn.Module, likelihood: str | Likelihood, encoder: nn.Module | None = None, **options: Any
) -> VAE:
    return VAE(encoder or Loose(), decoder, likelihood, **options)


def call(likelihood: str, *shape: int, **options: Any) -> Any:
    return vae(Opaque(*shape), likelihood, **options)(torch.ones((2, 4, 3)))


IMAGE = (3, 4, 4)
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "odd": (lambda: vae(nn.Linear(3, 13), "gaussian", variance="decoder"), r"multiple of 2.*\(2, 13\)"),
    "three": (
        lambda: vae(nn.Linear(3, 14), "zero_inflated_negative_binomial", theta="decoder"),
        "multiple of 3",
    ),
    "too many": (
        lambda: VAE(MLPEncoder(12, 8, 3), MLPDecoder(3, 8, 14)),
        r"12 numbers .* encoder takes, but got .* of \(14,\)",
    ),
    "one for two": (
        lambda: VAE(MLPEncoder(12, 8, 3), MLPDecoder(3, 8, 12), "laplace", scale="decoder"),
        "give 12 numbers .*, 6 numbers",
    ),
    "conv": (
        lambda: VAE(ConvEncoder(IMAGE, (4,), 3), ConvDecoder(3, (4,), IMAGE), "gaussian", variance="decoder"),
        r"expected decoder to return a multiple of 2 .*, but got shape \(2, 3, 4, 4\)",
    ),
    "mixture": (
        lambda: VAE(ConvEncoder(IMAGE, (4,), 3), ConvDecoder(3, (4,), IMAGE), "discretized_logistic_mixture"),
        " 30 .* 100 .* along dim 1 .* got 3$",
    ),
    "classes": (lambda: vae(nn.Linear(3, 7), Categorical(5)), "5 numbers along the last dim.* got 7"),
    "features": (lambda: vae(nn.Linear(3, 12), NegativeBinomial(features=11)), "12.*11"),
    "no features": (lambda: vae(Opaque(12), "negative_binomial"), "expected features to be"),
    "features of another": (lambda: Gaussian("learned", features=3), "features"),
    "unbound": (
        lambda: Gaussian("feature").nll((torch.ones(2, 3),), torch.ones(2, 3)),
        "expected features to be",
    ),
    "called": (lambda: call("bernoulli", 4, 4), r"expected x to have shape .*\(4, 4\).* got \(2, 4, 3\)"),
    "called, odd": (lambda: call("gaussian", 5, 3, variance="decoder"), r"multiple of 2.*\(2, 5, 3\)"),
    "called, half": (
        lambda: call("gaussian", 4, 3, variance="decoder"),
        r"expected x to have shape .*\(2, 3\).* got \(2, 4, 3\)",
    ),
    "link": (lambda: Poisson("log"), "expected link to be .* got 'log'"),
    "library": (lambda: Multinomial(0.0), "expected library to be .* got 0.0"),
    "components": (lambda: DiscretizedLogisticMixture(0), "expected components to be .* got 0"),
    "channels": (lambda: DiscretizedLogisticMixture().parameter_shape((2, 4, 4)), r"1 or 3.*\(2, 4, 4\)"),
    "fused_head": (
        lambda: vae(nn.Linear(3, 12), "bernoulli", fused_head="yes"),
        "expected fused_head to be .* got 'yes'",
    ),
    "no linear": (lambda: vae(nn.Linear(3, 12), "bernoulli", fused_head=True), "nn.Sequential"),
    "no fused": (
        lambda: vae(MLPDecoder(3, 8, 12), "poisson", link="softplus", fused_head=True),
        "expected likelihood to have a fused head .* Poisson",
    ),
}


@pytest.mark.parametrize(("attempt", "match"), ERRORS.values(), ids=ERRORS)
def test_errors(attempt: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        attempt()


def test_trying_a_decoder_out_leaves_no_trace() -> None:
    decoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 12))
    before, encoder = {k: v.clone() for k, v in decoder.state_dict().items()}, Loose()
    rng = torch.get_rng_state()
    model = vae(decoder, "gaussian", encoder, variance="feature")
    assert model.data_shape == (12,)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in decoder.state_dict().items())
    assert model.likelihood.logvar.shape == (12,)
    assert NegativeBinomial(features=12).log_theta.shape == (12,)


# The start of what is learned beside the networks

STARTED = [
    *(("gaussian", {"variance": v}) for v in ("learned", "feature")),
    *(("laplace", {"scale": s}) for s in ("learned", "feature")),
    *(("discretized_logistic", {"scale": s}) for s in ("learned", "feature")),
]


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros((20, 12)),
        torch.full((20, 12), 0.3),
        torch.ones((20, 12)),
        torch.full((20, 12), 7, dtype=torch.uint8),
    ],
    ids=["0", "0.3", "1", "uint8"],
)
@pytest.mark.parametrize(("name", "options"), STARTED)
def test_samples_that_are_alike(name: str, options: Options, x: Tensor) -> None:
    """Their spread is 0, whose logarithm is no start; training starts from a finite one and improves."""
    torch.manual_seed(0)
    model = VAE(MLPEncoder(12, 8, 3), MLPDecoder(3, 8, 12), name, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.likelihood.start(x)
    assert [bool(re.search("all samples of x are alike", str(w.message))) for w in caught] == (
        [] if name == "discretized_logistic" else [True]
    )
    (learned,) = model.likelihood.parameters()
    start = learned.detach().clone()
    assert (start == 0).all()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(40):
            losses.append(model(x).loss)
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
    losses = torch.stack(losses).detach()
    assert losses.isfinite().all()
    assert losses[-1] < losses[0] - 1
    assert learned.isfinite().all()
    assert (learned != start).all()  # it is not stuck


@pytest.mark.parametrize(("name", "options"), STARTED)
def test_a_start_that_is_no_number(name: str, options: Options) -> None:
    likelihood = make_likelihood(name, **options)
    likelihood.bind((3,))
    for value in (float("nan"), float("inf"), 1e30):
        x = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, value]])
        if name == "laplace" and value == 1e30:  # which squares nothing
            continue
        with pytest.raises(ValueError, match="expected x to have a finite spread"):
            likelihood.start(x)


RATES = torch.tensor([0.0, 0.2, 3.0, 40.0])
MEANS: list[tuple[str, Options, Tensor]] = [
    ("bernoulli", {}, torch.tensor([0.0, 0.2, 0.7, 1.0])),
    ("gaussian", {"variance": "decoder"}, torch.tensor([-30.0, 0.0, 0.2, 7.0])),
    ("laplace", {}, torch.tensor([-30.0, 0.0, 0.2, 7.0])),
    ("discretized_logistic", {"scale": 1e-3}, torch.tensor([0.1, 0.2, 0.5, 0.9])),
    *(("poisson", {"link": link}, RATES) for link in ("exp", "softplus", "softmax")),
    ("negative_binomial", {}, RATES),
    ("multinomial", {}, RATES),
    ("continuous_bernoulli", {}, torch.tensor([0.02, 0.2, 0.5, 0.9])),
    ("negative_binomial_mixture", {}, RATES),
]


@pytest.mark.parametrize(("name", "options", "mean"), MEANS)
def test_a_start_is_at_the_mean(name: str, options: Options, mean: Tensor) -> None:
    torch.manual_seed(0)
    likelihood = make_likelihood(name, **options)
    decoder = MLPDecoder(3, 8, 4, likelihood.num_parameters)
    model = VAE(MLPEncoder(4, 8, 3), decoder, likelihood)
    x = (mean * torch.tensor([[0.5], [1.5], [1.0]])).clamp(-30, 1 if likelihood.support == "unit" else 60)
    before = [p.clone() for p in model.parameters()]
    model.start(x)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) == 1
    linear = decoder[-2]
    assert isinstance(linear, torch.nn.Linear)
    with torch.no_grad():
        linear.weight.zero_()
    x_mean = x.mean(0)
    library = x_mean.sum() if likelihood.library(x) is not None else None
    found = model.decode(torch.zeros(1, 3), library=None if library is None else library.expand(1))[0]
    torch.testing.assert_close(found, x_mean, rtol=1e-4, atol=2e-4)


def test_a_start_is_at_the_frequencies_of_classes() -> None:
    torch.manual_seed(0)
    model = VAE(torch.nn.Embedding(3, 1), MLPDecoder(2, 8, (3, 3)), "categorical")
    linear = next(layer for layer in reversed(model.decoder) if isinstance(layer, torch.nn.Linear))
    x = torch.tensor([[0, 2, -100], [0, 2, -100], [1, -100, -100], [2, 2, 7]])
    with torch.no_grad():
        linear.weight.zero_()
        before = linear.bias.clone()
        model.start(x)
        found = model.decode(torch.zeros(1, 2))[0]
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(found[1], torch.tensor([0, 0, 1.0]), atol=3e-4, rtol=0)  # at least 1e-4 each
    assert torch.equal(linear.bias[6:], before[6:])  # where no class is


def test_a_start_of_a_layer_that_makes_one_position_at_a_time() -> None:
    """Of classes all positions have the frequencies of all; other likelihoods are left alone."""
    decoder = torch.nn.Sequential(torch.nn.Unflatten(1, (3, 2)), torch.nn.Linear(2, 4))
    before = decoder[1].bias.detach().clone()
    for name, x in (("bernoulli", torch.rand(5, 3, 4)), ("gaussian", torch.rand(5, 3, 4))):
        VAE(torch.nn.Flatten(), decoder, name).start(x)
        assert torch.equal(decoder[1].bias, before)
    words = GRUDecoder(2, 5, (3, 4))
    VAE(GRUEncoder(4, 5, 2), words, "categorical").start(torch.tensor([[0, 1, 1], [1, 2, -100]]))
    frequencies = torch.tensor([1, 3, 1, 0]) / 5
    torch.testing.assert_close(
        words[-1].bias.softmax(0), frequencies, atol=2e-4, rtol=0
    )  # at least 1e-4 each


def test_a_start_leaves_a_decoder_of_ones_own_alone() -> None:
    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 4)

        def forward(self, z: Tensor) -> Tensor:
            return self.linear(z).tanh()  # type: ignore[no-any-return]

    for decoder in (Decoder(), torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False))):
        model = VAE(MLPEncoder(4, 8, 3), decoder)
        before = [p.clone() for p in model.parameters()]
        model.start(torch.rand(5, 4))
        model.start(torch.rand(0, 4))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# Training


def digits() -> np.ndarray:
    """1797 images of 64 pixels in 17 levels."""
    return pytest.importorskip("sklearn.datasets").load_digits().data.astype(np.uint8)


def cells(dropout: float) -> np.ndarray:
    """Counts of 64 genes in 400 cells, as single-cell experiments give them: programs of genes, cells of different
    depths, overdispersed; some counts lost."""
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(size=(400, 3)) @ rng.normal(size=(3, 64)))
    mean = share / share.sum(1, keepdims=True) * rng.lognormal(6, 0.4, (400, 1))
    counts = rng.poisson(rng.gamma(2.0, mean / 2.0))
    return (counts * (rng.random(counts.shape) >= dropout)).astype(np.int32)


def as_text(x: np.ndarray) -> np.ndarray:
    return x // 4  # 5 classes of grey


TRAINED: dict[str, tuple[Options, Callable[[], np.ndarray]]] = {
    "bernoulli": ({"binarize": True}, lambda: digits() * 15),
    "continuous_bernoulli": ({}, lambda: digits() * 15),
    "gaussian": ({"variance": "feature"}, lambda: digits() * 15),
    "laplace": ({"scale": "learned"}, lambda: digits() * 15),
    "discretized_logistic": ({"scale": "decoder"}, lambda: digits() * 15),
    "discretized_logistic_mixture": ({"components": 3}, lambda: (digits() * 15).reshape(-1, 1, 8, 8)),
    "categorical": ({"classes": 5}, lambda: as_text(digits())),
    "multinomial": ({}, digits),
    "poisson": ({}, lambda: cells(0.0)),
    "negative_binomial": ({}, lambda: cells(0.0)),
    "zero_inflated_negative_binomial": ({}, lambda: cells(0.3)),
    "negative_binomial_mixture": ({}, lambda: cells(0.0)),
}


def test_supports_are_those_of_the_specs() -> None:
    assert {name: kind.support for name, kind in LIKELIHOODS.items()} == {
        name: spec.support for name, spec in SPECS.items() if name in LIKELIHOODS
    }
    assert SPECS.keys() - LIKELIHOODS.keys() == {"bernoulli_probs", "unit_gaussian"}


class Scaled(nn.Module):
    """Class numbers and counts as an encoder can take them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().log1p()


def curve(name: str, backend: str, steps: int = 24) -> Tensor:
    """The loss and the gradient's norm in each step, (steps, 2)."""
    options, load = TRAINED[name]
    x = torch.from_numpy(np.ascontiguousarray(load()[:400]))
    torch.manual_seed(0)
    likelihood = make_likelihood(name, **options)
    shape = likelihood.parameter_shape(x.shape[1:])
    n = likelihood.num_parameters
    encoder: nn.Module = MLPEncoder(64, 32, 4)
    if likelihood.support in ("classes", "counts"):
        encoder = nn.Sequential(Scaled(), encoder)
    model = VAE(encoder, MLPDecoder(4, 32, shape, n), likelihood, latent_shape=(4,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    values = []
    with vae_fast.backend(backend):
        for step in range(steps):
            batch = x[step % 4 * 100 :][:100]
            loss = model(batch, rng_state=torch.tensor([step, 7])).loss
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            values.append((loss.item(), norm.item()))
    return torch.tensor(values)


def test_every_likelihood_is_trained() -> None:
    assert TRAINED.keys() == LIKELIHOODS.keys()


@needs_native
@pytest.mark.no_poison
@pytest.mark.parametrize("name", TRAINED)
def test_training_reaches_the_loss_of_the_reference(name: str) -> None:
    """With the same noise: the curves part only by what rounding grows to."""
    got, want = curve(name, "cpu"), curve(name, "reference")
    assert want[-4:, 0].mean() < want[:4, 0].mean() - 0.5  # it learns
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
