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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..backends.contract import FakeBackend
from . import _common
from .chunks import Gradients, Inputs, run_chunks


def linear_likelihood(
    likelihood: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *fixed_params: Tensor,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    grad_enabled = torch.is_grad_enabled()
    if sample_weight is not None and sample_weight.requires_grad and grad_enabled:
        nll = linear_likelihood(
            likelihood, hidden, weight, bias, target, *fixed_params, library=library, mask=mask
        )
        return nll * sample_weight
    tensors = (weight, bias, target, *fixed_params, library, mask, sample_weight)
    backend = _common.dispatch("linear_likelihood", hidden, *tensors)
    if backend is reference or (target.requires_grad and grad_enabled):
        function = getattr(reference, f"linear_{likelihood}_nll")
        options = {"mask": mask, "sample_weight": sample_weight}
        if library is not None:
            options["library"] = library
        return function(hidden, weight, bias, target, *fixed_params, **options)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    inputs = Inputs(
        likelihood, hidden, weight, bias, target, fixed_params, library, mask, sample_weight, dtype
    )
    speculate = grad_enabled and device == "cpu" and dtype is not torch.float16
    forward_grads = [speculate and t is not None and t.requires_grad for t in inputs.grad_inputs]
    if backend is None:
        nll, _ = torch.ops.vae_fast.linear_likelihood(*inputs, forward_grads)
        return nll
    if _common.needs_grad(*inputs.grad_inputs):
        return _LinearLikelihood.apply(backend, forward_grads, inputs, *inputs.grad_inputs)
    return forward(backend, *inputs, forward_grads)[0]


def forward(backend: Any, *args: Any) -> tuple[Tensor, Gradients]:
    """nll and, for what `forward_grads` names, the gradients of its sum."""
    *first, forward_grads = args
    inputs = Inputs(*first)
    hidden, weights = inputs.hidden, inputs.sample_weight
    nll = torch.empty(hidden.shape[:-1], dtype=torch.float32, device=hidden.device)
    ones = torch.ones((), device=hidden.device).expand(hidden.shape[0])
    unit_grads = run_chunks(backend, inputs, forward_grads, nll, ones)
    if nll.ndim > 1:
        nll = nll.flatten(1).sum(1, dtype=torch.float64).float()  # torch's order depends on its threads
    return nll if weights is None else nll * weights, unit_grads


@torch.no_grad()
def backward(
    backend: Any,
    grad_nll: Tensor,
    inputs: Inputs,
    forward_grads: Sequence[bool],
    unit_grads: Sequence[Tensor | None],
    needs: Sequence[bool],
    *,
    in_place: bool = False,
) -> Gradients:
    """Gradients of `inputs.grad_inputs`, None where `needs` says so; `unit_grads` are those that forward took, which
    `in_place` overwrites."""
    same = any(forward_grads) and backend is not FakeBackend and bool((grad_nll == grad_nll[:1]).all())
    taken = [
        n and e and (same or by) for n, e, by in zip(needs, forward_grads, inputs.is_per_sample, strict=True)
    ]
    rest = [n and not t for n, t in zip(needs, taken, strict=True)]
    grads: Gradients = (
        run_chunks(backend, inputs, rest, None, grad_nll) if any(rest) else [None for _ in rest]
    )
    for i, unit_grad in enumerate(unit_grads):
        if taken[i]:
            assert unit_grad is not None
            factor = (
                _common.per_sample(grad_nll, unit_grad.ndim)
                if inputs.is_per_sample[i]
                else grad_nll[:1].sum()
            )
            out = (
                unit_grad
                if in_place
                else _common.empty(backend, unit_grad.shape, unit_grad.dtype, unit_grad.device)
            )
            grads[i] = torch.mul(unit_grad, factor, out=out)
    return [
        None if g is None or t is None else g.to(t.dtype)
        for g, t in zip(grads, inputs.grad_inputs, strict=True)
    ]


class _LinearLikelihood(_common.Function):
    """The eager path."""

    @staticmethod
    def forward(
        ctx: Any, backend: Any, forward_grads: Sequence[bool], inputs: Inputs, *grad_inputs: Tensor | None
    ) -> Tensor:
        nll, unit_grads = forward(backend, *inputs, forward_grads)
        ctx.backend = backend
        _save(ctx, inputs, forward_grads, [None] * len(unit_grads))
        ctx.unit_grads = unit_grads
        return nll

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        inputs, forward_grads, unit_grads = _saved(ctx)
        needs = ctx.needs_input_grad[3:]
        if _common.are_real(grad_nll):
            # What forward took becomes the gradients, as a weight is large; a graph that is kept makes them anew.
            unit_grads, ctx.unit_grads = ctx.unit_grads, None
            forward_grads = forward_grads if unit_grads else [False] * len(forward_grads)
            grads = backward(
                ctx.backend, grad_nll, inputs, forward_grads, unit_grads or [], needs, in_place=True
            )
        else:
            grads = _backward_traced(grad_nll, inputs, [False] * len(forward_grads), unit_grads, needs)
        return None, None, None, *_common.forbid_double_backward(grads, grad_nll, *inputs.grad_inputs)


def _save(
    ctx: Any, inputs: Inputs, forward_grads: Sequence[bool], unit_grads: Sequence[Tensor | None]
) -> None:
    ctx.likelihood, ctx.dtype, ctx.forward_grads, ctx.fixed_params = (
        inputs.likelihood,
        inputs.dtype,
        forward_grads,
        len(inputs.fixed_params),
    )
    ctx.save_for_backward(*inputs[1:5], *inputs[6:9], *inputs.fixed_params, *unit_grads)


def _saved(ctx: Any) -> tuple[Inputs, Sequence[bool], Sequence[Tensor | None]]:
    hidden, weight, bias, target, library, mask, sample_weight, *rest = ctx.saved_tensors
    fixed_params, unit_grads = rest[: ctx.fixed_params], rest[ctx.fixed_params :]
    inputs = Inputs(
        ctx.likelihood, hidden, weight, bias, target, fixed_params, library, mask, sample_weight, ctx.dtype
    )
    return inputs, ctx.forward_grads, unit_grads


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _forward_op(backend: Any, *args: Any) -> tuple[Tensor, list[Tensor]]:
    nll, unit_grads = forward(backend, *args)
    return nll, list(_common.none_to_empty(nll, unit_grads))


def _backward_op(backend: Any, grad_nll: Tensor, *args: Any) -> list[Tensor]:
    *first, forward_grads, unit_grads, needs = args
    return list(
        _common.none_to_empty(
            grad_nll, backward(backend, grad_nll, Inputs(*first), forward_grads, unit_grads, needs)
        )
    )


def _backward_traced(
    grad_nll: Tensor,
    inputs: Inputs,
    forward_grads: Sequence[bool],
    unit_grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> Gradients:
    grads = torch.ops.vae_fast.linear_likelihood_backward(
        grad_nll, *inputs, forward_grads, _common.none_to_empty(grad_nll, unit_grads), needs
    )
    return [g if needed else None for g, needed in zip(grads, needs, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *first, forward_grads = inputs
    _save(ctx, Inputs(*first), forward_grads, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_nll: Tensor | None, grad_unit_grads: Any) -> Any:
    inputs, forward_grads, unit_grads = _saved(ctx)
    _, hidden, weight, bias, _, fixed_params, library, *_ = ctx.needs_input_grad
    needs = [hidden, weight, bias, library, *(fixed_params or [False] * len(inputs.fixed_params))]
    grads: Gradients = [None] * len(needs)
    if grad_nll is not None:
        grads = _backward_traced(grad_nll, inputs, forward_grads, unit_grads, needs)
    return None, *grads[:3], None, grads[4:], grads[3], None, None, None, None


_SCHEMA = (
    "str likelihood, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor[] fixed_params, "
    "Tensor? library, Tensor? mask, Tensor? sample_weight, ScalarType dtype, bool[] forward_grads"
)


def _sources(likelihood: str, hidden: Tensor, weight: Tensor, *args: Any) -> Sequence[Any]:
    return hidden, weight


_common.define(
    f"linear_likelihood({_SCHEMA}) -> (Tensor, Tensor[])",
    _forward_op,
    sources=_sources,
    differentiate=_differentiate,
    setup=_setup,
)
_common.define(
    f"linear_likelihood_backward(Tensor grad_nll, {_SCHEMA}, Tensor[] unit_grads, bool[] needs) -> Tensor[]",
    _backward_op,
    sources=lambda grad_nll, *args: _sources(*args),
)
