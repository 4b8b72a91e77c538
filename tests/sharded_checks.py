"""What two gloo processes check in one start, for test_sharded.py: each check compares with one process."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import linear_heads
import vae_fast
from vae_fast.nn import VAE, Log1p, MLPDecoder, MLPEncoder, VampPrior
from vae_fast.ops import chunks

ROOT = Path(__file__).parent.parent
CHECKS: dict[str, Callable[..., None]] = {}
WORLD, LATENT, FEATURES, BATCH = 2, 3, 12, 8


def check(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        CHECKS[name] = function
        return function

    return register


def rank() -> int:
    return dist.get_rank()


def mine(tensor: Tensor) -> Tensor:
    """This process's part of a batch."""
    return tensor.chunk(WORLD)[rank()]


def make(likelihood: str = "bernoulli", features: int = FEATURES, **options: Any) -> VAE:
    torch.manual_seed(0)
    num_parameters = 2 if likelihood == "zero_inflated_negative_binomial" else 1
    decoder = MLPDecoder(LATENT, 8, features, num_parameters)
    return VAE(MLPEncoder(features, 8, LATENT), decoder, likelihood, **{"fused_head": True, **options})


def data(likelihood: str = "bernoulli", features: int = FEATURES, batch: int = BATCH) -> Tensor:
    x = torch.rand((batch, features), generator=torch.Generator().manual_seed(1))
    return x if likelihood == "bernoulli" else (5 * x).floor()


def states(batch: int = BATCH) -> Tensor:
    """A state for each sample: the same noise wherever the sample is."""
    return torch.stack([torch.arange(batch), torch.full((batch,), 7)], 1)


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_close(got: Any, want: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(whole(got).detach(), whole(want).detach(), rtol=rtol, atol=atol)


def assert_same_gradients(got: nn.Module, want: nn.Module) -> None:
    pairs = list(zip(got.named_parameters(), want.parameters(), strict=True))
    assert pairs
    for (name, a), b in pairs:
        assert a.grad is not None and b.grad is not None, name
        torch.testing.assert_close(
            whole(a.grad), b.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def called(linear: nn.Linear) -> list[Any]:
    """Fills up where the layer itself computes its outputs."""
    seen: list[Any] = []
    forward = nn.Linear.forward

    def watched(layer: nn.Linear, hidden: Tensor) -> Tensor:
        if layer is linear:
            seen.append(hidden)
        return forward(layer, hidden)

    nn.Linear.forward = watched  # type: ignore[method-assign]
    return seen


UNITS: dict[str, Callable[[VAE], list[nn.Module]]] = {
    "model": lambda model: [model],
    "networks": lambda model: [model.encoder, model.decoder, model],
    "head": lambda model: [model.decoder[2], model],  # type: ignore[index]
    "all": lambda model: [model.decoder[2], model.decoder, model.encoder, model],  # type: ignore[index]
    "decoder": lambda model: [model.decoder],
}


def shard(model: VAE, unit: str, mesh: DeviceMesh) -> VAE:
    for module in UNITS[unit](model):
        fully_shard(module, mesh=mesh)
    return model


def check_fsdp_forward(unit: str, mesh: DeviceMesh) -> None:
    one, x = make(), data()
    loss = one(x, rng_state=states()).loss
    loss.backward()
    model = shard(make(), unit, mesh)
    seen = called(model.decoder[2])  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = model(mine(x), rng_state=mine(states())).loss
    mean.backward()
    assert not seen, "the last layer was called"
    assert model.fused_head_reason is None
    total = mean.detach() / WORLD
    dist.all_reduce(total)
    assert_close(total, loss)
    if unit == "decoder":  # the encoder is nobody's
        for p in model.encoder.parameters():
            assert p.grad is not None
            dist.all_reduce(p.grad)
            p.grad /= WORLD
    assert_same_gradients(model, one)


for _unit in UNITS:
    check(f"fsdp-forward-{_unit}")(partial(check_fsdp_forward, _unit))


def check_fsdp_methods(unit: str, mesh: DeviceMesh) -> None:
    """Each method as the first that the model is entered by, and before and after a step."""
    one, x, z = make(), data(), torch.linspace(-1, 1, 2 * LATENT).view(2, LATENT)
    calls: dict[str, Callable[[VAE, Tensor, Tensor], Any]] = {
        "elbo": lambda model, x, s: model.elbo(x, rng_state=s),
        "encode": lambda model, x, s: model.encode(x)[0],
        "decode": lambda model, x, s: model.decode(z),
        "reconstruct": lambda model, x, s: model.reconstruct(x),
        "generate": lambda model, x, s: model.generate(3, generator=torch.Generator().manual_seed(5)),
    }
    for name, call in calls.items():
        model = shard(make(), unit, mesh)
        for _ in range(2):
            assert_close(call(model, mine(x), mine(states())), call(one, mine(x), mine(states())))
            model(mine(x), rng_state=mine(states())).loss.backward()
        if name in ("elbo", "encode"):  # which have gradients
            model.zero_grad(), one.zero_grad()
            call(model, mine(x), mine(states())).mean().backward()
            call(one, x, states()).mean().backward()
            for p, q in zip(model.encoder.parameters(), one.encoder.parameters(), strict=True):
                assert_close(p.grad, q.grad, rtol=1e-4)


for _unit in ("model", "all"):
    check(f"fsdp-methods-{_unit}")(partial(check_fsdp_methods, _unit))


def make_vamp() -> VAE:
    """Its prior encodes within the forward, and the likelihood has a parameter that is read after that."""
    pseudo_inputs = torch.rand((3, FEATURES), generator=torch.Generator().manual_seed(2))
    return make("gaussian", variance="feature", prior=VampPrior(pseudo_inputs), fused_head=False)


@check("fsdp-vamp")
def _(mesh: DeviceMesh) -> None:
    one, x = make_vamp(), data()
    one(x, rng_state=states()).loss.backward()
    model = shard(make_vamp(), "model", mesh)
    model(mine(x), rng_state=mine(states())).loss.backward()
    assert_same_gradients(model, one)


@check("fsdp-draws")
def _(mesh: DeviceMesh) -> None:
    one, x = make(num_samples=3), data()
    one(x, rng_state=states()).loss.backward()
    model = shard(make(num_samples=3), "all", mesh)
    model(mine(x), rng_state=mine(states())).loss.backward()
    assert_same_gradients(model, one)


def make_counts() -> VAE:
    """Fused, with a parameter of the likelihood's own."""
    return make("negative_binomial")


@check("ddp")
def _(mesh: DeviceMesh) -> None:
    one, x = make_counts(), data("negative_binomial")
    one(x, rng_state=states()).loss.backward()
    model = make_counts()
    seen = called(model.decoder[2])  # type: ignore[index]
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(mine(x), rng_state=mine(states())).loss.backward()
    assert not seen, "the last layer was called"
    assert_same_gradients(model, one)


@check("zero")
def _(mesh: DeviceMesh) -> None:
    one, model, x = make_counts(), make_counts(), data("negative_binomial")
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizers = (
        torch.optim.Adam(one.parameters(), 1e-2),
        ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=1e-2),
    )
    for _ in range(3):
        one(x, rng_state=states()).loss.backward()
        wrapped(mine(x), rng_state=mine(states())).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(model.parameters(), one.parameters(), strict=True):
        assert_close(p, q, rtol=1e-4, atol=1e-5)


def spread(tensor: Tensor, mesh: DeviceMesh, dim: int | None) -> Any:
    """As a DTensor, sharded along dim."""
    return distribute_tensor(tensor.detach(), mesh, [Replicate() if dim is None else Shard(dim)])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STATE = torch.tensor([3, 2**40])


@dataclass
class Call:
    """function(*tensors), which lie along `dims`, with results along `outputs`."""

    function: Callable[..., Any]
    tensors: dict[str, tuple[Tensor, int | None]]
    outputs: tuple[int, ...] = (0,)
    constants: tuple[str, ...] = ("target", "mask", "noise")


N = 7  # which two processes do not share evenly
TARGET = (5 * normal(N, 4, 3, seed=9).abs()).floor()
CALLS = {
    "latent": Call(
        lambda mu, logvar, prior_mu: vae_fast.reparameterize_kl(
            mu, logvar, prior=(prior_mu, prior_mu), num_samples=2, rng_state=STATE
        ),
        {"mu": (normal(N, 5), 0), "logvar": (normal(N, 5, seed=1), 0), "prior_mu": (normal(5, seed=2), None)},
        (1, 0),
    ),
    "latent, a state for each sample": Call(
        lambda mu, logvar: vae_fast.reparameterize_kl(mu, logvar, rng_state=states(N)),
        {"mu": (normal(N, 5), 0), "logvar": (normal(N, 5, seed=1), 0)},
        (0, 0),
    ),
    "latent, packed, a part of a batch": Call(
        lambda moments: vae_fast.reparameterize_kl_packed(
            moments, reduction="none", rng_state=torch.tensor([3, 4, 20, 100])
        ),
        {"moments": (normal(N, 10), 0)},
        (0, 0),
    ),
    "latent, noise": Call(
        lambda mu, logvar, noise: vae_fast.reparameterize_kl(mu, logvar, num_samples=3, noise=noise),
        {"mu": (normal(N, 5), 0), "logvar": (normal(N, 5, seed=1), 0), "noise": (normal(3, N, 5, seed=2), 1)},
        (1, 0),
    ),
    "log weights": Call(
        lambda mu, logvar, prior_mu: vae_fast.log_weights(
            mu, logvar, num_samples=2, prior=(prior_mu, prior_mu), first_draw=1, rng_state=STATE
        ),
        {"mu": (normal(N, 5), 0), "logvar": (normal(N, 5, seed=1), 0), "prior_mu": (normal(5, seed=2), None)},
        (1, 1),
    ),
    "bernoulli, binarized": Call(
        lambda logits, target: vae_fast.bernoulli_nll(
            logits, target, binarize=True, rng_state=STATE, mask=torch.arange(3) < 2
        ),
        {"logits": (normal(N, 4, 3), 0), "target": (normal(N, 4, 3, seed=9).sigmoid(), 0)},
    ),
    "binarize": Call(
        lambda target: vae_fast.binarize(target, STATE), {"target": (normal(N, 4, 3, seed=9).sigmoid(), 0)}
    ),
    "negative binomial": Call(
        lambda mean, target, theta: vae_fast.negative_binomial_nll(mean.exp(), target, theta.exp()),
        {"mean": (normal(2, N, 4, 3), 1), "target": (TARGET, 0), "theta": (normal(3, seed=1), None)},
        (1,),
    ),
    "gaussian, of each element": Call(
        lambda mean, target, logvar: vae_fast.gaussian_nll(mean, target, logvar, reduction="none"),
        {"mean": (normal(N, 4, 3), 0), "target": (TARGET, 0), "logvar": (normal(N, 1, 1), 0)},
    ),
    "gaussian, whole logvar": Call(
        lambda mean, target, logvar: vae_fast.gaussian_nll(mean, target, logvar),
        {"mean": (normal(N, 4, 3), 0), "target": (TARGET, 0), "logvar": (normal(N, 4, 3, seed=4), None)},
    ),
    "categorical": Call(
        lambda logits, target, mask: vae_fast.categorical_nll(logits, target, mask=mask),
        {
            "logits": (normal(N, 4, 5), 0),
            "target": (TARGET[..., 0].long().clamp(max=4), 0),
            "mask": (normal(N, 4, seed=3) > 0, 0),
        },
    ),
    "multinomial, draws": Call(
        lambda logits, target: vae_fast.multinomial_nll(logits, target),
        {"logits": (normal(2, N, 4, 3), 1), "target": (TARGET, 0)},
        (1,),
    ),
    "mixture": Call(
        lambda params, target: vae_fast.discretized_logistic_mixture_nll(params, target),
        {"params": (normal(N, 6, 2, 2), 0), "target": (normal(N, 1, 2, 2, seed=5).tanh(), 0)},
    ),
    "mixture density": Call(
        lambda z, means, logvars: vae_fast.mixture_log_prob(z, means, logvars),
        {
            "z": (normal(N, 5), 0),
            "means": (normal(4, 5, seed=1), None),
            "logvars": (normal(4, 5, seed=2), None),
        },
    ),
    "mixture kl": Call(
        lambda mu, logvar, means, logvars: vae_fast.mixture_kl(
            mu, logvar, means, logvars, num_samples=3, rng_state=STATE
        ),
        {
            "mu": (normal(N, 5), 0),
            "logvar": (normal(N, 5, seed=4), 0),
            "means": (normal(4, 5, seed=1), None),
            "logvars": (normal(4, 5, seed=2), None),
        },
    ),
    "linear bernoulli": Call(
        lambda hidden, weight, bias, target: vae_fast.linear_bernoulli_nll(hidden, weight, bias, target),
        {
            "hidden": (normal(N, 3), 0),
            "weight": (normal(12, 3, seed=1), None),
            "bias": (normal(12, seed=2), None),
            "target": (normal(N, 4, 3, seed=9).sigmoid(), 0),
        },
    ),
}


def leaves(call: Call, make: Callable[[Tensor, int | None], Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: make(t.to(dtype) if t.is_floating_point() else t, dim).requires_grad_(
            name not in call.constants
        )
        for name, (t, dim) in call.tensors.items()
    }


def check_op(call: Call, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
    plain = leaves(call, lambda t, dim: t.clone(), dtype)
    sharded = leaves(call, lambda t, dim: spread(t, mesh, dim), dtype)
    want, got = call.function(**plain), call.function(**sharded)
    want, got = (r if isinstance(r, tuple) else (r,) for r in (want, got))
    for a, b, dim in zip(got, want, call.outputs, strict=True):
        assert a.placements == (Shard(dim),) and a.shape == b.shape and a.stride() == b.stride()
        assert_close(a, b)
    learned = [name for name in plain if plain[name].requires_grad]
    if not learned:
        return
    factors = [normal(*r.shape, seed=6).to(r.dtype) for r in want]
    sum((r * f).sum() for r, f in zip(want, factors, strict=True)).backward()
    pairs = zip(got, factors, call.outputs, strict=True)
    sum((r * spread(f, mesh, dim)).sum() for r, f, dim in pairs).backward()
    for name in learned:
        dim = call.tensors[name][1]
        grad = sharded[name].grad
        alike = call.tensors[name][0].shape[:1] == (N,)  # whole, but its rows are the samples'
        assert grad.placements == (Partial() if dim is None and not alike else Shard(dim or 0),) or alike, (
            name
        )
        assert_close(grad, plain[name].grad, rtol=1e-4, atol=1e-5)


for _name, _call in CALLS.items():
    check(f"op-{_name.replace(', ', '-').replace(' ', '_')}")(partial(check_op, _call))


@check("op-float64")
def _(mesh: DeviceMesh) -> None:
    for name in ("latent", "negative binomial", "linear bernoulli"):
        check_op(CALLS[name], mesh, torch.float64)


@check("op-fresh-noise")
def _(mesh: DeviceMesh) -> None:
    """Ranks that are seeded alike draw what one process draws, and no two samples the same."""
    mu = torch.zeros(N, 5)
    torch.manual_seed(4)
    want = vae_fast.reparameterize(mu, mu, rng_state=vae_fast.draw_rng_state("cpu"))
    torch.manual_seed(4)
    got = vae_fast.reparameterize(spread(mu, mesh, 0), spread(mu, mesh, 0))
    assert_close(got, want)
    assert len(whole(got)[:, 0].unique()) == N


@check("op-two-mesh-dims")
def _(mesh: DeviceMesh) -> None:
    """Samples along one mesh dim, the same on the other; and along both."""
    grid = init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("a", "b"))
    mu = normal(N, 5)
    want, _ = vae_fast.reparameterize_kl(mu, mu, rng_state=STATE)
    for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(0)], [Shard(0), Replicate()]):
        given = distribute_tensor(mu, grid, placements)
        got, _ = vae_fast.reparameterize_kl(given, given, rng_state=STATE)
        assert got.placements == tuple(placements)
        assert_close(got, want)


def check_head(title: str, mesh: DeviceMesh, draws: int | None = None) -> None:
    """A weight of which each process has some outputs; everything else is on both."""
    case = linear_heads.CASES[title]
    hidden, weight, bias = (t.detach() for t in linear_heads.layer(case))
    if draws is not None:
        hidden = torch.stack([hidden, hidden.flip(0), -hidden])
    given = {name: t.clone() for name, t in case[3].items()}
    results = []
    for parts in ((weight, bias), (spread(weight, mesh, 0), spread(bias, mesh, 0))):
        tensors = [t.clone().detach().requires_grad_() for t in (hidden, *parts)]
        learned = {name: t.clone().requires_grad_() for name, t in given.items()}
        nll = linear_heads.fused(case, tensors, learned)
        assert type(nll) is Tensor
        (nll * torch.linspace(1, 2, nll.shape[-1])).sum().backward()
        results.append([nll, *(t.grad for t in (*tensors, *learned.values()))])
    assert results[1][2].placements == (Shard(0),)
    for want, got in zip(*results, strict=True):
        assert_close(got, want, rtol=2e-5, atol=1e-5)


for _title in linear_heads.CASES:
    check(f"head-{_title.replace(', ', '-').replace(' ', '_')}")(partial(check_head, _title))
for _title in ("bernoulli", "nb, two heads, library", "multinomial"):
    _name = _title.replace(", ", "-").replace(" ", "_")
    check(f"head-{_name}-draws")(partial(check_head, _title, draws=3))


@check("head-uneven")
def _(mesh: DeviceMesh) -> None:
    """Seven features over two processes, several chunks, a target of two dims, a mask and weights."""
    target = (5 * normal(N, 7, seed=9).abs()).floor()
    mask = normal(N, 7, seed=3) > -1
    options = {"mask": mask, "sample_weight": torch.linspace(1, 2, N)}
    classes = torch.tensor([0, 3, 4, 6, -100, 2, 5])
    calls: list[tuple[int, Callable[..., Tensor]]] = [
        (
            2,
            lambda h, w, b: vae_fast.linear_gaussian_nll(
                h, w, b, target[..., None], **options | {"mask": mask[..., None]}
            ),
        ),
        (
            3,
            lambda h, w, b: vae_fast.linear_zero_inflated_negative_binomial_nll(
                h, w, b, target, library=30 * torch.linspace(1, 2, N), **options
            ),
        ),
        (1, lambda h, w, b: vae_fast.linear_multinomial_nll(h, w, b, target)),
        (1, lambda h, w, b: vae_fast.linear_categorical_nll(h, w, b, classes, mask=classes != 2)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", 60)
        patch.setattr(chunks, "CHUNK_ROWS", 1)
        for heads, nll in calls:
            hidden, weight, bias = normal(N, 3), normal(heads * 7, 3, seed=1), normal(heads * 7, seed=2)
            results = []
            for layer in ((weight, bias), (spread(weight, mesh, 0), spread(bias, mesh, 0))):
                tensors = [t.clone().detach().requires_grad_() for t in (hidden, *layer)]
                loss = nll(*tensors)
                loss.mean().backward()
                results.append([loss, *(t.grad for t in tensors)])
            for want, got in zip(*results, strict=True):
                assert_close(got, want, rtol=2e-5, atol=1e-5)


@check("head-refused")
def _(mesh: DeviceMesh) -> None:
    """A class that does not exist is NaN; an output for each process; no float64 across processes."""
    weight, bias, hidden = spread(normal(6, 3), mesh, 0), spread(normal(6), mesh, 0), normal(3, 3)
    nll = vae_fast.linear_categorical_nll(hidden, weight, bias, torch.tensor([5, 6, -1]))
    assert nll.isnan().tolist() == [False, True, True]
    with pytest.raises(
        ValueError, match="expected weight to have outputs for 2 processes, but got 1 features"
    ):
        vae_fast.linear_bernoulli_nll(hidden, spread(normal(1, 3), mesh, 0), None, torch.rand(3, 1))
    counts = torch.ones(3, 6)
    with pytest.raises(TypeError, match="multinomial's softmax over a sharded weight, but got float64"):
        vae_fast.linear_multinomial_nll(hidden.double(), weight.double(), bias.double(), counts)
    got = vae_fast.linear_poisson_nll(hidden.double(), weight.double(), bias.double(), counts)
    assert_close(
        got,
        vae_fast.linear_poisson_nll(hidden.double(), whole(weight).double(), whole(bias).double(), counts),
    )


def parallelize(model: VAE, mesh: DeviceMesh) -> VAE:
    plan = {
        "encoder.1": ColwiseParallel(),
        "encoder.3": RowwiseParallel(),
        "decoder.0": ColwiseParallel(),
        "decoder.2": RowwiseParallel(),
        "decoder.4": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    return model


def make_deep(likelihood: str, features: int, **options: Any) -> VAE:
    torch.manual_seed(0)
    parameters = 2 if likelihood == "zero_inflated_negative_binomial" else 1
    encoder = MLPEncoder(features, 8, LATENT, log1p=likelihood != "bernoulli")
    if likelihood != "bernoulli":  # its first layer would be the second
        encoder = nn.Sequential(*[layer for layer in encoder if not isinstance(layer, Log1p)])  # type: ignore[assignment]
    decoder = MLPDecoder(LATENT, (8, 6), features, parameters)
    model = VAE(encoder, decoder, likelihood, latent_shape=(LATENT,), **options)
    for p in model.likelihood.parameters():
        nn.init.normal_(p)
    return model


def check_tensor_parallel(likelihood: str, fused_head: Any, mesh: DeviceMesh) -> None:
    options = {"fused_head": fused_head, "num_samples": 2}
    one, x = make_deep(likelihood, 11, **options), data(likelihood, 11)
    model = parallelize(make_deep(likelihood, 11, **options), mesh)
    seen = called(model.decoder[4])  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for m in (one, model):
            m(x, rng_state=STATE).loss.backward()
    assert len(seen) == (fused_head is False)
    assert_same_gradients(model, one)
    assert_close(model.elbo(x, rng_state=STATE), one.elbo(x, rng_state=STATE), rtol=2e-5)
    assert_close(model.encode(x)[0], one.encode(x)[0])
    assert_close(model.reconstruct(x), one.reconstruct(x))
    draw = [m.generate(3, generator=torch.Generator().manual_seed(5)) for m in (model, one)]
    assert_close(*draw)


for _likelihood in ("bernoulli", "negative_binomial", "zero_inflated_negative_binomial", "multinomial"):
    for _fused in (True, False):
        check(f"tensor-parallel-{_likelihood}-{'fused' if _fused else 'apart'}")(
            partial(check_tensor_parallel, _likelihood, _fused)
        )


class Largest(TorchDispatchMode):
    """The most elements that a tensor has which an op returns."""

    size = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if type(t) is Tensor:
                self.size = max(self.size, t.numel())
        return result


def check_no_gather(title: str, heads: int, mesh: DeviceMesh) -> None:
    """Neither the weight nor its gradient is anywhere as a whole: what a process makes is its share of them at most."""
    features, size, batch = 100, 80, 30
    nll = getattr(vae_fast, f"linear_{title}_nll")
    given = {"theta": torch.ones(features), "library": torch.ones(batch)} if heads > 1 else {}
    tensors = normal(batch, size), spread(normal(heads * features, size), mesh, 0)
    hidden, weight = (t.requires_grad_() for t in tensors)
    with Largest() as largest:
        nll(hidden, weight, None, data("counts", features, batch), **given).mean().backward()
    assert largest.size == heads * features * size // WORLD > batch * features


for _likelihood, _heads in (("multinomial", 1), ("zero_inflated_negative_binomial", 2)):
    check(f"head-gathers-nothing-{_likelihood}")(partial(check_no_gather, _likelihood, _heads))


@check("tensor-parallel-by-inputs")
def _(mesh: DeviceMesh) -> None:
    one, x = make_deep("bernoulli", 11), data("bernoulli", 11)
    model = make_deep("bernoulli", 11, fused_head=True)
    parallelize_module(model.decoder, mesh, {"4": RowwiseParallel(input_layouts=Replicate())})
    with pytest.warns(UserWarning, match=r"sharded by its inputs, not by its outputs \(RowwiseParallel\)"):
        loss = model(x, rng_state=STATE).loss
    assert_close(loss, one(x, rng_state=STATE).loss)


def check_two_dims(shape: tuple[int, int], mesh: DeviceMesh) -> None:
    """FSDP2 over one mesh dim, tensor parallelism over the other."""
    grid = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
    one, x = make_deep("zero_inflated_negative_binomial", 11), data("zero_inflated_negative_binomial", 11)
    one(x, rng_state=states()).loss.backward()
    model = parallelize(make_deep("zero_inflated_negative_binomial", 11, fused_head=True), grid["tp"])
    for module in (model.decoder[4], model):  # type: ignore[index]
        fully_shard(module, mesh=grid["dp"])
    own = slice(None) if shape[0] == 1 else slice(rank() * BATCH // 2, (rank() + 1) * BATCH // 2)
    seen = called(model.decoder[4])  # type: ignore[index]
    model(x[own], rng_state=states()[own]).loss.backward()
    assert not seen
    assert_same_gradients(model, one)
    assert_close(model.reconstruct(x), one.reconstruct(x))


check("fsdp-and-tensor-parallel-1x2")(partial(check_two_dims, (1, 2)))
check("fsdp-and-tensor-parallel-2x1")(partial(check_two_dims, (2, 1)))


@check("tensor-parallel-compiled")
def _(mesh: DeviceMesh) -> None:
    one, x = make_deep("negative_binomial", 11, fused_head=True), data("negative_binomial", 11)
    model = parallelize(make_deep("negative_binomial", 11, fused_head=True), mesh)
    model(x, rng_state=STATE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for m in (one, compiled):
        m(x, rng_state=STATE).loss.backward()
    assert_same_gradients(model, one)


def check_page(number: int, mesh: DeviceMesh) -> None:
    """The code of docs/sharding.md."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sharding.md").read_text(), re.DOTALL)[number]
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder(FEATURES, 8, LATENT), MLPDecoder(LATENT, (8, 6), FEATURES)
    model = VAE(encoder, decoder, fused_head=True)
    names = {"model": model, "mesh": mesh, "mu": normal(N, 3), "logvar": normal(N, 3), "vae_fast": vae_fast}
    seen, want = called(decoder[4]), model(data(), rng_state=STATE).loss.item()
    exec(code, names)
    assert_close(model(data(), rng_state=STATE).loss, torch.tensor(want))
    assert not seen
    if "z" in names:
        assert names["z"].placements == names["kl"].placements == (Shard(0),)


for _number, _name in enumerate(("fsdp", "tensor-parallel", "dtensor")):
    check(f"page-{_name}")(partial(check_page, _number))


def run(index: int, folder: str, names: list[str]) -> None:
    """All checks, in order; of each a file with what went wrong. Nothing runs after a failure: the other process may
    wait for this one."""
    torch.set_num_threads(1)
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=index, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (WORLD,))
    forward = nn.Linear.forward
    for name in names:
        problem = ""
        try:
            CHECKS[name](mesh)
        except (Exception, pytest.fail.Exception):
            problem = traceback.format_exc()
        nn.Linear.forward = forward  # type: ignore[method-assign]
        (Path(folder) / f"{names.index(name)}-{index}").write_text(problem)
        if problem:
            break
    dist.destroy_process_group()
