"""What the native engines call by number. The orders are those of the C++ enums."""

from __future__ import annotations

import torch
from torch import Tensor

# csrc/api/tensor_view.h, enum DType; count8 is a uint8 tensor whose bytes are numbers, not 255ths
DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.uint8: 3,
    torch.bool: 4,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
}
COUNT8 = 5

# csrc/formulas/likelihood.h, VAE_FAST_LIKELIHOODS
LIKELIHOODS = {
    name: code
    for code, name in enumerate(
        (
            "bernoulli",
            "gaussian",
            "continuous_bernoulli",
            "laplace",
            "discretized_logistic",
            "poisson",
            "negative_binomial",
            "zero_inflated_negative_binomial",
            "bernoulli_probs",
        )
    )
}
# members whose target is a number of things: a uint8 target is taken as it is
COUNTS = frozenset(("poisson", "negative_binomial", "zero_inflated_negative_binomial"))


def mixture_sizes(params: Tensor, target: Tensor) -> tuple[int, int, int, int]:
    """(batch, channels, components, pixels), from params (batch, parameters, pixels)"""
    batch, channels, pixels = target.shape
    return batch, channels, params.shape[1] // (3 if channels == 1 else 10), pixels
