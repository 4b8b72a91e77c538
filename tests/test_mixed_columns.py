"""nn.MixedColumns: values and gradients column by column in float64, missing entries, means, draws and checks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor

from conftest import state
from vae_fast.nn import VAE, MixedColumns, MLPDecoder, MLPEncoder

NAN = math.nan


def likelihood(**options: Any) -> MixedColumns:
    """11 columns."""
    made = MixedColumns(
        [
            ("gaussian", 2, {"variance": "feature"}),
            ("categorical", 2, {"classes": 3}),
            ("bernoulli", 2),
            ("gaussian", 1, {"variance": "decoder"}),
            ("categorical", 1, {"classes": 5}),
            ("poisson", 2),
            ("negative_binomial", 1, {"theta": "decoder", "link": "softplus"}),
        ],
        **options,
    )
    with torch.no_grad():
        made.groups[0].logvar.copy_(torch.tensor([-0.5, 0.3]))
    return made


def table(n: int = 6, missing: bool = True) -> Tensor:
    g = torch.Generator().manual_seed(3)
    u = torch.rand((n, 11), generator=g)
    scales = torch.tensor([1, 1, 3, 3, 2, 2, 1, 5, 6, 6, 9.0])
    whole = torch.tensor([0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1.0]).bool()
    x = torch.where(whole, (u * scales).floor(), u * scales)
    if missing:
        x[torch.rand(x.shape, generator=g) < 0.2] = NAN
        x[-1:] = NAN  # nothing is there
    return x


def distributions(output: Tensor, logvar: Tensor) -> list[D.Distribution]:
    """Of the columns, from the decoder's output (..., 21). Links are in its dtype, all else in float64."""
    links = (output[..., 17].exp(), output[..., 18].exp(), F.softplus(output[..., 19]), output[..., 20].exp())
    *rates, theta = (link.double() + 1e-8 for link in links)
    output, std = output.double(), (0.5 * logvar.double()).exp()
    o = output.unbind(-1)
    return [
        D.Normal(o[0], std[0]),
        D.Normal(o[1], std[1]),
        D.Categorical(logits=output[..., 2:5]),
        D.Categorical(logits=output[..., 5:8]),
        D.Bernoulli(logits=o[8]),
        D.Bernoulli(logits=o[9]),
        D.Normal(o[10], (0.5 * o[11]).exp()),
        D.Categorical(logits=output[..., 12:17]),
        D.Poisson(rates[0]),
        D.Poisson(rates[1]),
        D.NegativeBinomial(theta, logits=rates[2].log() - theta.log()),
    ]


def plain_terms(output: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    """-log p of each column, 0 where x is NaN, in float64."""
    terms = [
        -p.log_prob(column.nan_to_num(0.0)).masked_fill(column.isnan(), 0.0)
        for p, column in zip(distributions(output, logvar), x.double().unbind(-1), strict=True)
    ]
    return torch.stack(terms, -1)


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_and_gradients_column_by_column(dtype: torch.dtype, draws: int | None, backend: str) -> None:
    p, x = likelihood().to(torch.promote_types(dtype, torch.float32)), table().to(dtype)
    shape = (6, 21) if draws is None else (draws * 6, 21)
    output = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    params = p.split(output)
    assert all(t.untyped_storage().data_ptr() == output.untyped_storage().data_ptr() for t in params)
    if draws is not None:
        params = tuple(t.unflatten(0, (draws, 6)) for t in params)
    logvar = p.groups[0].logvar
    got = p.nll(params, x)
    assert got.shape == shape[:-1] if draws is None else (draws, 6)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    weights = torch.rand(got.shape, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((got * weights).sum(), [output, logvar])
    terms = plain_terms(output, logvar, x.repeat(draws or 1, 1)).view(*got.shape, 11)
    want = torch.autograd.grad((terms.sum(-1) * weights).sum(), [output, logvar])
    exact = 1e-10 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(got.double(), terms.sum(-1), rtol=exact, atol=exact)
    rounding = 1e-2 if dtype is torch.bfloat16 else exact  # the gradient has output's dtype
    torch.testing.assert_close(grads[0].double(), want[0].double(), rtol=rounding, atol=rounding)
    torch.testing.assert_close(grads[1].double(), want[1].double(), rtol=exact, atol=exact)
    each = p.nll(params, x, reduction="none")
    torch.testing.assert_close(each.double(), terms, rtol=exact, atol=exact)
    masked = p.nll(params, x, torch.arange(11) != 2)
    torch.testing.assert_close(masked.double(), terms.sum(-1) - terms[..., 2], rtol=exact, atol=exact)


def model(**options: Any) -> VAE:
    torch.manual_seed(0)
    p = likelihood(encoder_mask=True)
    return VAE(MLPEncoder(p.encoder_features, 8, 3), MLPDecoder(3, 8, p.decoder_features), p, **options)


def test_encoder_gets_numbers() -> None:
    x = torch.tensor(
        [[0.5, NAN, 2, NAN, 1, NAN, -3, 4, 6, NAN, 0], [NAN, 1, 0, 1, NAN, 0, NAN, NAN, 0, 1, 2]]
    )
    log = math.log
    want = [
        [0.5, 0, 0, 0, 1, 0, 0, 0, 1, 0, -3, 0, 0, 0, 0, 1, log(7), 0, 0],
        [0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, log(2), log(3)],
    ]
    p = likelihood()
    assert p.encoder_features == 19
    torch.testing.assert_close(p.encoder_input(x), torch.tensor(want))
    p = likelihood(encoder_mask=True)
    assert p.encoder_features == 30
    got = p.encoder_input(x, torch.float64)
    assert got.dtype == torch.float64
    assert torch.equal(got[:, 19:], (~x.isnan()).double())


@pytest.mark.no_poison
def test_in_a_model() -> None:
    """What compiles, exports and autocasts is what runs; the loss has a gradient for every parameter; empty batches."""
    torch._dynamo.reset()
    m, x = model(num_samples=2), table()
    want = m(x, rng_state=state())
    names = [n for n, _ in m.named_parameters()]
    grads = torch.autograd.grad(want.loss, list(m.parameters()))
    assert all(g.isfinite().all() and g.any() for g in grads), names
    mu, logvar = m.encoder(m.likelihood.encoder_input(x)).chunk(2, 1)
    torch.testing.assert_close(want.kl, 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1))
    terms = plain_terms(m.decoder(want.z.flatten(0, 1)), m.likelihood.groups[0].logvar, x.repeat(2, 1))
    torch.testing.assert_close(want.nll.double(), terms.sum(-1).view(2, 6).mean(0), rtol=1e-5, atol=1e-5)
    assert want.nll[-1] == 0  # nothing is there
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, rng_state=state()), want)
    batch = {"x": {0: torch.export.Dim("batch")}}
    m.num_samples = None
    program = torch.export.export(
        m, (x,), {"rng_state": state()}, dynamic_shapes={**batch, "rng_state": None}
    )
    for n in (6, 2):
        got = program.module()(x[:n], rng_state=state())
        torch.testing.assert_close(got, m(x[:n], rng_state=state()))
    m.num_samples = 2
    with torch.autocast("cpu", torch.bfloat16):
        low = m(x, rng_state=state()).nll
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, want.nll, rtol=0.03, atol=0.1)
    empty = m(x[:0])
    assert empty.nll.shape == (0,) and m.reconstruct(x[:0]).shape == (0, 11)
    with pytest.raises(ValueError, match="expected likelihood to have a fused head"):
        model(fused_head=True)


def test_mean_and_draws_are_tables() -> None:
    p, n = likelihood(), 20_000
    output = torch.randn((1, 21), generator=torch.Generator().manual_seed(5)).expand(n, 21)
    with torch.no_grad():
        params = p.split(output)
        mean, wide = p.mean(params)[0], p.expectation(params)[0]
        draws = p.sample(params, torch.Generator().manual_seed(0))
    columns = distributions(output[0], p.groups[0].logvar.detach())
    of_class = {2: slice(2, 5), 3: slice(5, 8), 7: slice(11, 16)}
    probabilities = torch.cat([columns[i].probs for i in of_class])
    got = torch.cat([wide[s] for s in of_class.values()])
    torch.testing.assert_close(got.double(), probabilities)
    for i, (value, drawn) in enumerate(zip(mean.double(), draws.double().unbind(1), strict=True)):
        if i in of_class:
            assert value == columns[i].probs.argmax()
            got, want = drawn.long().bincount(minlength=len(columns[i].probs)) / n, columns[i].probs
            assert ((got - want).abs() < 4.5 * (want * (1 - want) / n).sqrt() + 1e-4).all()
        else:
            torch.testing.assert_close(value, columns[i].mean)
            assert (drawn.mean() - value).abs() < 4.5 * (columns[i].variance / n).sqrt()
            torch.testing.assert_close(drawn.var(), columns[i].variance, rtol=0.1, atol=0.01)
    assert draws.shape == (n, 11) and torch.equal(p.point(wide.unsqueeze(0))[0], mean)


def test_a_head_for_each_group() -> None:
    p = likelihood()
    output = torch.randn(4, 21)
    parts = output.split([2, 6, 2, 2, 5, 2, 2], 1)
    assert torch.equal(p.nll(p.split(parts), table(4)), p.nll(p.split(output), table(4)))


def test_first_batch() -> None:
    m, x = model(), table(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m(x)  # missing entries, and a row and a column without any other
        x[:, 4] = NAN
        m.likelihood.check(x)
    for column, value, match in (
        (0, math.inf, "columns 0 to 1 of x: expected x to hold finite numbers"),
        (3, 3.0, "columns 2 to 3 of x: expected x to hold class numbers from 0 to 2 .*to 3$"),
        (2, 0.5, "columns 2 to 3 of x: .* but got fractions"),
        (7, -1.0, "columns 7 to 7 of x: expected x to hold class numbers from 0 to 4"),
        (7, math.inf, "columns 7 to 7 of x: expected x to hold class numbers"),
        (5, 2.0, "columns 4 to 5 of x: expected x to lie between 0 and 1"),
        (8, -1.0, "columns 8 to 9 of x: expected x to hold counts"),
    ):
        wrong = table(50)
        wrong[3, column] = value
        with pytest.raises(ValueError, match=match):
            model()(wrong)
    with pytest.raises(TypeError, match=r"expected x to be floating .* but got torch.int64"):
        model()(torch.zeros((4, 11), dtype=torch.int64))
    alike = table(50, missing=False)
    alike[:, :2] = 1
    with pytest.warns(UserWarning, match="all samples of x are alike"):
        model()(alike)


def test_start_is_that_of_what_is_there() -> None:
    p = MixedColumns(
        [("gaussian", 2, {"variance": "learned"}), ("poisson", 1), ("laplace", 1, {"scale": "feature"})]
    )
    x = torch.tensor([[1.0, 10, 3, 0], [3, 10, NAN, 4], [NAN, 12, 5, NAN], [NAN, 12, 5, 2]])
    p.start(x)
    torch.testing.assert_close(p.groups[0].logvar.detach(), torch.tensor(1.0).log())
    torch.testing.assert_close(p.groups[2].log_scale.detach(), torch.tensor([4 / 3]).log())
    p.start(torch.full((3, 4), NAN))  # nothing to start from
    torch.testing.assert_close(p.groups[0].logvar.detach(), torch.tensor(0.0))


def test_start_is_at_the_means_of_what_is_there() -> None:
    torch.manual_seed(0)
    p_x, x = likelihood(), table(50)
    x[:, [6, 7]] = NAN  # a column of numbers, one of classes
    decoder = MLPDecoder(2, 4, p_x.decoder_features)
    model = VAE(MLPEncoder(p_x.encoder_features, 4, 2), decoder, p_x)
    linear = decoder[-2]
    assert isinstance(linear, torch.nn.Linear)
    with torch.no_grad():
        linear.weight.zero_()
        before = linear.bias.clone()
        model.start(x)
        found = p_x.expectation(p_x.split(decoder(torch.zeros(1, 2))))[0]
    shares = [(x[:, c] == k).sum() / (~x[:, c].isnan()).sum() for c in (2, 3) for k in range(3)]
    torch.testing.assert_close(found[:2], x[:, :2].nanmean(0))
    torch.testing.assert_close(found[2:8], torch.stack(shares))
    torch.testing.assert_close(found[8:10], x[:, 4:6].nanmean(0))
    torch.testing.assert_close(found[-3:], x[:, 8:].nanmean(0))
    stays = linear.bias == before
    assert stays.nonzero().flatten().tolist() == [10, 11, *range(12, 17), 20]  # nothing there, or no mean


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: MixedColumns([]), "expected groups to have at least one"),
    "name": (lambda: MixedColumns([("normal", 2)]), "expected likelihood to be one of .* got 'normal'"),
    "columns": (lambda: MixedColumns([("gaussian", 0)]), "expected columns to be at least 1, but got 0"),
    "classes": (lambda: MixedColumns([("categorical", 2)]), "expected classes to be an int"),
    "multinomial": (lambda: MixedColumns([("multinomial", 2)]), "likelihood of single columns"),
    "library": (lambda: MixedColumns([("poisson", 2, {"link": "softmax"})]), "single columns .*softmax"),
    "binarize": (lambda: MixedColumns([("bernoulli", 2, {"binarize": True})]), "single columns .*binarize"),
    "decoder": (
        lambda: VAE(MLPEncoder(19, 8, 3), MLPDecoder(3, 8, 11), likelihood()),
        r"expected decoder to return 21 numbers .* but got shape \(2, 11\)",
    ),
    "encoder": (
        lambda: VAE(MLPEncoder(11, 8, 3), MLPDecoder(3, 8, 21), likelihood()),
        r"expected decoder to give 11 numbers .* MixedColumns of 11 columns of \(11,\), 19 numbers",
    ),
    "heads": (lambda: likelihood().split([torch.zeros(2, 21)]), r"\[2, 6, 2, 2, 5, 2, 2\] .* got \[21\]"),
    "rows": (lambda: model()(torch.zeros(4, 9)), r"expected x to have shape \(batch, 11\)"),
    "library of a call": (lambda: model().decode(torch.zeros(2, 3), library=3.0), "expected no library"),
}


@pytest.mark.parametrize(("attempt", "match"), ERRORS.values(), ids=ERRORS)
def test_errors(attempt: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        attempt()
