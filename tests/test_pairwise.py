"""The op `pairwise` and what is made of it, next to the (B, M, D) lines of beta-TCVAE and of mixture priors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast
from conftest import DTYPES, assert_accurate, assert_same_bits_for_threads, bits, needs_native, state
from likelihoods import leaf, make
from vae_fast.backends.native import cpu
from vae_fast.ops import mixture_kl as mixture_kl_op

OP = torch.ops.vae_fast.pairwise
N = 5000


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """matrix_log_density_gaussian and _compute_log_gauss_density."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu) ** 2 * torch.exp(-logvar))


def paper_weights(m: int, n: int) -> Tensor:
    """Row by row, as appendix C.2 has them: the own sample, the next, all others."""
    w = torch.full((m, m), 1 / max(1, m - 1), dtype=torch.float64)
    for i in range(m):
        w[i, (i + 1) % m] = (n - (m - 1)) / (n * max(1, m - 1))
        w[i, i] = 1 / n if m > 1 else 1.0
    return w.log()


def library_weights(batch: int, n: int) -> Tensor:
    """_log_importance_weight_matrix of rtqichen/beta-tcvae, disentangling-vae and pythae, line by line."""
    m = batch - 1
    strat = (n - m) / (n * m)
    w = torch.empty(batch, batch, dtype=torch.float64).fill_(1 / m)
    w.view(-1)[:: m + 1] = 1 / n
    w.view(-1)[1 :: m + 1] = strat
    w[m - 1, 0] = strat
    return w.log()


# Results, what rounding acts on in each, and the numbers that are taken off a term before exp: their rounding is a
# relative error of each share.
Terms = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


def plain(estimator: str, z: Tensor, mu: Tensor, logvar: Tensor) -> Terms:
    """loss_function of pythae's BetaTCVAE, of tensors of pairs (B, B, D)."""
    batch = len(z)
    given = {"mss": paper_weights, "mss_columns": library_weights}.get(estimator)
    w = torch.full((batch, batch), -math.log(batch * N)) if given is None else given(batch, N)
    w = w.to(z.dtype)
    pairs = log_normal(z, mu, logvar)
    own_z, own = (t.diagonal(0, 0, 1).T for t in (z, pairs))
    log_q = torch.logsumexp(w + pairs.sum(-1), -1)
    log_marginals = torch.logsumexp(w[..., None] + pairs, 1)
    log_prior = log_normal(own_z, torch.zeros_like(own_z), torch.zeros_like(own_z))
    q, marginals, conditional, prior = (
        t.abs().sum(-1) if t.ndim > 1 else t.abs() for t in (log_q, log_marginals, own, log_prior)
    )
    exponents = log_q, log_marginals
    log_marginals = log_marginals.sum(-1)
    values = own.sum(-1) - log_q, log_q - log_marginals, log_marginals - log_prior.sum(-1)
    return values, (conditional + q, q + marginals, marginals + prior), exponents


def terms(estimator: str, z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
    return tuple(vae_fast.aggregate_posterior(z, mu, logvar, N, estimator))


def pairs_of(z: Tensor, mu: Tensor, *others: Tensor) -> list[Tensor]:
    shape = (len(z), *mu.shape)
    return [z[:, None].expand(shape), *(t.expand(shape[: t.ndim + 1]) for t in (mu, *others))]


def posterior(batch: int, *dims: int, dtype: torch.dtype = torch.float32, far: float = 0) -> list[Tensor]:
    """z, mu, logvar; `far` from their own."""
    mu, logvar = make(batch, *dims), 0.7 * make(batch, *dims, seed=1) - 1
    z = mu + torch.exp(0.5 * logvar) * make(batch, *dims, seed=2) + far * make(batch, *dims, seed=3)
    return [leaf(t.to(dtype)) for t in (z, mu, logvar)]


def mixture_of(components: int, dims: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """means, logvars, logits"""
    shapes = ((components, dims), (components, dims), (components,))
    return [leaf(0.8 * make(*s, seed=7 + i).to(dtype)) for i, s in enumerate(shapes)]


def plain_mixture(z: Tensor, means: Tensor, logvars: Tensor, logits: Tensor) -> Terms:
    """Of tensors of pairs."""
    pairs = log_normal(z, means, logvars)
    log_p = torch.logsumexp(torch.log_softmax(logits, -1) + pairs.sum(-1), -1)
    return (log_p,), (pairs.abs().sum(-1).amin(-1),), (log_p,)


def compare(
    what: str, function: Any, plain: Any, inputs: list[Tensor], pairs: Any = pairs_of, rows: int = 1
) -> None:
    """Values and gradients against float64 by the house rule. The plain lines are given tensors of pairs, whose
    gradients' absolute sum is what rounding acts on. rows: how many of the inputs are of rows."""
    got = [leaf(t) for t in inputs]
    outs = function(*got)
    outs = outs if isinstance(outs, tuple) else (outs,)
    factors = [make(*o.shape, seed=20 + i).to(o.dtype) for i, o in enumerate(outs)]
    grads = torch.autograd.grad(sum((o * f).sum() for o, f in zip(outs, factors, strict=True)), got)
    results = []
    for dtype in (torch.float64, torch.float32):
        given = [leaf(t.to(dtype)) for t in pairs(*inputs)]
        values, scales, exponents = plain(*given)
        lost = max(1.0, *(e.abs().max().item() for e in exponents))
        by_pair = torch.autograd.grad(sum((o * f).sum() for o, f in zip(values, factors, strict=True)), given)
        sums = [
            tuple(over_pairs(g, t, i < rows) for g in (grad, lost * grad.abs()))
            for i, (grad, t) in enumerate(zip(by_pair, inputs, strict=True))
        ]
        results.append([*((v.detach(), s.detach()) for v, s in zip(values, scales, strict=True)), *sums])
    for i, (found, (want, scale), (own, _)) in enumerate(zip([*outs, *grads], *results, strict=True)):
        assert_accurate(f"{what}, {i}", found.detach(), want, own.to(found.dtype), scale)


def over_pairs(grad: Tensor, like: Tensor, is_row: bool) -> Tensor:
    """Pairs are (draws, rows, columns, dims)."""
    if not is_row:
        return grad.sum_to_size(like.shape)
    return grad.sum(-2).reshape(-1, *like.shape).sum(0)


@pytest.mark.parametrize("estimator", ["mss", "mws", "mss_columns"])
def test_terms_and_gradients(backend: str, estimator: str) -> None:
    for batch, dims in ((2, 3), (17, 5), (37, 2), (70, 1)):
        compare(
            f"{batch}, {dims}", partial(terms, estimator), partial(plain, estimator), posterior(batch, dims)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    inputs = posterior(9, 4, dtype=dtype)
    assert {t.dtype for t in terms("mss", *inputs)} == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }
    compare("terms", partial(terms, "mss"), partial(plain, "mss"), inputs)
    compare(
        "mixture",
        vae_fast.mixture_log_prob,
        plain_mixture,
        [make(5, 3, dtype=dtype), *mixture_of(6, 3, dtype)],
    )


def test_more_columns_than_a_block(backend: str) -> None:
    """Of the CPU engine: 512, whose sums are carried on; all rows of a tile and the last ones."""
    inputs = [make(7, 3), *mixture_of(1100, 3)]
    compare("mixture", vae_fast.mixture_log_prob, plain_mixture, inputs)
    if backend in ("cpu", "reference"):
        compare("terms", partial(terms, "mss"), partial(plain, "mss"), posterior(530, 2))


def test_z_far_from_its_own_posterior(backend: str) -> None:
    """The sum that is shifted by the own term overflows, or holds only what has lost its digits."""
    for far in (3.0, 30.0):
        compare(f"{far}", partial(terms, "mss"), partial(plain, "mss"), posterior(40, 3, far=far))


def test_one_sample_is_all_there_is(backend: str) -> None:
    """Stratified weights of a batch of one: q(z) is its own posterior."""
    for estimator in ("mss", "mss_columns"):
        inputs = posterior(1, 3)
        information, correlation, kl = vae_fast.aggregate_posterior(*inputs, N, estimator)
        zero = torch.zeros(1)
        torch.testing.assert_close((information, correlation), (zero, zero), rtol=0, atol=1e-6)
        z, mu, logvar = inputs
        want = (log_normal(z, mu, logvar) - log_normal(z, torch.zeros(3), torch.zeros(3))).sum(-1)
        torch.testing.assert_close(kl, want)


def test_the_bias_that_is_documented() -> None:
    """Posteriors far from each other: weighted sampling has (D - 1) log M too much."""
    batch, dims = 8, 4
    mu = 100 * torch.arange(batch * 1.0)[:, None].expand(batch, dims)
    z = mu + make(batch, dims)
    mws, mss = (terms(e, z, mu, torch.zeros(batch, dims)) for e in ("mws", "mss"))
    excess = mws[1] - mss[1]
    torch.testing.assert_close(
        excess, torch.full((batch,), (dims - 1) * math.log(batch)), rtol=1e-5, atol=1e-4
    )


def test_layouts(backend: str) -> None:
    """Strides of any kind, more than one latent dim, expanded and 16-bit columns beside float32 rows."""
    z, mu, logvar = posterior(6, 4, 3)
    want = vae_fast.aggregate_posterior(*(t.detach().flatten(1) for t in (z, mu, logvar)), N)
    moments = torch.stack((mu, logvar), -1).detach()
    got = vae_fast.aggregate_posterior(z.detach().mT.contiguous().mT, moments[..., 0], moments[..., 1], N)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)
    rows, means, logvars, logits = make(2, 3, 4), make(5, 8)[:, ::2], leaf(make(4)), leaf(make(10))
    got = vae_fast.mixture_log_prob(rows.mT.contiguous().mT, means, logvars.expand(5, 4), logits[::2])
    grads = torch.autograd.grad(got.sum(), (logvars, logits))
    want = vae_fast.reference.mixture_log_prob(rows, means, logvars.expand(5, 4), logits[::2])
    assert got.shape == (2, 3)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, torch.autograd.grad(want.sum(), (logvars, logits)))
    half = vae_fast.mixture_log_prob(rows, means.bfloat16(), logvars.expand(5, 4), logits[::2])
    torch.testing.assert_close(
        half, vae_fast.mixture_log_prob(rows, means.bfloat16().float(), logvars.expand(5, 4), logits[::2])
    )
    assert vae_fast.mixture_log_prob(rows[0, 0], means, logvars.expand(5, 4)).shape == ()


def test_empty(backend: str) -> None:
    for rows, columns, dims in ((0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)):
        z, (means, logvars, logits) = leaf(make(rows, dims)), mixture_of(columns, dims)
        got = vae_fast.mixture_log_prob(z, means, logvars, logits)
        want = torch.zeros(rows) if columns else torch.full((rows,), -math.inf)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        grads = torch.autograd.grad(got.sum(), (z, means, logvars, logits))
        torch.testing.assert_close(grads, tuple(map(torch.zeros_like, grads)), rtol=0, atol=1e-6)
    for batch, dims in ((0, 3), (3, 0)):
        inputs = posterior(batch, dims)
        found = terms("mss", *inputs)
        assert all(t.shape == (batch,) for t in found)
        grads = torch.autograd.grad(sum(t.sum() for t in found), inputs)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_infinities_and_nan(backend: str) -> None:
    """As the plain lines give them, in their own row or in all, and no more."""
    for bad in (math.nan, math.inf, -math.inf):
        for which in range(4):
            inputs = [t.detach().clone() for t in (make(5, 3), *mixture_of(4, 3))]
            inputs[which].view(-1)[1] = bad
            if which == 2 and bad == -math.inf:
                continue  # 0 inf or inf - inf, whichever comes first
            torch.testing.assert_close(
                vae_fast.mixture_log_prob(*inputs),
                vae_fast.reference.mixture_log_prob(*inputs),
                equal_nan=True,
            )
        for which in range(2):
            inputs = [t.detach().clone() for t in posterior(5, 3)]
            inputs[which][1, 2] = bad
            got, want = (
                f(*inputs, N) for f in (vae_fast.aggregate_posterior, vae_fast.reference.aggregate_posterior)
            )
            torch.testing.assert_close(tuple(got), tuple(want), equal_nan=True, rtol=1e-5, atol=1e-5)


def plain_kl(
    mu: Tensor, logvar: Tensor, means: Tensor, logvars: Tensor, logits: Tensor, eps: Tensor
) -> Terms:
    """Of tensors of (draws, batch, components, dims), eps but for the components."""
    eps = eps.to(mu.dtype)[:, :, None]
    pairs = log_normal(mu + torch.exp(0.5 * logvar) * eps, means, logvars)
    log_p = torch.logsumexp(torch.log_softmax(logits, -1) + pairs.sum(-1), -1)
    log_q = -0.5 * (eps * eps + logvar + math.log(2 * math.pi))
    kl = (log_q.mean(2).sum(-1) - log_p).mean(0)
    return (kl,), ((log_q.abs().mean(2).sum(-1) + log_p.abs()).mean(0),), (log_p,)


def draws_of(mu: Tensor, logvar: Tensor, means: Tensor, logvars: Tensor, logits: Tensor) -> list[Tensor]:
    shape = (7, len(mu), *means.shape)
    rows = [t[:, None].expand(shape) for t in (mu, logvar)]
    return [*rows, means.expand(shape), logvars.expand(shape), logits.expand(shape[:-1])]


def test_mixture_kl(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the noise contract, in one go and in chunks of 3 of 7 draws, in every kind of state."""
    inputs = [make(5, 3), make(5, 3, seed=1), *mixture_of(6, 3)]
    for chunk in (1 << 20, 45):
        monkeypatch.setattr(mixture_kl_op, "CHUNK", chunk)
        for rng_state in (state(), torch.tensor([1, 2, 4, 30]), torch.arange(10).view(5, 2)):
            eps = vae_fast.reference.noise((5, 3), rng_state, num_samples=7)
            for given in ({"rng_state": rng_state}, {"noise": eps}):
                kl = partial(vae_fast.mixture_kl, num_samples=7, **given)
                compare(f"{chunk}, {rng_state}", kl, partial(plain_kl, eps=eps), inputs, draws_of, rows=2)
    torch.manual_seed(3)
    first = vae_fast.mixture_kl(*inputs)
    torch.manual_seed(3)
    assert torch.equal(vae_fast.mixture_kl(*inputs), first)


def test_mixture_kl_of_one_gaussian() -> None:
    """The closed form, within four standard errors of 400 draws."""
    mu, logvar, mean, logvar_p = make(2, 3), make(2, 3, seed=1), make(1, 3, seed=2), make(1, 3, seed=3)
    got = vae_fast.mixture_kl(mu, logvar, mean, logvar_p, num_samples=400, rng_state=state())
    z = vae_fast.reparameterize(mu, logvar, num_samples=400, rng_state=state())
    error = (log_normal(z, mu, logvar) - log_normal(z, mean, logvar_p)).sum(-1).std(0) / 20
    assert ((got - vae_fast.kl_divergence(mu, logvar, prior=(mean, logvar_p))).abs() < 4 * error).all()


def test_autograd_behaviour(kernels: str) -> None:
    inputs = posterior(5, 3)
    joint, dims = vae_fast.ops.pairwise.pairwise(*inputs, first=0, dataset_size=N)
    assert dims is not None
    first = torch.autograd.grad((joint * dims.sum(1)).sum(), inputs, retain_graph=True)
    again = torch.autograd.grad((joint * dims.sum(1)).sum(), inputs, create_graph=True)
    assert all(map(torch.equal, first, again))
    with pytest.raises(RuntimeError, match="second derivative"):
        again[0].sum().backward()
    with vae_fast.backend("reference"):
        others = vae_fast.ops.pairwise.pairwise(*inputs, first=0, dataset_size=N)
    for got, other in zip((joint, dims), others, strict=True):  # one of two has no gradient
        grads = torch.autograd.grad(got.sum(), inputs, retain_graph=True)
        want = torch.autograd.grad(other.sum(), inputs, retain_graph=True)
        torch.testing.assert_close(grads, want, rtol=1e-4, atol=1e-4)
    (only,) = torch.autograd.grad(joint.sum(), inputs[1:2])
    assert only.shape == (5, 3)
    through_op = OP(*inputs, None, 0, N, True)
    torch.testing.assert_close(through_op[:2], (joint, dims))
    torch.testing.assert_close(
        torch.autograd.grad((through_op[0] * through_op[1].sum(1)).sum(), inputs), first
    )
    joint, nothing = vae_fast.ops.pairwise.pairwise(*inputs, want_dims=False)
    assert nothing is None


def test_weights_of_columns_have_a_gradient_through_each_dim(kernels: str) -> None:
    z, (means, logvars, weights) = make(6, 3), mixture_of(20, 3)
    got = vae_fast.ops.pairwise.pairwise(z, means, logvars, weights)
    with vae_fast.backend("reference"):
        want = vae_fast.ops.pairwise.pairwise(z, means, logvars, weights)
    factors = make(6, seed=3), make(6, 3, seed=4)
    grads = [
        torch.autograd.grad((j * factors[0]).sum() + (d * factors[1]).sum(), (means, logvars, weights))
        for j, d in (got, want)
    ]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_gradcheck() -> None:
    """The reference, and in float64 through the library op the closed form that stands for a kernel."""
    inputs = posterior(4, 2, dtype=torch.float64)
    for estimator in ("mss", "mws", "mss_columns"):
        assert torch.autograd.gradcheck(
            lambda *a, e=estimator: tuple(vae_fast.aggregate_posterior(*a, N, e)), inputs
        )
    assert torch.autograd.gradcheck(lambda *a: OP(*a, None, 0, N, True)[:2], inputs)
    mixture = mixture_of(3, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda z, m, v, w: OP(z, m, v, w, None, None, True)[:2], (inputs[0], *mixture)
    )
    assert torch.autograd.gradcheck(
        lambda *a: vae_fast.mixture_kl(*a, num_samples=2, rng_state=state()), (*inputs[1:], *mixture)
    )
    assert torch.autograd.gradcheck(
        lambda *a: torch.ops.vae_fast.mixture_kl(*a, state(), None, 2)[0], (*inputs[1:], *mixture)
    )


@needs_native
def test_bits_of_threads_and_instruction_sets() -> None:
    inputs, (means, logvars, logits) = posterior(150, 6), mixture_of(70, 6)

    def compute() -> list[Tensor]:
        found = terms("mss", *inputs)
        kl = vae_fast.mixture_kl(*inputs[1:], means, logvars, logits, num_samples=3, rng_state=state())
        grads = torch.autograd.grad(found[1], inputs, make(150))
        return [*found, kl, *grads, *torch.autograd.grad(kl, (means, logvars), make(150))]

    assert_same_bits_for_threads(compute)
    before, found = cpu.extension.isa(), []
    try:
        for isa in cpu.extension.available_isas()[1:]:  # those with FMA
            cpu.extension.use_isa(isa)
            found.append([bits(t) for t in compute()])
    finally:
        cpu.extension.use_isa(before)
    assert all(other == found[0] for other in found)


def test_opcheck(kernels: str) -> None:
    inputs, mixture = posterior(4, 3), mixture_of(5, 3)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for args in ((*inputs, None, 0, N, True), (inputs[0], *mixture, None, None, False)):
        torch.library.opcheck(OP, args, test_utils=checks)
    torch.library.opcheck(
        torch.ops.vae_fast.mixture_kl, (*inputs[1:], *mixture, state(), None, 2), test_utils=checks
    )


@pytest.mark.no_poison
def test_compiled_and_exported_with_any_batch() -> None:
    """One graph, whatever the batch is."""

    def loss(z: Tensor, mu: Tensor, logvar: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
        both = [vae_fast.aggregate_posterior(z, mu, logvar, N, e) for e in ("mss", "mws")]
        log_prob = vae_fast.mixture_log_prob(z, means, logvars)
        kl = vae_fast.mixture_kl(mu, logvar, means, logvars, num_samples=2, rng_state=torch.tensor([1, 2]))
        return sum(sum(t) for t in both) + log_prob + kl

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    mixture = [t.detach() for t in mixture_of(5, 3)[:2]]

    class Module(torch.nn.Module):
        forward = staticmethod(loss)

    batch = torch.export.Dim("batch", min=2, max=1000)
    dynamic = ({0: batch}, {0: batch}, {0: batch}, None, None)
    example = (*(t.detach() for t in posterior(6, 3)), *mixture)
    exported = torch.export.export(Module(), example, dynamic_shapes=dynamic).module()
    for n in (6, 9):
        inputs = posterior(n, 3)
        want = loss(*inputs, *mixture)
        for other in (compiled, exported):
            got = other(*inputs, *mixture)
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(
                torch.autograd.grad(got.sum(), inputs),
                torch.autograd.grad(want.sum(), inputs, retain_graph=True),
            )


def test_wrong_arguments() -> None:
    z, mu, logvar = posterior(4, 3)
    means, logvars, logits = mixture_of(5, 3)
    aggregate, log_prob, kl = vae_fast.aggregate_posterior, vae_fast.mixture_log_prob, vae_fast.mixture_kl
    eps = z.detach()
    for error, message, call in (
        (ValueError, r"expected z to have shape \(4, 3\) like mu", lambda: aggregate(z[:2], mu, logvar, N)),
        (ValueError, "expected estimator to be", lambda: aggregate(z, mu, logvar, N, "iwae")),
        (ValueError, "at least the batch of 4, but got 3", lambda: aggregate(z, mu, logvar, 3)),
        (TypeError, "expected dataset_size to be an int", lambda: aggregate(z, mu, logvar, 1.5)),  # type: ignore[arg-type]
        (ValueError, r"means to have shape \(components, 3\)", lambda: log_prob(z, means[:, :2], logvars)),
        (ValueError, r"logvars to have shape \(5, 3\) like means", lambda: log_prob(z, means, logvars[:4])),
        (
            ValueError,
            r"expected logits to have shape \(5,\)",
            lambda: log_prob(z, means, logvars, logits[:3]),
        ),
        (ValueError, r"mu to have shape \(batch, dims\)", lambda: kl(mu[0], logvar[0], means, logvars)),
        (ValueError, "num_samples to be at least 1", lambda: kl(mu, logvar, means, logvars, num_samples=0)),
        (ValueError, "expected noise to have shape", lambda: kl(mu, logvar, means, logvars, noise=eps)),
    ):
        with pytest.raises(error, match=message):
            call()  # type: ignore[no-untyped-call]
