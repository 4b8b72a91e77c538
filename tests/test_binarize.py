"""Dynamic binarization: bits made from the noise contract's words as the target is read."""

from __future__ import annotations

import math

import pytest
import torch

import vae_fast
from conftest import DTYPES, state
from likelihoods import leaf, make, uniform
from test_noise import philox_of_integers


def bit_of_integers(j: int, row: int, seed: int, offset: int, x: float) -> float:
    """The contract, for one element."""
    seed, offset = seed % 2**64, offset % 2**64
    counter = (j >> 2, row, offset % 2**32, (offset >> 32) ^ 2**31)
    words = philox_of_integers(counter, (seed % 2**32, seed >> 32))
    return float((words[j & 3] >> 8) * 2.0**-24 < x)


@pytest.mark.parametrize("shape", [(3, 10), (2, 3, 5), (6,)], ids=str)
def test_contract(shape: tuple[int, ...]) -> None:
    x, size = uniform(*shape), math.prod(shape[1:])
    for states in ([(1, 2)] * shape[0], [(5 ^ b << 40, -7 - b) for b in range(shape[0])]):
        one = len(set(states)) == 1
        bits = vae_fast.binarize(x, torch.tensor(states[0] if one else states))
        want = [
            bit_of_integers(j, b if one else 0, *states[b], x.reshape(shape[0], -1)[b, j].item())
            for b in range(shape[0])
            for j in range(size)
        ]
        assert bits.flatten().tolist() == want


def test_bits() -> None:
    """0 and 1 in x's dtype and shape, with probability x; the ends are sure, NaN stays NaN."""
    x = uniform(64, 1000)
    bits = vae_fast.binarize(x, state())
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert (bits - x).mean().abs() < 4 * math.sqrt(1 / 6 / x.numel())
    assert not torch.equal(bits, vae_fast.binarize(x, state(1, 3)))
    ends = torch.tensor([[0.0, 1.0, -1.0, 2.0, math.nan]]).expand(500, 5)
    bits = vae_fast.binarize(ends, state())
    assert (bits[:, :4] == torch.tensor([0.0, 1, 0, 1])).all() and bits[:, 4].isnan().all()
    for dtype in DTYPES:
        assert vae_fast.binarize(x.to(dtype), state()).dtype == dtype
    grey = (x * 255).to(torch.uint8)
    of_bytes = vae_fast.binarize(grey, state())
    assert of_bytes.dtype == torch.float32 and torch.equal(of_bytes, vae_fast.binarize(grey / 255, state()))
    assert torch.equal(vae_fast.binarize(x > 0.5, state()), (x > 0.5).float())
    assert not vae_fast.binarize(leaf(x), state()).requires_grad


def test_bits_do_not_know_the_noise() -> None:
    """One rng_state serves the latent and its target."""
    eps, half = vae_fast.noise((64, 1000), state()), torch.full((64, 1000), 0.5)
    bits = vae_fast.binarize(half, state()) - 0.5
    assert (eps * bits).mean().abs() < 4 * 0.5 / math.sqrt(eps.numel())
    assert ((eps**2 - 1) * bits).mean().abs() < 4 * 0.5 * math.sqrt(2 / eps.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8], ids=str)
def test_kernels_make_the_very_bits(backend: str, dtype: torch.dtype) -> None:
    """Value and gradient, to the last digit, of a Bernoulli that reads the bits."""
    for shape in ((3, 10), (5, 1), (7,), (2, 3, 5, 7), (3, 784), (2, 5003)):
        x = uniform(*shape)
        x = (x * 256).to(dtype) if dtype == torch.uint8 else x.to(dtype)
        logits, rows = make(*shape), shape[0]
        for rng_state in (state(), state(-3, 2**40 + 5), torch.arange(4 * rows).view(rows, 4)[:, ::2] ** 5):
            results = []
            for target, options in (
                (x, {"binarize": True, "rng_state": rng_state}),
                (vae_fast.binarize(x, rng_state), {}),
            ):
                p = leaf(logits)
                nll = vae_fast.bernoulli_nll(p, target, **options)
                results.append((nll, *torch.autograd.grad(nll.square().sum(), p)))
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_targets_without_a_number(backend: str) -> None:
    """NaN in the sample and the element that have it, unless a mask leaves it out."""
    for shape in ((3, 4), (2, 3, 70)):
        x, p = uniform(*shape), leaf(make(*shape))
        x.view(shape[0], -1)[1, 2] = math.nan
        nll = vae_fast.bernoulli_nll(p, x, binarize=True, rng_state=state())
        (grad,) = torch.autograd.grad(nll.sum(), p)
        assert nll.isnan().nonzero().tolist() == [[1]]
        assert torch.equal(grad.isnan(), x.isnan())
        nll = vae_fast.bernoulli_nll(p, x, binarize=True, rng_state=state(), mask=~x.isnan())
        assert nll.isfinite().all()


def test_layouts_and_masks(backend: str) -> None:
    x, logits = uniform(3, 4, 5, 6), make(3, 4, 5, 6)
    mask = uniform(3, 4, 5, 6, seed=3) > 0.4
    want = vae_fast.bernoulli_nll(logits, vae_fast.binarize(x, state()))
    some = vae_fast.bernoulli_nll(logits, vae_fast.binarize(x, state()), mask=mask)
    for target in (
        x.contiguous(memory_format=torch.channels_last),
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack((x, x), -1)[..., 0],
    ):
        got = vae_fast.bernoulli_nll(logits, target, binarize=True, rng_state=state())
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
        got = vae_fast.bernoulli_nll(logits, target, binarize=True, rng_state=state(), mask=mask)
        torch.testing.assert_close(got, some, rtol=1e-6, atol=0)


def test_where_the_bits_come_from(backend: str) -> None:
    """Fresh ones every call, from torch's generator or the one given; backward has forward's."""
    x, logits = torch.full((8, 64), 0.5), torch.zeros(8, 64)
    torch.manual_seed(3)
    p = leaf(logits)
    (first,) = torch.autograd.grad(vae_fast.bernoulli_nll(p, x, binarize=True).sum(), p)
    (second,) = torch.autograd.grad(vae_fast.bernoulli_nll(p, x, binarize=True).sum(), p)
    generator = torch.Generator().manual_seed(3)
    (given,) = torch.autograd.grad(vae_fast.bernoulli_nll(p, x, binarize=True, generator=generator).sum(), p)
    assert torch.equal(first, given) and not torch.equal(first, second)
    assert set(first.unique().tolist()) == {-0.5, 0.5}
