"""The judge and the truth themselves: planted differences are seen, and mpmath's values are those worked elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

import vae_fast
from conftest import needs_native
from vae_fast.backends.native import cpu
from vae_fast.likelihoods import gaussian

from . import cases, edges, truth
from .judge import Truth, judge
from .test_conformance import Engine, check

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
INF, NAN = math.inf, math.nan
ULP = 2.0**-23  # of float32 at 1
FLAGS = ("own", "nan", "inf", "minus_inf")

# got, true, PyTorch's own; dtype; whether it is right; scale and what else is right, if any
VERDICTS: list[tuple[float, float, float, torch.dtype, bool, dict[str, Any]]] = [
    (1.0, 1.0, 1.0, F32, True, {}),
    (1 + 4 * ULP, 1.0, 1.0, F32, True, {}),
    (1 + 5 * ULP, 1.0, 1.0, F32, False, {}),
    (1 + 16 * ULP, 1.0, 1 + 8 * ULP, F32, True, {}),  # twice PyTorch's own error
    (1 + 17 * ULP, 1.0, 1 + 8 * ULP, F32, False, {}),
    (1 + 32 * ULP, 1.0, 1.22, F32, True, {}),  # PyTorch's own is no bar
    (1 + 40 * ULP, 1.0, 1.22, F32, False, {}),
    (1 + 40 * ULP, 1.0, NAN, F32, False, {}),
    (1 + 40 * ULP, 1.0, 1.0, F32, True, {"scale": 16.0}),  # a sum that cancels
    (0.0, 1e-39, 1e-39, F32, True, {}),  # flushed to zero
    (0.0, 1e-36, 1e-36, F32, False, {}),
    (1e-36, 0.0, 0.0, F32, False, {}),
    (INF, 1e39, INF, F32, True, {}),
    (-INF, 1e39, -INF, F32, False, {}),
    (3.4e38, 1e39, INF, F32, False, {}),
    (NAN, 1e39, NAN, F32, False, {}),
    (INF, 3e38, INF, F32, False, {}),  # what fits is asked
    (1.0, NAN, NAN, F32, False, {}),
    (INF, NAN, NAN, F32, False, {}),
    (NAN, NAN, 1.0, F32, True, {}),
    (NAN, 1.0, NAN, F32, False, {}),  # a limit
    (NAN, 1.0, NAN, F32, True, {"own": True}),  # an infinite input
    (NAN, INF, INF, F32, False, {}),
    (NAN, INF, INF, F32, True, {"nan": True}),
    (-INF, NAN, NAN, F32, False, {"own": True, "nan": True, "inf": True}),  # a loss of -inf
    (1 + 2.0**-51, 1.0, 1.0, F64, True, {}),
    (1 + 5 * 2.0**-52, 1.0, 1.0, F64, False, {}),
    (1 + 33 * 2.0**-52, 1.0, 1.22, F64, False, {}),
    (1 + 4 * 2.0**-7, 1.0, 1.0, BF16, True, {}),
    (
        1 + 5 * 2.0**-7,
        1.0,
        1.22,
        BF16,
        False,
        {},
    ),  # arithmetic in float32: 32 of its ulp are less than one here
]


@pytest.mark.parametrize(("got", "true", "own", "dtype", "right", "options"), VERDICTS)
def test_verdicts(
    got: float, true: float, own: float, dtype: torch.dtype, right: bool, options: dict[str, Any]
) -> None:
    def one(v: float, dtype: torch.dtype = F64) -> Tensor:
        return torch.tensor([v], dtype=dtype)

    flags = [torch.tensor([options.get(flag, False)]) for flag in FLAGS]
    expected = Truth(one(true), one(0.0), one(options.get("scale", abs(true))), one(1.0), *flags)
    excess, _ = judge(one(got, dtype), expected, one(own, dtype), F64 if dtype == F64 else F32)
    assert (excess <= 1).item() is right


def ordinary(name: str, dtype: torch.dtype = F32) -> cases.Table:
    axes = [axis(dtype).moderate for axis in cases.AXES[name]]
    case = cases._elementwise(name, dtype, dtype, list(itertools.product(*axes)))
    own = cases.own_results(case)
    return cases.Table(case, own, cases.true_results(case, own, cases._numbers(case)))


@pytest.mark.parametrize("planted", [1e-4, -1e-4, NAN, INF])
@pytest.mark.parametrize("name", ["laplace", "gaussian", "poisson", "negative_binomial"])
def test_one_wrong_element_is_seen(name: str, planted: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any result, by the function's, the backend's and the result's name, with its inputs."""
    table, compute = ordinary(name), cases.results
    check(Engine("reference", F32), table)
    for result in table.own:

        def tampered(*arguments: Any, result: str = result, **options: Any) -> cases.Results:
            found = compute(*arguments, **options)
            found[result][3] += planted * (1 + found[result][3].abs())
            return found

        monkeypatch.setattr(cases, "results", tampered)
        with vae_fast.backend("reference"), pytest.raises(pytest.fail.Exception) as failure:
            check(Engine("reference", F32), table, ["samples"])
        message = str(failure.value)
        value = next(iter(table.case.inputs.values()))[3].item()
        for part in (
            f"{name}_nll",
            "reference",
            "float32",
            result,
            "1 of",
            f"target {value:.9g} ({value.hex()})",
        ):
            assert part in message


@needs_native
def test_one_wrong_instruction_set_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = cpu.extension.available_isas()
    forward = cpu.likelihood_forward

    def wrong(*arguments: Any, nll: Tensor, **options: Any) -> None:
        forward(*arguments, nll=nll, **options)
        if cpu.extension.isa() == last:
            nll[3] *= 1 + 40 * ULP

    table = ordinary("gaussian")
    with vae_fast.backend("cpu"):
        check(Engine("cpu", F32), table)
        monkeypatch.setattr(cpu, "likelihood_forward", wrong)
        with pytest.raises(pytest.fail.Exception, match=f"cpu {last}, torch.float32, samples, nll: 1 of"):
            check(Engine("cpu", F32), table, ["samples"])


def test_a_forgotten_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    table, total = ordinary("gaussian"), gaussian.total
    monkeypatch.setattr(gaussian, "total", lambda terms, mask, *rest: total(terms, None, *rest))
    with vae_fast.backend("reference"), pytest.raises(pytest.fail.Exception, match="nll"):
        check(Engine("reference", F32), table, ["masked"])


KNOWN = [
    ("negative_binomial", (1e4, 1e35, 1.0), 80.590),
    ("negative_binomial", (3.0, 2.0, 1e15), 1.7123179),
    ("negative_binomial", (3.0, 2.0, INF), 1.7123179),
    ("poisson", (3.0, 2.0), 1.7123179),
    ("zero_inflated_negative_binomial", (1e-9, 2.0, 1.5, 0.7), 0.2728),
    ("bernoulli", (1.0, 0.0), math.log(2)),
    ("bernoulli_from_probs", (1.0, 0.0), 100.0),
    (
        "gaussian",
        (0.0, 1e19, 100.0),
        50 + math.log(2 * math.pi) / 2 + 0.5 * math.exp(2 * math.log(1e19) - 100),
    ),
    ("laplace", (1.0, 0.0, 0.0), math.log(2) + 1),
    ("discretized_logistic", (0.5, 0.0, 85.0), 91.2),
    ("kl_with_prior", (0.0, -88.0, 0.0, -89.0), 0.35914),
]


@pytest.mark.parametrize(("name", "arguments", "value"), KNOWN)
def test_known_values(name: str, arguments: tuple[float, ...], value: float) -> None:
    assert float(getattr(truth, name)(*map(mpf, arguments))[0].value) == pytest.approx(value, rel=1e-3)


def test_known_values_of_classes() -> None:
    low = mpf(torch.finfo(F32).min)
    assert float(truth.categorical(0, *[low] * 10)[0].value) == pytest.approx(math.log(10))
    assert float(truth.multinomial([mpf(1)] * 10, *[low] * 10)[0].value) == pytest.approx(10 * math.log(10))


def difference(function: Any, point: Sequence[Any], at: int) -> Any:
    """The central difference of the value."""
    step = mpf(2) ** -60
    ends = [function(*point[:at], point[at] + d, *point[at + 1 :])[0].value for d in (step, -step)]
    return (ends[0] - ends[1]) / (2 * step)


SLOPES: list[tuple[str, tuple[float, ...], int]] = [  # the last arguments are the parameters
    ("bernoulli", (0.3, 1.7), 1),
    ("bernoulli_from_probs", (0.3, 0.6), 1),
    ("continuous_bernoulli", (0.3, 1.7), 1),
    ("continuous_bernoulli", (0.3, -3.7), 1),
    ("continuous_bernoulli", (0.3, 1e-7), 1),
    ("gaussian", (0.3, 1.7, -0.6), 2),
    ("laplace", (0.3, 1.7, -0.6), 2),
    ("discretized_logistic", (0.0, 0.2, -1.6), 2),
    ("discretized_logistic", (0.4, 0.2, -1.6), 2),
    ("discretized_logistic", (1.0, 0.2, -1.6), 2),
    ("poisson", (3.0, 1.7), 1),
    ("negative_binomial", (3.0, 1.7, 0.6), 2),
    ("negative_binomial", (0.0, 1.7, 0.6), 2),
    ("zero_inflated_negative_binomial", (0.0, 1.7, 0.6, 0.8), 3),
    ("zero_inflated_negative_binomial", (3.0, 1.7, 0.6, 0.8), 3),
    ("kl", (0.3, -0.7), 2),
    ("kl_with_prior", (0.3, -0.7, 0.9, 0.2), 4),
    ("categorical", (1, 0.3, -0.7, 0.9), 3),
]


@pytest.mark.parametrize(("name", "arguments", "params"), SLOPES)
def test_slopes_are_those_of_the_value(name: str, arguments: tuple[float, ...], params: int) -> None:
    function = getattr(truth, name)
    with mp.workprec(truth.BITS):
        fixed = [v if isinstance(v, int) else mpf(v) for v in arguments]
        for i, slope in enumerate(function(*fixed)[1:]):
            at = len(fixed) - params + i
            assert abs(slope.value - difference(function, fixed, at)) < 1e-20 * (1 + abs(slope.value))


def test_slopes_of_mixtures_and_heads() -> None:
    functions: list[tuple[Any, int]] = [
        (lambda *p: truth.mixture([mpf(100) / 255] * 3, *p), 20),
        (lambda *p: truth.mixture([mpf(0)], *p), 6),
        (lambda *p: truth.multinomial([mpf(2), mpf(0), mpf(1)], *p), 3),
        (lambda *p: heads("poisson", p[:2], library=p[2]), 3),
        (lambda *p: heads("negative_binomial", p[:4], library=p[4]), 5),
        (lambda *p: heads("zero_inflated_negative_binomial", p[:4], theta=p[4:]), 6),
        (lambda *p: heads("zero_inflated_negative_binomial", p), 6),
    ]

    def heads(likelihood: str, outputs: Any, **given: Any) -> list[truth.Number]:
        return truth.linear_counts(likelihood, torch.finfo(F32), [mpf(3), mpf(0)], outputs, **given)

    with mp.workprec(truth.BITS):
        for function, count in functions:
            point = [mpf(1 + 7 * i % 5) / 3 - (i % 2) / mpf(7) for i in range(count)]
            for i, slope in enumerate(function(*point)[1:]):
                assert abs(slope.value - difference(function, point, i)) < 1e-20 * (1 + abs(slope.value))


def test_every_pair_of_edges_meets() -> None:
    axes = [edges.Axis([1.0, 2.0], [float(v) for v in range(3, n)]) for n in (9, 11, 7, 8)]
    elements = edges.cover(axes, 700)
    for i, j in itertools.combinations(range(4), 2):
        assert {(e[i], e[j]) for e in elements} == set(itertools.product(axes[i].all, axes[j].all))
