"""nn.VAE looks at its first training batch, once: what it refuses, what it warns of, and when it does not look."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import state
from vae_fast.nn import LIKELIHOODS, VAE, Likelihood, MLPDecoder, MLPEncoder, first_batch

Options = dict[str, Any]
UNIT = ["bernoulli", "continuous_bernoulli", "discretized_logistic", "discretized_logistic_mixture"]
REAL = ["gaussian", "laplace"]
COUNTS = [
    "poisson",
    "negative_binomial",
    "zero_inflated_negative_binomial",
    "negative_binomial_mixture",
    "multinomial",
]
NAN, INF = float("nan"), float("inf")


def make(name: str = "bernoulli", options: Options | None = None, **kwargs: Any) -> VAE:
    """Of 6 numbers a sample; classes are 5."""
    torch.manual_seed(0)
    if name == "categorical":
        encoder = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(12, 6))
        decoder: nn.Module = nn.Sequential(nn.Linear(3, 30), nn.Unflatten(1, (6, 5)))
        return VAE(encoder, decoder, name, **(options or {}), **kwargs)
    shape, n = {
        "discretized_logistic_mixture": ((30, 2, 3), 1),
        "zero_inflated_negative_binomial": ((6,), 2),
        "negative_binomial_mixture": ((6,), 3),
    }.get(name, ((6,), 1))
    if "decoder" in (options or {}).values():
        n = 2
    return VAE(MLPEncoder(6, 8, 3), MLPDecoder(3, 8, shape, n), name, **(options or {}), **kwargs)


def batch(name: str, values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """Four samples; the values come last."""
    x = torch.zeros(24, dtype=dtype)
    x[-len(values) :] = torch.tensor(values, dtype=dtype)
    return x.view((4, 1, 2, 3) if name == "discretized_logistic_mixture" else (4, 6))


def good(name: str) -> Tensor:
    dtype = {"counts": torch.int32, "classes": torch.int64}.get(LIKELIHOODS[name].support, torch.float32)
    return batch(name, [0, 1], dtype)


Case = tuple[str, list[float], torch.dtype, type[Exception], str]
REFUSED: list[Case] = [
    *((n, [0, 254], torch.float32, ValueError, "from 0 to 254; x / 255") for n in UNIT),
    *((n, [NAN, 0.5], torch.float32, ValueError, "NaN") for n in (*UNIT, *REAL)),
    *((n, [0.5, INF], torch.bfloat16, ValueError, "infinite") for n in (*UNIT, *REAL)),
    *((n, [-1, 3], torch.int64, ValueError, "counts, .* from -1 to 3") for n in COUNTS),
    *((n, [2, -0.5], torch.float32, ValueError, "counts, .* from -0.5 to 2") for n in COUNTS),
    *((n, [NAN], torch.float32, ValueError, "counts, .*nan") for n in COUNTS),
    *((n, [INF], torch.float32, ValueError, "counts, .* to inf") for n in COUNTS),
    ("bernoulli", [7, 255], torch.int64, ValueError, "from 0 to 255; x / 255"),
    ("bernoulli", [-1, 1], torch.float64, ValueError, r"from -1 to 1; \(x \+ 1\) / 2"),
    ("bernoulli", [-2.1, 2.6], torch.float32, ValueError, 'scale them, or take likelihood="gaussian"'),
    ("bernoulli", [1.00001], torch.float32, ValueError, r"to 1.00001"),
    ("bernoulli", [-INF], torch.float32, ValueError, "infinite"),
    ("bernoulli", [1], torch.int8, TypeError, "torch.int8"),
    ("gaussian", [1], torch.complex64, TypeError, "torch.complex64"),
    ("categorical", [5], torch.int64, ValueError, r"from 0 to 4 \(-100 is left out\).* to 5"),
    ("categorical", [-1], torch.int64, ValueError, "class numbers from 0 to 4.*from -1"),
    ("categorical", [255], torch.uint8, ValueError, "class numbers from 0 to 4"),
    ("categorical", [-100, -99], torch.int32, ValueError, "from -100"),
    ("categorical", [1], torch.float32, TypeError, "class numbers.*torch.float32"),
    ("categorical", [1], torch.bool, TypeError, "class numbers.*torch.bool"),
]


@pytest.mark.parametrize(("name", "values", "dtype", "error", "match"), REFUSED)
def test_refuses(
    name: str, values: list[float], dtype: torch.dtype, error: type[Exception], match: str
) -> None:
    x, model = batch(name, values, dtype), make(name)
    for call in (model, model.elbo, model):  # it is looked at until it is right
        with pytest.raises(error, match=match) as caught:
            call(x)
        assert "\n" not in str(caught.value)
    model(good(name))
    assert_not_looked_at(model, x)
    model.validate = True
    with pytest.raises(error, match=match):
        model(x)


def assert_not_looked_at(model: VAE, x: Tensor) -> None:
    """Whatever the op or the encoder make of it."""
    try:
        model(x, rng_state=state())
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        assert not re.search("expected x|x holds", str(error))  # noqa: PT017


@pytest.mark.parametrize(("name", "values", "dtype", "error", "match"), REFUSED[:: len(REFUSED) // 6])
def test_does_not_look(name: str, values: list[float], dtype: torch.dtype, error: Any, match: str) -> None:
    x = batch(name, values, dtype)
    assert_not_looked_at(make(name, validate=False), x)
    model = make(name).eval()
    assert_not_looked_at(model, x)
    assert_looks(model.train(), x)


def assert_looks(model: nn.Module, x: Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match=r"expected x|x holds"):
        model(x)


TAKEN: list[tuple[str, Tensor]] = [
    *(
        (n, batch(n, [0.0, 0.3, 1.0], d))
        for n in UNIT
        for d in (torch.float16, torch.bfloat16, torch.float64)
    ),
    *((n, batch(n, [0, 2, 255], torch.uint8)) for n in (*UNIT, *REAL)),
    *((n, batch(n, [0], torch.uint8)) for n in UNIT),  # black all over
    *((n, batch(n, [0, 1], torch.bool)) for n in (*UNIT, *COUNTS)),
    *((n, batch(n, [1, 0], torch.int16)) for n in UNIT),
    *((n, batch(n, [-7.5, 255.0])) for n in REAL),
    *((n, batch(n, [300.0, 0.0, 2.0])) for n in COUNTS),
    *((n, batch(n, [0, 1], torch.uint8)) for n in (*COUNTS, "categorical")),
    ("bernoulli", batch("bernoulli", [1.0000001, -1e-7])),  # rounding
    ("bernoulli", batch("bernoulli", [0.5]).t().reshape(6, 4).t()),
]


@pytest.mark.parametrize(("name", "x"), TAKEN, ids=[f"{n}-{x.dtype}" for n, x in TAKEN])
def test_takes(name: str, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = make(name)(x).loss
    assert loss.isfinite()


def test_classes_that_only_the_decoder_knows() -> None:
    class Opaque(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            assert z.abs().sum().item() >= 0
            return super().forward(z).unflatten(1, (6, 5))

    model = VAE(nn.Sequential(nn.Linear(6, 6)), Opaque(3, 30), "categorical")
    x = batch("categorical", [5], torch.int64)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"class numbers from 0 to 4.* to 5"):
            model(x)
    model(x.clamp_max(4))
    assert model(x).loss.isnan()  # it is not looked at again


def test_class_left_out() -> None:
    model = make("categorical")
    model.encoder = nn.Sequential(Clamped(), model.encoder)
    assert model(batch("categorical", [-100, 4], torch.int64)).loss.isfinite()


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)


WARNED: list[tuple[str, Options, Tensor, str]] = [
    *(
        (n, {}, batch(n, [0, 1, 1], torch.uint8), r"uint8.* 0 and 1/255.* x\.bool\(\)")
        for n in (*UNIT, *REAL)
    ),
    *((n, {}, batch(n, [0.0, 2.5]), "fractions") for n in COUNTS),
    *(
        ("gaussian", {"variance": v}, torch.full((4, 6), 0.5), "alike")
        for v in ("learned", "feature", "decoder")
    ),
    *(("laplace", {"scale": v}, torch.zeros((4, 6)), "alike") for v in ("learned", "feature", "decoder")),
    ("gaussian", {"variance": "learned"}, batch("", [3, 4], torch.uint8)[:1].expand(4, 6), "alike"),
]


@pytest.mark.parametrize(("name", "options", "x", "match"), WARNED)
def test_warns_once_at_the_line_of_the_caller(name: str, options: Options, x: Tensor, match: str) -> None:
    model = make(name, options)
    with pytest.warns(UserWarning, match=match) as caught:
        model(x)
    assert [w.filename for w in caught] == [__file__]
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)


QUIET: list[tuple[str, Options, Tensor]] = [
    ("gaussian", {"variance": 1.0}, torch.zeros((4, 6))),
    ("laplace", {"scale": 0.1}, torch.zeros((4, 6))),
    ("discretized_logistic", {"scale": "learned"}, torch.zeros((4, 6))),  # of levels: no density
    ("gaussian", {"variance": "learned"}, torch.zeros((1, 6))),  # one sample is alike to itself
    ("negative_binomial", {"theta": "learned"}, torch.ones((4, 6))),
]


@pytest.mark.parametrize(("name", "options", "x"), QUIET)
def test_alike_samples_without_a_warning(name: str, options: Options, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(name, options)(x)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_under_autocast(dtype: torch.dtype, autocast: torch.dtype) -> None:
    for name, values in (("bernoulli", [255.0]), ("poisson", [-1.0])):
        with torch.autocast("cpu", autocast):
            assert_looks(make(name), batch(name, values, dtype))


def test_the_advice_works() -> None:
    x = torch.randint(256, (4, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="x / 255"):
        make()(x.float())
    want = make()(x.to(torch.uint8), rng_state=state()).loss
    torch.testing.assert_close(make()(x / 255, rng_state=state()).loss, want)
    x = torch.linspace(-1, 1, 24).view(4, 6)
    make()((x + 1) / 2)
    make("gaussian")(x)
    bits = (x > 0).to(torch.uint8)
    with pytest.warns(UserWarning, match=r"x\.bool\(\)"):
        make()(bits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()(bits.bool())


def test_every_part_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_batch, "PART", 7)
    for name, values in (("categorical", [-2]), ("poisson", [-1])):
        with pytest.raises(ValueError, match="expected x"):
            make(name)(batch(name, values, torch.int64).flip(0))
        with pytest.raises(ValueError, match="expected x"):
            make(name)(batch(name, values, torch.int64))
    with pytest.warns(UserWarning, match="fractions"):
        make("poisson")(batch("", [0.5]))


def test_an_empty_batch_is_not_the_first() -> None:
    model = make()
    assert model(torch.zeros((0, 6))).nll.shape == (0,)
    assert_looks(model, batch("", [255.0]))


class Odd(Likelihood):
    """Of even numbers alone; its own check."""

    def check(self, x: Tensor, classes: int | None = None) -> None:
        super().check(x, classes)
        if (x % 2).any():
            raise ValueError("x holds odd numbers")

    def nll(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return (params[0] - x).pow(2).sum(1)

    linear_nll = mean = sample = None  # type: ignore[assignment]


Odd.__abstractmethods__ = frozenset()


def test_a_likelihood_of_ones_own() -> None:
    model = VAE(nn.Linear(6, 6), nn.Linear(3, 6), Odd())
    assert_looks(model, torch.ones((4, 6)))
    assert_looks(model, torch.full((4, 6), NAN))
    model(2 * torch.ones((4, 6)))


# No wait for the device but in the first call


class Ops(TorchDispatchMode):
    """The names of all that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


WAITS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::aminmax"}


@pytest.mark.no_poison
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_later_calls_do_what_they_do_without_it(name: str) -> None:
    def ops(model: VAE) -> list[str]:
        with Ops() as seen:
            torch.autograd.grad(model(good(name), rng_state=state()).loss, list(model.parameters()))
        return seen.names

    model, free = make(name), make(name, validate=False)
    first, second, never = ops(model), ops(model), ops(free)
    assert first.count("aten::aminmax") == 1
    assert second == never
    assert not WAITS & set(never)


# Not while a graph is made, of values that are not there, or of a transform


def fake(model: VAE, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x), rng_state=mode.from_tensor(state()))


def compiled(model: VAE, x: Tensor) -> None:
    torch._dynamo.reset()
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    step(x, rng_state=state()).loss.backward()


def differentiated(model: VAE, x: Tensor) -> None:
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,), {"rng_state": state()}).loss)(
        parameters
    )


def traced(model: VAE, x: Tensor) -> None:
    with warnings.catch_warnings():  # torch's own: it is deprecated; shapes are taken as constants
        warnings.simplefilter("ignore")
        torch.jit.trace(Loss(model), (x,), check_trace=False)


class Loss(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, rng_state=torch.tensor([1, 2])).loss


UNSEEN: dict[str, Callable[[VAE, Tensor], Any]] = {
    "compile": compiled,
    "export": lambda model, x: torch.export.export(model, (x,), {"rng_state": state()}),
    "strict export": lambda model, x: torch.export.export(model, (x,), {"rng_state": state()}, strict=True),
    "fake": fake,
    "make_fx": lambda model, x: make_fx(lambda x: model(x, rng_state=state()).loss)(x),
    "jit.trace": traced,
    "func.grad": differentiated,
    "vmap": lambda model, x: torch.func.vmap(lambda y: model(y, rng_state=state()).loss)(x.unsqueeze(0)),
    "meta": lambda model, x: copy.deepcopy(model).to("meta")(x.to("meta"), rng_state=state().to("meta")),
}


@pytest.mark.no_poison
@pytest.mark.parametrize("way", UNSEEN)
def test_does_not_look_in(way: str) -> None:
    model, x = make(), batch("", [255.0])
    UNSEEN[way](model, x)
    assert_looks(model, x)


def test_functional_call_looks() -> None:
    model, x = make(), batch("", [255.0])
    parameters = dict(model.named_parameters())
    for _ in range(2):
        with pytest.raises(ValueError, match="expected x"):
            torch.func.functional_call(model, parameters, (x,))
    torch.func.functional_call(model, parameters, (x / 255,))
    model(x)


# Copies and wrappers


def saved(model: VAE) -> VAE:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_a_copy_knows_what_was_looked_at(copied: Callable[[VAE], VAE]) -> None:
    model, x = make(), batch("", [255.0])
    assert_looks(copied(model), x)
    model(good("bernoulli"))
    copied(model)(x)
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}


def test_replicas_of_data_parallel_share_it() -> None:
    model = make()
    model._replicate_for_data_parallel().validate = True
    replica = model._replicate_for_data_parallel()
    assert_looks(replica, batch("", [255.0]))
    replica.validate = False
    model(batch("", [255.0]))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.no_poison
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP2"])
def test_wrapped(wrapper: str, process_group: None) -> None:
    model = make()
    wrapped: nn.Module = model
    if wrapper == "DDP":
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    x = batch("", [255.0])
    assert_looks(wrapped, x)
    wrapped(good("bernoulli")).loss.backward()
    wrapped(x)
