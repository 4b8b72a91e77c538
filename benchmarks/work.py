"""What a provider's process runs; the work of an op, forward and backward, in PyTorch and in JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

INPUT_SETS = 2  # steps alternate between them, so that no provider sees the same input twice in a row

Prepare = Callable[[int], Callable[[], Any]]  # does what is not timed, returns the call that is


@dataclass(frozen=True)
class Work:
    """What a provider's process runs: `step(i)` does the work once, `check(i, outputs)` raises if it is wrong.

    `parts` are timed alone, too. One after the other, their outputs are those of the step.
    """

    step: Callable[[int], Any]
    check: Callable[[int, Any], None]
    parts: dict[str, Prepare] = field(default_factory=dict)

    def check_parts(self, i: int) -> None:
        if self.parts:
            self.check(i, tuple(output for prepare in self.parts.values() for output in prepare(i)()))


@dataclass(frozen=True)
class Inputs:
    params: tuple[Any, ...]  # a step returns the gradient of each
    grads: tuple[Any, ...]  # of the outputs
    data: tuple[Any, ...] = ()

    def map(self, function: Callable[[Any], Any]) -> Inputs:
        return Inputs(*(tuple(map(function, t)) for t in (self.params, self.grads, self.data)))


Check = Callable[[int, Inputs, tuple[Any, ...]], None]


def as_tuple(function: Callable[..., Any]) -> Callable[..., tuple[Any]]:
    return lambda *inputs: (function(*inputs),)


def torch_work(inputs: list[Inputs], expression: Callable[..., tuple[Any, ...]], check: Check) -> Work:
    """`expression(*data, *params)` returns the outputs; a step, them and the gradients."""
    import torch

    def differentiable(i: int) -> tuple[tuple[Any, ...], Callable[[], tuple[Any, ...]]]:
        one = inputs[i % INPUT_SETS]
        outputs = expression(*one.data, *one.params)
        grads = [grad.to(t.dtype) for grad, t in zip(one.grads, outputs, strict=True)]
        return outputs, partial(torch.autograd.grad, outputs, one.params, grads)

    def step(i: int) -> tuple[Any, ...]:
        outputs, backward = differentiable(i)
        return *outputs, *backward()

    def forward(i: int) -> Any:
        torch.manual_seed(i)  # the same noise in both parts
        one = inputs[i % INPUT_SETS]
        return partial(torch.no_grad()(expression), *one.data, *one.params)

    def backward(i: int) -> Any:
        torch.manual_seed(i)
        return differentiable(i)[1]

    def verify(i: int, outputs: tuple[Any, ...]) -> None:
        check(i, inputs[i % INPUT_SETS], outputs)

    return Work(step, verify, {"forward": forward, "backward": backward})


def jax_work(
    torch_inputs: list[Inputs],
    expression: Callable[..., tuple[Any, ...]],
    check: Check,
    *,
    draws: bool = False,
) -> Work:
    """The same for `expression(*data, *params)` in JAX, or `expression(seed, *data, *params)` where it draws noise."""
    import jax
    import jax.numpy as jnp
    import torch

    def from_torch(t: Any) -> Any:
        if t.dtype == torch.bfloat16:  # which numpy does not have
            return jnp.asarray(t.detach().float().numpy()).astype("bfloat16")
        return jnp.asarray(t.detach().numpy())

    inputs = [one.map(from_torch) for one in torch_inputs]

    def cast(grads: Any, outputs: Any) -> tuple[Any, ...]:
        return tuple(grad.astype(t.dtype) for grad, t in zip(grads, outputs, strict=True))

    def differentiable(given: Any, params: Any) -> Any:
        return jax.vjp(partial(expression, *given), *params)

    @jax.jit  # one program: noise, forward, backward
    def program(given: Any, params: Any, grads: Any) -> tuple[Any, ...]:
        outputs, pull_back = differentiable(given, params)
        return *outputs, *pull_back(cast(grads, outputs))

    @jax.jit
    def forward_alone(given: Any, params: Any) -> Any:
        return expression(*given, *params)

    @jax.jit
    def backward_alone(pull_back: Any, grads: Any) -> Any:
        return pull_back(grads)

    forward_for_backward = jax.jit(differentiable)

    def arguments(i: int) -> tuple[Any, Any, Any]:
        one = inputs[i % INPUT_SETS]
        return ((i, *one.data) if draws else one.data), one.params, one.grads

    def step(i: int) -> Any:
        return jax.block_until_ready(program(*arguments(i)))

    def forward(i: int) -> Any:
        given, params, _ = arguments(i)
        return lambda: jax.block_until_ready(forward_alone(given, params))

    def backward(i: int) -> Any:
        given, params, grads = arguments(i)
        outputs, pull_back = jax.block_until_ready(forward_for_backward(given, params))
        grads = cast(grads, outputs)
        return lambda: jax.block_until_ready(backward_alone(pull_back, grads))

    def verify(i: int, outputs: Any) -> None:
        as_torch = tuple(torch.tensor(jax.device_get(t.astype("float32"))) for t in outputs)
        check(i, torch_inputs[i % INPUT_SETS], as_torch)

    return Work(step, verify, {"forward": forward, "backward": backward})
