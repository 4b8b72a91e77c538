"""-log p(x | z) of images in 256 levels, pixel by pixel: channels depend on each other."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_mask, check_mixture, check_per_sample, check_reduction
from ..likelihoods.numerics import weighted
from ..ops.mixture import mixture


def discretized_logistic_mixture_nll(
    params: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log P(target) of images in 256 levels under a mixture of discretized logistics, per sample.

        nll = sum over pixels of -log sum_k softmax(logits)_k prod_c P(t_c; mean_kc, s_kc),   t = 2 x - 1

    P is that of `discretized_logistic_nll`, exact in the tails, with the bound of -7 on s. With three channels the
    means of green and blue move with the true values before them:

        mean_k1 + tanh(c_k0) t_0,   mean_k2 + tanh(c_k1) t_0 + tanh(c_k2) t_1

    Args:
        params: (batch, P, ...) or draws as in `bernoulli_nll`, (k, batch, P, ...), for K components at every pixel,
            float32, bfloat16, float16 or float64, any strides.
            One channel: P = 3 K, [logits | means | log-scales]. Three channels: P = 10 K, K logits, then for each
            channel [means | log-scales | coefficients], the layout of PixelCNN++, NVAE and VDVAE.
        target: x, (batch, 1 or 3, ...), uint8 (255ths), or float in [0, 1]: multiples of 1/255.
        mask: bool, broadcastable to (batch, 1, ...). False leaves the pixel out: it adds nothing and its gradient is
            0, even where its target or a parameter is NaN or infinite.
        weight: (batch,), a factor for each sample's nll.
        reduction: "sample" gives a loss for each sample, "none" one for each pixel, (batch, ...).

    Returns:
        nll: (batch,), or as `reduction` says, in nats (for bits per dimension, divide by log 2 and the number of
            pixels times channels); float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Salimans et al., "PixelCNN++", 2017, sections 2.1 and 2.2.
    """
    draws = check_mixture(params, target)
    if mask is not None:
        check_mask(mask, target, "the pixels of target", (target.shape[0], 1, *target.shape[2:]))
    if weight is not None:
        check_per_sample("weight", weight, target, draws)
    per_element = reduction != "sample" and check_reduction(reduction)
    nll = mixture(params, target, mask, per_element)
    return nll if weight is None else weighted(nll, weight, target.ndim - 1 if per_element else 1)
