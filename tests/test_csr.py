"""Targets of counts in CSR form: what they give is what the dense target gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.utils.flop_counter
from torch import Tensor

import vae_fast
from conftest import assert_same_bits_for_threads, needs_native
from vae_fast import Csr

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch calls its CSR tensors a beta
NAN, INF = math.nan, math.inf
Target = Tensor | Csr
# (mean, theta of each feature, logits, a second mean, one number) -> nll
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "poisson": lambda x, m, th, el, m2, one, **o: vae_fast.poisson_nll(m, x, **o),
    "negative_binomial": lambda x, m, th, el, m2, one, **o: vae_fast.negative_binomial_nll(m, x, th, **o),
    "zero_inflated": lambda x, m, th, el, m2, one, **o: vae_fast.zero_inflated_negative_binomial_nll(
        m, x, th, el, **o
    ),
    "mixture": lambda x, m, th, el, m2, one, **o: vae_fast.negative_binomial_mixture_nll(
        m, x, m2, th, el, one, **o
    ),
    "multinomial": lambda x, m, th, el, m2, one, **o: vae_fast.multinomial_nll(el, x, **o),
}
# (hidden, weight of two heads, bias, library, theta) -> nll
HEADS: dict[str, Callable[..., Tensor]] = {
    "poisson": lambda x, h, w, b, n, th, **o: vae_fast.linear_poisson_nll(h, *half(w, b), x, library=n, **o),
    "negative_binomial": lambda x, h, w, b, n, th, **o: vae_fast.linear_negative_binomial_nll(
        h, *half(w, b), x, th, **o
    ),
    "zero_inflated": lambda x, h, w, b, n, th, **o: vae_fast.linear_zero_inflated_negative_binomial_nll(
        h, w, b, x, th, library=n, **o
    ),
    "multinomial": lambda x, h, w, b, n, th, **o: vae_fast.linear_multinomial_nll(h, *half(w, b), x, **o),
}
# (batch, features, density): several rows a block, rows of several blocks and tasks, all and none of them, none at all
SHAPES = [(5, 33, 0.3), (2, 600, 0.05), (70, 7, 0.6), (2, 520, 1.0), (3, 40, 0.0), (0, 5, 0.5)]
FORMATS = [
    (torch.float32, torch.int64),
    (torch.uint16, torch.int32),
    (torch.uint8, torch.int64),
    (torch.int64, torch.int32),
    (torch.bfloat16, torch.int32),
    (torch.int16, torch.int64),
]


def half(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight[: len(weight) // 2], bias[: len(bias) // 2]


def sparse(x: Tensor, dtype: torch.dtype = torch.float32, index: torch.dtype = torch.int64) -> Tensor:
    """x as torch.sparse_csr, with empty rows, and zeros that are stored."""
    kept = (x != 0) | (torch.arange(x.numel()).view(x.shape) % 11 == 5)
    if len(x) > 1:
        kept[1] = x[1] != 0
    col = kept.nonzero()[:, 1]
    crow = torch.cat((torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)))
    with torch.sparse.check_sparse_tensor_invariants(
        dtype is not torch.uint16
    ):  # of which torch counts no zeros
        return torch.sparse_csr_tensor(crow.to(index), col.to(index), x[kept].to(dtype), x.shape)


def counts(batch: int, features: int, density: float) -> Tensor:
    g = torch.Generator().manual_seed(batch + features)
    x = torch.poisson(5 * torch.rand(batch, features, generator=g), generator=g) + (density == 1)
    x = x * (torch.rand(batch, features, generator=g) < density)
    x[2:3] = 0
    return x


def parameters(batch: int, features: int, lead: Sequence[int] = ()) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g)

    shape = (*lead, batch, features)
    return [
        3 * uniform(*shape),
        uniform(features) + 0.5,
        4 * uniform(*shape) - 2,
        2 * uniform(*shape),
        uniform(1),
    ]


def layer(batch: int, features: int, lead: Sequence[int] = ()) -> list[Tensor]:
    g = torch.Generator().manual_seed(4)
    hidden = torch.randn(*lead, batch, 3, generator=g)
    weight, bias = torch.randn(2 * features, 3, generator=g), torch.randn(2 * features, generator=g)
    return [
        hidden,
        weight,
        bias,
        9 * torch.rand(batch, generator=g) + 1,
        torch.rand(features, generator=g) + 0.5,
    ]


def results(
    function: Callable[..., Tensor], target: Target, inputs: Sequence[Tensor], **options: object
) -> list[Tensor]:
    """nll and gradients, with factors of each sample from above."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    nll = function(target, *leaves, **options)
    upstream = torch.arange(1, nll.numel() + 1, dtype=nll.dtype).view(nll.shape) / max(1, nll.numel())
    grads = torch.autograd.grad(nll, leaves, upstream, allow_unused=True)
    return [nll, *(g for g in grads if g is not None)]


def check(
    function: Callable[..., Tensor], x: Tensor, target: Target, inputs: Sequence[Tensor], **options: object
) -> None:
    """Against the reference in float64 on the dense target."""
    got = results(function, target, inputs, **options)
    with vae_fast.backend("reference"):
        wide = {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in options.items()
        }
        truth = results(function, x.double(), [t.double() for t in inputs], **wide)
    assert len(got) == len(truth)
    for a, b in zip(got, truth, strict=True):
        scale = max([1.0, b.abs().max().item() if b.numel() else 0.0])
        torch.testing.assert_close(a.double(), b, rtol=4e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(backend: str, name: str) -> None:
    for i, shape in enumerate(SHAPES):
        x = counts(*shape)
        check(FUNCTIONS[name], x, sparse(x, *FORMATS[i]), parameters(*shape[:2]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options(backend: str, name: str) -> None:
    """Draws that share a target, masks, weights, losses of elements."""
    batch, features = 4, 37
    x = counts(batch, features, 0.4)
    of_elements = name != "multinomial"
    mask = torch.rand(batch, features, generator=torch.Generator().manual_seed(1)) > 0.3
    if not of_elements:
        mask = mask[:, 0]
    weight, target = torch.rand(batch), sparse(x, torch.uint16, torch.int32)
    inputs, draws = parameters(batch, features), parameters(batch, features, (3,))
    check(FUNCTIONS[name], x, target, inputs, mask=mask, weight=weight)
    check(FUNCTIONS[name], x, target, inputs, reduction="none", mask=mask)
    check(FUNCTIONS[name], x, target, draws, mask=mask, weight=weight)
    check(FUNCTIONS[name], x, target, draws, reduction="none")
    one_row = counts(1, features, 0.4)
    check(FUNCTIONS[name], one_row, sparse(one_row), parameters(1, features, (3,)))


@pytest.mark.parametrize("name", HEADS)
def test_heads(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of rows, the last of which is smaller, and with draws."""
    monkeypatch.setattr("vae_fast.ops.chunks.CHUNK_BYTES", 4 * 2 * 41 * 3)
    monkeypatch.setattr("vae_fast.ops.chunks.CHUNK_ROWS", 1)
    x = counts(7, 41, 0.4)
    target, weight = sparse(x, torch.uint16, torch.int32), torch.rand(7)
    mask = torch.rand(7, 41, generator=torch.Generator().manual_seed(1)) > 0.3
    if name == "multinomial":
        mask = mask[:, 0]
    check(HEADS[name], x, target, layer(7, 41))
    check(HEADS[name], x, target, layer(7, 41), mask=mask, sample_weight=weight)
    check(HEADS[name], x, target, layer(7, 41, (2,))[:3] + layer(7, 41)[3:])
    check(HEADS[name], x[:0], sparse(x[:0]), layer(0, 41))


@needs_native
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "multinomial"])
def test_same_bits_as_dense(name: str) -> None:
    """The zeros and the counts go through the same formulas, and their sum is in the same order; long rows are cut."""
    for shape in ((3, 700), (2, 20000)):
        x, inputs = counts(*shape, 0.1), parameters(*shape)
        for dense, of_csr in zip(*(results(FUNCTIONS[name], t, inputs) for t in (x, sparse(x))), strict=True):
            assert torch.equal(of_csr, dense), name


@needs_native
def test_long_rows_with_columns_out_of_order() -> None:
    """Each task looks at a part of the row: together they see all of it."""
    features, mean = 40000, parameters(1, 40000)[0]
    for bad in ([30000, 3, 35000], [3, 3, 35000], [20000, 3, 35000], [3, 35000, 20000], [35000, 20000, 3]):
        csr = Csr(torch.tensor([0, 3]), torch.tensor(bad), torch.ones(3), features)
        assert vae_fast.poisson_nll(mean, csr).isnan(), bad
        assert vae_fast.multinomial_nll(mean, csr).isnan(), bad


@needs_native
@pytest.mark.parametrize("name", FUNCTIONS)
def test_threads(name: str) -> None:
    x = counts(3, 20000, 0.05)
    target, inputs = sparse(x), parameters(3, 20000)
    assert_same_bits_for_threads(lambda: results(FUNCTIONS[name], target, inputs))


def test_rows_of_a_larger_matrix(backend: str) -> None:
    """crow need not begin at 0, and col and values may be longer."""
    x = counts(9, 33, 0.3)
    part = Csr.of(sparse(x)).rows(slice(3, 7))
    for name, function in FUNCTIONS.items():
        check(function, x[3:7], part, parameters(4, 33))
        assert part.values.data_ptr() and len(part.values) > part.crow[-1] - part.crow[0], name


@pytest.mark.parametrize("name", ["poisson", "multinomial"])
def test_columns_out_of_order_are_nan(backend: str, name: str) -> None:
    """Columns that are not in order, twice the same, or not there: the row is NaN, the others are right."""
    features = 1100
    x = torch.zeros(4, features)
    x[:, [3, 600, 1000]] = torch.tensor([2.0, 1.0, 5.0])
    for bad in (
        [600, 3, 1000],
        [3, 3, 1000],
        [3, 600, features],
        [3, 600, -1],
        [-1, 600, 1000],
        [3, 1000, 600],
    ):
        crow, col = torch.arange(0, 13, 3), torch.tensor([3, 600, 1000]).repeat(4)
        col[3:6] = torch.tensor(bad)
        target = Csr(crow, col, torch.tensor([2.0, 1.0, 5.0]).repeat(4), features)
        nll = FUNCTIONS[name](target, *parameters(4, features))
        right = FUNCTIONS[name](x, *parameters(4, features))
        assert nll[1].isnan(), bad
        torch.testing.assert_close(nll[[0, 2, 3]], right[[0, 2, 3]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_extreme_numbers(backend: str, name: str) -> None:
    """NaN, infinite, negative, tiny and fractional counts, and parameters that are none, as in a dense target."""
    x = torch.tensor(
        [[NAN, 0, 1, 2], [INF, 0, 1, 2], [-1, 0, 1, 2], [1e-9, 0.25, 1, 2], [1, 0, 0, 3], [0, 0, 2, 1]]
    )
    inputs = parameters(*x.shape)
    inputs[0][4, 1], inputs[0][5, 1], inputs[2][5, 0] = INF, -1.0, NAN
    for dense, of_csr in zip(*(results(FUNCTIONS[name], t, inputs) for t in (x, sparse(x))), strict=True):
        torch.testing.assert_close(of_csr, dense, rtol=2e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["zero_inflated", "multinomial"])
def test_gradcheck(name: str) -> None:
    x = counts(2, 3, 0.7)
    inputs = [t.double().requires_grad_() for t in parameters(2, 3)]
    target = sparse(x, torch.float64)
    torch.autograd.gradcheck(lambda *leaves: FUNCTIONS[name](target, *leaves), inputs)


def test_a_target_that_learns() -> None:
    """The reference serves it: its gradient is that of what is stored."""
    x = counts(3, 6, 0.5) + 1
    values, csr = x.flatten().clone().requires_grad_(), Csr.of(sparse(x))
    dense = x.clone().requires_grad_()
    mean, theta = parameters(3, 6)[:2]
    vae_fast.negative_binomial_nll(mean, replace(csr, values=values), theta).sum().backward()
    vae_fast.negative_binomial_nll(mean, dense, theta).sum().backward()
    assert values.grad is not None and dense.grad is not None
    torch.testing.assert_close(values.grad.view_as(x), dense.grad)


CSR = sparse(counts(3, 6, 0.5))
MEAN = torch.ones(3, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vae_fast.poisson_nll(MEAN[:2], CSR), ValueError, r"target to have shape \(2, 6\) like mean"),
        (lambda: vae_fast.poisson_nll(MEAN, CSR.to_sparse_csc()), TypeError, r"target.to_sparse_csr\(\)"),
        (lambda: vae_fast.poisson_nll(MEAN, CSR.to_sparse_coo()), TypeError, r"layout torch.sparse_coo"),
        (lambda: vae_fast.gaussian_nll(MEAN, CSR, 0.0), TypeError, "target to be a dense tensor, but got layout"),
        (lambda: vae_fast.linear_bernoulli_nll(MEAN, torch.ones(6, 6), None, CSR), TypeError, "to be a dense tensor"),
        (lambda: vae_fast.poisson_nll(MEAN, CSR.to(torch.int8)), TypeError, "target to have dtype .* or uint16"),
        (lambda: vae_fast.poisson_nll(CSR, CSR), TypeError, "mean to be a dense tensor"),
        (
            lambda: vae_fast.linear_poisson_nll(MEAN[:2], torch.ones(6, 6), None, CSR),
            ValueError,
            r"target to have shape \(2, features, ...\)",
        ),
        (
            lambda: vae_fast.linear_multinomial_nll(MEAN, torch.ones(5, 6), None, CSR),
            ValueError,
            r"target to have shape \(3, 5\)",
        ),
        (
            lambda: vae_fast.multinomial_nll(torch.ones(3, 2, 6), CSR),
            ValueError,
            r"target to have shape \(3, 2, 6\) like logits",
        ),
        (
            lambda: vae_fast.poisson_nll(torch.ones(2, 3, 6), torch.stack([counts(3, 6, 1.0)] * 2).to_sparse_csr()),
            ValueError,
            r"target to have shape \(batch, features\)",
        ),
        (
            lambda: vae_fast.poisson_nll(MEAN, replace(Csr.of(CSR), col=CSR.col_indices().half())),
            TypeError,
            "target.col to have dtype int32 or int64",
        ),
        (
            lambda: vae_fast.poisson_nll(MEAN, replace(Csr.of(CSR), col=CSR.col_indices().int())),
            TypeError,
            "target.col to have dtype torch.int64 like target.crow",
        ),
        (
            lambda: vae_fast.poisson_nll(MEAN, replace(Csr.of(CSR), col=CSR.col_indices()[1:])),
            ValueError,
            "target.col to have shape .* like target.values",
        ),
    ],
)  # fmt: skip
def test_errors(call: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.no_poison
def test_library_ops(kernels: str) -> None:
    csr = Csr.of(sparse(counts(3, 6, 0.5), torch.float32, torch.int32))
    mean, theta, logits = (t.requires_grad_() for t in parameters(3, 6)[:3])
    hidden, weight, bias = (t.requires_grad_() for t in layer(3, 6)[:3])
    ops, checks = torch.ops.vae_fast, ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        ops.csr_likelihood, ("negative_binomial", *csr.parts, None, False, [mean, theta]), test_utils=checks
    )
    torch.library.opcheck(ops.csr_categorical, (logits, *csr.parts[:3], None), test_utils=checks)
    flags = [1, 1, 1, 0, 1] if kernels == "cpu" else [0] * 5
    head = (
        "zero_inflated_negative_binomial",
        hidden,
        weight,
        bias,
        *csr.parts,
        None,
        None,
        None,
        torch.float32,
        flags,
    )
    torch.library.opcheck(ops.csr_linear_likelihood, (*head, [theta]), test_utils=checks)


@needs_native
@pytest.mark.no_poison
def test_export() -> None:
    """torch.export takes a sparse tensor as an input."""

    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
            return vae_fast.negative_binomial_nll(mean, x, theta)

    inputs = (sparse(counts(3, 6, 0.5)), *parameters(3, 6)[:2])
    exported = torch.export.export(Loss(), inputs)
    assert "csr_likelihood" in str(exported.graph)
    torch.testing.assert_close(exported.module()(*inputs), Loss()(*inputs))


def test_flops() -> None:
    """Those of the layer's products, as with a dense target."""
    x, inputs = counts(4, 6, 0.5), layer(4, 6)
    found = []
    for target in (x, sparse(x)):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            results(HEADS["negative_binomial"], target, inputs)
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@pytest.mark.no_poison
def test_compiled(kernels: str) -> None:
    """A graph takes the tensors of the target; sparse ones Dynamo refuses."""

    def f(crow: Tensor, col: Tensor, values: Tensor, *inputs: Tensor) -> Tensor:
        csr = Csr(crow, col, values, inputs[0].shape[-1])
        m, th, h, w, b, n = inputs
        nll = vae_fast.negative_binomial_nll(m, csr, th) + vae_fast.multinomial_nll(m, csr)
        return nll + HEADS["zero_inflated"](csr, h, w, b, n, th)

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, features in ((3, 6), (5, 40)):
        csr = Csr.of(sparse(counts(batch, features, 0.5)))
        inputs = [*parameters(batch, features)[:2], *layer(batch, features)[:4]]
        inputs = [t.requires_grad_() for t in inputs]
        for got, want in zip(
            *(
                (g := fn(*csr.parts[:3], *inputs), *torch.autograd.grad(g.sum(), inputs))
                for fn in (compiled, f)
            ),
            strict=True,
        ):
            torch.testing.assert_close(got, want)
