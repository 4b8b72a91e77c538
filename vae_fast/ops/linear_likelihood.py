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
from .chunks import Gradients, Inputs, sweep


def linear_likelihood(
    member: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *given: Tensor,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The negative log-likelihood per sample. The arguments have been checked in `functional`."""
    grad_enabled = torch.is_grad_enabled()
    if sample_weight is not None and sample_weight.requires_grad and grad_enabled:
        nll = linear_likelihood(member, hidden, weight, bias, target, *given, library=library, mask=mask)
        return nll * sample_weight
    tensors = (weight, bias, target, *given, library, mask, sample_weight)
    backend = _common.dispatch("linear_likelihood", hidden, *tensors)
    if backend is reference or (target.requires_grad and grad_enabled):
        function = getattr(reference, f"linear_{member}_nll")
        options = {"mask": mask, "sample_weight": sample_weight}
        if library is not None:
            options["library"] = library
        return function(hidden, weight, bias, target, *given, **options)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    inputs = Inputs(member, hidden, weight, bias, target, given, library, mask, sample_weight, dtype)
    speculate = grad_enabled and device == "cpu" and dtype is not torch.float16
    early = [speculate and t is not None and t.requires_grad for t in inputs.learned]
    if backend is None:
        nll, _ = torch.ops.vae_fast.linear_likelihood(*inputs, early)
        return nll
    if _common.needs_grad(*inputs.learned):
        return _LinearLikelihood.apply(backend, early, inputs, *inputs.learned)
    return forward(backend, *inputs, early)[0]


def forward(backend: Any, *args: Any) -> tuple[Tensor, Gradients]:
    """nll and, for what `early` names, the gradients of its sum."""
    *first, early = args
    inputs = Inputs(*first)
    hidden, weights = inputs.hidden, inputs.sample_weight
    nll = torch.empty(hidden.shape[:-1], dtype=torch.float32, device=hidden.device)
    ones = torch.ones((), device=hidden.device).expand(hidden.shape[0])
    units = sweep(backend, inputs, early, nll, ones)
    if nll.ndim > 1:
        nll = nll.flatten(1).sum(1, dtype=torch.float64).float()  # torch's order depends on its threads
    return nll if weights is None else nll * weights, units


@torch.no_grad()
def backward(
    backend: Any,
    grad_nll: Tensor,
    inputs: Inputs,
    early: Sequence[bool],
    units: Sequence[Tensor | None],
    needs: Sequence[bool],
    *,
    in_place: bool = False,
) -> Gradients:
    """Gradients of `inputs.learned`, None where `needs` says so; `units` are those that forward took, which are
    overwritten if they may be."""
    same = any(early) and backend is not FakeBackend and bool((grad_nll == grad_nll[:1]).all())
    taken = [n and e and (same or by) for n, e, by in zip(needs, early, inputs.by_row, strict=True)]
    rest = [n and not t for n, t in zip(needs, taken, strict=True)]
    grads: Gradients = sweep(backend, inputs, rest, None, grad_nll) if any(rest) else [None for _ in rest]
    for i, unit in enumerate(units):
        if taken[i]:
            assert unit is not None
            factor = _common.per_sample(grad_nll, unit.ndim) if inputs.by_row[i] else grad_nll[:1].sum()
            out = unit if in_place else _common.empty(backend, unit.shape, unit.dtype, unit.device)
            grads[i] = torch.mul(unit, factor, out=out)
    return [
        None if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, inputs.learned, strict=True)
    ]


class _LinearLikelihood(_common.Function):
    """The eager path."""

    @staticmethod
    def forward(
        ctx: Any, backend: Any, early: Sequence[bool], inputs: Inputs, *learned: Tensor | None
    ) -> Tensor:
        nll, units = forward(backend, *inputs, early)
        ctx.backend = backend
        _save(ctx, inputs, early, [None] * len(units))
        ctx.units = units
        return nll

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> Any:
        inputs, early, units = _saved(ctx)
        needs = ctx.needs_input_grad[3:]
        if _common.are_plain(grad_nll):
            # What forward took becomes the gradients, as a weight is large; a graph that is kept makes them anew.
            units, ctx.units = ctx.units, None
            early = early if units else [False] * len(early)
            grads = backward(ctx.backend, grad_nll, inputs, early, units or [], needs, in_place=True)
        else:
            grads = _backward_traced(grad_nll, inputs, [False] * len(early), units, needs)
        return None, None, None, *_common.once(grads, grad_nll, *inputs.learned)


def _save(ctx: Any, inputs: Inputs, early: Sequence[bool], units: Sequence[Tensor | None]) -> None:
    ctx.member, ctx.dtype, ctx.early, ctx.given = inputs.member, inputs.dtype, early, len(inputs.given)
    ctx.save_for_backward(*inputs[1:5], *inputs[6:9], *inputs.given, *units)


def _saved(ctx: Any) -> tuple[Inputs, Sequence[bool], Sequence[Tensor | None]]:
    hidden, weight, bias, target, library, mask, sample_weight, *rest = ctx.saved_tensors
    given, units = rest[: ctx.given], rest[ctx.given :]
    inputs = Inputs(ctx.member, hidden, weight, bias, target, given, library, mask, sample_weight, ctx.dtype)
    return inputs, ctx.early, units


# The same op for torch.compile, fake and meta tensors and dispatch modes.


def _forward_op(backend: Any, *args: Any) -> tuple[Tensor, list[Tensor]]:
    nll, units = forward(backend, *args)
    return nll, list(_common.dense(nll, units))


def _backward_op(backend: Any, grad_nll: Tensor, *args: Any) -> list[Tensor]:
    *first, early, units, needs = args
    return list(_common.dense(grad_nll, backward(backend, grad_nll, Inputs(*first), early, units, needs)))


def _backward_traced(
    grad_nll: Tensor,
    inputs: Inputs,
    early: Sequence[bool],
    units: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> Gradients:
    grads = torch.ops.vae_fast.linear_likelihood_backward(
        grad_nll, *inputs, early, _common.dense(grad_nll, units), needs
    )
    return [g if needed else None for g, needed in zip(grads, needs, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *first, early = inputs
    _save(ctx, Inputs(*first), early, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_nll: Tensor | None, grad_units: Any) -> Any:
    inputs, early, units = _saved(ctx)
    _, hidden, weight, bias, _, given, library, *_ = ctx.needs_input_grad
    needs = [hidden, weight, bias, library, *(given or [False] * len(inputs.given))]
    grads: Gradients = [None] * len(needs)
    if grad_nll is not None:
        grads = _backward_traced(grad_nll, inputs, early, units, needs)
    return None, *grads[:3], None, grads[4:], grads[3], None, None, None, None


_SCHEMA = (
    "str member, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor[] given, Tensor? library, "
    "Tensor? mask, Tensor? sample_weight, ScalarType dtype, bool[] early"
)


def _sources(member: str, hidden: Tensor, weight: Tensor, *args: Any) -> Sequence[Any]:
    return hidden, weight


_common.define(
    f"linear_likelihood({_SCHEMA}) -> (Tensor, Tensor[])",
    _forward_op,
    sources=_sources,
    differentiate=_differentiate,
    setup=_setup,
)
_common.define(
    f"linear_likelihood_backward(Tensor grad_nll, {_SCHEMA}, Tensor[] units, bool[] needs) -> Tensor[]",
    _backward_op,
    sources=lambda grad_nll, *args: _sources(*args),
)
