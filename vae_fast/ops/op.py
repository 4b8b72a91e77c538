"""One declaration an op: from its schema, forward and backward come the eager and the traced op.

An eager call runs `forward`, through an autograd Function where a gradient is needed. torch.compile, torch.export, fake
and meta tensors and dispatch modes see two library ops, `name` and `name_backward`, with fake kernels and autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import backends
from ..backends.contract import FakeBackend
from ._common import are_real, is_dtensor
from .dtensor import call as call_on_dtensors

LIB = torch.library.Library("vae_fast", "DEF")
DOUBLE_BACKWARD = (
    "vae_fast's kernels have no second derivative; "
    'run the forward pass under vae_fast.backend("reference") to differentiate twice'
)
Args = Sequence[Any]
Gradients = Sequence[Tensor | None]
Flops = Callable[..., int]
FLOPS: dict[str, Flops] = {}  # of every library op, for flops.py


class _NoSecondDerivative(torch.autograd.Function):
    """Passes gradients on, tied to what they depend on, and raises when they are differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> Any:
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(DOUBLE_BACKWARD)


def forbid_double_backward(grads: Gradients, sources: Gradients) -> Gradients:
    """The gradients, for create_graph=True: they refuse to be differentiated instead of being taken as constants."""
    refusing: Gradients = _NoSecondDerivative.apply(len(grads), *grads, *sources)
    return refusing


def _no_flops(*args: Any, **kwargs: Any) -> int:
    return 0


class Op:
    """An op of the library `vae_fast`.

    Args:
        schema: `name(arguments) -> (outputs)`. A list of tensors is the last argument, optional where it may be empty;
            `forward` takes it flat, and each of its tensors has a gradient. A list as the last result holds what
            forward keeps for backward.
        forward: (backend, *args) -> (outputs, kept). Allocates the results and has the backend fill them: a tensor or a
            tuple for the caller, with None for what is not wanted, and the tensors that backward needs besides.
        backward: (backend, needs, grads, args, kept) -> gradients of `differentiable`, None where `needs` is False.
            Where an output has no gradient, `grads` has None.
        differentiable: the arguments that have gradients, a list excepted.
        check: (*args) raises for sizes that nobody looked at while the call was traced.
        consume: the same as `backward`, for eager calls: may overwrite what is kept. If backward runs once more,
            nothing is kept.
        flops: of the library ops, forward and backward, by their arguments, with shapes for tensors. Only matrix
            products count, as in PyTorch's own formulas: by default there are none.
        batch_dims: (*args) -> (where the samples are in each argument, likewise of each output), as `dtensor.run` takes
            them.
    """

    def __init__(
        self,
        schema: str,
        forward: Callable[..., tuple[Any, Sequence[Tensor]]],
        backward: Callable[..., Gradients] | None = None,
        differentiable: Sequence[str] = (),
        check: Callable[..., None] | None = None,
        consume: Callable[..., Gradients] | None = None,
        flops: tuple[Flops, Flops] = (_no_flops, _no_flops),
        batch_dims: Callable[..., tuple[Sequence[int | None], Sequence[int]]] | None = None,
    ) -> None:
        self.forward, self.backward, self.check, self.consume = forward, backward, check, consume
        self.batch_dims = batch_dims
        self.name = schema.partition("(")[0]
        parsed = torch._C.parse_schema(schema)
        types = [str(a.type) for a in parsed.arguments]
        names = [a.name for a in parsed.arguments]
        self.has_list = types[-1] in ("List[Tensor]", "Optional[List[Tensor]]")
        self.has_kept = str(parsed.returns[-1].type) == "List[Tensor]"
        self.num_outputs = len(parsed.returns) - self.has_kept
        self.num_single = len(types) - self.has_list  # arguments before the list
        tensors = [i for i in range(self.num_single) if "Tensor" in types[i]]
        constants = [i for i in range(self.num_single) if i not in tensors]
        learning = [names.index(name) for name in differentiable]
        saved = {argument: place for place, argument in enumerate((*tensors, *constants))}
        self.num_tensors, self.num_learning = len(tensors), len(learning)
        self.tensors, self.constants, self.learning = _items(tensors), _items(constants), _items(learning)
        self.places = [saved[i] for i in range(self.num_single)]
        self.in_order = _items(self.places)
        # Of each argument of the library op, where its gradient is: None stands last.
        self.spread = _items([learning.index(i) if i in learning else -1 for i in range(self.num_single)])
        self.save, self.saved = self._make_save()
        self._define(schema, self._forward_op, flops[0])
        if backward is not None:
            # Without what torch's own `apply` does for torch.func, a tenth of a small forward pass: `dispatch` sends
            # real tensors only.
            self.apply = super(torch.autograd.Function, _make_function(self)).apply  # type: ignore[misc]
            outputs = [
                f"Tensor? grad_{r.name or i}" for i, r in enumerate(parsed.returns[: self.num_outputs])
            ]
            arguments = schema[len(self.name) + 1 : schema.index(") ->")]
            arguments = ", ".join(
                [f"{self.name}_backward(bool[] needs", *outputs, arguments, "Tensor[] kept"]
            )
            self._define(f"{arguments}) -> Tensor[]", self._backward_op, flops[1])
            torch.library.register_autograd(
                f"vae_fast::{self.name}", self._differentiate, setup_context=self._set_up, lib=LIB
            )

    def __call__(self, backend: Any, *args: Any) -> Any:
        """The outputs. Without a backend, those of the library op."""
        if backend is None:
            if any(map(is_dtensor, args)):
                return call_on_dtensors(self, args)
            results = getattr(torch.ops.vae_fast, self.name)(*self.nested(args))
            if not self.has_kept:
                return results
            return results[0] if self.num_outputs == 1 else results[:-1]
        if torch.is_grad_enabled():
            learning = self.learning(args)
            if self.has_list:
                learning += args[self.num_single :]
            for t in learning:
                if t is not None and t.requires_grad:
                    return self.apply(backend, args, *learning)
        return self.forward(backend, *args)[0]

    def nested(self, args: Args) -> Args:
        """The arguments as the schema has them, from flat ones. AOTInductor loses a list that is empty: None."""
        return (*args[: self.num_single], list(args[self.num_single :]) or None) if self.has_list else args

    def flat(self, args: Args) -> Args:
        return (*args[:-1], *(args[-1] or ())) if self.has_list else args

    def _make_save(
        self,
    ) -> tuple[Callable[[Any, Args, Sequence[Tensor]], None], Callable[[Any], tuple[Args, Sequence[Tensor]]]]:
        """What puts (args, kept) on a ctx, and what gets them from there."""
        tensors, constants, in_order = self.tensors, self.constants, self.in_order
        has_list, num_single, count = self.has_list, self.num_single, self.num_tensors

        def save(ctx: Any, args: Args, kept: Sequence[Tensor]) -> None:
            ctx.set_materialize_grads(False)
            ctx.constants = constants(args)
            if has_list:
                ctx.num_saved = count + len(args) - num_single
                ctx.save_for_backward(*tensors(args), *args[num_single:], *kept)
            else:
                ctx.save_for_backward(*tensors(args), *kept)

        def saved(ctx: Any) -> tuple[Args, Sequence[Tensor]]:
            found = ctx.saved_tensors
            if not has_list:
                return in_order((*found[:count], *ctx.constants)), found[count:]
            end = ctx.num_saved
            return (*in_order((*found[:count], *ctx.constants)), *found[count:end]), found[end:]

        return save, saved

    def trace_backward(self, ctx: Any, grads: Gradients) -> Gradients:
        """The backward of eager calls for compiled autograd, whose Dynamo traces no kernel and no itemgetter."""
        found = ctx.saved_tensors
        single = (*found[: self.num_tensors], *ctx.constants)
        end = ctx.num_saved if self.has_list else self.num_tensors
        args = (*[single[place] for place in self.places], *found[self.num_tensors : end])
        kept = ctx.kept if self.consume is not None else found[end:]
        return self.call_backward_op(ctx.needs_input_grad[2:], grads, args, list(kept))

    def call_backward_op(
        self, needs: Sequence[bool], grads: Gradients, args: Args, kept: Sequence[Tensor]
    ) -> list[Tensor | None]:
        op = getattr(torch.ops.vae_fast, f"{self.name}_backward")
        wanted = iter(op(needs, *grads, *self.nested(args), kept))
        return [next(wanted) if needed else None for needed in needs]

    # What the library ops are made of. Their results are whole: a gradient that is not needed is left out of the list.

    def _forward_op(self, backend: Any, *args: Any) -> Any:
        outputs, kept = self.forward(backend, *self.flat(args))
        if not self.has_kept:
            return outputs
        return (*(outputs if self.num_outputs > 1 else (outputs,)), list(kept))

    def _backward_op(self, backend: Any, needs: Sequence[bool], *rest: Any) -> list[Tensor]:
        assert self.backward is not None
        grads, args, kept = rest[: self.num_outputs], self.flat(rest[self.num_outputs : -1]), rest[-1]
        return [g for g in self.backward(backend, needs, grads, args, kept) if g is not None]

    def _set_up(self, ctx: Any, inputs: Args, output: Any) -> None:
        self.save(ctx, self.flat(inputs), output[-1] if self.has_kept else ())

    def _differentiate(self, ctx: Any, *grads: Any) -> Any:
        grads = grads[: self.num_outputs]
        args, kept = self.saved(ctx)
        needs = (*self.learning(ctx.needs_input_grad), *self._list_needs(ctx, args))
        if all(g is None for g in grads):
            found: Sequence[Tensor | None] = [None] * len(needs)
        else:
            found = self.call_backward_op(needs, grads, args, kept)
        spread = self.spread((*found[: self.num_learning], None))
        return (*spread, list(found[self.num_learning :]) or None) if self.has_list else spread

    def _list_needs(self, ctx: Any, args: Args) -> Sequence[bool]:
        if not self.has_list:
            return ()
        return ctx.needs_input_grad[-1] or [False] * (len(args) - self.num_single)

    def _define(self, schema: str, function: Callable[..., Any], flops: Flops) -> None:
        """A library op whose tensors choose the backend."""
        name, check = schema.partition("(")[0], self.check if function == self._forward_op else None
        FLOPS[name] = flops

        def kernel(*args: Any) -> Any:
            if check is not None:
                check(*self.flat(args))
            tensors = [
                t
                for a in args
                for t in (a if isinstance(a, (list, tuple)) else (a,))
                if isinstance(t, Tensor)
            ]
            return function(backends.resolve(self.name, *tensors), *args)

        LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIB.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vae_fast::{name}", lambda *args: function(FakeBackend, *args), lib=LIB)
        if function != self._forward_op or self.backward is None:
            torch.library.register_autograd(f"vae_fast::{name}", _refuse, lib=LIB)


def _items(places: Sequence[int]) -> Callable[[Args], tuple[Any, ...]]:
    """The items at these places of a tuple, as a tuple: itemgetter takes a fifth of a loop's time."""
    if len(places) > 1:
        return itemgetter(*places)
    first = places[0] if places else 0
    assert first >= 0
    return itemgetter(slice(first, first + len(places)))


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(DOUBLE_BACKWARD)


def _make_function(op: Op) -> type[torch.autograd.Function]:
    """The autograd Function of eager calls: (backend, args, *those that have gradients) -> outputs.

    The others go by autograd in one tuple, as it looks at each argument and at each gradient. Looks nothing up on `op`:
    a small call of the kernels takes as long as 40 such look-ups.
    """
    run, differentiate, save, saved = op.forward, op.consume or op.backward, op.save, op.saved
    is_consumed = op.consume is not None
    learning, num_single = op.learning, op.num_single
    assert differentiate is not None

    def forward(ctx: Any, backend: Any, args: Args, *learning: Tensor | None) -> Any:
        outputs, kept = run(backend, *args)
        ctx.backend = backend
        if is_consumed:
            ctx.kept, kept = kept, ()
        save(ctx, args, kept)
        return outputs

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if is_compiling():
            return (None, None, *op.trace_backward(ctx, grads))
        args, kept = saved(ctx)
        needs = ctx.needs_input_grad[2:]
        if not are_real(*grads):
            found: Gradients = op.call_backward_op(needs, grads, args, kept)
        else:
            if is_consumed:
                kept, ctx.kept = ctx.kept, ()
            found = differentiate(ctx.backend, needs, grads, args, kept)
        if torch.is_grad_enabled():
            found = forbid_double_backward(found, (*grads, *learning(args), *args[num_single:]))
        return (None, None, *found)

    name = op.name.title().replace("_", "")
    return type(
        name,
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )
