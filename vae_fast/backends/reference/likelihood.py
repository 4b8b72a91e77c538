"""The Bernoulli likelihood with its binarized target: everything else is in `vae_fast.likelihoods`."""

from __future__ import annotations

from torch import Tensor

from ...likelihoods import bernoulli
from ..contract import Generators
from .rng import binarize as draw_bits
from .rng import draw_rng_state


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
    """-log p(target | logits), or of the bits that are drawn with the target as their probability."""
    if binarize:
        rng_state = (
            draw_rng_state(target.device, generator, target.shape[0]) if rng_state is None else rng_state
        )
        target = draw_bits(target, rng_state)
    return bernoulli.bernoulli_nll(logits, target, mask=mask, weight=weight, reduction=reduction)
