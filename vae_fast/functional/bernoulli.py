"""-log p(x | z) of independent Bernoulli variables: binary images, grey values as probabilities."""

from __future__ import annotations

from torch import Tensor

from ..backends.contract import Generators
from ..checks import (
    check_mask,
    check_per_sample,
    check_reduction,
    check_target,
    check_tensor,
    resolve_bits_state,
)
from ..likelihoods.numerics import weighted
from ..ops.likelihood import likelihood
from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_layer


def bernoulli_nll(
    logits: Tensor,
    target: Tensor,
    *,
    binarize: bool = False,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """-log p(target | logits) of independent Bernoulli variables, per sample.

        nll = sum max(l, 0) - x l + log(1 + exp(-|l|))

    The sum runs over all dims but the first. NaN and infinities propagate.

    Draws, in this and every other likelihood: a parameter with exactly one dim more than target, (k, batch, ...) or
    what broadcasts to it after k, holds k draws. The result then is (k, batch), and its [d] what the parameters' [d]
    give. The target is read where it lies, never repeated in memory; it has one mask and one set of bits for all draws.
    A parameter without draws serves all of them, and its gradient is summed over them in the kernel.

    Args:
        logits: l, (batch, ...) or draws, (k, batch, ...), float32, bfloat16, float16 or float64, any strides.
        target: x in logits' shape, read as it is: float (grey values between 0 and 1 give the usual cross-entropy),
            uint8 (255ths), bool, int16, int32 or int64. A target that requires grad is served by the plain PyTorch
            of `vae_fast.reference`.
        binarize: take 1 with probability x, else 0, for every element anew: dynamic binarization (Burda et al.,
            2016), drawn as the target is read. `vae_fast.binarize` gives the same bits; NaN stays NaN.
        mask: bool, broadcastable to target. False leaves the element out: it adds nothing and its gradient is 0, even
            where its target or parameter is NaN or infinite.
        weight: (batch,), a factor for each sample's nll, or (k, batch), one for each of its draws.
        reduction: "sample" gives a loss for each sample, "none" one for each element, in target's shape.
        generator: where the bits come from, on logits' device; by default torch's own generator of that device. A
            list has one for each sample.
        rng_state: int64 (seed, offset) of shape (2,), or (batch, 2) for one per sample: reproduces the bits. Shape (4,)
            as in `reparameterize_kl`. The same rng_state may serve the latent. At most one of rng_state and generator,
            and only with binarize.

    Returns:
        nll: (batch,), or as `reduction` says, after draws if there are any, in nats; float32 (float64 if an input is).
            0 for samples without elements.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.1.
    """
    check_tensor("logits", logits)
    draws = check_target(target, "logits", logits)
    if mask is not None:
        check_mask(mask, target)
    if weight is not None:
        check_per_sample("weight", weight, target, draws)
    if binarize or rng_state is not None or generator is not None:
        rng_state = resolve_bits_state(target, binarize, generator, rng_state)
    per_element = reduction != "sample" and check_reduction(reduction)
    nll = likelihood(
        "bernoulli", target, logits, mask=mask, rng_state=rng_state, per_element=per_element, draws=draws
    )
    return nll if weight is None else weighted(nll, weight, target.ndim if per_element else 1)


def bernoulli_nll_from_probs(
    probs: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | probs) of independent Bernoulli variables, per sample: torch's `binary_cross_entropy`.

        nll = -sum x max(log p, -100) + (1 - x) max(log(1 - p), -100)

    For decoders that end in a sigmoid. `bernoulli_nll` of the logits is more exact: where p rounds to 0 or 1 the
    numbers that are held, here and in torch, are all that is left of it. The gradient is torch's as well,
    (p - x) / max(p (1 - p), 1e-12). NaN where p or x is not in [0, 1], where torch raises on the CPU.

    Args:
        probs: p, (batch, ...) or draws as in `bernoulli_nll`, float32, bfloat16, float16 or float64, any strides.
        target: x in probs' shape, as in `bernoulli_nll`.
        mask, weight, reduction: as in `bernoulli_nll`.

    Returns:
        nll: (batch,), or as `reduction` says, in nats; float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: as `bernoulli_nll`.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix C.1.
    """
    return elementwise_nll("bernoulli_probs", "probs", probs, target, mask, weight, reduction)


def linear_bernoulli_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`bernoulli_nll` of the logits that a linear layer makes: l = hidden weight^T + bias.

    The layer and the likelihood run over some rows at a time, forward and back, so that neither the logits nor their
    gradient ever exist as (batch, features): memory of one chunk instead. Gradients of weight and bias are summed in
    float32. Where the gradient of the result is the same for all samples by its strides (after nll.mean() or
    nll.sum()), everything is computed once, in the forward pass; where it differs, backward makes the chunks again.
    Under autocast the matrix products are in autocast's dtype, as in F.linear, and the likelihood in float32.

    Args:
        hidden: (batch, H), the layer's input, or draws of it, (k, batch, H), as in `bernoulli_nll`: float32, bfloat16,
            float16 or float64.
        weight: (features, H), the layer's weight.
        bias: (features,) or None.
        target: x, (batch, features), or (batch, ...) with as many elements, in the order of weight's rows; dtypes as
            in `bernoulli_nll`.
        mask: bool, broadcastable to target: False leaves the element out.
        sample_weight: (batch,), a factor for every sample.

    Returns:
        nll: (batch,) or (k, batch), in nats; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: as `bernoulli_nll`; chunks and gradients in forward as in Hsu et al., "Liger Kernel: Efficient Triton
    Kernels for LLM Training", 2024.
    """
    check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1,))
    return linear_likelihood(
        "bernoulli", hidden, weight, bias, target, mask=mask, sample_weight=sample_weight
    )
