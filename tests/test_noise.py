"""The noise contract: exact Philox words, the eps they stand for, and its distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import noise_rows
import vae_fast
from conftest import DTYPES, assert_same_bits_for_threads, needs_native, state
from vae_fast import backends
from vae_fast.backends import reference

KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def philox_of_integers(counter, key):
    """Philox4x32-10 from the paper, on Python's integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q % 2**32, (p >> 32) ^ d ^ k1, p % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


def eps_of_integers(j: int, row: int, seed: int, offset: int) -> float:
    """The noise contract, for one element."""
    seed, offset = seed % 2**64, offset % 2**64
    words = philox_of_integers((j >> 2, row, offset % 2**32, offset >> 32), (seed % 2**32, seed >> 32))
    w0, w1 = words[2 * (j % 4 // 2) :][:2]
    radius = math.sqrt(-2 * math.log((w0 + 0.5) * 2.0**-32))
    angle = 2 * math.pi * w1 * 2.0**-32
    return radius * (math.sin(angle) if j % 2 else math.cos(angle))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words) -> None:
    as_tensors = [[torch.tensor(w) for w in part] for part in (counter, key)]
    assert tuple(w.item() for w in reference.philox(*as_tensors)) == words
    assert philox_of_integers(counter, key) == words


def test_philox_on_random_words() -> None:
    g = torch.Generator().manual_seed(0)
    words = torch.randint(0, 2**32, (6, 200), generator=g)
    got = torch.stack(reference.philox(list(words[:4]), list(words[4:])))
    for i in range(200):
        column = words[:, i].tolist()
        assert tuple(got[:, i].tolist()) == philox_of_integers(column[:4], column[4:])


@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (1, 2), (-1, -(2**63)), (2**62 + 12345, 2**40 + 7)])
@pytest.mark.parametrize("shape", [(3, 10), (2, 3, 5), (6,), (1, 1)], ids=str)
def test_contract(backend: str, seed: int, offset: int, shape: tuple[int, ...]) -> None:
    """Element by element against the contract in double precision, with and without draws and states per sample."""
    size = math.prod(shape[1:])

    def expected(draws: int, row, states) -> Tensor:
        values = [
            eps_of_integers(j, row(k, b), *states[b])
            for k in range(draws)
            for b in range(shape[0])
            for j in range(size)
        ]
        return torch.tensor(values, dtype=torch.float64).view(draws, *shape)

    one = [(seed, offset)] * shape[0]
    many = [(seed ^ (b * 0x9E3779B97F), offset ^ b) for b in range(shape[0])]
    for rng_state, states, rows in (
        (torch.tensor([seed, offset]), one, lambda k, b: k * shape[0] + b),
        (torch.tensor(many), many, lambda k, b: k),
    ):
        want = expected(2, rows, states)
        double = vae_fast.noise(shape, rng_state, num_samples=2, dtype=torch.float64)
        torch.testing.assert_close(double, want, rtol=1e-12, atol=1e-12)
        single = vae_fast.noise(shape, rng_state, num_samples=2)
        assert (single.double() - want).abs().max() <= 4e-6
        assert torch.equal(vae_fast.noise(shape, rng_state), single[0])
        assert torch.equal(vae_fast.noise(shape, rng_state, num_samples=1), single[:1])


@pytest.mark.parametrize(
    ("first_row", "rows"),
    [(0, 3), (4, 11), (1, 2**31), (2**31 - 2, 2**31 + 7), (2**32 - 7, 2**32)],
)
def test_rows_are_the_contract(backend: str, first_row: int, rows: int) -> None:
    """Element by element in double precision: sample b of draw k has row k * rows + first_row + b, modulo 2**32; with
    one state per sample, row k."""
    kernels, shape, zero = backends.serving("noise", state().device.type), (2, 3, 5), torch.zeros(3, 5)
    one = torch.cat((state(), torch.tensor([first_row, rows])))
    many = torch.tensor([[7, 8], [-9, 10], [11, -12]])
    for rng_state in (one, many):
        place = (lambda k, b: (k * rows + first_row + b) % 2**32) if rng_state.ndim == 1 else lambda k, b: k
        seeds = rng_state[..., :2].expand(3, 2).tolist()
        values = [
            eps_of_integers(j, place(k, b), *seeds[b]) for k in range(2) for b in range(3) for j in range(5)
        ]
        want = torch.tensor(values, dtype=torch.float64).view(shape)
        eps, z, grad = (torch.full(s, math.nan) for s in (shape, shape, (3, 5)))
        kernels.noise_fill(eps, rng_state)
        assert (eps.double() - want).abs().max() <= 4e-6
        args = (zero, zero, None, rng_state, None, None)
        kernels.latent_forward(*args, z=z, kl=None)
        assert torch.equal(z, eps)
        kernels.latent_backward(
            torch.ones(shape), None, *args, grad_mu=None, grad_logvar=grad, grad_prior=None
        )
        torch.testing.assert_close(2 * grad, eps.sum(0))


def test_a_part_of_a_batch_has_its_noise() -> None:
    noise_rows.check_noise(reference, (*DTYPES,), brief=True)
    noise_rows.check_latent(reference, brief=True)
    noise_rows.check_likelihood(reference, brief=True)


def test_a_part_of_a_batch_through_the_public_functions(backend: str) -> None:
    """Every function that draws, eager and traced, gives a part of the batch what the whole batch gives it."""
    torch.manual_seed(0)
    mu, logvar, x = torch.randn(7, 4, 5), torch.randn(7, 4, 5), torch.rand(7, 4, 5)

    def draw(m: Tensor, v: Tensor, target: Tensor, rng_state: Tensor) -> tuple[Tensor, ...]:
        z, _ = vae_fast.reparameterize_kl(m, v, num_samples=2, rng_state=rng_state)
        packed, _ = vae_fast.reparameterize_kl_packed(torch.cat((m, v), 1), rng_state=rng_state)
        nll = vae_fast.bernoulli_nll(m, target, binarize=True, reduction="none", rng_state=rng_state)
        eps = vae_fast.noise(m.shape, rng_state, num_samples=2)
        bits = vae_fast.binarize(target, rng_state)
        return z.transpose(0, 1), packed, nll, eps.transpose(0, 1), bits

    def results(run, cut: slice, rng_state: Tensor) -> list[Tensor]:
        v = logvar[cut].clone().requires_grad_()
        z, *others = run(mu[cut], v, x[cut], rng_state)
        (grad,) = torch.autograd.grad(z.square().sum(), v)
        return [t.detach() for t in (z, *others, grad)]

    whole = results(draw, slice(None), state())
    traced = torch.compile(draw, backend="aot_eager", fullgraph=True)
    for run in (draw, traced):
        for cut in (slice(0, 3), slice(3, 7)):
            rng_state = torch.cat((state(), torch.tensor([cut.start, 7])))
            for got, want in zip(results(run, cut, rng_state), whole, strict=True):
                torch.testing.assert_close(got, want[cut], rtol=1e-6, atol=1e-6)


def test_rows_that_do_not_fit() -> None:
    """Refused where the state lies in the host's memory."""
    mu = torch.zeros(5, 4)
    for first_row, rows, draws in ((0, 5, None), (2**32 - 5, 2**32, None), (2**31 - 5, 2**31, 2)):
        fits = torch.tensor([1, 2, first_row, rows])
        vae_fast.reparameterize(mu, mu, num_samples=draws, rng_state=fits)
        vae_fast.noise(mu.shape, fits, num_samples=draws)
        for wrong in ([1, 2, first_row + 1, rows], [1, 2, -1, rows], [1, 2, 0, 2**32 // (draws or 1) + 1]):
            with pytest.raises(ValueError, match=r"^expected rng_state to hold .*rows"):
                vae_fast.reparameterize(mu, mu, num_samples=draws, rng_state=torch.tensor(wrong))
            with pytest.raises(ValueError, match=r"^expected rng_state to hold .*rows"):
                vae_fast.noise(mu.shape, torch.tensor(wrong), num_samples=draws)
    with pytest.raises(ValueError, match=r"<= rows for a batch of 5, but got first_row 1 and rows 5"):
        vae_fast.binarize(mu, torch.tensor([1, 2, 1, 5]))


def test_accuracy_over_many(backend: str) -> None:
    """Within 4e-6 of the contract in double precision, in the far tails and where u1 is nearly 1 too."""
    rng_state = state(11, 5)
    eps = vae_fast.noise((64, 4096), rng_state).double()
    want = vae_fast.noise((64, 4096), rng_state, dtype=torch.float64)
    assert (eps - want).abs().max() <= 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draws", [None, 3])
def test_noise_is_what_the_op_used(backend: str, dtype: torch.dtype, draws: int | None) -> None:
    """With mu = 0 and logvar = 0, z is eps, bit for bit, in every layout."""
    zero = torch.zeros(4, 6, 5, 3, dtype=dtype)
    packed = torch.zeros(4, 12, 5, 3, dtype=dtype)
    for rng_state in (
        state(),
        torch.arange(8).view(4, 2),
        torch.arange(16).view(4, 4)[:, ::2],
        state().flip(0),
    ):
        eps = vae_fast.noise(zero.shape, rng_state, num_samples=draws, dtype=dtype)
        assert eps.dtype == dtype and eps.is_contiguous()
        for mu in (
            zero,
            zero.contiguous(memory_format=torch.channels_last),
            zero.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
            packed.chunk(2, 1)[1],
            zero[:1, :, :1].expand(4, 6, 5, 3),
        ):
            z = vae_fast.reparameterize(mu, mu, num_samples=draws, rng_state=rng_state)
            assert torch.equal(z, eps)
        for p in (packed, packed.contiguous(memory_format=torch.channels_last)):
            z, _ = vae_fast.reparameterize_kl_packed(p, num_samples=draws, rng_state=rng_state)
            assert torch.equal(z, eps)


def test_backward_uses_the_same_noise(backend: str) -> None:
    """d z / d logvar = eps exp(logvar / 2) / 2: at logvar = 0 the gradient is eps / 2 exactly."""
    for mu in (torch.zeros(7, 37), torch.zeros(37, 7).T, torch.zeros(3, 4, 5, 6)):
        logvar = torch.zeros_like(mu).requires_grad_()
        z = vae_fast.reparameterize(mu, logvar, rng_state=state())
        (grad,) = torch.autograd.grad(z.sum(), logvar)
        assert torch.equal(2 * grad, vae_fast.noise(mu.shape, state()))


def test_noise_depends_on_the_logical_index_only(backend: str) -> None:
    """Rows do not depend on the batch, elements not on the sample's size or shape."""
    eps = vae_fast.noise((8, 24), state())
    assert torch.equal(vae_fast.noise((5, 24), state()), eps[:5])
    assert torch.equal(vae_fast.noise((8, 23), state()), eps[:, :23])
    assert torch.equal(vae_fast.noise((8, 2, 3, 4), state()).flatten(1), eps)


def test_given_noise_is_used(backend: str) -> None:
    mu, logvar = torch.randn(4, 5), torch.randn(4, 5)
    eps = torch.randn(2, 4, 5)
    z, _ = vae_fast.reparameterize_kl(mu, logvar, noise=eps, num_samples=2)
    torch.testing.assert_close(z, mu + eps * torch.exp(0.5 * logvar))


def test_torch_generators_govern_it(backend: str) -> None:
    mu = torch.zeros(4, 5)
    torch.manual_seed(3)
    first, second = (vae_fast.reparameterize(mu, mu) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(vae_fast.reparameterize(mu, mu), first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    own = [vae_fast.reparameterize(mu, mu, generator=torch.Generator().manual_seed(9)) for _ in range(2)]
    assert torch.equal(*own) and not torch.equal(own[0], first)
    vae_fast.reparameterize(mu, mu, rng_state=state())
    vae_fast.kl_divergence(mu, mu)
    assert torch.equal(
        torch.get_rng_state(), before
    )  # a generator, a state or no noise: torch's own is left alone


def test_devices() -> None:
    eps = vae_fast.noise((2, 3), state(), device="meta")
    assert eps.is_meta and eps.shape == (2, 3)


def kolmogorov_smirnov(x: Tensor) -> float:
    """The largest distance between the empirical and the normal distribution function, times sqrt(n)."""
    x = x.double().flatten().sort().values
    n = x.numel()
    cdf = 0.5 * torch.erfc(-x / math.sqrt(2))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max((cdf - steps[:-1]).max().item(), (steps[1:] - cdf).max().item()) * math.sqrt(n)


def test_distribution(backend: str) -> None:
    """Fixed seeds. 1.95 is the 0.1% point of the Kolmogorov distribution; moments are held to 4 standard errors."""
    eps = vae_fast.noise((256, 1024), state(123, 456)).double()
    n = eps.numel()
    assert kolmogorov_smirnov(eps) < 1.95
    for phase in range(4):  # each output of a Philox block on its own
        assert kolmogorov_smirnov(eps[:, phase::4]) < 1.95
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(eps.pow(power).mean() - moment) < 4 * math.sqrt(variance / n)
    assert 4 < eps.abs().max() < 6.77


def test_independence(backend: str) -> None:
    """No correlation, of values or of squares, between neighbours, rows, draws, seeds and offsets."""
    shape = (64, 1024)
    eps = vae_fast.noise(shape, state(1, 2), num_samples=2)
    base = eps[0]
    others = {
        "draw": eps[1],
        "row": base.roll(1, 0),
        **{f"element {lag}": base.roll(lag, 1) for lag in (1, 2, 3, 4, 8)},
        "seed": vae_fast.noise(shape, state(2, 2)),
        "high seed": vae_fast.noise(shape, state(1 + 2**32, 2)),
        "offset": vae_fast.noise(shape, state(1, 3)),
        "high offset": vae_fast.noise(shape, state(1, 2 + 2**32)),
    }
    for name, other in others.items():
        for f in (torch.Tensor.double, lambda t: t.double().square() - 1):
            a, b = f(base), f(other)
            correlation = (a * b).mean() / (a.std() * b.std())
            assert abs(correlation) < 4.5 / math.sqrt(a.numel()), name


@needs_native
def test_threads_do_not_change_the_bits() -> None:
    assert_same_bits_for_threads(lambda: (vae_fast.noise((1001, 333), state()),))


def test_a_generator_for_each_sample(backend: str) -> None:
    """Sample b has the noise that it has alone with its generator, in every op that draws."""

    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    mu = torch.zeros(3, 2, 5)
    for draw in (
        lambda mu, **options: vae_fast.reparameterize(mu, mu, **options),
        lambda mu, **options: vae_fast.reparameterize_kl(mu, mu, num_samples=2, **options)[0].transpose(0, 1),
        lambda mu, **options: vae_fast.reparameterize_kl_packed(
            torch.cat([mu, mu], 1), generator=options["generator"]
        )[0],
        lambda mu, **options: vae_fast.bernoulli_nll(
            mu, mu + 0.5, binarize=True, reduction="none", **options
        ),
    ):
        together = draw(mu, generator=seeded(7, 8, 7))
        for b, seed in enumerate((7, 8, 7)):
            assert torch.equal(together[b], draw(mu[:1], generator=seeded(seed)[0])[0])
    states = vae_fast.draw_rng_state("cpu", seeded(7, 8, 7))
    assert states.shape == (3, 2) and states.dtype == torch.int64
    z = vae_fast.reparameterize(mu, mu, generator=tuple(seeded(7, 8, 7)))
    assert torch.equal(z, vae_fast.noise(mu.shape, states))
    torch.manual_seed(5)
    first = vae_fast.draw_rng_state(mu.device)
    torch.manual_seed(5)
    assert torch.equal(vae_fast.reparameterize(mu, mu), vae_fast.noise(mu.shape, first))
