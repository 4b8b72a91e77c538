"""What the native engines call by number. The orders are those of the C++ enums."""

from __future__ import annotations

import torch

# csrc/cpu/view.h, enum DType
DTYPES = {
    dtype: code
    for code, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool))
}

# csrc/common/likelihood.h, VAE_FAST_LIKELIHOODS
LIKELIHOODS = {name: code for code, name in enumerate(("bernoulli", "gaussian"))}
