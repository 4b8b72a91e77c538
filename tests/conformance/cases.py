"""Every public function on its table of edges: how it is called, what PyTorch's own lines give, and the truth.

A case is one function, dtype and kind of target; every element is a sample of its own. What it takes from mpmath and
from PyTorch's own lines is computed once in a session.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mpmath import mp, mpf
from torch import Tensor

import vae_fast
from likelihoods import MEMBERS
from test_categorical import cross_entropy, negative_sum
from test_latent import textbook
from test_mixture import pixel_cnn

from . import edges, truth
from .judge import Truth, report

Results = dict[str, Tensor]
PARAMETERS = {
    "bernoulli": ("logits",),
    "bernoulli_from_probs": ("probs",),
    "continuous_bernoulli": ("logits",),
    "gaussian": ("mean", "logvar"),
    "laplace": ("location", "log_scale"),
    "discretized_logistic": ("mean", "log_scale"),
    "poisson": ("mean",),
    "negative_binomial": ("mean", "theta"),
    "zero_inflated_negative_binomial": ("mean", "theta", "dropout_logits"),
}
AXES: dict[str, tuple[Callable[[torch.dtype], edges.Axis], ...]] = {
    "bernoulli": (edges.unit, edges.logit),
    "bernoulli_from_probs": (edges.unit, edges.probability),
    "continuous_bernoulli": (edges.unit, edges.logit),
    "gaussian": (edges.real, edges.location, edges.log_variance),
    "laplace": (edges.real, edges.location, edges.log_variance),
    "discretized_logistic": (edges.level, edges.level_mean, edges.log_scale),
    "poisson": (edges.count, edges.mean_of_counts),
    "negative_binomial": (edges.count, edges.mean_of_counts, edges.theta),
    "zero_inflated_negative_binomial": (edges.count, edges.mean_of_counts, edges.theta, edges.dropout),
}
COUNTS = tuple(name for name, member in MEMBERS.items() if member.counts)
BYTES = [0, 1, 2, 100, 254, 255]
INTEGERS = [0, 1, 2, 77, 4000, 10**6, 2**24 + 1, 2**31 - 1, 2**31, 2**53, -1, -(2**31)]


@dataclass(frozen=True)
class Case:
    function: str
    dtype: torch.dtype
    inputs: dict[str, Tensor]  # in the order of the truth's arguments; a row each
    learned: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Callable[..., Any]  # of the inputs by name, mask= and weight=
    own: Callable[..., Any]  # PyTorch's own lines, of the inputs in the dtype of the arithmetic
    truth: Callable[..., list[truth.Number]]  # of a row
    by_definition: Callable[..., bool]  # which infinite inputs of a row are limits to be taken

    @property
    def arithmetic(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def size(self) -> int:
        return len(next(iter(self.inputs.values())))


def results(case: Case, call: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> Results:
    """Outputs and the gradients of their sum."""
    leaves = {k: t.detach().requires_grad_(k in case.learned) for k, t in inputs.items()}
    outputs = call(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = torch.autograd.grad(
        outputs, [leaves[k] for k in case.learned], [torch.ones_like(o) for o in outputs], allow_unused=True
    )
    named = {f"gradient of {k}": g for k, g in zip(case.learned, grads, strict=True)}
    return {
        k: t.detach()
        for k, t in {**dict(zip(case.outputs, outputs, strict=True)), **named}.items()
        if t is not None
    }


def own_results(case: Case) -> Results:
    wide = {k: t.to(case.arithmetic) if t.is_floating_point() else t for k, t in case.inputs.items()}
    found = results(case, case.own, wide)
    for k in case.learned:
        if f"gradient of {k}" in found:
            found[f"gradient of {k}"] = found[f"gradient of {k}"].to(case.inputs[k].dtype)
    if "z" in found:
        found["z"] = found["z"].to(case.dtype)
    return found


def true_results(case: Case, own: Results) -> dict[str, Truth]:
    """The truth of every result."""
    columns = {k: own[k][0].numel() for k in own}
    inputs = [t.double().tolist() if t.is_floating_point() else t.tolist() for t in case.inputs.values()]
    number = functools.cache(mpf)
    rows, kinds = [], []
    with mp.workprec(truth.BITS):
        for row in zip(*inputs, strict=True):
            flat = [v for entry in row for v in (entry if isinstance(entry, list) else [entry])]
            if any(map(math.isnan, flat)):
                rows.append([(math.nan, 0.0, 0.0, 1.0, True)] * sum(columns.values()))
                kinds.append(NOT_A_NUMBER)
                continue
            numbers = case.truth(*(tuple(map(number, v)) if isinstance(v, list) else number(v) for v in row))
            rows.append([_floats(n) for n in numbers])
            infinite = any(map(math.isinf, flat)) and numbers[0].defined and not case.by_definition(*row)
            kinds.append(INFINITE if infinite else NUMBER)
    parts = torch.tensor(rows, dtype=torch.float64).split(list(columns.values()), 1)
    kind, found = torch.tensor(kinds), {}
    for name, part in zip(own, parts, strict=True):
        of = kind.view(-1, *(1,) * (own[name].ndim - 1)).expand(own[name].shape)
        high, low, scale, tails, defined = (p.reshape(own[name].shape) for p in part.unbind(-1))
        loss, mine = name in case.outputs, own[name].double()
        # Beside a NaN, and where infinite inputs leave the formula without a limit, PyTorch's answer may be finite.
        instead = (of == NOT_A_NUMBER) | ((of == INFINITE) & high.isnan())
        open_ = (instead & ((of == INFINITE) | (not loss))) | ((defined == 0) & high.isfinite())
        high = torch.where(instead, mine, high)
        scale = torch.where(instead, 16 * mine.abs().clamp(min=1.0), scale)
        found[name] = Truth(high, low, scale, tails, of == INFINITE, open_, loss)
    return found


NUMBER, INFINITE, NOT_A_NUMBER = range(3)


def _floats(n: truth.Number) -> tuple[float, ...]:
    high = float(n.value)
    low = float(n.value - high) if math.isfinite(high) else 0.0
    return high, low, float(n.scale), float(n.tails), float(n.defined)


@dataclass(frozen=True)
class Table:
    case: Case
    own: Results
    truth: dict[str, Truth]


def never(*row: float) -> bool:
    return False


def poisson_limit(x: float, mean: float, theta: float, *others: float) -> bool:
    return theta == math.inf and all(map(math.isfinite, (x, mean, *others)))


# Likelihoods of elements


def _bce(probs: Tensor, x: Tensor) -> Tensor:
    """F.binary_cross_entropy, NaN where it raises an error because of the probability."""
    inside = (probs >= 0) & (probs <= 1)
    p = torch.where(inside, probs, 0.5)
    known = torch.where((x >= 0) & (x <= 1), x, 0.5)
    nll = F.binary_cross_entropy(p, known, reduction="none")
    # which is linear in the target
    nll = nll + (x - known) * ((1 - p).log().clamp(min=-100.0) - p.log().clamp(min=-100.0)).detach()
    return torch.where(inside, nll, probs * math.nan)


def _elementwise(
    name: str, dtype: torch.dtype, target: torch.dtype, elements: Sequence[edges.Element]
) -> Case:
    x, *params = (torch.tensor(column, dtype=torch.float64) for column in zip(*elements, strict=True))
    names = PARAMETERS[name]
    inputs = {"target": x.to(target), **{k: p.to(dtype) for k, p in zip(names, params, strict=True)}}
    own = _bce if name == "bernoulli_from_probs" else MEMBERS[name].textbook
    if target == torch.uint8 and name not in COUNTS:
        exact = lambda x, *p: getattr(truth, name)(x / 255, *p)  # noqa: E731
    else:
        exact = getattr(truth, name)

    def call(target: Tensor, **options: Any) -> Tensor:
        first, *others = (options.pop(k) for k in names)
        return function(first, target, *others, **options)

    def plain(target: Tensor, **params: Tensor) -> Tensor:
        first, *others = params.values()
        x = target.to(first.dtype)
        return own(first, x / 255 if target.dtype == torch.uint8 and name not in COUNTS else x, *others)

    public = "bernoulli_nll_from_probs" if name == "bernoulli_from_probs" else f"{name}_nll"
    function = getattr(vae_fast, public)
    return Case(
        public,
        dtype,
        inputs,
        names,
        ("nll",),
        call,
        plain,
        exact,
        poisson_limit if len(names) > 1 and name in COUNTS else never,
    )


def elementwise(name: str, dtype: torch.dtype) -> Case:
    return _elementwise(name, dtype, dtype, edges.cover([a(dtype) for a in AXES[name]]))


def with_integers(name: str, dtype: torch.dtype) -> Case:
    """The same parameters and targets of integers: bytes, which are 255ths, or counts."""
    _, *axes = (a(dtype) for a in AXES[name])
    values = INTEGERS if name in COUNTS else BYTES
    target = edges.Axis([1.0, 2.0], [float(v) for v in values if v not in (1, 2)])
    kind = torch.int64 if name in COUNTS else torch.uint8
    return _elementwise(name, dtype, kind, edges.cover([target, *axes], 600))


# Classes and mixtures


def categorical(classes: int, dtype: torch.dtype) -> Case:
    logits, target = zip(*edges.with_classes(dtype, classes), strict=True)
    inputs = {"target": torch.tensor(target), "logits": torch.tensor(logits, dtype=torch.float64).to(dtype)}

    def own(target: Tensor, logits: Tensor) -> Tensor:
        known = (target >= 0) & (target < classes)
        nll = cross_entropy(logits, torch.where(known, target, 0))
        nll = torch.where(target == -100, 0.0, nll)  # what cross_entropy gives where it is ignored
        return torch.where(known | (target == -100), nll, math.nan)

    def call(target: Tensor, logits: Tensor, **options: Any) -> Tensor:
        return vae_fast.categorical_nll(logits, target, **options)

    def true(x: Any, logits: Sequence[Any]) -> list[truth.Number]:
        return truth.categorical(int(x), *logits)

    return Case("categorical_nll", dtype, inputs, ("logits",), ("nll",), call, own, true, never)


def multinomial(classes: int, dtype: torch.dtype) -> Case:
    logits, target = zip(*edges.with_counts(dtype, classes), strict=True)
    inputs = {
        k: torch.tensor(t, dtype=torch.float64).to(dtype) for k, t in (("target", target), ("logits", logits))
    }

    def call(target: Tensor, logits: Tensor, **options: Any) -> Tensor:
        return vae_fast.multinomial_nll(logits, target, **options)

    def true(x: Sequence[Any], logits: Sequence[Any]) -> list[truth.Number]:
        return truth.multinomial(x, *logits)

    def own(target: Tensor, logits: Tensor) -> Tensor:
        return negative_sum(logits, target)

    return Case("multinomial_nll", dtype, inputs, ("logits",), ("nll",), call, own, true, never)


def mixture(channels: int, components: int, dtype: torch.dtype) -> Case:
    target, params = zip(*edges.rows_of_mixtures(dtype, channels, components), strict=True)
    inputs = {
        k: torch.tensor(t, dtype=torch.float64).to(dtype) for k, t in (("target", target), ("params", params))
    }

    def call(target: Tensor, params: Tensor, **options: Any) -> Tensor:
        return vae_fast.discretized_logistic_mixture_nll(params, target, **options)

    def own(target: Tensor, params: Tensor) -> Tensor:
        return pixel_cnn(params, target)[:, 0]

    def true(x: Sequence[Any], params: Sequence[Any]) -> list[truth.Number]:
        return truth.mixture(x, *params)

    return Case(
        "discretized_logistic_mixture_nll", dtype, inputs, ("params",), ("nll",), call, own, true, never
    )


# The latent


def latent(kind: str, clamp: tuple[float, float] | None, dtype: torch.dtype) -> Case:
    """kind: kl, prior, sample, or both (sample and KL at once)."""
    axes = {"mu": edges.location, "logvar": edges.clamped if clamp else edges.log_variance}
    if kind == "prior":
        axes |= {"prior_mu": edges.real, "prior_logvar": edges.log_variance}
    if kind in ("sample", "both"):
        axes["noise"] = edges.noise
    elements = edges.cover([a(dtype) for a in axes.values()], 600 if clamp else 1500)
    if kind == "both":  # z and KL should not overflow to opposite infinities, of which there is no sum
        elements = [e for e in elements if clamp or not e[1] > math.log(torch.finfo(dtype).max)]
    columns = zip(*elements, strict=True)
    inputs = {k: torch.tensor(v, dtype=torch.float64).to(dtype) for k, v in zip(axes, columns, strict=True)}
    learned = tuple(k for k in inputs if k != "noise")
    outputs = {"sample": ("z",), "both": ("z", "kl")}.get(kind, ("kl",))
    # torch.clamp takes the bounds in the dtype of the tensor.
    bounds = None if clamp is None else tuple(torch.tensor(clamp, dtype=dtype).double().tolist())
    function = getattr(truth, {"prior": "kl_with_prior", "both": "sample_and_kl"}.get(kind, kind))
    exact = None if bounds is None else tuple(map(mpf, bounds))
    public = {"sample": "reparameterize", "both": "reparameterize_kl"}.get(kind, "kl_divergence")

    def call(mu: Tensor, logvar: Tensor, **others: Tensor) -> Any:
        return getattr(vae_fast, public)(mu, logvar, clamp=clamp, **_prior(others))

    def own(mu: Tensor, logvar: Tensor, **others: Tensor) -> Any:
        given = _prior(others)
        z, kl = textbook(mu, logvar, given.get("noise", mu.detach()), given.get("prior"), bounds)
        return {"sample": z, "both": (z, kl)}.get(kind, kl)

    return Case(
        public, dtype, inputs, learned, outputs, call, own, functools.partial(function, clamp=exact), never
    )


def _prior(others: dict[str, Tensor]) -> dict[str, Any]:
    """prior_mu and prior_logvar as prior=."""
    if "prior_mu" not in others:
        return others
    return {"prior": (others["prior_mu"], others["prior_logvar"])}


@functools.cache
def table(build: Callable[..., Case], *arguments: Any) -> Table:
    case = build(*arguments)
    own = own_results(case)
    return Table(case, own, true_results(case, own))


# Ways to call: every element a sample; with a mask and weights; all elements in one sample


def differences(backend: str, table: Table, way: str = "samples") -> str:
    """What is wrong with what the backend in use gives."""
    got, expected, own = WAYS[way](table)
    where = f"{table.case.function}, {backend}, {table.case.dtype}, {way}"
    messages = [
        report(f"{where}, {k}", table.case.inputs, got[k], expected[k], own[k], table.case.arithmetic)
        for k in got
    ]
    return "\n".join(filter(None, messages))


Outcome = tuple[Results, dict[str, Truth], Results]


def _samples(table: Table) -> Outcome:
    case = table.case
    return results(case, case.call, case.inputs), table.truth, table.own


def _masked(table: Table) -> Outcome:
    """A third of the elements left out, whatever they are, and weights of 1, 0 and -2."""
    case, order = table.case, torch.arange(table.case.size)
    mask = order % 3 != 1
    weight = torch.tensor([1.0, 0.0, -2.0], dtype=case.arithmetic)[order // 3 % 3]
    got = results(
        case, case.call, case.inputs, mask=mask[:, None] if "params" in case.inputs else mask, weight=weight
    )
    expected, own = {}, {}
    for name, truth_ in table.truth.items():
        ndim = truth_.high.ndim
        kept, w = (t.view(-1, *(1,) * (ndim - 1)).expand(truth_.high.shape) for t in (mask, weight.double()))
        # 0 times what is too large for the dtype is NaN.
        too_large = truth_.high.abs() >= torch.finfo(got[name].dtype).max
        lost = (w == 0) & too_large
        expected[name] = Truth(
            torch.where(lost | ~kept, 0.0, truth_.high * w),
            torch.where(kept, truth_.low * w, 0.0),
            torch.where(kept & (w != 0), truth_.scale * w.abs(), 0.0),
            truth_.tails,
            truth_.infinite & kept,
            (truth_.open | lost) & kept,
            is_loss=False,
        )
        own[name] = torch.where(kept, table.own[name] * w, 0.0).to(table.own[name].dtype)
    return got, expected, own


def _one_sample(table: Table) -> Outcome:
    """The gradients alone, as the result is a sum: where the kernels go through rows, a vector at a time."""
    case = table.case
    across = "params" in case.inputs  # parameters come before pixels

    def turned(t: Tensor) -> Tensor:
        return (t.t() if across and t.ndim > 1 else t)[None]

    got = results(case, case.call, {k: turned(t) for k, t in case.inputs.items()})
    grads = {k: t[0].t() if across else t[0] for k, t in got.items() if k not in case.outputs}
    return grads, table.truth, table.own


WAYS = {"samples": _samples, "masked": _masked, "one sample": _one_sample}
