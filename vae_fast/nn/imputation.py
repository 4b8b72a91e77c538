"""Missing entries of x, filled in by a trained VAE.

A model in training mode is evaluated as it is: call `model.eval()` first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import check_int, check_mask
from ..likelihoods.csr import is_csr
from .condition import takes_target
from .draws import Draws, decoded_draws, posterior_of
from .inputs import on_device
from .posterior import Posterior
from .vae import VAE

__all__ = ["impute"]


@torch.no_grad()
def impute(
    model: VAE,
    x: Tensor,
    mask: Tensor | None = None,
    *,
    num_samples: int = 100,
    num_iterations: int = 0,
    draws: int | None = None,
    condition: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """x with its missing entries filled in, given those that are there, x_o.

    Importance sampling (MIWAE): k draws z_i of q(z | x_o) stand for p(z | x_o) by their weights

        w_i = p(x_o | z_i) p(z_i) / q(z_i | x_o),   E[x_m | x_o] = sum_i w_i E[x_m | z_i] / sum_i w_i

    which tends to the mean under the model as k grows, whatever the encoder makes of missing entries. An entry gets
    its mean, a class the most probable one. With `draws`, each is a draw of x_m: z_i is drawn by its weight, then x_m
    of p(x | z_i). Several of them tell how sure the model is (multiple imputation).

    The encoder gets 0 for what is missing (a `MixedColumns` gives it a mask as well, if it is made so), which suits
    a model that was trained with missing entries. The q of one that was trained on whole samples is too narrow here, so
    that the error falls slowly with k, and too far off: `num_iterations` steps of pseudo-Gibbs sampling before,
    z ~ q(z | x), x_m ~ p(x | z), bring it near. With num_samples=1 these steps are all there is.

    Args:
        x: as in `VAE.forward`, not sparse. What it holds at missing entries does not matter.
        mask: bool, broadcastable to x, False where x is missing (for "discretized_logistic_mixture": broadcastable to
            the pixels, (batch, 1, height, width), and not None for coloured ones). None: NaN is missing. In a
            `MixedColumns` it always is.
        num_samples: k.
        num_iterations: steps of pseudo-Gibbs sampling. 0 was best for a model trained with missing entries, 3 to 10 for
            ones trained on whole images (docs/results.md).
        draws: how many draws of the missing entries; None gives their mean.
        condition: as in `VAE.forward`.
        generator: where all noise comes from.
        chunk: as in `importance_nll`.

    Returns:
        x's shape, (draws, batch, ...) with `draws`, floating (uint8 as 255ths; class numbers in their own dtype).
        Entries that are there are x's own.

    Raises:
        TypeError, ValueError: as `VAE.forward`; a decoder that takes x, a sparse x, a mask that does not
            fit; num_samples, draws or chunk below 1.

    Source: Mattei & Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets", 2019;
    Rezende, Mohamed & Wierstra, "Stochastic backpropagation and approximate inference in deep generative models", 2014,
    appendix F.
    """
    k, steps = check_int("num_samples", num_samples, least=1), check_int("num_iterations", num_iterations)
    count = None if draws is None else check_int("draws", draws, least=1)
    if takes_target(model.decoder):
        raise ValueError(
            "expected a decoder of z alone, but got one that takes x, whose entries depend on each other"
        )
    if is_csr(x):
        raise TypeError("expected x to be dense, but got a torch.sparse_csr tensor")
    if mask is None:
        mask = ~x.isnan()
    else:
        check_mask(mask, x, "x")
        mask = mask & ~x.isnan() if model.likelihood.takes_missing else mask
    generator = on_device(generator, x.device)
    x = _as_numbers(model, x)
    known = mask.expand(x.shape)
    filled = x.masked_fill(~known, math.nan if model.likelihood.takes_missing else 0)
    for _ in range(steps):
        posterior = model._posterior(filled, condition, 1, generator, None)
        filled = x.where(known, _drawn(posterior, posterior.sample()[0], generator)[0])
    posterior = posterior_of(model, filled, k, condition, generator)
    weighted = _weighted(posterior, mask, k, chunk)
    if count is None:
        return x.where(known, _mean(posterior, weighted).to(x.dtype))
    return x.where(known, _drawn(posterior, _resampled(list(weighted), count, generator), generator))


def _as_numbers(model: VAE, x: Tensor) -> Tensor:
    """x as it is returned: class numbers in their own dtype, else floating."""
    likelihood = model.likelihood
    if likelihood.support == "classes" or likelihood.takes_missing:
        return x
    x = likelihood.encoder_input(x)
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _weighted(
    posterior: Posterior, mask: Tensor, k: int, chunk: int | None
) -> Iterator[tuple[Draws, Tensor]]:
    """Draws, and log w_i of each."""
    for draws in decoded_draws(posterior, k, chunk):
        yield draws, draws.log_weights - posterior.model.likelihood.nll(draws.params, posterior.x, mask)


def _mean(posterior: Posterior, weighted: Iterator[tuple[Draws, Tensor]]) -> Tensor:
    """The weights' mean of the expectations, with a running maximum of the weights."""
    likelihood = posterior.model.likelihood
    total = mean = most = None
    for draws, log_w in weighted:
        each = likelihood.expectation(draws.rows, _library(posterior, len(log_w)))
        each = each.unflatten(0, log_w.shape)
        top = log_w.amax(0) if most is None else torch.maximum(most, log_w.amax(0))
        w = (log_w - top).exp()
        part = torch.einsum("kb,kb...->b...", w.to(each.dtype), each)
        if mean is None or total is None or most is None:
            total, mean = w.sum(0), part
        else:
            scale = (most - top).exp()
            total, mean = scale * total + w.sum(0), _rows(scale, mean) * mean + part
        most = top
    assert mean is not None and total is not None
    return likelihood.point(mean / _rows(total, mean))


def _resampled(weighted: list[tuple[Draws, Tensor]], count: int, generator: torch.Generator | None) -> Tensor:
    """`count` draws of z for each sample, drawn by their weights."""
    z = torch.cat([draws.z for draws, _ in weighted])
    shares = torch.cat([log_w for _, log_w in weighted]).softmax(0)
    chosen = torch.multinomial(shares.T, count, replacement=True, generator=generator).T
    return z[chosen, torch.arange(z.shape[1], device=z.device)]


def _drawn(posterior: Posterior, z: Tensor, generator: torch.Generator | None) -> Tensor:
    """x of p(x | z), (draws, batch, ...) for z (draws, batch, ...)."""
    draws, likelihood = z.shape[0], posterior.model.likelihood
    x = likelihood.sample(posterior.params(z), generator, _library(posterior, draws))
    return x.unflatten(0, z.shape[:2]).to(posterior.x.dtype)


def _library(posterior: Posterior, draws: int) -> Tensor | None:
    library = posterior.model.likelihood.library(posterior.x)
    return None if library is None else library.repeat(draws, *[1] * (library.ndim - 1))


def _rows(t: Tensor, like: Tensor) -> Tensor:
    """t (batch,) beside like (batch, ...), in its dtype."""
    return t.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
