#!/usr/bin/env python3
"""Every op forward and backward on small tensors against the reference in float64: a table of the worst errors.

    scripts/small_run.py cuda triton          on a GPU; --each: a process for each dtype and shape, side by side
    scripts/small_run.py cuda --cases few --dtypes float32 --shapes 33x7          what runs under compute-sanitizer
    TRITON_INTERPRET=1 scripts/small_run.py triton --device cpu --shapes 3x7

Shapes that take each path: aligned and odd rows, one row shared by blocks, halves of a packed tensor, channels-last,
several draws, priors and parameters whose gradient is summed, every likelihood with a mask, classes and counts, images.
Inputs come from the host and results go back there, so that next to nothing but our kernels runs on the device.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import vae_fast
from vae_fast import backends

STATE = torch.tensor([1, 2])
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHAPES = ("5x64", "33x7", "2x20001")
FATAL = (
    "CUDA error",
    "CUDA:",
    "illegal memory access",
    "launch failure",
)  # no kernel runs after one of these
NO_REPORT = "a process without a report"
CELL = 11
LAST_WORD = 3.0  # seconds


class Case(NamedTuple):
    """`call` takes the module of functions, then all tensors by name; those of `learned` have a gradient."""

    learned: dict[str, Tensor]
    data: dict[str, Tensor]
    call: Callable[..., Any]


class Make:
    """Inputs of one shape and dtype, the same on every machine."""

    def __init__(self, rows: int, n: int, dtype: torch.dtype) -> None:
        self.rows, self.n, self.dtype = rows, n, dtype
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def whole(self) -> Tensor:
        return self.normal(self.rows, self.n)

    def positive(self, *shape: int) -> Tensor:
        return self.normal(*shape).exp()

    def bits(self) -> Tensor:
        return self.whole() > 0

    def bytes(self, *shape: int) -> Tensor:
        return (self.normal(*shape).float().sigmoid() * 255).to(torch.uint8)

    def counts(self) -> Tensor:
        return (2 * self.whole().float()).abs().long()

    def mask(self) -> Tensor:
        """What the first row has does not count."""
        mask = torch.ones(self.rows, self.n, dtype=torch.bool)
        mask[0] = False
        return mask


def latent(m: Make) -> Case:
    return Case(
        {"mu": m.whole(), "logvar": m.whole()},
        {"rng_state": STATE},
        lambda f, **t: f.reparameterize_kl(**t),
    )


def latent_prior(m: Make) -> Case:
    """A prior per feature, two draws, a state per sample, and bounds."""
    states = torch.arange(2 * m.rows).view(m.rows, 2)
    return Case(
        {"mu": m.whole(), "logvar": m.whole(), "prior": m.normal(m.n)},
        {"rng_state": states},
        lambda f, prior, **t: f.reparameterize_kl(
            **t, prior=(prior, prior), clamp=(-1.0, 1.0), num_samples=2
        ),
    )


def latent_number(m: Make) -> Case:
    return Case(
        {"mu": m.whole(), "logvar": m.whole(), "prior": m.normal()},
        {"rng_state": STATE},
        lambda f, prior, **t: f.reparameterize_kl(**t, prior=(prior, prior), num_samples=3),
    )


def packed(m: Make) -> Case:
    return Case(
        {"moments": m.normal(m.rows, 2 * m.n)},
        {"rng_state": STATE},
        lambda f, **t: f.reparameterize_kl_packed(**t),
    )


def packed_images(m: Make) -> Case:
    moments = m.normal(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    return Case({"moments": moments}, {"rng_state": STATE}, lambda f, **t: f.reparameterize_kl_packed(**t))


def sample(m: Make) -> Case:
    return Case(
        {"mu": m.whole(), "logvar": m.whole()},
        {"rng_state": STATE},
        lambda f, mu, logvar, rng_state: f.reparameterize(mu, logvar, rng_state=rng_state),
    )


def bernoulli(m: Make) -> Case:
    return Case(
        {"logits": m.whole()}, {"x": m.bytes(m.rows, m.n)}, lambda f, logits, x: f.bernoulli_nll(logits, x)
    )


def binarized(m: Make) -> Case:
    x = m.bytes(m.rows, m.n)

    def call(f: Any, logits: Tensor, x: Tensor, rng_state: Tensor) -> Tensor:
        if f is vae_fast.reference:
            return f.bernoulli_nll(logits, f.binarize(x, rng_state))
        return f.bernoulli_nll(logits, x, binarize=True, rng_state=rng_state)

    return Case({"logits": m.whole()}, {"x": x, "rng_state": STATE}, call)


def gaussian(m: Make) -> Case:
    return Case(
        {"mean": m.whole(), "logvar": m.whole()},
        {"x": m.whole()},
        lambda f, mean, logvar, x: f.gaussian_nll(mean, x, logvar),
    )


def gaussian_feature(m: Make) -> Case:
    return Case(
        {"mean": m.whole(), "logvar": m.normal(m.n)},
        {"x": m.bits()},
        lambda f, mean, logvar, x: f.gaussian_nll(mean, x, logvar),
    )


def gaussian_number(m: Make) -> Case:
    return Case(
        {"mean": m.whole(), "logvar": m.normal()},
        {"x": m.whole()},
        lambda f, mean, logvar, x: f.gaussian_nll(mean, x, logvar),
    )


def masked(name: str, *others: str, positive: bool = False) -> Callable[[Make], Case]:
    """A likelihood with a mask, its first parameter whole and the others per feature."""

    def build(m: Make) -> Case:
        draw = m.positive if positive else m.normal
        learned = {"first": draw(m.rows, m.n)}
        learned |= {k: m.normal(m.n) if "logit" in k else draw(m.n) for k in others}
        x = m.counts() if positive else m.bits()

        def call(f: Any, first: Tensor, x: Tensor, mask: Tensor, **rest: Tensor) -> Tensor:
            return getattr(f, f"{name}_nll")(first, x, *rest.values(), mask=mask)

        return Case(learned, {"x": x, "mask": m.mask()}, call)

    return build


def categorical(m: Make) -> Case:
    return Case(
        {"logits": m.whole()},
        {"x": m.counts()[:, 0] % m.n},
        lambda f, logits, x: f.categorical_nll(logits, x),
    )


def multinomial(m: Make) -> Case:
    return Case({"logits": m.whole()}, {"x": m.counts()}, lambda f, logits, x: f.multinomial_nll(logits, x))


def mixture(m: Make) -> Case:
    pixels = m.n % 97 + 1
    return Case(
        {"params": m.normal(2, 20, pixels)},
        {"x": m.bytes(2, 3, pixels)},
        lambda f, params, x: f.discretized_logistic_mixture_nll(params, x),
    )


def linear(m: Make) -> Case:
    """In float32 where the dtype is shorter: torch's own product rounds its outputs to that."""
    n, m.dtype = m.n % 97 + 1, max(m.dtype, torch.float32, key=lambda dtype: dtype.itemsize)
    return Case(
        {"hidden": m.normal(m.rows, 16), "weight": m.normal(n, 16), "bias": m.normal(n)},
        {"x": m.bytes(m.rows, n)},
        lambda f, hidden, weight, bias, x: f.linear_bernoulli_nll(hidden, weight, bias, x),
    )


CASES: dict[str, Callable[[Make], Case]] = {
    "latent": latent,
    "latent, prior per feature": latent_prior,
    "latent, prior of a number": latent_number,
    "latent, packed": packed,
    "latent, channels-last": packed_images,
    "sample alone": sample,
    "bernoulli": bernoulli,
    "bernoulli, binarized": binarized,
    "gaussian": gaussian,
    "gaussian, logvar per feature": gaussian_feature,
    "gaussian, logvar a number": gaussian_number,
    "continuous bernoulli": masked("continuous_bernoulli"),
    "laplace": masked("laplace", "log_scale"),
    "discretized logistic": masked("discretized_logistic", "log_scale"),
    "poisson": masked("poisson", positive=True),
    "negative binomial": masked("negative_binomial", "theta", positive=True),
    "zero-inflated neg. binomial": masked(
        "zero_inflated_negative_binomial", "theta", "dropout_logits", positive=True
    ),
    "neg. binomial mixture": masked(
        "negative_binomial_mixture", "mean_2", "theta", "mixture_logits", positive=True
    ),
    "categorical": categorical,
    "multinomial": multinomial,
    "mixture of logistics": mixture,
    "linear bernoulli": linear,
}
# Each kind of kernel, each way to sum: what a checker has time for that slows every launch down.
FEW = (
    "latent, prior per feature",
    "latent, prior of a number",
    "latent, packed",
    "bernoulli, binarized",
    "gaussian, logvar per feature",
    "negative binomial",
    "multinomial",
    "mixture of logistics",
)


@dataclass
class Report:
    """The worst error of every case and dtype, and what went wrong."""

    worst: list[tuple[str, str, float]] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)  # case, dtype, message
    checks: int = 0

    def add(self, other: Report) -> None:
        self.worst += other.worst
        self.failed += other.failed
        self.checks += other.checks

    def see(
        self, case: str, dtype: str, where: str, got: Tensor, want: Tensor, allowed: float | None = None
    ) -> None:
        """A result is right within 2e-5 of 1 and of the largest value, and 4 units of its dtype of that."""
        self.checks += 1
        got, unit = got.detach().cpu(), torch.finfo(got.dtype).eps
        size = want.abs().max().item()
        error = (got.double() - want).abs().nan_to_num(math.inf)
        worst = error.max().item()
        self.worst.append((case, dtype, worst / (1 + size)))
        if worst > (2e-5 * (1 + size) + 4 * unit * size if allowed is None else allowed):
            place = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
            message = f"{where}: {got[place].item():.7g} at {place}, right is {want[place].item():.7g}"
            self.failed.append((case, dtype, message))

    def table(self, engine: str, dtypes: list[str]) -> str:
        worst = {
            key: max(e for *k, e in self.worst if tuple(k) == key) for key in {w[:2] for w in self.worst}
        }
        bad = {tuple(f[:2]) for f in self.failed}

        def cell(case: str, dtype: str) -> str:
            text = f"{worst[case, dtype]:.0e}" if (case, dtype) in worst else "-"
            return (f"FAIL {text}" if (case, dtype) in bad else text).rjust(CELL)

        names = [c for c in ("noise", *CASES, NO_REPORT) if any((c, d) in worst.keys() | bad for d in dtypes)]
        head = f"{engine}: worst error / (1 + size)".ljust(32) + "".join(d.rjust(CELL) for d in dtypes)
        lines = [head, *(c.ljust(32) + "".join(cell(c, d) for d in dtypes) for c in names)]
        lines += [f"wrong: {case}, {dtype}: {message[:400]}" for case, dtype, message in self.failed[:12]]
        return "\n".join(lines)


def gradients(case: Case, functions: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, and gradients of outputs weighted by ones made on the host."""
    leaves = {k: t.detach().requires_grad_(k in case.learned) for k, t in tensors.items()}
    outputs = case.call(functions, **leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    ones = [torch.ones(o.shape, dtype=o.dtype).to(o.device) for o in outputs]
    grads = torch.autograd.grad(outputs, [leaves[k] for k in case.learned], ones)
    found = {f"output {i}": o for i, o in enumerate(outputs)}
    return found | {f"gradient of {k}": g for k, g in zip(case.learned, grads, strict=True)}


def check(report: Report, name: str, shape: str, dtype: str, device: str) -> None:
    rows, n = map(int, shape.split("x"))
    case = CASES[name](Make(rows, n, getattr(torch, dtype)))
    tensors = case.learned | case.data
    got = gradients(case, vae_fast, {k: t.to(device) for k, t in tensors.items()})
    with vae_fast.backend("reference"):
        wide = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
        want = gradients(case, vae_fast.reference, wide)
    if device == "cuda":
        torch.cuda.synchronize()
    for what, right in want.items():
        report.see(name, dtype, f"{shape}, {what}", got[what], right.detach())


def check_noise(report: Report, device: str) -> None:
    """The contract: within 4e-6 of float64, for any state."""
    states = torch.stack((torch.arange(5) * 0x123456789ABCDE - 7, torch.arange(5) - 2**40), 1)
    for rng_state in (STATE, torch.tensor([-5, 2**50 + 1]), states):
        eps = vae_fast.noise((5, 3, 1021), rng_state.to(device), num_samples=2)
        exact = vae_fast.reference.noise((5, 3, 1021), rng_state, num_samples=2, dtype=torch.float64)
        report.see("noise", "float32", f"state {rng_state.flatten()[:2].tolist()}", eps, exact, 4e-6)


def run(engine: str, arguments: argparse.Namespace) -> Report:
    """Stops at an error that takes the device away."""
    report = Report()
    names = FEW if arguments.cases == "few" else tuple(CASES)
    todo = [("noise", "float32", "")] if "float32" in arguments.dtypes else []
    todo += [
        (name, dtype, shape) for name in names for dtype in arguments.dtypes for shape in arguments.shapes
    ]
    with vae_fast.backend(engine):
        for name, dtype, shape in todo:
            try:
                if name == "noise":
                    check_noise(report, arguments.device)
                else:
                    check(report, name, shape, dtype, arguments.device)
            except KeyboardInterrupt:
                report.failed.append((name, dtype, f"{shape}: interrupted here"))
                break
            except Exception as error:
                message = f"{shape}: {type(error).__name__}: {error}"
                report.failed.append((name, dtype, message))
                if any(word in message for word in FATAL):
                    report.failed.append(
                        (name, dtype, f"{shape}: the device is lost, what follows did not run")
                    )
                    break
    return report


def run_each(engine: str, arguments: argparse.Namespace) -> Report:
    """A process for each dtype and shape: Triton compiles in all of them at once, and one that dies is one of many."""
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), []
        options = ["--device", arguments.device, "--cases", arguments.cases]
        for dtype in arguments.dtypes:
            for shape in arguments.shapes:
                file = folder / f"{dtype}-{shape}"
                command = [sys.executable, __file__, engine, "--dtypes", dtype, "--shapes", shape, *options]
                with file.open("w") as log:
                    process = subprocess.Popen([*command, "--report", f"{file}.json"], stdout=log, stderr=log)
                started.append((dtype, shape, file, process))
        interrupted = False
        for dtype, shape, file, process in started:
            try:
                process.wait(LAST_WORD if interrupted else None)
            except KeyboardInterrupt:  # they had it too, and write what they have
                interrupted = True
                time.sleep(LAST_WORD)
            except subprocess.TimeoutExpired:
                pass
            try:
                report.add(Report(**json.loads(Path(f"{file}.json").read_text())))
            except (OSError, ValueError):
                message = (
                    f"{shape}: exit code {process.poll()}, no report: {file.read_text()[-1500:].strip()}"
                )
                report.failed.append(("latent", dtype, message))
    report.worst = [tuple(w) for w in report.worst]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--cases", choices=("all", "few"), default="all")
    parser.add_argument("--each", action="store_true", help="a process for each dtype and shape")
    parser.add_argument("--report", type=Path, help="a file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several of these run side by side
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    if ends := os.environ.get("STAGE_ENDS"):  # gpu_check.sh's: before it, Python's stack says where a hang is
        faulthandler.dump_traceback_later(max(1.0, float(ends) - time.time() - 5))
    right = True
    for engine in arguments.engines:
        start = time.monotonic()
        if (reason := backends.unavailable_reason(engine)) is not None:
            print(f"{engine}: not available: {reason}")
            right = False
            continue
        report = (run_each if arguments.each else run)(engine, arguments)
        if arguments.report:
            arguments.report.write_text(json.dumps(asdict(report)))
        print(report.table(engine, arguments.dtypes))
        bad = len(report.failed)
        verdict = f"{bad} WRONG of" if bad else "all right,"
        print(f"{engine}: {verdict} {report.checks} results, {time.monotonic() - start:.0f} s", flush=True)
        right &= not bad and report.checks > 0
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
