"""Standard normal numbers alone: what a sample costs beyond reading and writing. Every provider allocates them anew.

pytest benchmarks/bench_noise.py -s          python benchmarks/bench_noise.py
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from harness import Provider, Suite, Work, compare
from report import OURS, QUICK, Case, Comparison, save

SHAPES = [(32, 8)] if QUICK else [(65536, 256), (4096, 64)]


def check(i: int, numbers: Any) -> None:
    import torch

    x = torch.as_tensor(numbers).double()
    n = x.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96}[power]  # variance of x^power
        assert abs(x.pow(power).mean() - moment) < 6 * (spread / n) ** 0.5, (power, x.pow(power).mean())


def torch_randn(case: Case) -> Work:
    import torch

    return Work(lambda i: torch.randn(case["shape"]), check)


def ours(case: Case) -> Work:
    import torch

    import vae_fast

    return Work(lambda i: vae_fast.noise(case["shape"], torch.tensor([7, i])), check)


def jax_normal(bits: str, case: Case) -> Work:
    import jax

    @jax.jit
    def program(seed: Any) -> Any:
        return jax.random.normal(jax.random.key(seed, impl=bits), case["shape"])

    return Work(lambda i: jax.block_until_ready(program(i)), lambda i, x: check(i, jax.device_get(x).copy()))


PROVIDERS = [
    Provider("eager", torch_randn),
    Provider("jax.jit", partial(jax_normal, "threefry2x32"), requires=("jax",)),
    Provider("jax.jit rbg", partial(jax_normal, "rbg"), requires=("jax",)),
    Provider(OURS, ours, requires=("vae_fast",)),
]


def run(shape: tuple[int, ...]) -> Comparison:
    title = f"noise, {' x '.join(map(str, shape))} float32"
    return compare(title, {"shape": shape}, PROVIDERS, bytes_moved=4 * math.prod(shape))


_suite = Suite("noise", ours)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_noise(shape: tuple[int, ...], benchmark: Any) -> None:
    _suite.add(run(shape), benchmark)


if __name__ == "__main__":
    print(save("noise", [run(shape) for shape in SHAPES]))
