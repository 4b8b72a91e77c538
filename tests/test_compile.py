"""Under torch.compile, fake and meta tensors, dispatch modes and functorch the ops are pure library functions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import vae_fast
from conftest import LOGVAR, needs_native, state

pytestmark = [pytest.mark.no_poison, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]
LATENT = torch.ops.vae_fast.latent
LIKELIHOOD = torch.ops.vae_fast.likelihood


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    return


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def everything(mu, logvar, moments, prior_mu, prior_logvar, target, feature, rng_state):
    """One loss over every public function."""
    prior = (prior_mu, prior_logvar)
    z, kl = vae_fast.reparameterize_kl(
        mu, logvar, prior=prior, clamp=(-1.0, 1.0), num_samples=2, rng_state=rng_state
    )
    z1, kl1 = vae_fast.reparameterize_kl_packed(moments, rng_state=rng_state)
    z2 = vae_fast.reparameterize(mu, logvar, rng_state=rng_state)
    kl2 = vae_fast.kl_divergence(mu, logvar)
    eps = vae_fast.noise(mu.shape, rng_state)
    nll = vae_fast.bernoulli_nll(mu, target) + vae_fast.gaussian_nll(logvar, target, feature)
    each = vae_fast.kl_divergence(mu, logvar, reduction="none") * vae_fast.gaussian_nll(
        logvar, target, feature, reduction="none"
    )
    loss = (z * z).sum() + (kl * kl1).sum() + (z1 * z2 * eps).sum() + (kl2 * nll).sum() + each.sum()
    return loss, z, kl, z1, kl1, z2, kl2, eps, nll, each


def arguments(batch: int = 8, size: int = 6) -> tuple[Tensor, ...]:
    target = torch.rand(batch, size, generator=torch.Generator().manual_seed(9))
    return (
        leaf(batch, size),
        leaf(batch, size, seed=1),
        leaf(batch, 2 * size, seed=2),
        leaf(size, seed=3),
        leaf(seed=4),
        target,
        leaf(1, size, seed=5),
        state(),
    )


def run(function, args):
    outputs = function(*args)
    return *outputs, *torch.autograd.grad(outputs[0], [a for a in args if a.requires_grad])


def check(compiled, *sizes: tuple[int, int]) -> None:
    for size in sizes:
        args = arguments(*size)
        for got, want in zip(run(compiled, args), run(everything, args), strict=True):
            assert got.stride() == want.stride() and got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@needs_native
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic: bool) -> None:
    """The whole graph, no breaks, static and dynamic shapes; the same noise as eager for the same rng_state."""
    with vae_fast.backend("cpu"):
        check(
            torch.compile(everything, fullgraph=True, dynamic=dynamic), (8, 6), *([(5, 7)] if dynamic else [])
        )


def likelihoods(logits, theta, params, target, image, rng_state):
    """One loss over every likelihood, with masks, a weight and a binarization among them."""
    mean, mask, weight = logits.exp(), target > 0.2, target[:, 0]
    nll = vae_fast.bernoulli_nll(logits, target, binarize=True, rng_state=rng_state)
    nll = nll + vae_fast.bernoulli_nll(logits, vae_fast.binarize(target, rng_state), mask=mask)
    nll = nll + vae_fast.continuous_bernoulli_nll(logits, target, weight=weight)
    nll = nll + vae_fast.laplace_nll(logits, target, theta) + vae_fast.gaussian_nll(logits, target, 0.3)
    nll = nll + vae_fast.discretized_logistic_nll(logits, (target * 255).to(torch.uint8), -2.0)
    counts = (target * 9).to(torch.int32)
    nll = nll + vae_fast.poisson_nll(mean, counts) + vae_fast.negative_binomial_nll(mean, counts, theta.exp())
    nll = nll + vae_fast.zero_inflated_negative_binomial_nll(mean, counts, theta.exp(), logits, mask=mask)
    nll = nll + vae_fast.multinomial_nll(logits, counts, mask=mask[:, 0])
    nll = nll + vae_fast.categorical_nll(params, image[:, 0].long(), mask=mask[:, :1])
    mixture = vae_fast.discretized_logistic_mixture_nll(params.mT, image, mask=mask[:, :1, None])
    return (nll * mixture).sum(), nll, mixture


def likelihood_arguments(batch: int = 8, size: int = 6) -> tuple[Tensor, ...]:
    target = torch.rand(batch, size, generator=torch.Generator().manual_seed(9))
    image = (torch.rand(batch, 3, size, generator=torch.Generator().manual_seed(8)) * 20).to(torch.uint8)
    return leaf(batch, size), leaf(size, seed=1), leaf(batch, size, 20, seed=2), target, image, state()


def check_likelihoods(compiled, *sizes: tuple[int, int]) -> None:
    for size in sizes:
        args = likelihood_arguments(*size)
        for got, want in zip(run(compiled, args), run(likelihoods, args), strict=True):
            assert got.stride() == want.stride() and got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_whole_graph_of_likelihoods(kernels: str) -> None:
    """With static shapes first, then with dynamic ones: the second size marks what may vary."""
    compiled = torch.compile(likelihoods, fullgraph=True, backend="aot_eager")
    check_likelihoods(compiled, (8, 6), (5, 7), (9, 4))


def test_dynamo_follows_the_reference() -> None:
    with vae_fast.backend("reference"):
        check_likelihoods(torch.compile(likelihoods, fullgraph=True, backend="eager"), (8, 6))


@needs_native
def test_inductor_on_likelihoods() -> None:
    """Inductor chooses strides of its own for what it makes; the ops honour any."""

    def f(logits, theta, params, target, image, rng_state):
        nll = vae_fast.zero_inflated_negative_binomial_nll(logits.exp(), target, theta.exp(), logits)
        mixture = vae_fast.discretized_logistic_mixture_nll(params.mT.sin(), image)
        return (nll * mixture * vae_fast.multinomial_nll(logits, target)).sum(), nll, mixture

    args = likelihood_arguments()
    with vae_fast.backend("cpu"):
        for got, want in zip(run(torch.compile(f, fullgraph=True), args), run(f, args), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_inductor_compiles_the_reference() -> None:
    def f(mu, logvar, rng_state):
        z, kl = vae_fast.reparameterize_kl(mu, logvar, rng_state=rng_state)
        return z.sum() + kl.sum(), z, kl

    args = (leaf(5, 7), leaf(5, 7, seed=1), state())
    with vae_fast.backend("reference"):
        for got, want in zip(run(torch.compile(f, fullgraph=True), args), run(f, args), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dynamic", [False, True])
def test_whole_graph(kernels: str, dynamic: bool) -> None:
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    check(compiled, (8, 6), (5, 7))


def test_whole_graph_of_the_reference() -> None:
    """Once, with dynamic shapes: its many small operations take the compiler a minute."""
    with vae_fast.backend("reference"):
        check(torch.compile(everything, fullgraph=True, dynamic=True, backend="aot_eager"), (8, 6), (5, 7))


def test_dynamic_shapes_compile_once(kernels: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend=counter)
    check(compiled, (8, 6), (5, 7), (64, 33))
    assert counter.frame_count == 1


@pytest.mark.parametrize("draws", [None, 2])
def test_layouts(kernels: str, draws: int | None) -> None:
    """Channels-last and packed inputs: compiled results have the strides that eager ones have."""

    def f(moments, rng_state):
        z, kl = vae_fast.reparameterize_kl_packed(moments, num_samples=draws, rng_state=rng_state)
        return (z * z).sum() + kl.sum(), z, kl

    moments = leaf(2, 6, 3, 5).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for got, want in zip(run(compiled, (moments, state())), run(f, (moments, state())), strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_noise_drawn_inside(compiler: str) -> None:
    """Every call draws fresh noise, torch.manual_seed repeats it, and backward uses forward's."""
    with vae_fast.backend("twin"):
        _check_noise_drawn_inside(compiler)


def _check_noise_drawn_inside(compiler: str) -> None:

    @torch.compile(fullgraph=True, backend=compiler)
    def f(mu, logvar):
        z, kl = vae_fast.reparameterize_kl(mu, logvar)
        return z, kl

    mu, logvar = torch.zeros(16, 8, requires_grad=True), torch.zeros(16, 8, requires_grad=True)
    torch.manual_seed(1)
    z, _ = f(mu, logvar)
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    assert torch.equal(2 * grad, z)  # z is eps, and its derivative is eps / 2
    other, _ = f(mu, logvar)
    torch.manual_seed(1)
    again, _ = f(mu, logvar)
    assert torch.equal(z, again) and not torch.equal(z, other)
    if compiler == "aot_eager":  # Inductor's generator is its own, unless fallback_random is set
        torch.manual_seed(1)
        assert torch.equal(vae_fast.reparameterize_kl(mu, logvar)[0], z)


def test_compiled_code_follows_the_backend() -> None:
    """Switching to the reference retraces instead of keeping the old choice."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(mu, logvar):
        return vae_fast.reparameterize(mu, logvar, rng_state=state_)

    state_ = state()
    mu = torch.zeros(64, 64)
    with vae_fast.backend("reference"):
        reference = f(mu, mu)
        assert torch.equal(reference, vae_fast.noise((64, 64), state_))
    with vae_fast.backend("twin"):
        assert torch.equal(f(mu, mu), reference)
    assert torch.equal(f(mu, mu), vae_fast.noise((64, 64), state_))


@needs_native
def test_compiled_and_eager_run_the_same_kernel() -> None:
    mu, logvar = leaf(33, 17), leaf(33, 17, seed=1)

    def f(mu, logvar):
        return vae_fast.reparameterize_kl(mu, logvar, rng_state=state_)

    state_ = state()
    with vae_fast.backend("cpu"):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        for got, want in zip(compiled(mu, logvar), f(mu, logvar), strict=True):
            assert torch.equal(got, want)


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
PLAIN = (leaf(4, 6), leaf(4, 6, seed=1), 1)
PACKED = (leaf(4, 6, 3), None, 1)
SAMPLES = {
    "plain": (*PLAIN, None, None, state(), None, None, None, True, True, False),
    "prior": (*PLAIN, leaf(6, seed=2), leaf(seed=3), state(), None, (-1.0, 1.0), 2, True, True, False),
    "odd prior": (
        *PLAIN,
        leaf(4, 1, seed=2),
        leaf(1, 6, seed=3),
        state(),
        None,
        None,
        None,
        True,
        True,
        False,
    ),
    "given noise": (*PLAIN, None, None, None, torch.randn(3, 4, 6), None, 3, True, True, False),
    "z alone": (*PLAIN, None, None, torch.arange(8).view(4, 2), None, None, 2, True, False, False),
    "kl alone": (*PLAIN, None, None, None, None, None, None, False, True, False),
    "packed": (*PACKED, None, None, state(), None, None, None, True, True, False),
    "packed last": (
        leaf(4, 3, 6),
        None,
        -1,
        leaf(3, seed=2),
        leaf(3, seed=3),
        state(),
        None,
        None,
        2,
        True,
        True,
        True,
    ),
    "per element": (*PLAIN, leaf(6, seed=2), leaf(seed=3), state(), None, None, None, True, True, True),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_latent(kernels: str, name: str) -> None:
    torch.library.opcheck(LATENT, (*SAMPLES[name], *LOGVAR), test_utils=OPCHECKS)


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_latent_backward(kernels: str, packed: bool) -> None:
    """As it is called from backward: on tensors that need no gradient."""
    first = [
        None if t is None else t.detach() if isinstance(t, Tensor) else t
        for t in (PACKED if packed else PLAIN)
    ]
    shape = (4, 3, 3) if packed else (4, 6)
    needs, rest = (
        [True, not packed, False, False],
        (None, None, state(), None, (-1.0, 1.0), 2, True, True, False, *LOGVAR, []),
    )
    args = (needs, torch.randn(2, *shape), torch.randn(4), *first, *rest)
    torch.library.opcheck(torch.ops.vae_fast.latent_backward, args, test_utils=OPCHECKS)
    args = (needs, None, torch.randn(4), *first, *rest)
    torch.library.opcheck(torch.ops.vae_fast.latent_backward, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("shape", [(4, 6), (6,), ()], ids=str)
def test_opcheck_likelihood(kernels: str, shape: tuple[int, ...]) -> None:
    target = torch.rand(4, 6)
    params = [leaf(4, 6), leaf(*shape, seed=1)]
    for each in (False, True):
        torch.library.opcheck(LIKELIHOOD, ("gaussian", target, None, None, each, params), test_utils=OPCHECKS)
    torch.library.opcheck(
        LIKELIHOOD, ("bernoulli", target > 0.5, None, None, False, params[:1]), test_utils=OPCHECKS
    )
    params = [p.detach() for p in params]
    args = ([True, True], torch.randn(4), "gaussian", target, None, None, False, params, [])
    torch.library.opcheck(torch.ops.vae_fast.likelihood_backward, args, test_utils=OPCHECKS)


def test_opcheck_likelihood_with_options(kernels: str) -> None:
    counts, mask = torch.randint(0, 5, (4, 6)), torch.rand(4, 6) > 0.3
    params = [
        leaf(4, 6).exp().detach().requires_grad_(),
        torch.ones(6, requires_grad=True),
        leaf(4, 6, seed=1),
    ]
    args = ("zero_inflated_negative_binomial", counts, mask, None, False, params)
    torch.library.opcheck(LIKELIHOOD, args, test_utils=OPCHECKS)
    args = ("bernoulli", torch.rand(4, 6), mask[0], state(), True, params[2:])
    torch.library.opcheck(LIKELIHOOD, args, test_utils=OPCHECKS)
    torch.library.opcheck(torch.ops.vae_fast.binarize, (torch.rand(4, 6), state()), test_utils=OPCHECKS)


def test_opcheck_categorical(kernels: str) -> None:
    op, mask = torch.ops.vae_fast.categorical, torch.rand(4, 3) > 0.3
    for target in (torch.randint(0, 6, (4, 3)), torch.randint(0, 6, (4, 3, 6))):
        for each in (False, True):
            torch.library.opcheck(op, (leaf(4, 3, 6), target, mask, each), test_utils=OPCHECKS)
        logits = leaf(4, 6, 3).mT.detach()
        _, kept = op(logits, target, None, False)
        args = ([True], torch.randn(4), logits, target, None, False, kept)
        torch.library.opcheck(torch.ops.vae_fast.categorical_backward, args, test_utils=OPCHECKS)


def test_opcheck_mixture(kernels: str) -> None:
    op, target = torch.ops.vae_fast.mixture, torch.randint(0, 256, (4, 3, 2, 5), dtype=torch.uint8)
    for each, early in ((False, False), (True, False), (False, True), (True, True)):
        torch.library.opcheck(op, (leaf(4, 20, 2, 5), target, None, each, early), test_utils=OPCHECKS)
    params = leaf(4, 20, 2, 5).detach().contiguous(memory_format=torch.channels_last)
    args = ([True], torch.randn(4), params, target, torch.rand(4, 1, 2, 5) > 0.3, False, False, [])
    torch.library.opcheck(torch.ops.vae_fast.mixture_backward, args, test_utils=OPCHECKS)


def test_opcheck_noise(kernels: str) -> None:
    args = (state(), (2, 3, 5), torch.bfloat16)
    torch.library.opcheck(torch.ops.vae_fast.noise, args, test_utils=OPCHECKS)


def test_meta_and_fake_tensors(kernels: str) -> None:
    """No numbers, and the same shapes, strides and dtypes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def f(mu):
        z, kl = vae_fast.reparameterize_kl(mu, mu, num_samples=2)
        return (
            *(z, kl, vae_fast.bernoulli_nll(mu, mu, binarize=True), vae_fast.gaussian_nll(mu, mu)),
            *(vae_fast.multinomial_nll(mu, mu), vae_fast.discretized_logistic_mixture_nll(mu, mu[:, :1])),
        )

    real = torch.randn(2, 6, 3, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    want = f(real)
    with FakeTensorMode() as mode:
        fake = f(mode.from_tensor(real))
    for got in (f(real.to("meta")), fake):
        for a, b in zip(got, want, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_dispatch_modes_see_one_op(kernels: str) -> None:
    """Selective checkpointing, profilers and the like can name the op."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Log():
        vae_fast.reparameterize_kl(leaf(2, 3), leaf(2, 3), rng_state=state())
    assert LATENT.default in seen


def test_functorch(kernels: str) -> None:
    """Transforms are served by the plain expression: reverse and forward derivatives, vmap."""
    mu, logvar = leaf(3, 4).detach(), leaf(3, 4, seed=1).detach()
    got = torch.func.grad(lambda m: vae_fast.kl_divergence(m, logvar).sum())(mu)
    torch.testing.assert_close(got, mu)
    _, tangent = torch.func.jvp(lambda m: vae_fast.kl_divergence(m, logvar), (mu,), (torch.ones(3, 4),))
    torch.testing.assert_close(tangent, mu.sum(1))
    together = torch.func.vmap(vae_fast.kl_divergence)(mu[:, None], logvar[:, None])
    torch.testing.assert_close(together[:, 0], vae_fast.kl_divergence(mu, logvar))
    draws = torch.func.vmap(vae_fast.reparameterize, randomness="different")(
        torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    )
    assert not torch.equal(draws[0], draws[1])


def test_a_tensor_that_escaped_a_transform(kernels: str) -> None:
    """Such a wrapper is a Tensor by its type, but has no memory."""
    escaped: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        escaped.append(2 * x)
        return x.sum()

    x = torch.randn(3, 4)
    torch.func.grad(loss)(x)
    logvar = torch.zeros(3, 4, requires_grad=True)
    expected = vae_fast.kl_divergence(2 * x, logvar)
    assert torch.equal(vae_fast.kl_divergence(escaped[0], logvar), expected)
    with torch.no_grad():
        assert torch.equal(vae_fast.kl_divergence(escaped[0], logvar), expected)


def test_forward_mode(kernels: str) -> None:
    from torch.autograd import forward_ad

    mu, logvar = leaf(3, 4).detach(), leaf(3, 4, seed=1).detach()
    with forward_ad.dual_level():
        kl = vae_fast.kl_divergence(forward_ad.make_dual(mu, torch.ones(3, 4)), logvar)
        torch.testing.assert_close(forward_ad.unpack_dual(kl).tangent, mu.sum(1))


def test_views_with_a_pending_negation(kernels: str) -> None:
    """The imaginary part of a conjugate is a real tensor whose memory holds the opposite numbers."""
    pending = torch.complex(torch.zeros(3, 4), leaf(3, 4).detach()).conj().imag
    assert pending.is_neg()
    for f in (
        lambda m: vae_fast.reparameterize(m, m, rng_state=state()),
        lambda m: vae_fast.bernoulli_nll(m, m),
    ):
        assert torch.equal(f(pending), f(pending.clone()))
    mu, logvar = leaf(3, 4), leaf(3, 4, seed=1)
    weight = torch.randn(3, 4, dtype=torch.complex64)
    z = vae_fast.reparameterize(mu, logvar, rng_state=state())
    (grad,) = torch.autograd.grad(torch.complex(torch.zeros(3, 4), z).conj(), mu, weight)
    torch.testing.assert_close(grad, -weight.imag)


def test_jit_trace(kernels: str) -> None:
    """A kernel called while tracing would leave nothing in the graph."""
    mu = leaf(3, 4).detach()
    traced = torch.jit.trace(lambda m: vae_fast.kl_divergence(m, m), mu)
    torch.testing.assert_close(traced(2 * mu), vae_fast.kl_divergence(2 * mu, 2 * mu))


def test_double_backward_of_the_library_op_is_refused(kernels: str) -> None:
    mu = leaf(3, 4)
    _, kl = LATENT(mu, mu, 1, None, None, None, None, None, None, False, True, False, *LOGVAR)
    (grad,) = torch.autograd.grad(kl.sum(), mu, create_graph=True)
    with pytest.raises(RuntimeError, match=r'second derivative.*backend\("reference"\)'):
        grad.sum().backward()


def test_export(kernels: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, mu, logvar):
            return vae_fast.reparameterize_kl(mu, logvar)

    program = torch.export.export(Module(), (torch.zeros(4, 3), torch.zeros(4, 3)))
    assert "vae_fast.latent" in program.graph_module.code
