"""The ops on a GPU: forward, backward and both, by both engines, eager PyTorch and torch.compile.

    pytest benchmarks/bench_gpu.py -s          python -m benchmarks.bench_gpu --out rows.json [--budget 200]

Times are the device's (see gpu_timing); the ceiling is a device-to-device copy of a tensor of the same size, timed in
turn with the rest. Small work is bounded by launches: for it there are kernels and host microseconds a call too.
Every provider's results are checked against float64 before they are timed. "forward" is that of training: what
backward needs is saved. The most telling cases come first, since the run ends when its time is spent.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.utils.weak import WeakTensorKeyDictionary

import vae_fast
from vae_fast import backends

from . import gpu_timing, likelihoods
from .bench_latent import as_people_write_it as latent
from .comparison import results_folder
from .machine import describe_conditions
from .settings import QUICK

Outputs = tuple[Tensor, ...]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Op:
    learned: int  # tensors with a gradient; they come first
    data: int  # and without
    ours: Callable[..., Outputs]
    textbook: Callable[..., Outputs]  # as people write it
    counts: bool = False  # positive parameters, and counts as data
    beside: float = (
        1  # whole tensors that are moved beside the parameters and their gradients: the target, or z
    )
    largest: int | None = None  # rows, where the lines that people write need much memory

    def tensors(self, direction: str) -> float:
        """Whole tensors that are read and written at least: parameters, the target or z, in backward gradients too."""
        return self.learned + self.beside + self.learned * (direction == "backward")


def of_likelihood(
    learned: int, name: str, textbook: Callable[..., Tensor] | None = None, **options: Any
) -> Op:
    """Its tensors are the parameters, then the target."""
    function, textbook = getattr(vae_fast, f"{name}_nll"), textbook or getattr(likelihoods, name)
    return Op(
        learned,
        1,
        lambda first, *rest: (function(first, rest[-1], *rest[:-1]),),
        lambda *inputs: (textbook(inputs[-1], *inputs[:-1]),),
        **options,
    )


def gaussian_of_variance_1(target: Tensor, mean: Tensor) -> Tensor:
    return (0.5 * (math.log(2 * math.pi) + (target - mean) ** 2)).sum(-1)


def log_weights(mu: Tensor, logvar: Tensor) -> Outputs:
    """One draw, as most of IWAE's time is the decoder's for many."""
    z, weights = vae_fast.log_weights(mu, logvar, num_samples=1)
    assert z is not None
    return z[0], weights[0]


def log_weights_written(mu: Tensor, logvar: Tensor) -> Outputs:
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    log_q = (-0.5 * (logvar + (z - mu) ** 2 * torch.exp(-logvar))).sum(-1)
    return z, (-0.5 * z**2).sum(-1) - log_q


NOISY = ("latent", "log_weights")  # z, and a number for each row
COMPONENTS = 64


@functools.cache
def mixture_of(features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Means and log-variances."""
    generator = torch.Generator().manual_seed(1)
    means, logvars = (torch.randn(COMPONENTS, features, generator=generator) for _ in range(2))
    return means.to(device), (0.5 * logvars).to(device)


def mixture_log_prob(z: Tensor) -> Outputs:
    return (vae_fast.mixture_log_prob(z, *mixture_of(z.shape[1], z.device)),)


def mixture_written(z: Tensor) -> Outputs:
    if z.dtype == torch.bfloat16:  # differences of means that are rounded are no use
        z = z.float()
    means, logvars = (t.to(z.dtype) for t in mixture_of(z.shape[1], z.device))
    pairs = -0.5 * (math.log(2 * math.pi) + logvars + (z[:, None] - means) ** 2 * torch.exp(-logvars))
    return (pairs.sum(-1).logsumexp(-1) - math.log(COMPONENTS),)


# 5% of counts, in CSR form: of each dense target that the lines take. torch.sparse has no rows of a view.
SPARSE = WeakTensorKeyDictionary()


def sparse(x: Tensor) -> Tensor:
    csr = x.to_sparse_csr()
    crow, col, values = csr.crow_indices().int(), csr.col_indices().int(), csr.values().float()
    return torch.sparse_csr_tensor(crow, col, values, x.shape)


def sparse_negative_binomial(mean: Tensor, theta: Tensor, target: Tensor) -> Outputs:
    return (vae_fast.negative_binomial_nll(mean, SPARSE[target], theta),)


OPS = {
    "latent": Op(2, 0, vae_fast.reparameterize_kl, latent),
    "bernoulli": of_likelihood(1, "bernoulli"),
    "gaussian": of_likelihood(1, "gaussian", gaussian_of_variance_1),
    "gaussian with logvar": of_likelihood(2, "gaussian"),
    "multinomial": of_likelihood(1, "multinomial"),
    "negative binomial": of_likelihood(2, "negative_binomial", counts=True),
    "negative binomial, CSR": replace(
        of_likelihood(2, "negative_binomial", counts=True), ours=sparse_negative_binomial, beside=0.1
    ),
    "log_weights": Op(2, 0, log_weights, log_weights_written),
    "mixture_log_prob": Op(1, 0, mixture_log_prob, mixture_written, beside=0, largest=4096),
}


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    rows: int
    features: int

    def __str__(self) -> str:
        return f"{self.op} {self.rows}x{self.features} {self.dtype}"

    @property
    def tensor_bytes(self) -> int:
        return self.rows * self.features * DTYPES[self.dtype].itemsize

    def fewest_bytes(self, direction: str) -> tuple[int, str]:
        """And the formula: N elements of s bytes, and one float32 a row."""
        parts = ("forward", "backward") if direction == "both" else (direction,)
        tensors = sum(OPS[self.op].tensors(p) for p in parts)
        total = round(tensors * self.tensor_bytes) + 4 * len(parts) * self.rows
        return total, f"{tensors:g}*N*s + {4 * len(parts)}*rows"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case(op, dtype, 64, 20) for op in OPS for dtype in DTYPES]
    found = []
    for megabytes in (256, 1024):
        for op in OPS:
            for dtype, kind in DTYPES.items():
                features = 256 if op in NOISY else 1024
                if OPS[op].largest is not None:
                    continue
                found.append(Case(op, dtype, (megabytes << 20) // (features * kind.itemsize), features))
        if megabytes == 256:
            sizes = ((1 << 18, 32), (128, 20), (4096, 64))  # the first: a large batch of a small latent
            found += [
                Case(op, dtype, *size)
                for size in sizes
                for op in OPS
                for dtype in DTYPES
                if size[0] <= (OPS[op].largest or size[0])
            ]
    return found


@dataclass(frozen=True)
class Set:
    """One set of buffers: inputs, and the gradients of the outputs."""

    inputs: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    learned: tuple[Tensor, ...]


def make_set(case: Case, device: str, seed: int) -> Set:
    op = OPS[case.op]
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.rows, case.features)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=DTYPES[case.dtype])

    learned = tuple(normal(*shape).mul_(0.7).sub_(0.3) for _ in range(op.learned))
    data = tuple(normal(*shape).sigmoid_() for _ in range(op.data))
    if op.counts:
        learned, data = tuple(t.exp_() for t in learned), tuple(x.mul_(6).floor_() for x in data)
    if op.ours is sparse_negative_binomial:
        for x in data:
            x.mul_(torch.rand(shape, generator=generator, device=device) < 0.05)
            SPARSE[x] = sparse(x)
    learned = tuple(t.requires_grad_() for t in learned)
    per_row = torch.randn(case.rows, generator=generator, device=device)
    return Set((*learned, *data), (normal(*shape), per_row) if case.op in NOISY else (per_row,), learned)


def differentiate(outputs: Outputs, one: Set, keep: bool = False) -> Outputs:
    grads = [g.to(o.dtype) for g, o in zip(one.grads, outputs, strict=True)]
    return torch.autograd.grad(outputs, one.learned, grads, retain_graph=keep)


def check(case: Case, one: Set, outputs: Outputs, gradients: Outputs) -> None:
    """The first and last rows against the formulas in float64. The noise has to be normal, and backward's own."""
    rows = torch.cat((torch.arange(min(512, case.rows)), torch.arange(max(0, case.rows - 512), case.rows)))
    rows = rows.to(one.inputs[0].device)
    inputs, upstream, outputs, gradients = (
        tuple(t.detach()[rows].double() for t in many) for many in (one.inputs, one.grads, outputs, gradients)
    )
    if case.op in NOISY:
        mu, logvar = inputs
        std = (0.5 * logvar).exp()
        eps = (outputs[0] - mu) / std
        slack = 6 / eps.numel() ** 0.5 + 0.02
        assert abs(eps.mean()) < slack and abs(eps.var() - 1) < 2 * slack, "the noise is not standard normal"
        each, of_row = 0.5 * upstream[0] * eps * std, upstream[1][:, None]
        z = outputs[0]
        wants: Outputs
        if case.op == "latent":
            kl = 0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(1)
            wants = (kl, upstream[0] + of_row * mu, each + 0.5 * of_row * torch.expm1(logvar))
        else:
            weight = 0.5 * (eps**2 + logvar - z**2).sum(1)
            wants = (weight, upstream[0] - of_row * z, each + 0.5 * of_row * (1 - z * eps * std))
        gots: Outputs = (outputs[1], *gradients)
    else:
        exact = [t.requires_grad_() for t in inputs[: OPS[case.op].learned]]
        nll = OPS[case.op].textbook(*exact, *inputs[len(exact) :])
        wants, gots = (*nll, *torch.autograd.grad(nll, exact, upstream)), (*outputs, *gradients)
    tolerance = 1e-4 if case.dtype == "float32" else 0.03  # for the textbook, which rounds every step
    for got, want in zip(gots, wants, strict=True):
        assert (got - want).abs().max() <= tolerance * (1 + want.abs().max()), f"{case}: wrong results"


@dataclass(frozen=True)
class Provider:
    name: str
    function: Callable[..., Outputs]
    engine: str | None = None

    def context(self) -> Any:
        return vae_fast.backend(self.engine) if self.engine else contextlib.nullcontext()


def providers(case: Case, device: str) -> list[Provider]:
    op = OPS[case.op]
    torch._dynamo.reset()
    engines = ("cuda", "triton") if device == "cuda" else ("cpu",)
    found = [Provider(e, op.ours, e) for e in engines if backends.unavailable_reason(e) is None]
    found.append(Provider("eager", op.textbook))
    if device == "cuda":
        found.append(Provider("torch.compile", torch.compile(op.textbook, dynamic=False)))
    return found


def calls_of(
    provider: Provider, direction: str, sets: list[Set], stream: Any
) -> tuple[list[gpu_timing.Call], Any]:
    """The work on each set, and what it needs to stay alive."""
    function = provider.function
    if direction == "forward":
        return [lambda one=one: function(*one.inputs) for one in sets], None  # type: ignore[misc]
    if direction == "both":
        return [lambda one=one: differentiate(function(*one.inputs), one) for one in sets], None  # type: ignore[misc]
    # autograd runs backward on forward's stream, which has to be the one that is captured
    if stream:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
        outputs = [function(*one.inputs) for one in sets]
        cast = [
            Set(s.inputs, tuple(g.to(t.dtype) for g, t in zip(s.grads, o, strict=True)), s.learned)
            for s, o in zip(sets, outputs, strict=True)
        ]
    pairs = list(zip(outputs, cast, strict=True))
    return [lambda o=o, s=s: differentiate(o, s, keep=True) for o, s in pairs], pairs  # type: ignore[misc]


def measure(case: Case, device: str, quick: bool) -> list[dict[str, Any]]:
    first = make_set(case, device, 0)
    set_bytes = sum(t.nbytes for t in (*first.inputs, *first.grads))
    count = 2 if quick else gpu_timing.sets_past_cache(set_bytes, device)
    sets = [first, *(make_set(case, device, i) for i in range(1, count))]
    stream = torch.cuda.Stream() if device == "cuda" else None
    small = case.tensor_bytes < 1 << 24
    rows: list[dict[str, Any]] = []
    sources = [one.inputs[0].detach() for one in sets]
    targets = [torch.empty_like(sources[0]) for _ in sets]
    copies = [lambda a=a, b=b: b.copy_(a) for a, b in zip(sources, targets, strict=True)]
    shared: dict[str, Any] = {
        "op": case.op,
        "dtype": case.dtype,
        "rows": case.rows,
        "features": case.features,
        "tensor_bytes": case.tensor_bytes,
        "buffer_sets": count,
        "past_l2": count * set_bytes > 3 * gpu_timing.l2_bytes(device),
    }
    facts: dict[str, dict[str, Any]] = {}
    able = []
    for provider in providers(case, device):
        with provider.context():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            try:
                outputs = provider.function(*first.inputs)
                check(case, first, outputs, differentiate(outputs, first))
                fact: dict[str, Any] = {}
                facts[provider.name] = fact
                del outputs

                def both(function: Callable[..., Outputs] = provider.function) -> None:
                    differentiate(function(*first.inputs), first)

                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    both()
                    fact["peak_bytes"] = torch.cuda.max_memory_allocated() - before
                if small:
                    fact["launches"] = gpu_timing.launches(both, device)
                    fact["host_s"] = gpu_timing.host_seconds(both, device, 5 if quick else 100)
                able.append(provider)
            except Exception as error:  # one that fails is left out, says so, and spoils the run's verdict
                rows.append(
                    shared | {"provider": provider.name, "failed": f"{type(error).__name__}: {error}"[:400]}
                )
    for direction in ("forward", "backward", "both"):
        replays = {"copy": gpu_timing.Replay(copies, stream)}
        for provider in able:
            with provider.context():
                try:
                    calls, hold = calls_of(provider, direction, sets, stream)
                    replays[provider.name] = gpu_timing.Replay(calls, stream, hold)
                except Exception as error:
                    what = "skipped" if isinstance(error, torch.OutOfMemoryError) else "failed"
                    why = {what: f"{direction}: {type(error).__name__}: {error}"[:400]}
                    rows.append(shared | {"provider": provider.name} | why)
        times = gpu_timing.interleaved(replays, 2 if quick else 15)
        copy = gpu_timing.summary(times.pop("copy"))
        speed = 2 * case.tensor_bytes / copy["median_s"]
        least, formula = case.fewest_bytes(direction)
        for name, seconds in times.items():
            row: dict[str, Any] = (
                shared | {"direction": direction, "provider": name} | gpu_timing.summary(seconds)
            )
            row |= {"bytes": least, "bytes_formula": formula, "copy_bytes_per_s": speed}
            row["of_copy"] = least / row["median_s"] / speed
            rows.append(row | (facts[name] if direction == "both" else {}))
        del replays
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def main(command_line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="where the rows go, as JSON, after every case"
    )
    parser.add_argument("--budget", type=float, default=200, help="seconds after which no case is begun")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args(command_line)
    functorch_config.donated_buffer = False  # so that a compiled backward can be repeated
    end = time.monotonic() + arguments.budget
    rows: list[dict[str, Any]] = []
    left_out = []
    longest = 0.0
    for case in cases(arguments.quick):
        begun = time.monotonic()
        if begun + longest > end:
            left_out.append(str(case))
            continue
        rows += measure(case, arguments.device, arguments.quick)
        longest = max(0.8 * longest, time.monotonic() - begun)
        arguments.out.write_text(json.dumps({"rows": rows, "left_out": left_out}))
        print(f"{case}, {time.monotonic() - begun:.0f} s", flush=True)
        for row in rows:
            if (row["op"], row["dtype"], row["rows"]) == (case.op, case.dtype, case.rows):
                print("   ", line(row), flush=True)
    arguments.out.write_text(json.dumps({"rows": rows, "left_out": left_out}))
    failed = [row for row in rows if "failed" in row]
    print(f"{len(rows)} rows, {len(failed)} failed, {len(left_out)} cases left out for want of time")
    return 1 if failed or not rows else 0


def line(row: dict[str, Any]) -> str:
    if "median_s" not in row:
        return f"{row['provider']:<14} {row.get('failed') or row.get('skipped')}"
    text = f"{row['direction']:<9}{row['provider']:<14}{1e6 * row['median_s']:>10.1f} us {100 * row['of_copy']:>5.0f}%"
    if "host_s" in row:
        text += f"  {1e6 * row['host_s']:>6.1f} us host, {row['launches']} launches"
    return text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu() -> None:
    folder = results_folder(describe_conditions()) / "gpu"  # apart: these are no records of comparisons
    folder.mkdir(parents=True, exist_ok=True)
    assert main(["--out", str(folder / "rows.json"), *["--quick"] * QUICK]) == 0


if __name__ == "__main__":
    raise SystemExit(main())
