"""-log p(x | z) of images and other numbers, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import (
    check_mask,
    check_parameter,
    check_target,
    check_tensor,
    check_weight,
    resolve_bits_state,
)
from ..ops.likelihood import likelihood


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    binarize: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """-log p(target | logits) of independent Bernoulli variables, per sample.

        nll = sum max(l, 0) - x l + log(1 + exp(-|l|))

    The sum runs over all dims but the first. NaN and infinities propagate.

    Args:
        logits: l, (batch, ...), float32, bfloat16, float16 or float64, any strides.
        target: x in logits' shape, read as it is: float (grey values between 0 and 1 give the usual cross-entropy),
            uint8 (255ths), bool, int16, int32 or int64. A target that requires grad is served by the plain PyTorch
            of `vae_fast.reference`.
        binarize: take 1 with probability x, else 0, for every element anew: dynamic binarization (Burda et al.,
            2016), drawn as the target is read. `vae_fast.binarize` gives the same bits; NaN stays NaN.
        mask: bool, broadcastable to target. False leaves the element out: it adds nothing and its gradient is 0, even
            where its target or parameter is NaN or infinite.
        weight: (batch,), a factor for each sample's nll.
        generator: where the bits come from, on logits' device; by default torch's own generator of that device.
        rng_state: int64 (seed, offset) of shape (2,), or (batch, 2) for one per sample: reproduces the bits. The same
            rng_state may serve the latent. At most one of rng_state and generator, and only with binarize.

    Returns:
        nll: (batch,), in nats; float32 (float64 if an input is). 0 for samples without elements.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.1.
    """
    check_tensor("logits", logits)
    check_target(target, "logits", logits)
    if mask is not None:
        check_mask(mask, target)
    if binarize or rng_state is not None or generator is not None:
        rng_state = resolve_bits_state(target, binarize, generator, rng_state)
    nll = likelihood("bernoulli", target, logits, mask=mask, rng_state=rng_state)
    return nll if weight is None else nll * check_weight(weight, logits)


def bernoulli_nll_from_probs(
    probs: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-log p(target | probs) of independent Bernoulli variables, per sample: torch's `binary_cross_entropy`.

        nll = -sum x max(log p, -100) + (1 - x) max(log(1 - p), -100)

    For decoders that end in a sigmoid. `bernoulli_nll` of the logits is more exact: where p rounds to 0 or 1 the
    numbers that are held, here and in torch, are all that is left of it. The gradient is torch's as well,
    (p - x) / max(p (1 - p), 1e-12). NaN where p or x is not in [0, 1], where torch raises on the CPU.

    Args:
        probs: p, (batch, ...), float32, bfloat16, float16 or float64, any strides.
        target: x in probs' shape, as in `bernoulli_nll`.
        mask, weight: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), in nats; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `bernoulli_nll`.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.1.
    """
    check_tensor("probs", probs)
    check_target(target, "probs", probs)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("bernoulli_probs", target, probs, mask=mask)
    return nll if weight is None else nll * check_weight(weight, probs)


def continuous_bernoulli_nll(
    logits: Tensor, target: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """-log p(target | logits) of independent continuous Bernoulli variables on [0, 1], per sample.

        nll = sum max(l, 0) - x l + log(1 + exp(-|l|)) - log C,   C = l / tanh(l / 2), and 2 at l = 0

    Accurate around l = 0 (probability 1/2), where C is 0/0. p is a density: nll may be negative. Arguments, returns
    and errors as in `bernoulli_nll`.

    Source: Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", 2019.
    """
    check_tensor("logits", logits)
    check_target(target, "logits", logits)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("continuous_bernoulli", target, logits, mask=mask)
    return nll if weight is None else nll * check_weight(weight, logits)


def gaussian_nll(
    mean: Tensor,
    target: Tensor,
    logvar: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log p(target | N(mean, exp logvar)) of independent normal variables, per sample.

        nll = sum (log(2 pi) + logvar + (x - mean)^2 exp(-logvar)) / 2

    The sum runs over all dims but the first. NaN and infinities propagate.

    Args:
        mean: (batch, ...), float32, bfloat16, float16 or float64, any strides.
        target: x in mean's shape: float, uint8 (255ths), bool or integers; see `bernoulli_nll`.
        logvar: the natural log of the variance. None is unit variance, a number one for all. A tensor may be a
            learned scalar (), one value per feature (mean's shape without batch), or anything that broadcasts to
            mean; it is never expanded in memory, and its gradient is summed in the kernel.
        mask, weight: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), in nats, constant included; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.2.
    """
    check_tensor("mean", mean)
    check_target(target, "mean", mean)
    logvar = check_parameter("logvar", logvar, "mean", mean, optional=True)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("gaussian", target, mean, logvar, mask=mask)
    return nll if weight is None else nll * check_weight(weight, mean)


def laplace_nll(
    location: Tensor,
    target: Tensor,
    log_scale: Tensor | float | None = None,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log p(target | Laplace(location, exp log_scale)) of independent Laplace variables, per sample.

        nll = sum log 2 + s + |x - location| exp(-s)

    With log_scale None (a scale of 1) it is the L1 distance, and a constant; the slope at x = location is 0.

    Args:
        location: (batch, ...), float32, bfloat16, float16 or float64, any strides.
        target: x in location's shape: float, uint8 (255ths), bool or integers; see `bernoulli_nll`.
        log_scale: s, the natural log of the scale: None, a number, or a tensor that broadcasts to location, as the
            logvar of `gaussian_nll`.
        mask, weight: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), in nats, constant included; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `gaussian_nll`.

    Source: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, whose first stage
    minimises it with one learned log-scale for all.
    """
    check_tensor("location", location)
    check_target(target, "location", location)
    log_scale = check_parameter("log_scale", log_scale, "location", location, optional=True)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("laplace", target, location, log_scale, mask=mask)
    return nll if weight is None else nll * check_weight(weight, location)


def discretized_logistic_nll(
    mean: Tensor,
    target: Tensor,
    log_scale: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """-log P(target) of images in 256 levels under a logistic distribution cut into levels, per sample.

        t = 2 x - 1,  h = 1/255,  b = (t - mean + h) exp(-s),  a = (t - mean - h) exp(-s)
        nll = sum -log(sigmoid(b) - sigmoid(a)), the lowest level -log sigmoid(b), the highest -log(1 - sigmoid(a))

    The difference is exact in the tails, where peers put 1e-12 or the density in its place.

    Args:
        mean: (batch, ...), in the units of t: black is -1, white is 1.
        target: x in mean's shape, uint8 (255ths), or float in [0, 1]: multiples of 1/255.
        log_scale: s, the natural log of the scale, in the units of t: a number or a tensor that broadcasts to mean.
            Taken as -7 where it is less, as in PixelCNN++: the gradient is 1 at the bound, 0 below.
        mask, weight: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), in nats; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `gaussian_nll`.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016; Salimans et al.,
    "PixelCNN++", 2017, section 2.1.
    """
    check_tensor("mean", mean)
    check_target(target, "mean", mean)
    log_scale = check_parameter("log_scale", log_scale, "mean", mean)
    if mask is not None:
        check_mask(mask, target)
    nll = likelihood("discretized_logistic", target, mean, log_scale, mask=mask)
    return nll if weight is None else nll * check_weight(weight, mean)
