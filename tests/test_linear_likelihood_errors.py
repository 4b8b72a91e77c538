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
    assert len(names) == 11
    for name in names:
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (vae_fast, reference))
        assert list(ours.parameters) == list(theirs.parameters)


H, W, B = normal(4, 3), normal(6, 3), normal(6)
X = uniform(4, 6)
ERRORS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("bernoulli", {"hidden": H[0]}, ValueError, r"hidden to have shape \(batch, ..., H\), but got \(3,\)"),
    ("bernoulli", {"hidden": H[None, None]}, ValueError, r"hidden to have shape \(batch, H\), but got \(1, 1, 4, 3\)"),
    ("bernoulli", {"hidden": H.long()}, TypeError, "hidden to have dtype float32, .*, but got torch.int64"),
    ("bernoulli", {"weight": W.t()}, ValueError, r"weight to have shape \(outputs, H\) with H = 3, but got \(3, 6\)"),
    ("bernoulli", {"weight": W.double()}, TypeError, "weight to have dtype .*32 like hidden, but got .*64"),
    ("bernoulli", {"weight": W[:5], "bias": None}, ValueError, "weight to have 6 rows for .* 6 elements per sample"),
    ("bernoulli", {"bias": B[:5]}, ValueError, r"bias to have shape \(6,\) .*, but got \(5,\)"),
    ("bernoulli", {"target": X[:3]}, ValueError, r"target .* \(4, .* hidden of shape \(4, 3\), but got \(3, 6\)"),
    ("bernoulli", {"target": X[:, :0]}, ValueError, "at least one element per sample"),
    ("bernoulli", {"target": X.to(torch.complex64)}, TypeError, "target to have dtype .*, but got torch.complex64"),
    ("bernoulli", {"mask": X}, TypeError, "mask to have dtype bool, but got torch.float32"),
    ("bernoulli", {"mask": X[:, :5] > 0}, ValueError, r"mask to broadcast to .*\(4, 6\) of target, but got \(4, 5\)"),
    ("bernoulli", {"sample_weight": X}, ValueError, r"sample_weight to .* \(batch,\) = \(4,\), but got \(4, 6\)"),
    ("gaussian", {"target": X[:, :3], "logvar": 0.0}, ValueError, "logvar is given, but weight has rows for it"),
    ("gaussian", {"logvar": B[:5]}, ValueError, r"logvar to broadcast to .* of target, but got \(5,\)"),
    ("discretized_logistic", {}, TypeError, "expected log_scale to be a tensor or a number, but got NoneType"),
    ("negative_binomial", {}, TypeError, "expected theta to be a tensor or a number, but got NoneType"),
    ("poisson", {"library": X}, ValueError, r"expected library to have shape \(batch,\) = \(4,\), but got \(4, 6\)"),
    ("zero_inflated_negative_binomial", {"theta": 1.0}, ValueError, "weight to have 12 or 18 rows .* 6 elements"),
    ("categorical", {"target": X[:, 0]}, TypeError, r"target to have .* \(class numbers\), but got torch.float32"),
    ("categorical", {"target": X.long()}, ValueError, r"target to have shape \(4,\) for hidden .*, but got \(4, 6\)"),
    ("multinomial", {"target": X[:, :5]}, ValueError, r"target to have shape \(4, 6\) for hidden .*, but got \(4, 5\)"),
]  # fmt: skip


@pytest.mark.parametrize(("likelihood", "wrong", "error", "message"), ERRORS)
def test_errors(likelihood: str, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"hidden": H, "weight": W, "bias": B, "target": X} | wrong
    with pytest.raises(error, match=message):
        getattr(vae_fast, f"linear_{likelihood}_nll")(**arguments)
