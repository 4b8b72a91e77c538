"""The Triton kernels of all likelihoods in Triton's interpreter, on CPU tensors, against the reference in float64.

Runs in the process that `test_triton_interpreter` starts; `TRITON_INTERPRET=1 pytest tests/test_triton_likelihoods.py`
shows the tests one by one.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import vae_fast
from conformance import cases
from conformance.judge import Truth
from test_triton_interpreter import (
    DTYPES,
    INTERPRETED,
    NAN,
    assert_close,
    filled,
    layouts,
    normal,
    plans,  # noqa: F401, a fixture
    same_layout,
    state,
    states,
)
from vae_fast.likelihoods import ELEMENTWISE
from vae_fast.likelihoods.negative_binomial import d_negative_binomial, negative_binomial

if INTERPRETED:
    import mpmath
    import triton.language as tl

    from vae_fast.backends import reference
    from vae_fast.backends import triton as kernels
    from vae_fast.backends.reference.rng import binarize
    from vae_fast.backends.triton import categorical, launch, layout
    from vae_fast.backends.triton import mixture as module
    from vae_fast.backends.triton.likelihoods import counts as of_counts

COUNTS = {name for name, spec in ELEMENTWISE.items() if spec.is_counts}
PARAMETERS = {name: len(spec.parameters) for name, spec in ELEMENTWISE.items()}
MIXTURE = "negative_binomial_mixture"
TARGETS = (torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64, torch.bfloat16)


def parameters(likelihood: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """A mean first, what scales it next; those of counts are positive unless they are logits."""
    params = [normal(*shape, seed=s) for s in range(PARAMETERS[likelihood])]
    if likelihood in COUNTS:
        specs = ELEMENTWISE[likelihood].parameters
        params = [p.exp() * 3 if spec.is_log else p for p, spec in zip(params, specs, strict=True)]
    if likelihood == "bernoulli_probs":
        params = [p.sigmoid() for p in params]
    return tuple(p.to(dtype) for p in params)


def target(likelihood: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(11))
    if dtype == torch.bool:
        return x > 0.5
    if likelihood in COUNTS:
        return (8 * x**2).floor().to(dtype)
    return (256 * x if dtype == torch.uint8 else 2 * x if not dtype.is_floating_point else x).to(dtype)


def check(likelihood: str, params, x: Tensor, mask=None, rng_state=None, kinds=None) -> None:
    """Value and gradients; kinds are the shapes of the gradients, the target's unless given."""
    params = tuple(p.expand(x.shape) for p in params)
    mask = None if mask is None else mask.expand(x.shape)
    wide, exact = tuple(p.double() for p in params), x.double() if x.is_floating_point() else x
    nll, truth = filled((len(x),)), filled((len(x),), torch.float64)
    kernels.likelihood_forward(likelihood, params, x, mask, rng_state, nll=nll)
    reference.likelihood_forward(likelihood, wide, exact, mask, rng_state, nll=truth)
    assert_close("nll", nll, truth, terms=2)
    kinds, grad_nll = kinds or [x.shape] * len(params), normal(len(x), seed=3)
    grads = [
        filled(k, p.dtype if k == x.shape else torch.float32) for k, p in zip(kinds, params, strict=True)
    ]
    true = [filled(k, torch.float64) for k in kinds]
    kernels.likelihood_backward(likelihood, params, x, mask, rng_state, grad_nll, grads=grads)
    reference.likelihood_backward(likelihood, wide, exact, mask, rng_state, grad_nll.double(), grads=true)
    # A component's share has the errors of both values.
    terms = 4 if likelihood == MIXTURE else 2
    for got, want in zip(grads, true, strict=True):
        assert_close("grad", got, want, terms=terms if got.shape == x.shape else 4 * terms)


def each(likelihood: str, params, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of every element by itself."""
    params, x = [p.reshape(-1, 1) for p in params], x.reshape(-1, 1)
    nll, grads = filled(x.shape[:1]), [filled(x.shape) for _ in params]
    kernels.likelihood_forward(likelihood, params, x, None, None, nll=nll)
    kernels.likelihood_backward(likelihood, params, x, None, None, torch.ones(len(x)), grads=grads)
    return nll.double(), [g[:, 0].double() for g in grads]


def grid(*axes) -> list[Tensor]:
    return [t.reshape(-1) for t in torch.meshgrid(*map(torch.tensor, axes), indexing="ij")]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on branches that are not taken
class TestMembers:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("likelihood", PARAMETERS)
    def test_dtypes_and_targets(self, likelihood: str) -> None:
        for dtype in DTYPES:
            check(likelihood, parameters(likelihood, 3, 21, dtype=dtype), target(likelihood, 3, 21))
        for dtype in TARGETS:
            check(likelihood, parameters(likelihood, 3, 21), target(likelihood, 3, 21, dtype=dtype))

    @pytest.mark.parametrize("likelihood", PARAMETERS)
    def test_losses_of_each_element(self, likelihood: str) -> None:
        """Those of samples of one element, bit for bit; a parameter of the whole batch has their sum."""
        for shape in ((3, 21), (2, 3, 4)):
            params, x = parameters(likelihood, *shape), target(likelihood, *shape)
            shared = (*params[:-1], params[-1][:1].expand(shape))
            nll, grads = filled(shape), [*(filled(shape) for _ in params[1:]), filled(shape[1:])]
            kernels.likelihood_forward(likelihood, shared, x, None, None, nll=nll)
            kernels.likelihood_backward(likelihood, shared, x, None, None, torch.ones(shape), grads=grads)
            value, alone = each(likelihood, shared, x)
            assert torch.equal(nll.double(), value.view(shape))
            for got, want in zip(grads, alone, strict=True):
                want = want.view(shape)
                if got.shape == shape:
                    assert torch.equal(got.double(), want)
                else:
                    torch.testing.assert_close(got.double(), want.sum(0), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("likelihood", "axes"),
        [
            (
                "continuous_bernoulli",
                ([0.0, 0.25, 0.5, 1.0], [0.0, 1e-6, -0.01, 0.3, 1.99, -2.01, 30.0, -100.0]),
            ),
            ("gaussian", ([0.0, 0.7], [-3.0, 0.6, 1e3], [-30.0, -1.0, 0.0, 30.0])),
            ("laplace", ([0.0, 0.7], [-3.0, 0.6, 1e3], [-30.0, -1.0, 0.0, 30.0])),
            (
                "discretized_logistic",
                (
                    [0.0, 1 / 255, 0.5, 254 / 255, 1.0],
                    [-2.0, -0.9, 0.004, 7.0],
                    [-9.0, -7.0, -4.9, -4.8, 0.0, 60.0],
                ),
            ),
            ("poisson", ([0.0, 1.0, 5.0, 1e3, 0.3], [0.0, 1e-3, 0.3, 4.7, 36.0, 1.5e4])),
            (
                "negative_binomial",
                ([0.0, 1.0, 5.0, 1e3, 0.3], [1e-3, 0.3, 4.7, 36.0, 1.5e4, 1e6], [1e-3, 0.2, 1.0, 80.0, 1e4]),
            ),
            (
                "zero_inflated_negative_binomial",
                ([0.0, 3.0], [1e-3, 0.3, 36.0], [1e-3, 1.0, 1e4], [-100.0, -2.0, 0.0, 1.5, 30.0]),
            ),
            (
                MIXTURE,
                ([0.0, 3.0], [1e-3, 0.3, 36.0], [0.3, 12.0], [1e-3, 1.0, 1e8], [-2.0, 0.0, 30.0], [0.2, 1e4]),
            ),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_extremes(self, likelihood: str, axes) -> None:
        """Every element by itself: far in the tails, and where a textbook form cancels."""
        x, *params = grid(*axes)
        nll, grads = each(likelihood, params, x)
        truth = filled(nll.shape, torch.float64)
        wide = [p.double()[:, None] for p in params]
        reference.likelihood_forward(likelihood, wide, x.double()[:, None], None, None, nll=truth)
        torch.testing.assert_close(nll, truth, rtol=2e-6, atol=3e-7)
        true = [filled((len(x), 1), torch.float64) for _ in params]
        ones = torch.ones(len(x), dtype=torch.float64)
        reference.likelihood_backward(likelihood, wide, x.double()[:, None], None, None, ones, grads=true)
        for got, want in zip(grads, true, strict=True):
            # by theta: a difference of terms of about 5
            atol = 1e-6 if "binomial" in likelihood else 3e-7
            torch.testing.assert_close(got, want[:, 0], rtol=3e-6, atol=atol)

    @pytest.mark.parametrize("theta", [1e-2, 1.0, 1e4, 1e6, 1e8])
    def test_negative_binomial_at_any_theta(self, theta: float) -> None:
        """Against 50 digits: in float64 the differences of lgamma and digamma cancel too."""
        x, mean, th = grid([0.0, 1.0, 3.0, 40.0, 2000.0], [1e-3, 0.5, 4.0, 41.0, 3000.0], [theta])
        nll, (by_mean, by_theta) = each("negative_binomial", [mean, th], x)
        with mpmath.workdps(50):
            for i, (c, m, t) in enumerate(zip(x.tolist(), mean.tolist(), th.tolist(), strict=True)):
                c, m, t = (
                    mpmath.mpf(c),
                    mpmath.mpf(m) + mpmath.mpf("1e-8"),
                    mpmath.mpf(t) + mpmath.mpf("1e-8"),
                )
                want = mpmath.loggamma(t) + mpmath.loggamma(c + 1) - mpmath.loggamma(t + c)
                want += t * mpmath.log1p(m / t) - c * mpmath.log(m / (t + m))
                slope = mpmath.log1p(m / t) - (m - c) / (t + m) + mpmath.digamma(t) - mpmath.digamma(t + c)
                assert abs(nll[i].item() - want) <= 1e-6 * abs(want), (c, m, t)
                assert abs(by_mean[i].item() - t * (m - c) / (m * (m + t))) <= 2e-6 * t * (m + c) / (
                    m * (m + t)
                )
                # the sum of what has to cancel: the deviance's part and Stirling's
                scale = abs(slope) + ((c - m) / (t + m)) ** 2 + c / (t * (t + c))
                assert abs(by_theta[i].item() - slope) <= 2e-6 * scale, (c, m, t)

    def test_mixture_at_every_corner(self) -> None:
        """One component out of reach, both alike, and a logit that decides."""
        inf = float("inf")
        x, *params = grid(
            [0.0, 1.0, 3.0, 2000.0],
            [0.0, 0.3, 36.0, 1e30],
            [0.0, 0.5, 1500.0, 1e30],
            [1e-2, 1.0, 1e8],
            [-inf, -100.0, -2.0, 0.0, 1.5, 30.0, 100.0, inf],
            [1e-2, 5.0, 1e8],
        )
        nll, grads = each(MIXTURE, params, x)
        count, *wide = (t.double()[:, None] for t in (x, *params))
        truth = filled(nll.shape, torch.float64)
        reference.likelihood_forward(MIXTURE, wide, count, None, None, nll=truth)
        torch.testing.assert_close(nll, truth, rtol=5e-7, atol=1e-7)
        true = [filled(count.shape, torch.float64) for _ in params]
        reference.likelihood_backward(MIXTURE, wide, count, None, None, torch.ones_like(truth), grads=true)
        # P(component | x) is off by the errors of both values.
        mean_1, mean_2, theta, logits, theta_2 = wide
        first, second = negative_binomial(count, mean_1, theta), negative_binomial(count, mean_2, theta_2)
        share, rest = torch.sigmoid(logits + second - first), torch.sigmoid(first - second - logits)
        by_mean_1, by_mean_2, by_theta, _, by_theta_2 = true
        moved = rest * by_mean_1, share * by_mean_2, rest * by_theta, share * rest, share * by_theta_2
        for got, want, by_share in zip(grads, true, moved, strict=True):
            allowed = 1e-6 + 3e-6 * want.abs() + 2.0**-22 * (first + second) * by_share.abs()
            assert ((got[:, None] - want).abs() <= allowed).all()

    @pytest.mark.parametrize("likelihood", PARAMETERS)
    def test_nan_stays(self, likelihood: str) -> None:
        rows = 2 + PARAMETERS[likelihood]
        params, x = parameters(likelihood, rows, 3), target(likelihood, rows, 3)
        for i, t in enumerate((x, *params)):
            t[i, 1] = NAN
        nll = filled((rows,))
        kernels.likelihood_forward(likelihood, params, x, None, None, nll=nll)
        assert nll.isnan().tolist() == [True] * (rows - 1) + [False]

    def test_clamped_log_scale(self) -> None:
        """Gradient 1 at the bound, 0 below it."""
        s = torch.tensor([-7.0, -7.1, -8.0])
        nll, (_, by_s) = each("discretized_logistic", [torch.full((3,), 0.3), s], torch.full((3,), 0.7))
        assert (nll == nll[0]).all() and by_s[0] < -1 and (by_s[1:] == 0).all()

    def test_255ths_are_rounded_as_by_division(self) -> None:
        """The bits drawn from them depend on it."""
        x = torch.arange(256, dtype=torch.uint8)
        _, (grad, _) = each("gaussian", [torch.zeros(256), torch.zeros(256)], x)
        assert torch.equal(grad.float(), -x.float() / 255)


class TestPlainCounts:
    """Tiles of counts of 0 or from 1 and of numbers from 0 to 2^40 have a form of their own, others go in quarters."""

    __test__ = INTERPRETED

    @pytest.mark.parametrize("likelihood", sorted(COUNTS - {MIXTURE}))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_plain_rows_of_the_conformance_table(self, likelihood: str, dtype: torch.dtype) -> None:
        """Which there share a tile with others."""
        table = cases.table(cases.elementwise, likelihood, dtype)
        inputs = table.case.inputs
        x = inputs["target"]
        plain = (x == 0) | (x >= 1)
        for name in {"target", "mean", "theta"} & inputs.keys():
            plain &= (inputs[name] <= 2.0**40) & ~inputs[name].signbit()
        assert plain.sum() > 100
        of = {
            k: Truth(**{f.name: getattr(t, f.name)[plain] for f in fields(t)}) for k, t in table.truth.items()
        }
        case = replace(table.case, inputs={k: t[plain] for k, t in inputs.items()})
        part = cases.Table(case, {k: t[plain] for k, t in table.own.items()}, of)
        with vae_fast.backend("triton"):
            outcome = cases.WAYS["samples"](part)
        assert not cases.differences("triton, plain", part, outcome, "samples")

    @pytest.mark.parametrize("likelihood", sorted(COUNTS))
    def test_one_other_number_in_a_tile(self, likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The others' results stay right beside it, and quarters are put together in their order."""
        params, x = parameters(likelihood, 4, 24), target(likelihood, 4, 24)
        plain = self.results(likelihood, params, x)
        x[2, 5] = 0.5
        whole = self.results(likelihood, params, x)
        monkeypatch.setattr(of_counts, "QUARTERS", tl.constexpr(True))
        quarters = self.results(likelihood, params, x)
        for a, b, c in zip(plain, whole, quarters, strict=True):
            assert torch.equal(b, c)
            assert_close("beside another", b[[0, 1, 3]], a[[0, 1, 3]].double(), terms=4)

    @staticmethod
    def results(likelihood: str, params: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        nll, grads = torch.empty(len(x)), [torch.empty_like(p) for p in params]
        kernels.likelihood_forward(likelihood, params, x, None, None, nll=nll)
        kernels.likelihood_backward(likelihood, params, x, None, None, torch.ones(len(x)), grads=grads)
        return [nll[:, None], *grads]

    def test_no_one_over_theta_is_left_to_cancel(self) -> None:
        """Of one count and a mean of 0 the derivative by a small theta is -mu / theta^2, a difference of 1 / theta."""
        theta = torch.tensor([[1e-3, 1e-2, 0.1, 0.7]])
        grad = torch.empty_like(theta)
        kernels.likelihood_backward(
            "negative_binomial", (torch.zeros(1, 4), theta), torch.ones(1, 4), None, None, torch.ones(1),
            grads=(None, grad),
        )  # fmt: skip
        right = d_negative_binomial(torch.ones(1, 4).double(), torch.zeros(1, 4).double(), theta.double())[1]
        assert ((grad - right).abs() < 1e-7 + 1e-5 * right.abs()).all(), (grad, right)


class TestMask:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("likelihood", [MIXTURE, "zero_inflated_negative_binomial", "gaussian"])
    def test_nothing_comes_from_where_it_is_false(self, likelihood: str) -> None:
        """Not even of NaN and infinity, and also not into sums."""
        shape = (5, 4, 6)
        params, x = parameters(likelihood, *shape), target(likelihood, *shape)
        mask = normal(*shape, seed=9) > 0
        for i, t in enumerate((x, *params)):
            t[~mask] = (NAN, float("inf"), -float("inf"))[i % 3]
        check(likelihood, params, x, mask)
        one = torch.ones(())
        wide = [one, params[0][0], *params[2:]][: len(params)]
        clean = [torch.where(torch.isfinite(p), p, 1.0) for p in wide]
        x = torch.where(mask, x, NAN)
        check(likelihood, [*clean[:1], *params[1:]], x, mask, kinds=[(), *[shape] * (len(params) - 1)])
        check(
            likelihood,
            [*params[:1], clean[1], *params[2:]],
            x,
            mask,
            kinds=[shape, (4, 6), *[shape] * (len(params) - 2)],
        )

    def test_broadcast_masks(self) -> None:
        shape = (4, 3, 5, 2)
        params, x = parameters("gaussian", *shape), target("gaussian", *shape)
        for other in ((4, 1, 1, 1), (4, 1, 5, 2), (1, 3, 1, 1), (1, 1, 1, 1)):
            check("gaussian", params, x, normal(*other) > -0.2)
        last = [t.to(memory_format=torch.channels_last) for t in (x, *params)]
        check("gaussian", last[1:], last[0], (x > 0.4).to(memory_format=torch.channels_last))

    def test_mixed_shapes_in_two_stages(self, plans: pytest.MonkeyPatch) -> None:  # noqa: F811
        plans.setattr(layout, "LONG", 256)
        plans.setattr(layout, "TILE", 128)
        plans.setattr(layout, "MANY", 2)
        assert layout.row_sum_plan(3, 300).parts > 1 and layout.column_sum_plan(3, 300).steps > 1
        shape = (3, 300)
        mean_1, mean_2, theta, logits, theta_2 = parameters(MIXTURE, *shape)
        check(
            MIXTURE,
            (mean_1, mean_2[0], theta[0], logits[0, 0], theta_2[0, 0]),
            target(MIXTURE, *shape),
            normal(*shape) > 0,
            None,
            [shape, (300,), (300,), (), ()],
        )


class TestBinarization:
    __test__ = INTERPRETED

    @staticmethod
    def bits(x: Tensor, rng_state: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Those of a backward pass: at a logit of 0 the gradient is 1/2 - bit."""
        logits, grad = torch.zeros_like(x, dtype=dtype), torch.full_like(x, NAN, dtype=dtype)
        kernels.likelihood_backward(
            "bernoulli", (logits,), x, None, rng_state, torch.ones(len(x)), grads=(grad,)
        )
        return 0.5 - grad

    @pytest.mark.parametrize("name", layouts())
    def test_bits_are_the_contract(self, name: str) -> None:
        x = layouts()[name][0].sigmoid() if 0 not in layouts()[name][0].stride() else layouts()[name][0]
        for rng_state in (state(), states(len(x))):
            assert torch.equal(self.bits(x, rng_state), binarize(x, rng_state).float())
        assert torch.equal(self.bits(x.bfloat16(), state(), torch.bfloat16), binarize(x.bfloat16(), state()))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_forward_draws_what_backward_draws(self, dtype: torch.dtype) -> None:
        x = target("bernoulli", 3, 300, dtype=dtype)
        check("bernoulli", (3 * normal(3, 300),), x, normal(3, 300) > 0, state())
        assert torch.equal(self.bits(x, state()), binarize(x, state()).float())

    def test_nan_stays_nan(self) -> None:
        assert self.bits(torch.full((2, 8), NAN), state()).isnan().all()
        assert (self.bits(torch.ones(2, 8), state()) == 1).all()


def check_categorical(logits: Tensor, x: Tensor, extra: float = 0.0) -> None:
    shape = logits.shape[:2]
    out, true = [filled(shape) for _ in range(3)], [filled(shape, torch.float64) for _ in range(3)]
    kernels.categorical_forward(logits, x, **dict(zip(("nll", "lse", "total"), out, strict=True)))
    wide = x.double() if x.is_floating_point() else x
    reference.categorical_forward(
        logits.double(), wide, **dict(zip(("nll", "lse", "total"), true, strict=True))
    )
    with_rounding = true[2] * (out[1].double() - true[1]).exp()  # total makes up for lse's rounding
    for name, got, want in zip(("nll", "lse", "total"), out, (*true[:2], with_rounding), strict=True):
        assert torch.equal(got.isnan(), want.isnan()), name
        assert_close(name, got.nan_to_num(), want.nan_to_num(), extra=extra)
    for grad_nll in (normal(*shape, seed=3), normal(shape[0], 1).expand(shape)):
        grad, truth = same_layout(logits), filled(logits.shape, torch.float64)
        kernels.categorical_backward(logits, x, out[1], out[2], grad_nll, grad_logits=grad)
        reference.categorical_backward(
            logits.double(), wide, true[1], true[2], grad_nll.double(), grad_logits=truth
        )
        assert torch.equal(grad.isnan(), truth.isnan())
        assert_close("grad", grad.nan_to_num(), truth.nan_to_num(), terms=2, extra=extra)


def counts(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (normal(*shape, seed=4).exp() * 2).floor().to(dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
class TestCategorical:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("shape", [(2, 3, 10), (5, 1, 1), (1, 2, 300), (40, 3, 4), (1, 1, 1500)], ids=str)
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        logits = 5 * normal(*shape)
        check_categorical(logits, counts(*shape))
        check_categorical(logits, counts(*shape[:2], dtype=torch.int64) % shape[2])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, dtype: torch.dtype) -> None:
        logits = normal(3, 2, 21, dtype=dtype)
        for of_target in (*TARGETS, torch.float32, torch.float16)[:: 1 if dtype == torch.float32 else 5]:
            check_categorical(logits, counts(3, 2, 21, dtype=of_target))
        for of_target in (torch.uint8, torch.int16, torch.int32, torch.int64):
            check_categorical(logits, counts(3, 2, dtype=of_target) % 21)

    def test_layouts(self) -> None:
        index = counts(3, 5, dtype=torch.int64) % 8
        for logits in (
            normal(3, 8, 5).transpose(1, 2),
            normal(5, 3, 8).transpose(0, 1),
            normal(3, 5, 16)[..., ::2],
            normal(3, 5, 9)[..., 1:],
            normal(8, 5, 3).permute(2, 1, 0),
        ):
            check_categorical(logits, index)
            check_categorical(logits, same_layout(logits).copy_(counts(3, 5, 8)))
        check_categorical(normal(3, 5, 8), index[:1].expand(3, 5))
        check_categorical(normal(3, 5, 8), counts(8).expand(3, 5, 8))

    def test_rows_in_parts(self, plans: pytest.MonkeyPatch) -> None:  # noqa: F811
        plans.setattr(layout, "LONG", 512)
        plans.setattr(layout, "MANY", 40)
        logits = 5 * normal(1, 2, 5000)
        assert categorical._row_plan(2, 5000).parts > 1
        check_categorical(logits, counts(1, 2, 5000))
        check_categorical(logits, torch.tensor([[4999, 5000]]))

    def test_classes_that_do_not_exist(self) -> None:
        """-100 is ignored, even over NaN; others are NaN, and so are their gradients."""
        logits = normal(1, 6, 5)
        logits[0, 0, 2] = NAN
        check_categorical(logits, torch.tensor([[-100, 0, 4, 5, -1, -99]]))

    def test_far_logits(self) -> None:
        """Nothing overflows, and a small nll keeps its digits."""
        logits = torch.tensor([[[0.0, 1e4, -1e4], [-1e30, 0.0, 3.0], [12.0, 0.0, 0.0], [3e38, 0.0, -3e38]]])
        check_categorical(logits, torch.tensor([[1, 2, 0, 0]]), extra=2.0**-22)
        nll, lse, total = (filled((1, 1)) for _ in range(3))
        kernels.categorical_forward(
            logits[:, 2:3], torch.tensor([[[1.0, 0, 0]]]), nll=nll, lse=lse, total=total
        )
        torch.testing.assert_close(
            nll.double(), torch.tensor([[2 * math.exp(-12.0)]]).log1p().double(), rtol=1e-2, atol=0
        )

    def test_empty(self) -> None:
        for shape in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
            logits = torch.empty(shape)
            out = [filled(shape[:2]) for _ in range(3)]
            kernels.categorical_forward(logits, logits, nll=out[0], lse=out[1], total=out[2])
            kernels.categorical_backward(logits, logits, out[1], out[2], out[0], grad_logits=logits)
            assert (out[0] == 0).all()


def check_mixture(params: Tensor, x: Tensor, mask: Tensor | None = None) -> None:
    batch = len(x)
    nll, truth = filled((2 * batch,))[::2], filled((batch,), torch.float64)
    kernels.mixture_forward(params, x, mask, nll=nll)
    wide = x.double() if x.is_floating_point() else x
    reference.mixture_forward(params.double(), wide, mask, nll=truth)
    assert_close("nll", nll, truth)
    grad, want = same_layout(params), filled(params.shape, torch.float64)
    grad_nll = normal(batch, seed=3) if mask is None else normal(1).expand(batch)
    kernels.mixture_backward(params, x, mask, grad_nll, grad_params=grad)
    reference.mixture_backward(params.double(), wide, mask, grad_nll.double(), grad_params=want)
    assert_close("grad", grad, want, terms=2)


def mixture(
    channels: int, components: int, batch: int, pixels: int, dtype=torch.float32
) -> tuple[Tensor, Tensor]:
    params = normal(batch, components * (3 if channels == 1 else 10), pixels, dtype=dtype)
    x = torch.rand(batch, channels, pixels, generator=torch.Generator().manual_seed(5))
    return params, (256 * x).byte()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
class TestMixture:
    __test__ = INTERPRETED

    # The interpreter takes a second for every few components of three channels: few serve here.
    @pytest.mark.parametrize(("channels", "components"), [(1, 1), (1, 3), (3, 2)])
    def test_components(self, channels: int, components: int) -> None:
        params, x = mixture(channels, components, 2, 37)
        x[0, :, 0] = torch.tensor([0, 255, 3], dtype=torch.uint8)[:channels]  # the tails
        check_mixture(params, x)

    @pytest.mark.parametrize("dtype", DTYPES[1:])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        params, x = mixture(1, 2, 1, 9, dtype)
        check_mixture(params, x)
        check_mixture(params, (x / 255).to(dtype))

    def test_layouts_and_masks(self) -> None:
        params, x = mixture(3, 1, 2, 10)
        last = params.transpose(1, 2).contiguous().transpose(1, 2)
        check_mixture(last, x.transpose(1, 2).contiguous().transpose(1, 2))
        mask = normal(2, 10) > 0
        params.transpose(1, 2)[~mask] = NAN
        check_mixture(params, x, mask)
        last.transpose(1, 2)[~mask] = float("inf")
        check_mixture(last, torch.where(mask[:, None], x / 255, NAN), mask)
        check_mixture(normal(2, 10, 20)[..., ::2], x, (normal(1, 10) > 0).expand(2, 10))

    def test_samples_in_parts(self, plans: pytest.MonkeyPatch) -> None:  # noqa: F811
        params, x = mixture(1, 1, 2, 150)
        plans.setattr(module, "THREADS", 32)
        for many, per_thread in ((2048, 1), (4, 1), (2, 2)):
            plans.setattr(layout, "MANY", many)
            launch.forget()
            assert module._plan(2, 150, launch.Spec(*launch.key(params))).pixels == 32 * per_thread
            check_mixture(params, x)

    def test_far_from_every_component(self) -> None:
        """Log-scales at and below the clamp, pixels 1000 scales away: the nll is large and finite."""
        params, x = mixture(1, 3, 2, 8)
        params[:, 6:] = -7.0 - params[:, :3].abs().round()
        check_mixture(params, x)

    def test_empty(self) -> None:
        for batch, pixels in ((0, 4), (3, 0)):
            params, x = mixture(3, 2, batch, pixels)
            nll = filled((batch,))
            kernels.mixture_forward(params, x, None, nll=nll)
            kernels.mixture_backward(params, x, None, nll, grad_params=params)
            assert (nll == 0).all()
