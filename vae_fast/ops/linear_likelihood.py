"""The op `linear_likelihood`: the decoder's last linear layer and -log p(target | its outputs), some rows at a time.

The layer's outputs and their gradients live in two buffers of one chunk of rows, never as (batch, features).

The loss is a number per sample, so its gradients are known up to one factor per sample before backward. On the CPU
forward therefore takes them for factors of 1 while the chunk is in cache, and backward only multiplies, in place, where
the factors agree, as after nll.mean() or nll.sum(): three matrix products in all, as without fusion. Where they differ,
or backward runs once more, it makes the chunks again for what is summed over samples (five products). Elsewhere forward
computes nll alone and backward all gradients (four products): to compare the factors would wait for the device, and
float16 needs the loss scale that only backward knows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend
from ..likelihoods import LIKELIHOODS, linear_nll
from ..likelihoods.csr import Csr, as_csr, is_csr
from . import _common, dtensor_head
from .chunks import Inputs, run_chunks
from .op import Args, Gradients, Op


def linear_likelihood(
    likelihood: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    *fixed_params: Tensor,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    group: str | None = None,
    outputs: int = 0,
) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`.

    group, outputs: of processes that have the layer's other outputs, as in `chunks.Inputs`. The loss is this process's
    share then.
    """
    grad_enabled = torch.is_grad_enabled()
    if is_csr(target):
        target = as_csr(target)
    if sample_weight is not None and sample_weight.requires_grad and grad_enabled:
        nll = linear_likelihood(
            likelihood, hidden, weight, bias, target, *fixed_params, library=library, mask=mask
        )
        return nll * sample_weight
    parts: tuple[Tensor, ...] = (target,) if isinstance(target, Tensor) else target.parts[:3]
    tensors = (weight, bias, *parts, *fixed_params, library, mask, sample_weight)
    backend = _common.dispatch("linear_likelihood", hidden, *tensors)
    if backend is None and isinstance(target, Tensor) and any(map(_common.is_dtensor, (hidden, *tensors))):
        return dtensor_head.linear_likelihood(
            linear_likelihood, likelihood, hidden, weight, bias, target, *fixed_params,
            library=library, mask=mask, sample_weight=sample_weight,
        )  # fmt: skip
    if backend is reference and group is not None:
        if _common.result_dtype(hidden, *tensors) is torch.float64:
            raise TypeError(
                f"expected dtypes of at most 32 bits for {likelihood}'s softmax over a sharded weight, but got float64"
            )
    elif backend is reference or (target.requires_grad and grad_enabled):
        return linear_nll(
            LIKELIHOODS[likelihood], hidden, weight, bias, target, *fixed_params,
            library=library, mask=mask, sample_weight=sample_weight,
        )  # fmt: skip
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    speculate = grad_enabled and _common.on_cpu(hidden) and dtype is not torch.float16
    forward_grads: list[int] = [
        speculate and t is not None and t.requires_grad
        for t in (hidden, weight, bias, library, *fixed_params)
    ]
    if backend is None:  # torch.jit.trace records no list of bools
        forward_grads = [int(f) for f in forward_grads]
    options = (library, mask, sample_weight, dtype, forward_grads)
    fused: Tensor
    if isinstance(target, Csr):
        fused = CSR_LINEAR_LIKELIHOOD(
            backend, likelihood, hidden, weight, bias, *target.parts, *options, *fixed_params
        )
    else:
        fused = LINEAR_LIKELIHOOD(
            backend, likelihood, hidden, weight, bias, target, *options, group, outputs, *fixed_params
        )
    return fused


def linear_likelihood_forward(backend: Any, *args: Any) -> tuple[Tensor, list[Tensor]]:
    """nll; kept are the gradients of its sum that `forward_grads` names."""
    inputs = Inputs.of(args)
    hidden, weights = inputs.hidden, inputs.sample_weight
    nll = torch.empty(hidden.shape[:-1], dtype=torch.float32, device=hidden.device)
    ones, samples = None, inputs.num_lead  # dims of a loss per sample
    if any(inputs.forward_grads):
        ones = torch.ones((), device=hidden.device).expand(hidden.shape[:samples])
    unit_grads = run_chunks(backend, inputs, inputs.forward_grads, nll, ones)
    if nll.ndim > samples:  # torch's order of float32 sums depends on its threads
        nll = nll.flatten(samples).sum(samples, dtype=torch.float64).float()
    return nll if weights is None else nll * weights, [g for g in unit_grads if g is not None]


@torch.no_grad()
def linear_likelihood_backward(
    backend: Any,
    needs: Sequence[bool],
    grads: Args,
    args: Args,
    kept: Sequence[Tensor],
    *,
    in_place: bool = False,
) -> Gradients:
    """Gradients of `inputs.grad_inputs`; `in_place` overwrites what forward took."""
    inputs, (grad_nll,) = Inputs.of(args), grads
    forward_grads = inputs.forward_grads if kept else [False] * len(needs)
    same = any(forward_grads) and backend is not FakeBackend
    if same:
        first = grad_nll.reshape(-1)[:1]
        same = bool((grad_nll == first).all())
    taken = [
        n and e and (same or by) for n, e, by in zip(needs, forward_grads, inputs.is_per_sample, strict=True)
    ]
    rest = [n and not t for n, t in zip(needs, taken, strict=True)]
    found: list[Tensor | None] = (
        run_chunks(backend, inputs, rest, None, grad_nll) if any(rest) else [None] * len(rest)
    )
    unit_grads = iter(kept)
    for i, was_taken in enumerate(forward_grads):
        unit_grad = next(unit_grads) if was_taken else None
        if unit_grad is not None and taken[i]:
            factor = _common.per_sample(grad_nll, unit_grad.ndim) if inputs.is_per_sample[i] else first.sum()
            out = unit_grad
            if not in_place:
                out = _common.empty(backend, unit_grad.shape, unit_grad.dtype, unit_grad.device)
            found[i] = torch.mul(unit_grad, factor, out=out)
    return [
        None if g is None or t is None else g.to(t.dtype)
        for g, t in zip(found, inputs.grad_inputs, strict=True)
    ]


def _product(hidden: Sequence[int], weight: Sequence[int]) -> int:
    return 2 * math.prod(hidden) * weight[0]


def _forward_flops(
    likelihood: str, hidden: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Any
) -> int:
    forward_grads = rest[6]
    return _product(hidden, weight) * (1 + sum(map(bool, forward_grads[:2])))


def _backward_flops(
    needs: Sequence[bool], grad_nll: Any, likelihood: str, hidden: Sequence[int], weight: Sequence[int], *rest: Any,
    out_shape: Any,
) -> int:  # fmt: skip
    """Where the loss is a sum or a mean over samples, else there are more."""
    forward_grads, kept = rest[6], rest[-1]
    left = [n and not (kept and taken) for n, taken in zip(needs, forward_grads, strict=True)]
    return _product(hidden, weight) * (1 + sum(left[:2])) if any(left) else 0


LINEAR_LIKELIHOOD = Op(
    "linear_likelihood(str likelihood, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? library, "
    "Tensor? mask, Tensor? sample_weight, ScalarType dtype, int[] forward_grads, str? group, "
    "SymInt outputs, Tensor[]? fixed_params) "
    "-> (Tensor nll, Tensor[] kept)",
    linear_likelihood_forward,
    linear_likelihood_backward,
    differentiable=("hidden", "weight", "bias", "library"),
    # What forward took becomes the gradients, as a weight is large.
    consume=functools.partial(linear_likelihood_backward, in_place=True),
    flops=(_forward_flops, _backward_flops),
)


# Of counts in CSR form, by the three tensors that a graph of torch.compile has in place of a sparse one.


def _csr_forward(backend: Any, *args: Any) -> tuple[Tensor, list[Tensor]]:
    return linear_likelihood_forward(backend, *_dense_args(args))


def _csr_backward(
    backend: Any,
    needs: Sequence[bool],
    grads: Args,
    args: Args,
    kept: Sequence[Tensor],
    *,
    in_place: bool = False,
) -> Gradients:
    return linear_likelihood_backward(backend, needs, grads, _dense_args(args), kept, in_place=in_place)


def _dense_args(args: Args) -> Args:
    """The dense op's."""
    return (*args[:4], Csr(*args[4:8]), *args[8:13], None, 0, *args[13:])


def _csr_forward_flops(
    likelihood: str, hidden: Any, weight: Any, bias: Any, *rest: Any, out_shape: Any
) -> int:
    return _forward_flops(likelihood, hidden, weight, bias, *rest[3:], out_shape=out_shape)


def _csr_backward_flops(
    needs: Any, grad: Any, likelihood: str, hidden: Any, weight: Any, bias: Any, *rest: Any, out_shape: Any
) -> int:
    return _backward_flops(needs, grad, likelihood, hidden, weight, bias, *rest[3:], out_shape=out_shape)


CSR_LINEAR_LIKELIHOOD = Op(
    "csr_linear_likelihood(str likelihood, Tensor hidden, Tensor weight, Tensor? bias, Tensor crow, Tensor col, "
    "Tensor values, SymInt features, Tensor? library, Tensor? mask, Tensor? sample_weight, ScalarType dtype, "
    "int[] forward_grads, Tensor[]? fixed_params) -> (Tensor nll, Tensor[] kept)",
    _csr_forward,
    _csr_backward,
    differentiable=("hidden", "weight", "bias", "library"),
    consume=functools.partial(_csr_backward, in_place=True),
    flops=(_csr_forward_flops, _csr_backward_flops),
)
