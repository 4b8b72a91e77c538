"""A part of a batch has its part of the whole batch's noise, bit for bit: the checks for the kernels of any backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cuda_emulation.layouts import LAYOUTS, poisoned, tensor, values
from vae_fast import reference

F32 = torch.float32
# Odd sizes, rows of one element, channels of four and not, and a sample of several blocks.
SHAPES = [(5,), (5, 7), (7, 16), (5, 3, 2, 3), (3, 2, 4, 4), (3, 1031)]
BRIEF = [(5, 7), (3, 2, 4, 4)]
STATE = torch.tensor([2**63 - 5, -(2**40) - 3])

# What a kernel makes of some samples of a batch: (which, their rng_state) -> tensors, the batch first.
Run = Callable[[slice, Tensor], list[Tensor]]


def cases(brief: bool) -> Iterator[tuple[tuple[int, ...], str]]:
    """Every layout of the shapes that have dims to lay out, the others dense; fewer where a kernel takes long."""
    for shape in BRIEF if brief else SHAPES:
        layouts = ("dense", "channels_last") if brief else LAYOUTS
        for layout in layouts if len(shape) > 2 else layouts[:1]:
            yield shape, layout


def part_state(first_row: int, rows: int) -> Tensor:
    """Every other number of a tensor."""
    return torch.tensor([*STATE.tolist(), first_row, rows]).repeat_interleave(2)[::2]


def places(batch: int, draws: int) -> list[tuple[int, int]]:
    """(first_row, rows) of a batch by itself, of a part of a larger one, and of the last part of the largest."""
    most = 2**32 // draws
    return [(0, batch), (2, batch + 9), (most - batch, most)]


def parts(batch: int) -> list[slice]:
    """Three unequal parts of a batch."""
    return [cut for cut in (slice(0, 1), slice(1, 3), slice(3, batch)) if cut.start < cut.stop]


def states(batch: int) -> Tensor:
    return torch.arange(2 * batch).view(batch, 2) * 0x1234567890123 - 5


def check_parts(run: Run, batch: int, draws: int) -> None:
    def same(got: list[Tensor], whole: list[Tensor], part: slice = slice(None)) -> None:
        for a, b in zip(got, whole, strict=True):
            assert torch.equal(a, b[part]), part

    everything = slice(0, batch)
    for first_row, rows in places(batch, draws):
        whole = run(everything, part_state(first_row, rows))
        for part in parts(batch):
            same(run(part, part_state(first_row + part.start, rows)), whole, part)
    same(run(everything, STATE), run(everything, part_state(0, batch)))
    own = states(batch)
    whole = run(everything, own)
    for part in parts(batch):
        same(run(part, own[part]), whole, part)


def noise_of(kernels: Any, shape: Sequence[int], draws: int, dtype: torch.dtype, layout: str) -> Run:
    def run(part: slice, rng_state: Tensor) -> list[Tensor]:
        eps = poisoned((draws, part.stop - part.start, *shape[1:]), dtype, layout)
        kernels.noise_fill(eps, rng_state)
        return [eps.transpose(0, 1)]

    return run


def check_noise(kernels: Any, dtypes: Sequence[torch.dtype] = (F32,), brief: bool = False) -> None:
    for shape, layout in cases(brief):
        for dtype in dtypes:
            for draws in (1, 3):
                run = noise_of(kernels, shape, draws, dtype, layout)
                check_parts(run, shape[0], draws)
                for place in places(shape[0], draws):
                    rng_state = part_state(*place)
                    (eps,) = run(slice(0, shape[0]), rng_state)
                    truth = reference.noise(shape, rng_state, num_samples=draws, dtype=torch.float64)
                    allowed = 4e-6 + torch.finfo(dtype).eps * truth.abs()
                    assert ((eps.double() - truth.transpose(0, 1)).abs() <= allowed.transpose(0, 1)).all(), (
                        place
                    )


def latent_of(
    kernels: Any, shape: Sequence[int], draws: int | None, dtype: torch.dtype, layout: str, prior: bool
) -> Run:
    """z and the gradients by mu and logvar. The prior's are sums over the batch; KL has no noise."""
    shape, lead = tuple(shape), () if draws is None else (draws,)
    inputs = [tensor(shape, dtype, layout, seed) for seed in range(4)]
    grad_z, grad_kl = tensor((*lead, *shape), dtype, layout, 4), values(shape[:1], F32, 5)

    def run(part: slice, rng_state: Tensor) -> list[Tensor]:
        mu, logvar, *pair = (x[part] for x in inputs)
        args = (mu, logvar, tuple(pair) if prior else None, rng_state, None, (-2.0, 2.0))
        z = poisoned((*lead, *mu.shape), dtype, layout)
        grad_mu, grad_logvar = (poisoned(mu.shape, dtype, layout) for _ in range(2))
        sums = tuple(poisoned(shape[1:], F32, "dense") for _ in range(2)) if prior else None
        kernels.latent_forward(*args, z=z, kl=poisoned(mu.shape[:1], F32, "dense"))
        kernels.latent_backward(
            grad_z[(..., part, *(slice(None) for _ in shape[1:]))], grad_kl[part], *args,
            grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=sums,
        )  # fmt: skip
        return [z if draws is None else z.transpose(0, 1), grad_mu, grad_logvar]

    return run


def check_latent(kernels: Any, dtypes: Sequence[torch.dtype] = (F32,), brief: bool = False) -> None:
    for shape, layout in cases(brief):
        for dtype in dtypes:
            for draws, prior in ((None, False), (3, True)):
                run = latent_of(kernels, shape, draws, dtype, layout, prior)
                check_parts(run, shape[0], draws or 1)


def bernoulli_of(kernels: Any, shape: Sequence[int], dtype: torch.dtype, layout: str) -> Run:
    """nll, and the gradient by the logits at 0, where it is half less the bit.

    A logit of 128 and more has an nll of itself where the bit is 0, else of 0: sums of integers, exact in any order.
    """
    x = tensor(shape, dtype, layout, 1)
    x = x.copy_(values(shape, torch.uint8, 1)) if dtype is torch.uint8 else x.sigmoid_()
    logits = tensor(shape, F32, layout, 2).copy_(128 + values(shape, torch.uint8, 3).float())
    grad_nll = values(shape[:1], F32, 4)

    def run(part: slice, rng_state: Tensor) -> list[Tensor]:
        target, large = x[part], logits[part]
        nll, grad = poisoned(large.shape[:1], F32, "dense"), poisoned(large.shape, F32, layout)
        kernels.likelihood_forward("bernoulli", (large,), target, None, rng_state, nll=nll)
        zero = torch.zeros_like(large)
        kernels.likelihood_backward(
            "bernoulli", (zero,), target, None, rng_state, grad_nll[part], grads=(grad,)
        )
        bits = reference.binarize(target, rng_state).float()
        assert torch.equal(nll, (large * (1 - bits)).reshape(len(nll), -1).sum(1))
        assert torch.equal(grad, (0.5 - bits) * grad_nll[part].view(-1, *(1,) * (bits.ndim - 1)))
        return [nll, grad]

    return run


def check_likelihood(
    kernels: Any, dtypes: Sequence[torch.dtype] = (F32, torch.uint8), brief: bool = False
) -> None:
    for shape, layout in cases(brief):
        for dtype in dtypes:
            check_parts(bernoulli_of(kernels, shape, dtype, layout), shape[0], 1)
