"""Wrong arguments of the fused heads, and what the reference has of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import vae_fast
from linear_heads import normal, uniform
from vae_fast import reference


def test_reference_has_the_same_functions() -> None:
    names = [n for n in vae_fast.__all__ if n.startswith("linear_")]
    assert len(names) == 10
    for name in names:
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (vae_fast, reference))
        assert list(ours.parameters) == list(theirs.parameters)


H, W, B = normal(4, 3), normal(6, 3), normal(6)
X = uniform(4, 6)
ERRORS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("bernoulli", {"hidden": H[0]}, ValueError, r"hidden has shape \(3,\)"),
    ("bernoulli", {"hidden": H[None]}, ValueError, r"hidden has shape \(1, 4, 3\), it takes \(batch, H\)"),
    ("bernoulli", {"hidden": H.long()}, TypeError, "hidden has dtype torch.int64"),
    ("bernoulli", {"weight": W.t()}, ValueError, r"weight has shape \(3, 6\), it takes \(outputs, H\) with H = 3"),
    ("bernoulli", {"weight": W.double()}, TypeError, "weight has dtype torch.float64, hidden has torch.float32"),
    ("bernoulli", {"weight": W[:5], "bias": None}, ValueError, "6 elements per sample it takes 6 rows"),
    ("bernoulli", {"bias": B[:5]}, ValueError, r"bias has shape \(5,\)"),
    ("bernoulli", {"target": X[:3]}, ValueError, r"target has shape \(3, 6\), hidden has \(4, 3\)"),
    ("bernoulli", {"target": X[:, :0]}, ValueError, "at least one element per sample"),
    ("bernoulli", {"target": X.to(torch.complex64)}, TypeError, "target has dtype torch.complex64"),
    ("bernoulli", {"mask": X}, TypeError, "mask has dtype torch.float32"),
    ("bernoulli", {"mask": X[:, :5] > 0}, ValueError, r"mask has shape \(4, 5\)"),
    ("bernoulli", {"sample_weight": X}, ValueError, r"sample_weight has shape \(4, 6\), it takes \(batch,\) = \(4,\)"),
    ("gaussian", {"target": X[:, :3], "logvar": 0.0}, ValueError, "logvar is given, but weight has rows for it"),
    ("gaussian", {"logvar": B[:5]}, ValueError, r"logvar has shape \(5,\)"),
    ("discretized_logistic", {}, TypeError, "log_scale is NoneType"),
    ("negative_binomial", {}, TypeError, "theta is NoneType"),
    ("poisson", {"library": X}, ValueError, r"library has shape \(4, 6\)"),
    ("zero_inflated_negative_binomial", {"theta": 1.0}, ValueError, "takes 12 or 18 rows"),
    ("categorical", {"target": X[:, 0]}, TypeError, "it takes class numbers"),
    ("categorical", {"target": X.long()}, ValueError, r"target has shape \(4, 6\), hidden and weight ask for \(4,\)"),
    ("multinomial", {"target": X[:, :5]}, ValueError, r"ask for \(4, 6\)"),
]  # fmt: skip


@pytest.mark.parametrize(("likelihood", "wrong", "error", "message"), ERRORS)
def test_errors(likelihood: str, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"hidden": H, "weight": W, "bias": B, "target": X} | wrong
    with pytest.raises(error, match=message):
        getattr(vae_fast, f"linear_{likelihood}_nll")(**arguments)
