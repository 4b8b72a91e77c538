"""Fixtures for every test: the backends that are here, poisoned outputs, and the rule for accuracy."""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast
from vae_fast import backends
from vae_fast.backends.contract import KERNELS


def _add_twin() -> None:
    """The backend "twin" has the reference's closed forms behind the signatures of the kernels: it tests what `ops`
    does around a kernel, on any machine."""
    twin = types.ModuleType("vae_fast.backends.twin")
    for name in KERNELS:
        setattr(twin, name, getattr(vae_fast.reference, name))
    twin.details = dict  # type: ignore[attr-defined]
    sys.modules[twin.__name__] = twin
    backends._HOMES["twin"] = "twin"
    backends._reasons["twin"] = None


_add_twin()
# The longest files, which a worker should not begin with when the others are done.
LONGEST = (
    "test_cuda_emulation",
    "test_triton",
    "test_triton_interpreter",
    "test_cuda_compile",
    "test_packaging",
    "test_conformance",
    "test_gpu_check",
    "test_bench",
    "test_triton_compile",
    "test_training",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Without a device the thousands of cases of the tests on a GPU take time to be skipped: one of each test says why.
    seen: set[str] = set()
    repeated = []
    for item in items:
        if any(mark.args == (True,) for mark in item.iter_markers("skipif")):
            test = item.nodeid.partition("[")[0]
            repeated += [item] if test in seen else []
            seen.add(test)
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if item not in set(repeated)]
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


# Inductor keeps what it compiled, and torch 2.13 takes code for AVX-512 from there under ATEN_CPU_CAPABILITY=avx2, with
# wrong numbers: a folder for each.
_INDUCTOR = f"vae_fast-inductor-{getpass.getuser()}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / _INDUCTOR))

HANG = 1200.0  # seconds, the limit of every wait: for a hang, not for a busy machine
NATIVE = backends.unavailable_reason("cpu") is None
TRITON = os.environ.get("TRITON_INTERPRET") == "1" and backends.unavailable_reason("triton") is None
needs_native = pytest.mark.skipif(
    not NATIVE, reason=f"no native CPU engine: {backends.unavailable_reason('cpu')}"
)
LOGVAR = ("logvar", 0.0, None, None, None)  # the op's parametrization, epsilon, soft_clamp, shift and scale
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BACKENDS = [
    "reference",
    "twin",
    pytest.param("cpu", marks=needs_native),
    *(["triton"] if TRITON else []),
]


def _replace_once_a_launch() -> None:
    """For a launch Triton's interpreter replaces what is in triton.language by its own, and looks through all of it
    again at each call of a function from a kernel: most of the time that these tests take."""
    from triton.runtime import interpreter

    replace, replaced = interpreter._patch_lang, set[types.ModuleType]()

    class Scope(interpreter._LangPatchScope):  # type: ignore[misc]
        def restore(self) -> None:  # at the end of a launch
            super().restore()
            replaced.clear()

    def replace_once(function: Any) -> Any:
        names = function.__globals__
        found = {interpreter.tl, interpreter.tl.core} & {names.get(n) for n in ("tl", "core") if n in names}
        if found and found <= replaced:
            return Scope()
        replaced.update(found)
        return replace(function)

    interpreter._LangPatchScope, interpreter._patch_lang = Scope, replace_once
    # And it computes whether integers overflow, which without `debug` nobody reads.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


if TRITON:
    _replace_once_a_launch()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on each backend that takes CPU tensors."""
    with vae_fast.backend(request.param):
        yield request.param


@pytest.fixture(params=BACKENDS[1:])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same without the plain reference: backends behind autograd Functions and library ops."""
    with vae_fast.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN (or 77 for integers), so that an element no kernel writes cannot pass for a zero."""
    if request.node.get_closest_marker("no_poison"):  # torch.compile traces the allocations
        return

    def poisoned(allocate):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            out = allocate(*args, **kwargs)
            if out.is_meta or type(out) is not Tensor:
                return out
            return (
                out.detach()
                .fill_(float("nan") if out.is_floating_point() else 77)
                .requires_grad_(out.requires_grad)
            )

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    if NATIVE:  # which has memory of its own for large outputs
        cpu = backends._find("cpu")
        monkeypatch.setattr(cpu, "empty_strided", poisoned(cpu.empty_strided))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "no_poison: leave torch.empty as it is")


def state(seed: int = 1, offset: int = 2) -> Tensor:
    return torch.tensor([seed, offset])


def assert_accurate(what: str, got: Tensor, truth: Tensor, own: Tensor, scale: Tensor | None = None) -> None:
    """The house rule: at most twice the error that PyTorch makes in the same dtype, against float64.

    PyTorch may be lucky on a few numbers, so two units in the last place of the largest value are always granted: one
    for rounding the result, one for the arithmetic before it. For a sum with cancellation, `scale` is the sum of the
    absolute terms, which is what rounding acts on.
    """
    assert got.shape == truth.shape, what
    if truth.numel() == 0:
        return
    assert torch.isfinite(got).all(), f"{what}: not finite"
    if got.dtype == torch.float64:  # the truth is no better than what it judges
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12, msg=lambda m: f"{what}: {m}")
        return
    error = (got.double() - truth).abs().max().item()
    unit = torch.finfo(got.dtype).eps * (truth if scale is None else scale).abs().max().item()
    allowed = 2 * (own.double() - truth).abs().max().item() + 2 * unit
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def truth_and_scale(
    function: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor], shape: torch.Size
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients in float64 with, for each, what rounding acts on: the sum of absolute terms of a gradient
    that broadcasting sums, else the result itself."""
    full = [t.detach().double().expand(shape).clone().requires_grad_() for t in inputs]
    outputs = function(*full)
    terms = torch.autograd.grad(outputs, full, [g.double() for g in grads])
    truth = [*outputs, *(t.sum_to_size(x.shape) for t, x in zip(terms, inputs, strict=True))]
    scale = [*outputs, *(t.abs().sum_to_size(x.shape) for t, x in zip(terms, inputs, strict=True))]
    return truth, scale


def load(path: Path) -> types.ModuleType:
    """The module of a file that belongs to no package: a script or an example."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).contiguous().view(torch.uint8).tolist())


def assert_same_bits_for_threads(compute: Callable[[], Sequence[Tensor]]) -> None:
    """compute() gives the same bits on the CPU engine with 1, 2 and 3 threads.

    It takes its inputs and output gradients as they were made before: torch's own functions may differ in the last bit
    from one number of threads to another.
    """
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            with vae_fast.backend("cpu"):
                results.append([bits(t) for t in compute()])
    finally:
        torch.set_num_threads(threads)
    for n, other in enumerate(results[1:], 2):
        differ = [i for i, (a, b) in enumerate(zip(results[0], other, strict=True)) if a != b]
        assert not differ, f"{n} threads change the results {differ}"
