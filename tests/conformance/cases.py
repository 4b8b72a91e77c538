"""Every public function on its table of edges: how it is called, what PyTorch's own lines give, and the truth.

A case is one function, dtype and kind of target; every element is a sample of its own. What it takes from mpmath and
from PyTorch's own lines is computed once in a session.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import mpmath
import torch
import torch.nn.functional as F
from mpmath import mp, mpf
from torch import Tensor

import vae_fast
from likelihoods import LIKELIHOODS
from test_categorical import cross_entropy, negative_sum
from test_importance import textbook as weights_textbook
from test_latent import textbook
from test_mixture import pixel_cnn
from test_pairwise import log_normal, paper_weights

from . import edges, truth
from .judge import Truth, report

Results = dict[str, Tensor]
Numbers = tuple[Tensor, Tensor, Tensor]
Outcome = tuple[Results, dict[str, Truth], Results]  # what came, what is right, PyTorch's own
CACHE = Path(tempfile.gettempdir()) / f"vae_fast-conformance-{getpass.getuser()}"
PARAMETERS = {
    "bernoulli": ("logits",),
    "bernoulli_from_probs": ("probs",),
    "continuous_bernoulli": ("logits",),
    "gaussian": ("mean", "logvar"),
    "unit_gaussian": ("mean",),
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
    "unit_gaussian": (edges.real, edges.location),
    "laplace": (edges.real, edges.location, edges.log_variance),
    "discretized_logistic": (edges.level, edges.level_mean, edges.log_scale),
    "poisson": (edges.count, edges.mean_of_counts),
    "negative_binomial": (edges.count, edges.mean_of_counts, edges.theta),
    "zero_inflated_negative_binomial": (edges.count, edges.mean_of_counts, edges.theta, edges.dropout),
}
PUBLIC = {"bernoulli_from_probs": "bernoulli_nll_from_probs", "unit_gaussian": "gaussian_nll"}
COUNTS = tuple(name for name, likelihood in LIKELIHOODS.items() if likelihood.counts)
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
    infinite: Callable[..., bool]  # whether a row is infinite, rather than a limit that is to be taken
    together: bool = (
        False  # whether elements share sums of the gradient, so that what is not finite goes alone
    )
    by_row: bool = False  # whether a row is a call of its own

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


def true_results(case: Case, own: Results, all_numbers: Numbers) -> dict[str, Truth]:
    """The truth of every result."""
    numbers, beside_nan, infinite = all_numbers
    columns = [t[0].numel() for t in own.values()]
    found = {}
    lost = torch.zeros(case.size, dtype=torch.bool)  # whose loss is not finite
    overflowed = lost.clone()  # whose loss is too large for its dtype
    for name, part in zip(own, numbers.split(columns, 1), strict=True):
        shape, mine, loss = own[name].shape, own[name].double(), name in case.outputs

        def rows(flag: Tensor) -> Tensor:
            return flag.view(-1, *(1,) * (len(shape) - 1)).expand(shape)  # noqa: B023

        high, low, scale, tails, defined = (t.reshape(shape) for t in part.unbind(-1))
        after_nan, infinite_row = rows(beside_nan), rows(infinite)
        if loss:
            high = torch.where(after_nan, mine, high)
            lost |= high.isnan() | (high.isinf() & infinite)
            overflowed |= high.abs() >= torch.finfo(own[name].dtype).max
        else:  # the derivative by what is NaN itself is NaN, if PyTorch has it so
            itself = case.inputs[name.removeprefix("gradient of ")].isnan()
            high = torch.where(after_nan & itself, mine, high)
        no_limit = infinite_row & high.isnan()
        own_too = (infinite_row & (~mine.isfinite() | high.isnan())) | (after_nan & (not loss))
        nan_too = (infinite_row & ~high.isfinite()) | (after_nan & (not loss)) | (rows(lost) & (not loss))
        nan_too |= (defined == 0) & high.isfinite()
        if not loss:
            own_too |= rows(overflowed) & ~mine.isfinite()
            nan_too |= rows(overflowed)
        beside = torch.maximum(scale.nan_to_num(), 16 * mine.abs().nan_to_num(0.0, 0.0, 0.0).clamp(min=1.0))
        scale = torch.where(after_nan, beside, scale)
        any_sign = (no_limit | rows(lost)) & (not loss)
        found[name] = Truth(high, low, scale, tails, own_too, nan_too, no_limit | any_sign, any_sign)
    return found


def _numbers(case: Case) -> Numbers:
    """What `truth` gives for every row, (rows, results, 5); which rows have a NaN; which are infinite."""
    inputs = [t.double().tolist() if t.is_floating_point() else t.tolist() for t in case.inputs.values()]
    number = functools.cache(mpf)

    def true(row: Sequence[Any]) -> list[tuple[float, ...]]:
        arguments = (tuple(map(number, v)) if isinstance(v, list) else number(v) for v in row)
        return [_floats(n) for n in case.truth(*arguments)]

    rows, beside_nan, infinite = [], [], []
    with mp.workprec(truth.BITS):
        for row in zip(*inputs, strict=True):
            beside_nan.append(any(map(math.isnan, flat(row))))
            if beside_nan[-1]:  # NaN is what depends on it
                a, b = (true([_instead(v, other) for v in row]) for other in (0.75, 0.5))
                rows.append([x if x[:2] == y[:2] else (math.nan, *x[1:]) for x, y in zip(a, b, strict=True)])
            else:
                rows.append(true(row))
            infinite.append(not beside_nan[-1] and bool(rows[-1][0][-1]) and case.infinite(*row))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(beside_nan), torch.tensor(infinite)


def _instead(value: Any, other: float) -> Any:
    """The value with other for NaN."""
    if isinstance(value, list):
        return [_instead(v, other) for v in value]
    return other if math.isnan(value) else value


def _floats(n: truth.Number) -> tuple[float, ...]:
    high = float(n.value)
    low = float(n.value - high) if math.isfinite(high) else 0.0
    return high, low, float(n.scale), float(n.tails), float(n.defined)


@dataclass(frozen=True)
class Table:
    case: Case
    own: Results
    truth: dict[str, Truth]


def flat(row: Sequence[Any]) -> list[float]:
    return [v for entry in row for v in (entry if isinstance(entry, list) else [entry])]


def has_infinity(*row: Any) -> bool:
    return any(map(math.isinf, flat(row)))


def beyond_poisson_limit(x: float, mean: float, theta: float, *others: float) -> bool:
    """theta = inf alone is none."""
    return has_infinity(x, mean, *others) or theta == -math.inf


# Likelihoods of elements


def _bce(probs: Tensor, x: Tensor) -> Tensor:
    """F.binary_cross_entropy, NaN where it raises an error."""
    inside = (probs >= 0) & (probs <= 1) & (x >= 0) & (x <= 1)
    p, known = (torch.where(inside, v, 0.5) for v in (probs, x))
    nll = F.binary_cross_entropy(p, known, reduction="none")
    return torch.where(inside, nll, probs * math.nan)


def _elementwise(
    name: str, dtype: torch.dtype, target: torch.dtype, elements: Sequence[edges.Element]
) -> Case:
    x, *params = (torch.tensor(column, dtype=torch.float64) for column in zip(*elements, strict=True))
    names = PARAMETERS[name]
    inputs = {"target": x.to(target), **{k: p.to(dtype) for k, p in zip(names, params, strict=True)}}
    own = _bce if name == "bernoulli_from_probs" else LIKELIHOODS[name].textbook
    exact = getattr(truth, name)
    if target == torch.uint8 and name not in COUNTS:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        levels = [mpf(v) for v in (torch.arange(256, dtype=wide) / 255).tolist()]
        exact = lambda x, *p: getattr(truth, name)(levels[int(x)], *p)  # noqa: E731

    def call(target: Tensor, **options: Any) -> Tensor:
        first, *others = (options.pop(k) for k in names)
        return function(first, target, *others, **options)

    def plain(target: Tensor, **params: Tensor) -> Tensor:
        first, *others = params.values()
        x = target.to(first.dtype)
        return own(first, x / 255 if target.dtype == torch.uint8 and name not in COUNTS else x, *others)

    public = PUBLIC.get(name, f"{name}_nll")
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
        beyond_poisson_limit if len(names) > 1 and name in COUNTS else has_infinity,
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

    return Case("categorical_nll", dtype, inputs, ("logits",), ("nll",), call, own, true, has_infinity)


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

    return Case("multinomial_nll", dtype, inputs, ("logits",), ("nll",), call, own, true, has_infinity)


MIXTURES = ((1, 1), (1, 3), (3, 2))  # channels and components


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
        "discretized_logistic_mixture_nll",
        dtype,
        inputs,
        ("params",),
        ("nll",),
        call,
        own,
        true,
        has_infinity,
    )


# The latent


LATENT = ("kl", "prior", "sample", "both")


def latent(kind: str, clamp: tuple[float, float] | None, dtype: torch.dtype) -> Case:
    """kind: one of LATENT; KL with a prior, and sample and KL at once among them."""
    axes = {"mu": edges.location, "logvar": edges.clamped if clamp else edges.log_variance}
    if kind == "prior":
        axes["logvar"] = edges.clamped if clamp else edges.log_variance_beside_prior
        axes |= {"prior_mu": edges.real, "prior_logvar": edges.log_variance_beside_prior}
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
        public,
        dtype,
        inputs,
        learned,
        outputs,
        call,
        own,
        functools.partial(function, clamp=exact),
        has_infinity,
    )


def _prior(others: dict[str, Tensor]) -> dict[str, Any]:
    """prior_mu and prior_logvar as prior=."""
    if "prior_mu" not in others:
        return others
    return {"prior": (others["prior_mu"], others["prior_logvar"])}


# Importance weights, and densities of every pair


IMPORTANCE = [  # with a prior, along the path, clamp
    (False, False, None),
    (False, True, None),
    (True, False, None),
    (True, True, None),
    (True, True, edges.CLAMPS[0]),
]


def importance(has_prior: bool, path: bool, clamp: tuple[float, float] | None, dtype: torch.dtype) -> Case:
    axes = {
        "mu": edges.mean_of_weights,
        "logvar": edges.log_variance_of_weights,
        "noise": edges.noise_of_weights,
    }
    if has_prior:
        axes |= {"prior_mu": edges.mean_of_weights, "prior_logvar": edges.log_variance_of_weights}
    elements = edges.cover([a(dtype) for a in axes.values()], 300)
    columns = zip(*elements, strict=True)
    inputs = {k: torch.tensor(v, dtype=torch.float64).to(dtype) for k, v in zip(axes, columns, strict=True)}
    bounds = None if clamp is None else tuple(torch.tensor(clamp, dtype=dtype).double().tolist())
    exact = None if bounds is None else tuple(map(mpf, bounds))

    def call(mu: Tensor, logvar: Tensor, noise: Tensor, **others: Tensor) -> Tensor:
        options = {"num_samples": 1, "noise": noise[None], "clamp": clamp, "path_derivative": path}
        return vae_fast.log_weights(mu, logvar, return_z=False, **options, **_prior(others))[1][0]

    def own(mu: Tensor, logvar: Tensor, noise: Tensor, **others: Tensor) -> Tensor:
        _, log_p, log_q = weights_textbook(mu, logvar, noise, _prior(others).get("prior"), bounds, path)
        return log_p - log_q

    return Case(
        "log_weights",
        dtype,
        inputs,
        tuple(k for k in inputs if k != "noise"),
        ("weight",),
        call,
        own,
        functools.partial(truth.log_weight, clamp=exact, path=path, has_prior=has_prior),
        has_infinity,
    )


def _gaussians(
    dtype: torch.dtype, names: Sequence[str], sizes: Sequence[int], logits: int = 0
) -> dict[str, Tensor]:
    columns = zip(*edges.rows_of_gaussians(dtype, sizes, logits), strict=True)
    return {k: torch.tensor(v, dtype=torch.float64).to(dtype) for k, v in zip(names, columns, strict=True)}


def mixture_density(dtype: torch.dtype) -> Case:
    """Three components of two dims, of each row its own."""
    inputs = _gaussians(dtype, ("z", "means", "logvars", "logits"), (2, 6, 6), 3)

    def by_row(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda z, means, logvars, logits: torch.stack(
            [
                function(row, m.view(3, 2), v.view(3, 2), w)
                for row, m, v, w in zip(z, means, logvars, logits, strict=True)
            ]
        )

    def own(z: Tensor, means: Tensor, logvars: Tensor, logits: Tensor) -> Tensor:
        return (torch.log_softmax(logits, -1) + log_normal(z, means, logvars).sum(-1)).logsumexp(-1)

    return Case(
        "mixture_log_prob",
        dtype,
        inputs,
        tuple(inputs),
        ("log_prob",),
        by_row(vae_fast.mixture_log_prob),
        by_row(own),
        truth.mixture_log_prob,
        has_infinity,
        by_row=True,
    )


def total_correlation(dtype: torch.dtype) -> Case:
    """Of three samples of two dims in every row, stratified: the sum."""
    inputs = _gaussians(dtype, ("z", "mu", "logvar"), (6, 6, 6))
    weights = paper_weights(3, 100)

    def by_row(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda **given: torch.stack(
            [function(*(t.view(3, 2) for t in row)) for row in zip(*given.values(), strict=True)]
        )

    def own(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        pairs, w = log_normal(z[:, None], mu, logvar), weights.to(z.dtype)
        return ((w + pairs.sum(-1)).logsumexp(1) - (w[..., None] + pairs).logsumexp(1).sum(-1)).sum()

    return Case(
        "aggregate_posterior",
        dtype,
        inputs,
        tuple(inputs),
        ("correlation",),
        by_row(lambda *row: vae_fast.aggregate_posterior(*row, 100, "mss")[1].sum()),
        by_row(own),
        functools.partial(
            truth.total_correlation, log_weights=[list(map(mpf, row)) for row in weights.tolist()]
        ),
        has_infinity,
        by_row=True,
    )


PAIRS = (mixture_density, total_correlation)


# Linear heads. The layer's input is the identity, so that every sample's outputs are a row of the weight.

HEADS: dict[str, tuple[str, int, tuple[str, ...], int]] = {
    # the likelihood, how many of its parameters the layer makes, what is given besides, features
    "bernoulli": ("bernoulli", 1, (), 1),
    "continuous_bernoulli": ("continuous_bernoulli", 1, (), 1),
    "gaussian, one head": ("gaussian", 1, ("logvar",), 1),
    "gaussian": ("gaussian", 2, (), 1),
    "laplace": ("laplace", 2, (), 1),
    "discretized_logistic": ("discretized_logistic", 2, (), 1),
    "poisson": ("poisson", 1, (), 1),
    "poisson, library": ("poisson", 1, ("library",), 3),
    "nb, theta": ("negative_binomial", 1, ("theta",), 1),
    "nb": ("negative_binomial", 2, (), 1),
    "nb, library": ("negative_binomial", 2, ("library",), 3),
    "nb, theta, library": ("negative_binomial", 1, ("theta", "library"), 3),
    "zinb, theta": ("zero_inflated_negative_binomial", 2, ("theta",), 1),
    "zinb": ("zero_inflated_negative_binomial", 3, (), 1),
    "zinb, library": ("zero_inflated_negative_binomial", 3, ("library",), 3),
}


def linear(head: str, dtype: torch.dtype) -> Case:
    name, heads, given, features = HEADS[head]
    x_axis, *axes = AXES[name]
    if name in COUNTS:
        links = [edges.log_count, *([edges.log_count] if heads > 1 else []), edges.dropout]
        axes = [*links[: heads - 1], edges.dropout] if name.startswith("zero") else links[:heads]
        if "theta" in given:
            axes = [edges.log_count, *([edges.dropout] if heads > 1 else []), edges.theta]
    x_axis = edges.linear_count if name in COUNTS else x_axis
    count = 250 if dtype == torch.float32 else 80
    rows = edges.rows_of_outputs([a(dtype) for a in (x_axis, *axes)], features, count)
    columns = [torch.tensor(c, dtype=torch.float64).to(dtype) for c in zip(*rows, strict=True)]
    if dtype == torch.bfloat16:  # whose matrix products take subnormal numbers for 0
        columns = [torch.where(c.abs() < torch.finfo(dtype).smallest_normal, 0.0, c) for c in columns]
    inputs = {"target": columns[0], "outputs": torch.cat(columns[1 : 1 + heads], 1)}
    for k in set(given) - {"library"}:
        inputs[k] = columns[1 + heads]
    if "library" in given:
        sizes = edges.library(dtype).all
        inputs["library"] = torch.tensor(
            [sizes[i % len(sizes)] for i in range(len(rows))], dtype=torch.float64
        ).to(dtype)
    function, likelihood = getattr(vae_fast, f"linear_{name}_nll"), LIKELIHOODS[name]

    def call(
        target: Tensor, outputs: Tensor, mask: Any = None, weight: Any = None, **others: Tensor
    ) -> Tensor:
        hidden, bias = torch.eye(len(outputs), dtype=dtype), torch.zeros(outputs.shape[1], dtype=dtype)
        return function(hidden, outputs.t(), bias, target, **others, mask=mask, sample_weight=weight)

    def own(target: Tensor, outputs: Tensor, **others: Tensor) -> Tensor:
        params = list(outputs.split(features, 1))
        if name in COUNTS:
            rates = params[0]
            sizes = others.get("library")
            params[0] = rates.exp() if sizes is None else sizes[:, None] * torch.softmax(rates, -1)
            if "theta" not in others and len(params) > 1:
                params[1] = params[1].exp()
        params[1:1] = [v for k, v in others.items() if k != "library"]
        return likelihood.textbook(params[0], target, *params[1:]).sum(1)

    info = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)

    def true(x: Sequence[Any], outputs: Sequence[Any], *others: Any) -> list[truth.Number]:
        named = dict(zip(list(inputs)[2:], others, strict=True))
        if name in COUNTS:
            return truth.linear_counts(name, info, x, outputs, **named)
        return getattr(truth, name)(*x, *outputs, *(v for (v,) in others))

    def infinite(x: list[float], outputs: list[float], *others: Any) -> bool:
        """theta = inf, given or from the layer, is a limit; a mean of inf is not."""
        named = dict(zip(list(inputs)[2:], others, strict=True))
        if name not in COUNTS:
            return has_infinity(x, outputs, *others)
        means = [o for o in outputs[:features] if "library" in named or o <= math.log(info.max)]
        last = outputs[features:] if "theta" in named else outputs[2 * features :]
        thetas = named.get("theta", outputs[features : 2 * features])
        infinite = has_infinity(x, means, last, named.get("library", 0.0)) or len(means) < features
        return infinite or (name != "poisson" and -math.inf in thetas)

    learned = tuple(k for k in inputs if k != "target")
    return Case(
        f"linear_{name}_nll ({head})",
        dtype,
        inputs,
        learned,
        ("nll",),
        call,
        own,
        true,
        infinite,
        together=True,
    )


def linear_classes(kind: str, dtype: torch.dtype) -> Case:
    """categorical or multinomial, of 10 classes."""
    case = categorical(10, dtype) if kind == "categorical" else multinomial(10, dtype)
    function = getattr(vae_fast, f"linear_{kind}_nll")

    def call(target: Tensor, logits: Tensor, mask: Any = None, weight: Any = None) -> Tensor:
        hidden = torch.eye(len(logits), dtype=dtype)
        return function(hidden, logits.t(), None, target, mask=mask, sample_weight=weight)

    return replace(case, function=f"linear_{kind}_nll", call=call, together=True)


@functools.cache
def table(build: Callable[..., Case], *arguments: Any) -> Table:
    case = build(*arguments)
    own = own_results(case)
    found = Table(case, own, true_results(case, own, _kept(f"{build.__name__}{arguments}", case)))
    return some(found, alone=24) if case.together else found


def some(table: Table, alone: int, step: int = 1) -> Table:
    """Of the elements that go alone, for which a call takes its time, at most `alone`; of others every `step`-th."""
    apart = (~_finite(table) if table.case.together else torch.zeros(table.case.size)).nonzero()[:, 0]
    keep = torch.arange(table.case.size) % step == 0
    keep[apart] = False
    keep[apart[:: max(1, -(-len(apart) // alone))]] = True
    case = replace(table.case, inputs={k: t[keep] for k, t in table.case.inputs.items()})
    own = {k: t[keep] for k, t in table.own.items()}
    of = {k: Truth(**{f.name: getattr(t, f.name)[keep] for f in fields(t)}) for k, t in table.truth.items()}
    return Table(case, own, of)


def _finite(table: Table) -> Tensor:
    """Which elements have finite results, and may share sums."""
    finite = torch.ones(table.case.size, dtype=torch.bool)
    for name, of in table.truth.items():
        largest = torch.finfo(table.own[name].dtype).max / 4
        finite &= (of.high.abs() < largest).view(len(finite), -1).all(1)
    return finite


def _kept(name: str, case: Case) -> Numbers:
    """mpmath's part, in the temporary directory under the hash of all that goes into it: Triton and the emulated CUDA
    engine run in processes of their own."""
    key = hashlib.sha256(f"{name} {mpmath.__version__}".encode())
    for source in ("truth", "edges", "cases"):
        key.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    file = CACHE / f"{key.hexdigest()[:32]}.pt"
    with contextlib.suppress(FileNotFoundError):
        return torch.load(file)
    numbers = _numbers(case)
    CACHE.mkdir(exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    torch.save(numbers, partial)
    partial.rename(file)
    return numbers


# Ways to call: every element a sample; with a mask and weights; all elements in one sample


def differences(engine: str, table: Table, outcome: Outcome, way: str) -> str:
    """What is wrong with the outcome of one of WAYS."""
    got, expected, own = outcome
    where = f"{table.case.function}, {engine}, {table.case.dtype}, {way}"
    messages = [
        report(f"{where}, {k}", table.case.inputs, got[k], expected[k], own[k], table.case.arithmetic)
        for k in got
    ]
    return "\n".join(filter(None, messages))


def _run(table: Table, **options: Tensor) -> Results:
    case = table.case
    if not case.together:
        return results(case, case.call, case.inputs, **options)
    finite = _finite(table)
    if "mask" in options:  # what is left out need be no more than finite outputs of the layer
        outputs = case.inputs["outputs" if "outputs" in case.inputs else "logits"]
        finite = torch.where(options["mask"].flatten(), finite, outputs.isfinite().all(1))
    parts = [finite.nonzero()[:, 0], *(~finite).nonzero()]

    def of_rows(rows: Tensor) -> Results:
        inputs = {k: t[rows] for k, t in case.inputs.items()}
        return results(case, case.call, inputs, **{k: t[rows] for k, t in options.items()})

    found: list[Results] = []
    todo, parts = parts[::-1], []
    while todo:  # one element spoils the others' sums: halves, until it is alone
        rows = todo.pop()
        result = of_rows(rows)
        if len(rows) > 1 and not all(t.isfinite().all() for t in result.values()):
            todo += rows.tensor_split(2)[::-1]
        else:
            parts.append(rows)
            found.append(result)
    order = torch.cat(parts).argsort()
    return {k: torch.cat([f[k] for f in found])[order] for k in found[0]}


def _samples(table: Table) -> Outcome:
    return _run(table), table.truth, table.own


def _masked(table: Table) -> Outcome:
    """A third of the elements left out, whatever they are, and weights of 1, 0 and -1."""
    case, order = table.case, torch.arange(table.case.size)
    mask = order % 3 != 1
    weight = torch.tensor([1.0, 0.0, -1.0], dtype=case.arithmetic)[order // 3 % 3]
    per_sample = case.inputs.keys() & {"params", "outputs"}
    got = _run(table, mask=mask[:, None] if per_sample else mask, weight=weight)
    expected, own = {}, {}
    for name, truth_ in table.truth.items():
        ndim = truth_.high.ndim
        kept, w = (t.view(-1, *(1,) * (ndim - 1)).expand(truth_.high.shape) for t in (mask, weight.double()))
        too_large = truth_.high.abs() >= torch.finfo(got[name].dtype).max
        lost = (w == 0) & too_large  # 0 inf is NaN
        signs = (truth_.inf, truth_.minus_inf)
        expected[name] = Truth(
            torch.where(lost | ~kept, 0.0, truth_.high * w),
            torch.where(kept, truth_.low * w, 0.0),
            torch.where(kept & (w != 0), truth_.scale * w.abs(), 0.0),
            truth_.tails,
            truth_.own & kept,
            (truth_.nan | lost) & kept,
            *(torch.where(w < 0, b, a) & kept for a, b in (signs, signs[::-1])),
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
