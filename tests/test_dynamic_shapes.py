"""torch.export and torch.compile with a dynamic batch: one graph for every size, saved and loaded elsewhere."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

import linear_heads
import vae_fast
from conftest import HANG, LOGVAR, state
from likelihoods import LIKELIHOODS, function, make_params, make_target
from linear_heads import normal, uniform
from vae_fast.nn import VAE, VAEOutput

pytestmark = [pytest.mark.no_poison]
BATCH = 8  # of the call that is traced; no other size of the table
Case = tuple[Callable[..., Any], Callable[[int], tuple[Tensor, ...]]]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    return


def image(n: int, channels: int) -> Tensor:
    return (uniform(n, channels, 2, 5) * 255).to(torch.uint8)


def nll_of(name: str, first: Tensor, x: Tensor, mask: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
    return function(name)(first, x, *others, mask=mask, weight=weight)


def arguments_of(name: str, kind: str, n: int) -> tuple[Tensor, ...]:
    other = {"by element": (n, 6), "by feature": (6,), "by sample": (n, 1)}[kind]
    first, *others = make_params(name, [(n, 6), other])
    return first, make_target(name, n, 6), uniform(n, 1) > 0.2, uniform(n), *others


def linear_nll_of(
    case: linear_heads.Case, hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, *given: Tensor
) -> Tensor:
    nll = getattr(vae_fast, f"linear_{case[0]}_nll")
    return nll(hidden, weight, bias, x, **dict(zip(case[3], given, strict=True)))


def linear_arguments_of(case: linear_heads.Case, n: int) -> tuple[Tensor, ...]:
    def rows(t: Tensor) -> Tensor:
        return t[torch.arange(n) % linear_heads.BATCH] if t.shape[:1] == (linear_heads.BATCH,) else t

    hidden, weight, bias = (t.detach() for t in linear_heads.layer(case))
    return rows(hidden), weight, bias, rows(case[2]), *map(rows, case[3].values())


def pair(n: int) -> tuple[Tensor, ...]:
    return normal(n, 6), normal(n, 6, seed=1)


LATENT: dict[str, Case] = {
    "latent": (vae_fast.reparameterize_kl, pair),
    "packed": (
        lambda m: vae_fast.reparameterize_kl_packed(m, num_samples=2),
        lambda n: (normal(n, 6, 2, 5),),
    ),
    "draws": (lambda m, v: vae_fast.reparameterize(m, v, num_samples=3), pair),
    "kl": (lambda m, v: vae_fast.kl_divergence(m, v, clamp=(-1, 1)), pair),
    "prior": (
        lambda m, v, p, q: vae_fast.reparameterize_kl(m, v, prior=(p, q)),
        lambda n: (*pair(n), normal(n, 1), normal(6)),
    ),
    "log weights": (
        lambda m, v, p, q: vae_fast.log_weights(m, v, num_samples=2, prior=(p, q), path_derivative=True),
        lambda n: (*pair(n), normal(n, 1), normal(6)),
    ),
    "given noise": (
        lambda m, v, eps: vae_fast.reparameterize_kl(m, v, noise=eps),
        lambda n: (*pair(n), normal(n, 6)),
    ),
    "a state per sample": (
        lambda m, v, s: vae_fast.reparameterize(m, v, rng_state=s),
        lambda n: (*pair(n), torch.arange(2 * n).view(n, 2)),
    ),
    "noise": (lambda m, s: vae_fast.noise(m.shape, s), lambda n: (normal(n, 6), state())),
    "bits": (vae_fast.binarize, lambda n: (uniform(n, 6), state())),
}
LIKELIHOODS: dict[str, Case] = {
    "binarized": (
        lambda m, x: vae_fast.bernoulli_nll(m, x, binarize=True),
        lambda n: (normal(n, 6), uniform(n, 6)),
    ),
    "parameters of draws": (
        lambda m, v, x: vae_fast.gaussian_nll(m, x, v),
        lambda n: (normal(2, n, 6), normal(2, n, 6, seed=1), normal(n, 6)),
    ),
    "one class": (vae_fast.categorical_nll, lambda n: (normal(n, 6), (uniform(n) * 6).long())),
    "classes": (
        lambda m, x, mask: vae_fast.categorical_nll(m, x, mask=mask),
        lambda n: (normal(n, 3, 6), (uniform(n, 3) * 6).long(), uniform(n, 3) > 0.2),
    ),
    "counts": (
        lambda m, x, mask: vae_fast.multinomial_nll(m, x, mask=mask),
        lambda n: (normal(n, 3, 6), (uniform(n, 3, 6) * 6).int(), uniform(n, 1) > 0.2),
    ),
    "grey mixture": (
        vae_fast.discretized_logistic_mixture_nll,
        lambda n: (normal(n, 9, 2, 5), image(n, 1)),
    ),
    "mixture": (
        lambda p, x, mask: vae_fast.discretized_logistic_mixture_nll(p, x, mask=mask),
        lambda n: (normal(n, 20, 2, 5), image(n, 3), uniform(n, 1, 2, 5) > 0.2),
    ),
    **{
        f"{name}, {kind}": (partial(nll_of, name), partial(arguments_of, name, kind))
        for name, likelihood in LIKELIHOODS.items()
        for kind in ("by element", "by feature", "by sample")[: 1 if len(likelihood.params) == 1 else 3]
    },
}
HEADS: dict[str, Case] = {
    f"linear {title}": (partial(linear_nll_of, case), partial(linear_arguments_of, case))
    for title, case in linear_heads.CASES.items()
}
PAIRS: dict[str, Case] = {
    "aggregate posterior": (
        lambda z, m, v: sum(sum(vae_fast.aggregate_posterior(z, m, v, 5000, e)) for e in ("mss", "mws")),
        lambda n: (normal(n, 6), *pair(n)),
    ),
    "mixture density": (
        vae_fast.mixture_log_prob,
        lambda n: (normal(n, 3, 6), normal(4, 6), normal(4, 6, seed=1), normal(4)),
    ),
    "mixture kl": (
        lambda m, v, p, q: vae_fast.mixture_kl(m, v, p, q, num_samples=2),
        lambda n: (*pair(n), normal(4, 6), normal(4, 6, seed=1)),
    ),
}
CASES: dict[str, Case] = {
    "wide": (vae_fast.reparameterize_kl_packed, lambda n: (normal(n, 1 << 14),)),  # 64 KB a sample
    "float64": (lambda m, v: vae_fast.reparameterize_kl(m.double(), v.double(), num_samples=2), pair),
    **LATENT,
    **LIKELIHOODS,
    **HEADS,
    **PAIRS,
}
KINDS = {
    "latent": LATENT,
    "likelihoods": LIKELIHOODS,
    "heads": {name.partition(",")[0]: case for name, case in HEADS.items()},  # one of each likelihood
}


class Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def export_case(case: Case, **options: Any) -> torch.export.ExportedProgram:
    """Dynamic is every dim that follows the batch. Raises where a guard bounds it."""
    f, make = case
    args, more = make(BATCH), make(BATCH + 1)
    batch = Dim("batch")
    dims = [
        {i: batch for i, n in enumerate(a.shape) if n != b.shape[i]} for a, b in zip(args, more, strict=True)
    ]
    return export(Module(f), args, dynamic_shapes=(tuple(dims),), **options)


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_export_bounds_no_batch(name: str) -> None:
    f, make = CASES[name]
    program = export_case(CASES[name])
    (sizes,) = program.range_constraints.values()
    assert sizes.upper > 1 << 62
    for n in (1, 2, 20):
        args = make(n)
        torch.manual_seed(n)
        got = program.module()(*args)
        torch.manual_seed(n)
        same(got, f(*args))


@pytest.mark.parametrize("name", ["wide", "a state per sample", "gaussian, by feature", "linear nb, library"])
def test_strict_export_bounds_no_batch(name: str) -> None:
    (sizes,) = export_case(CASES[name], strict=True).range_constraints.values()
    assert sizes.upper > 1 << 62


def make_vae(**options: Any) -> VAE:
    linear = torch.nn.Linear
    decoder = torch.nn.Sequential(linear(2, 3), torch.nn.ReLU(), linear(3, 64))
    return VAE(linear(64, 4), decoder, latent_shape=(2,), **options)


VAES: dict[str, dict[str, Any]] = {
    "plain": {},  # 64 numbers a sample: fused from 65,536 samples on
    "fused": {"fused_head": True, "num_samples": 2},
    "binarized": {"binarize": True},
    "learned": {"likelihood": "gaussian", "variance": "feature"},
}
LOADED = """
import sys, torch, vae_fast
from pathlib import Path
folder = Path(sys.argv[1])
for saved in folder.glob("*.pt2"):
    program = torch.export.load(saved).module()
    results = []
    for x in torch.load(folder / "batches.pt"):
        torch.manual_seed(len(x))
        results.append(program(x))
        assert type(results[-1]) is vae_fast.nn.VAEOutput
    torch.save([tuple(r) for r in results], saved.with_suffix(".pt"))
"""


def test_exported_vaes_in_another_process(tmp_path: Path) -> None:
    models = {name: make_vae(**options) for name, options in VAES.items()}
    batches = [uniform(n, 64) for n in (1, 5, 65_536)]
    torch.save(batches, tmp_path / "batches.pt")
    for (name, model), strict in itertools.product(models.items(), (False, True)):
        dims = {"x": {0: Dim("batch")}}
        program = export(model, (uniform(BATCH, 64),), dynamic_shapes=dims, strict=strict)
        torch.export.save(program, tmp_path / f"{name}-{strict}.pt2")
    command = [sys.executable, "-W", "ignore", "-c", LOADED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    for (name, model), strict in itertools.product(models.items(), (False, True)):
        for x, got in zip(batches, torch.load(tmp_path / f"{name}-{strict}.pt"), strict=True):
            torch.manual_seed(len(x))
            same(VAEOutput(*got), model(x))


def count_graphs(
    f: Callable[..., Any], dynamic: bool | None, make: Callable[[int], tuple[Tensor, ...]]
) -> list[int]:
    """How many graphs there are after each of three batches, with their backward passes."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, backend=counter, dynamic=dynamic)
    counts = []
    for n in (16, 2, 70_000):
        sum(r.sum() for r in compiled(*make(n))).backward()
        counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize(
    ("kind", "dtype", "dynamic"),
    [
        *((kind, torch.float32, dynamic) for kind in KINDS for dynamic in (None, True)),
        # The reference's many operations take the compiler its time: its second graph is the dynamic one.
        ("latent", torch.float64, None),
    ],
    ids=str,
)
def test_one_graph_for_all_batches(kind: str, dtype: torch.dtype, dynamic: bool | None) -> None:
    """None: the first graph is for its size alone, the second for all others."""
    cases = list(KINDS[kind].values())

    def make(n: int) -> tuple[Tensor, ...]:
        """The first argument of each function learns."""
        tensors = []
        for _, own in cases:
            first, *others = (t.to(dtype) if t.is_floating_point() else t for t in own(n))
            tensors += [first.requires_grad_(), *others]
        return tuple(tensors)

    counts = [len(own(2)) for _, own in cases]

    def compute(*args: Tensor) -> list[Tensor]:
        results: list[Tensor] = []
        for (f, _), count in zip(cases, counts, strict=True):
            result, args = f(*args[:count]), args[count:]
            results += [result] if isinstance(result, Tensor) else result
        return results

    first, second, third = count_graphs(compute, dynamic, make)
    assert third == second == first + (dynamic is None)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", VAES)
def test_one_graph_of_a_vae_for_all_batches(name: str, dynamic: bool | None) -> None:
    model = make_vae(**VAES[name])
    first, second, third = count_graphs(lambda x: model(x)[:1], dynamic, lambda n: (uniform(n, 64),))
    assert third == second == first + (dynamic is None)


def test_sizes_beyond_the_noise_are_refused_when_the_op_runs() -> None:
    """Nobody compared them while the graph was traced."""
    ops, many, long = (
        torch.ops.vae_fast,
        torch.zeros(()).expand(1 << 32, 1),
        torch.zeros(()).expand(2, 1 << 34),
    )
    rows = "fewer than 2\\*\\*32"
    with pytest.raises(ValueError, match=rows):
        ops.latent(many, many, 1, None, None, state(), None, None, None, True, True, False, *LOGVAR)
    with pytest.raises(ValueError, match=rows):
        ops.latent(
            many.expand(-1, 2), None, 1, None, None, state(), None, None, None, True, False, False, *LOGVAR
        )
    with pytest.raises(ValueError, match=rows):
        ops.latent(
            many[: 1 << 31],
            many[: 1 << 31],
            1,
            None,
            None,
            state(),
            None,
            None,
            2,
            True,
            True,
            False,
            *LOGVAR,
        )
    with pytest.raises(ValueError, match="elements per sample"):
        ops.likelihood("bernoulli", long, None, state(), False, [long])
    with pytest.raises(ValueError, match=rows):
        ops.binarize(many, state())
    with pytest.raises(ValueError, match=rows):
        ops.noise(state(), (2, 1 << 31, 1), torch.float32)
    program = export_case(LATENT["draws"])
    with pytest.raises(ValueError, match=rows):
        program.module()(*[many[: 1 << 31].expand(-1, 6)] * 2)
