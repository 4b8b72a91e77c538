"""Standard normal numbers alone: what a sample costs beyond reading and writing. Every provider allocates them anew.

python -m benchmarks --only noise          pytest benchmarks/bench_noise.py -s
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from .comparison import Case, Comparison
from .floors import Least
from .harness import Provider, Suite, bytes_of, case_id, compare, size_of
from .settings import QUICK
from .timing import OURS
from .work import Work

CASES = [
    (shape, dtype)
    for shape in ([(32, 8)] if QUICK else [(65536, 256), (4096, 64)])
    for dtype in ("float32", "bfloat16")
]


def check(case: Case, numbers: Any) -> None:
    import torch

    x = torch.as_tensor(numbers).double()
    n = x.numel()
    slack = 0 if case["dtype"] == "float32" else 0.1  # JAX makes bfloat16 normals from 8 random bits
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96}[power]  # variance of x^power
        assert abs(x.pow(power).mean() - moment) < 6 * (spread / n) ** 0.5 + slack * spread**0.5, (
            power,
            x.pow(power).mean(),
        )


def eager(case: Case) -> Work:
    return torch_work(case, lambda function: function)


def compiled(case: Case) -> Work:
    import torch

    return torch_work(case, torch.compile)


def torch_work(case: Case, wrap: Any) -> Work:
    import torch

    dtype = getattr(torch, case["dtype"])
    randn = wrap(lambda: torch.randn(case["shape"], dtype=dtype))
    return Work(lambda i: randn(), lambda i, numbers: check(case, numbers))


def ours(case: Case) -> Work:
    import torch

    import vae_fast

    dtype = getattr(torch, case["dtype"])
    return Work(
        lambda i: vae_fast.noise(case["shape"], torch.tensor([7, i]), dtype=dtype),
        lambda i, numbers: check(case, numbers),
    )


def jax_normal(bits: str, case: Case) -> Work:
    import jax

    @jax.jit
    def program(seed: Any) -> Any:
        return jax.random.normal(jax.random.key(seed, impl=bits), case["shape"], case["dtype"])

    return Work(
        lambda i: jax.block_until_ready(program(i)),
        lambda i, numbers: check(case, jax.device_get(numbers.astype("float32")).copy()),
    )


PROVIDERS = [
    Provider("eager", eager),
    Provider("torch.compile", compiled),
    Provider("jax.jit", partial(jax_normal, "threefry2x32"), requires=("jax",)),
    Provider("jax.jit rbg", partial(jax_normal, "rbg"), requires=("jax",)),
    Provider(OURS, ours),
]


def run(shape: tuple[int, ...], dtype: str) -> Comparison:
    case = {"shape": shape, "dtype": dtype}
    n = math.prod(shape)
    least = {"forward": Least(bytes_of(dtype) * n, normals=n)}
    return compare(f"noise, {size_of(shape)} {dtype}", case, PROVIDERS, least=least)


_suite = Suite("noise", ours)


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=case_id)
def test_noise(shape: tuple[int, ...], dtype: str, benchmark: Any) -> None:
    _suite.add(run(shape, dtype), benchmark)
