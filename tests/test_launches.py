"""What a call launches on a GPU, by count: the path that a GPU takes, on the CPU, around kernels that do nothing.

Of torch's ops every one is a launch, except those that only allocate or look at a tensor in another way.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import vae_fast
from vae_fast import backends
from vae_fast.backends.contract import KERNELS
from vae_fast.ops import _common, chunks

pytestmark = pytest.mark.no_poison
FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "expand",
    "view",
    "t",
    "slice",
    "select",
    "unbind",
    "chunk",
}
FREE |= {"flatten", "reshape", "unsqueeze", "detach", "to", "result_type", "narrow"}
ROWS, FEATURES, HIDDEN = 12, 6, 5


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """A backend whose kernels are counted and do nothing, taken as a GPU's."""
    found: Counter[str] = Counter()
    silent = types.ModuleType("vae_fast.backends.silent")
    for name in KERNELS:
        setattr(silent, name, lambda *args, _name=name, **options: found.update([_name]))
    monkeypatch.setitem(sys.modules, silent.__name__, silent)
    monkeypatch.setitem(backends._HOMES, "silent", "silent")
    monkeypatch.setitem(backends._reasons, "silent", None)
    monkeypatch.setattr(_common, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(chunks, "_l2_bytes", lambda device: 1)
    monkeypatch.setattr(chunks, "MIN_ROWS", ROWS // 3)
    with vae_fast.backend("silent"):
        yield found


def launches(calls: Counter[str], function: Callable[[], object]) -> tuple[Counter[str], object]:
    """Kernels and torch's ops, except the ops that an op calls."""
    calls.clear()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        result = function()
    ops: Counter[str] = Counter()
    for event in profiler.events():
        parent = event.cpu_parent
        while parent is not None and not parent.name.startswith("aten::"):
            parent = parent.cpu_parent
        if event.name.startswith("aten::") and parent is None and event.name[6:] not in FREE:
            ops[event.name[6:]] += 1
    return ops + calls, result


def leaf(*shape: int) -> Tensor:
    return torch.rand(shape, requires_grad=True)


FIRST, SECOND, X = leaf(ROWS, FEATURES), leaf(ROWS, FEATURES), torch.rand(ROWS, FEATURES)
STATE = torch.tensor([1, 2])
WORDS = torch.zeros(ROWS, dtype=torch.int64)
MIXTURE, IMAGE = leaf(ROWS, 20, 2, 2), torch.rand(ROWS, 3, 2, 2)
LAYER = leaf(ROWS, HIDDEN), leaf(FEATURES, HIDDEN), leaf(FEATURES)
CASES: dict[str, tuple[Callable[[], object], Sequence[Tensor], str, dict[str, int], dict[str, int]]] = {
    # the call, what has gradients, its kernels, and torch's ops forward and backward
    "latent": (
        lambda: vae_fast.reparameterize_kl(FIRST, SECOND, rng_state=STATE),
        (FIRST, SECOND), "latent", {}, {},
    ),
    "latent, drawn": (
        lambda: vae_fast.reparameterize_kl(FIRST, SECOND), (FIRST, SECOND), "latent", {"randint": 1}, {},
    ),
    "bernoulli": (lambda: vae_fast.bernoulli_nll(FIRST, X), (FIRST,), "likelihood", {}, {}),
    "gaussian": (lambda: vae_fast.gaussian_nll(FIRST, X), (FIRST,), "likelihood", {}, {}),
    "gaussian, 0": (lambda: vae_fast.gaussian_nll(FIRST, X, 0.0), (FIRST,), "likelihood", {}, {}),
    "gaussian, a number": (lambda: vae_fast.gaussian_nll(FIRST, X, 0.5), (FIRST,), "likelihood", {"full": 1}, {}),
    "gaussian, logvar": (
        lambda: vae_fast.gaussian_nll(FIRST, X, SECOND), (FIRST, SECOND), "likelihood", {}, {},
    ),
    "categorical": (lambda: vae_fast.categorical_nll(FIRST, WORDS), (FIRST,), "categorical", {}, {}),
    "mixture": (
        lambda: vae_fast.discretized_logistic_mixture_nll(MIXTURE, IMAGE), (MIXTURE,), "mixture", {}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_launch_each_way(calls: Counter[str], name: str) -> None:
    function, leaves, op, forward, backward = CASES[name]
    found, results = launches(calls, function)
    assert found == {f"{op}_forward": 1, **forward}
    outputs = results if isinstance(results, tuple) else (results,)
    upstream = [torch.ones_like(t) for t in outputs]
    found, _ = launches(calls, lambda: torch.autograd.grad(outputs, leaves, upstream))
    assert found == {f"{op}_backward": 1, **backward}


@pytest.mark.parametrize("head", ["bernoulli", "gaussian", "multinomial"])
@pytest.mark.parametrize("count", [3, 1])
def test_launches_of_a_head(
    calls: Counter[str], head: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer and the kernel for each chunk; back once more, with three products and the bias' sum besides."""
    monkeypatch.setattr(chunks, "MIN_ROWS", ROWS // count)
    op = "categorical" if head == "multinomial" else "likelihood"
    nll = getattr(vae_fast, f"linear_{head}_nll")
    found, result = launches(calls, lambda: nll(*LAYER, X))
    assert found == {"addmm": count, f"{op}_forward": count}
    upstream = torch.ones(ROWS)
    found, _ = launches(calls, lambda: torch.autograd.grad(result, LAYER, upstream))
    kernels = {f"{op}_backward": count, **({f"{op}_forward": count} if op == "categorical" else {})}
    assert found == {"addmm": 2 * count, "mm": count, "sum": count + (count > 1), **kernels}
