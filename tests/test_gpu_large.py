"""More than 2^31 elements on a GPU, in bfloat16: the numbers are checked on slices, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import test_gpu
import vae_fast
from conftest import state
from test_gpu import needing, seeds
from vae_fast.backends import reference

pytestmark = [test_gpu.needs_gpu, pytest.mark.no_poison]
backend = test_gpu.backend
LIMIT = 2**31


def ones(*outputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a sum, which take no memory."""
    return tuple(torch.ones((), dtype=t.dtype, device="cuda").expand_as(t) for t in outputs)


def needs_memory(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free:.0f} are free")


def random(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(-0.5, 0.7)


def exact_noise(row: int, start: int, count: int) -> Tensor:
    """The noise contract at elements start ... of a sample; start is a multiple of 4."""
    seed, offset = state(3, 4).tolist()
    group = torch.arange(start // 4, (start + count + 3) // 4, device="cuda")
    counter = [group, *(torch.full_like(group, word) for word in (row, offset, 0))]
    words = reference.philox(counter, [torch.full_like(group, seed), 0 * group])
    w = torch.stack(words, -1).double().view(-1, 2, 2)
    radius = (-2 * torch.log((w[..., 0] + 0.5) * 2.0**-32)).sqrt()
    angle = 2 * torch.pi * 2.0**-32 * w[..., 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten()[:count]


def check_rows(
    mu: Tensor, logvar: Tensor, z: Tensor, grad_mu: Tensor, grad_logvar: Tensor, draw: int = 0
) -> None:
    """First, middle and last elements of the first and last samples; the gradients are those of z.sum() + kl.sum()."""
    batch, n = mu.shape
    for row in {0, batch // 2, batch - 1}:
        for start in {0, n // 2 // 4 * 4, max(0, n - 4000) // 4 * 4}:
            at = (row, slice(start, start + 4000))
            m, lv = mu[at].double(), logvar[at].double()
            eps = exact_noise(draw * batch + row, start, m.numel())
            std = (0.5 * lv).exp()
            slope = 0.5 * (std * eps + torch.expm1(lv))
            for got, want in ((z[at], m + std * eps), (grad_mu[at], 1 + m), (grad_logvar[at], slope)):
                torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-4)


def exact_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    parts = zip(mu.split(2**26), logvar.split(2**26), strict=True)
    return sum(0.5 * (m.double() ** 2 + torch.expm1(v.double()) - v.double()).sum() for m, v in parts)


HUGE = {"many short": (LIMIT // 12 + 5, 12), "few long": (3, LIMIT // 3 + 7), "one": (1, LIMIT + 9)}


@pytest.mark.parametrize("shape", HUGE.values(), ids=HUGE.keys())
def test_huge_latent(backend: str, shape: tuple[int, int]) -> None:
    needs_memory(36)
    mu, logvar = needing(random(*shape), random(*shape))
    z, kl = vae_fast.reparameterize_kl(mu, logvar, rng_state=seeds())
    grads = torch.autograd.grad(
        (z, kl),
        (mu, logvar),
        ones(z, kl),
    )
    mu, logvar, z = mu.detach(), logvar.detach(), z.detach()
    check_rows(mu, logvar, z, *grads)
    for row in {0, shape[0] // 2, shape[0] - 1}:
        torch.testing.assert_close(kl[row].double(), exact_kl(mu[row], logvar[row]), rtol=1e-5, atol=1e-6)


def test_huge_packed(backend: str) -> None:
    """The two halves of a row lie more than 2^31 elements apart."""
    needs_memory(40)
    packed = random(2, 2 * (LIMIT // 2 + 6)).requires_grad_()
    z, kl = vae_fast.reparameterize_kl_packed(packed, rng_state=seeds())
    (grad,) = torch.autograd.grad((z, kl), packed, ones(z, kl))
    check_rows(*packed.detach().chunk(2, 1), z.detach(), *grad.chunk(2, 1))


def test_huge_draws(backend: str) -> None:
    """z is larger than mu: offsets of the last draws need 64 bits."""
    needs_memory(24)
    mu, logvar = random(64, 7 * 2**20 + 4), random(64, 7 * 2**20 + 4)
    z = vae_fast.reparameterize(mu, logvar, rng_state=seeds(), num_samples=5)
    for draw in (0, 4):
        std = (0.5 * logvar[63, :4000].double()).exp()
        want = mu[63, :4000].double() + std * exact_noise(draw * 64 + 63, 0, 4000)
        torch.testing.assert_close(z[draw, 63, :4000].double(), want, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("shape", HUGE.values(), ids=HUGE.keys())
def test_huge_likelihood(backend: str, shape: tuple[int, int]) -> None:
    needs_memory(24)
    (logits,) = needing(random(*shape))
    x = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    nll = vae_fast.bernoulli_nll(logits, x)
    (grad,) = torch.autograd.grad(nll.sum(), logits)
    for row in {0, shape[0] // 2, shape[0] - 1}:
        parts = zip(logits.detach()[row].split(2**26), x[row].split(2**26), strict=True)
        want = sum(
            (torch.nn.functional.softplus(v.double()) - v.double() * t.double() / 255).sum() for v, t in parts
        )
        torch.testing.assert_close(nll[row].double(), want, rtol=1e-5, atol=1e-6)
        tail = slice(max(0, shape[1] - 4000), None)
        slope = logits.detach()[row, tail].double().sigmoid() - x[row, tail].double() / 255
        torch.testing.assert_close(grad[row, tail].double(), slope, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("kind", ["many short", "few long"])
def test_huge_categorical(backend: str, kind: str) -> None:
    needs_memory(24)
    batch, classes = HUGE[kind]
    (logits,) = needing(random(batch, classes))
    nll = vae_fast.categorical_nll(logits, torch.full((batch,), classes - 1, device="cuda"))
    (grad,) = torch.autograd.grad(nll.sum(), logits)
    for row in {0, batch // 2, batch - 1}:
        of_row = logits.detach()[row]
        lse = torch.stack([part.double().logsumexp(0) for part in of_row.split(2**26)]).logsumexp(0)
        torch.testing.assert_close(nll[row].double(), lse - of_row[-1].double(), rtol=1e-5, atol=1e-6)
        tail = of_row[-4000:].double()
        slope = (tail - lse).exp()
        slope[-1] -= 1
        torch.testing.assert_close(grad[row, -4000:].double(), slope, rtol=2**-8, atol=1e-12)


@pytest.mark.parametrize("shape", [(LIMIT // 240 + 5, 30, 8), (1, 30, LIMIT // 30 + 7)], ids=str)
def test_huge_mixture(backend: str, shape: tuple[int, int, int]) -> None:
    """Ten components of one channel."""
    needs_memory(32)
    batch, _, pixels = shape
    (params,) = needing(random(*shape))
    x = torch.randint(0, 256, (batch, 1, pixels), dtype=torch.uint8, device="cuda")
    nll = vae_fast.discretized_logistic_mixture_nll(params, x)
    (grad,) = torch.autograd.grad(nll.sum(), params)
    for row in {0, batch // 2, batch - 1}:
        at = slice(row, row + 1)
        parts = zip(params.detach()[at].split(2**20, -1), x[at].split(2**20, -1), strict=True)
        want = sum(reference.discretized_logistic_mixture_nll(p.double(), t) for p, t in parts)
        torch.testing.assert_close(nll[at].double(), want, rtol=1e-5, atol=1e-6)
        (tail,) = needing(params.detach()[at, :, -4000:].double())
        exact = reference.discretized_logistic_mixture_nll(tail, x[at, :, -4000:])
        (slope,) = torch.autograd.grad(exact.sum(), tail)
        torch.testing.assert_close(grad[at, :, -4000:].double(), slope, rtol=2**-8, atol=1e-4)
