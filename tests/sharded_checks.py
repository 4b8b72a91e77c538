"""What two gloo processes check in one start, for test_sharded.py: each check compares with one process."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import vae_fast
from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

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
        name: make(t.to(dtype) if t.is_floating_point() else t, dim).requires_grad_(name not in call.constants)
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
        assert grad.placements == (Partial() if dim is None and not alike else Shard(dim or 0),) or alike, name
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
        except Exception:
            problem = traceback.format_exc()
        nn.Linear.forward = forward  # type: ignore[method-assign]
        (Path(folder) / f"{names.index(name)}-{index}").write_text(problem)
        if problem:
            break
    dist.destroy_process_group()
