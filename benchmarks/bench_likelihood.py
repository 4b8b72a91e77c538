"""-log p(x given decoder output) per sample, forward, backward and both, for every member of the family.

Every provider returns (nll, gradient of each parameter) for a given grad_nll and allocates them anew. In bfloat16 are
the parameters, as a layer under autocast gives them; the target stays as data is read.

    pytest benchmarks/bench_likelihood.py -s          python benchmarks/bench_likelihood.py [MEMBER ...]
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest

from harness import Provider, Suite, Work, compare
from likelihood_members import MEMBERS, Expression
from report import OURS, QUICK, Case, Comparison, Least, save

INPUT_SETS = 2
# the members whose small size is compiled, too, and the large one also with max-autotune
COMPILED = ("bernoulli", "gaussian")
ONE = (1, 1)
# (member, shape, dtype of the parameters)
CASES = [
    (name, shape, dtype)
    for name, member in MEMBERS.items()
    for shape, dtype in (
        ((member.tiny, "float32"), (member.tiny, "bfloat16"))
        if QUICK
        else ((member.small, "float32"), (member.large, "float32"), (member.large, "bfloat16"))
    )
] + [("bernoulli", ONE, "float32")] * (not QUICK)

Inputs = tuple[tuple[Any, ...], Any, Any]  # parameters, target, grad_nll


def make_inputs(case: Case) -> list[Inputs]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape, member, dtype = tuple(case["shape"]), MEMBERS[case["likelihood"]], getattr(torch, case["dtype"])

    def one() -> Inputs:
        target, *params = member.make(shape, generator)
        grad_nll = torch.randn(shape[0], generator=generator)
        return tuple(p.to(dtype).requires_grad_() for p in params), target, grad_nll

    return [one() for _ in range(INPUT_SETS)]


def check(case: Case, i: int, inputs: Inputs, outputs: tuple[Any, ...], tolerance: float) -> None:
    if i:  # float64 takes long at the large size
        return
    import torch

    from vae_fast import reference

    params, target, grad_nll = inputs
    (first, *others) = exact = [p.detach().double().requires_grad_() for p in params]
    x = target.double() if target.is_floating_point() else target
    nll = getattr(reference, f"{case['likelihood']}_nll")(first, x, *others)
    wants = (nll, *torch.autograd.grad(nll, exact, grad_nll.double()))
    for got, want in zip(outputs, wants, strict=True):
        error = (torch.as_tensor(got).detach().double() - want).abs().max() / (1 + want.abs().max())
        assert error <= tolerance, f"off by {error:.2g} of the largest value, {tolerance:.2g} allowed"


def torch_work(case: Case, expression: Expression, tolerance: float) -> Work:
    import torch

    inputs = make_inputs(case)

    def step(i: int) -> tuple[Any, ...]:
        params, target, grad_nll = inputs[i % INPUT_SETS]
        nll = expression(target, *params)
        return nll, *torch.autograd.grad(nll, params, grad_nll.to(nll.dtype))

    def forward(i: int) -> Any:
        params, target, _ = inputs[i % INPUT_SETS]
        return torch.no_grad()(lambda: (expression(target, *params),))

    def backward(i: int) -> Any:
        params, target, grad_nll = inputs[i % INPUT_SETS]
        nll = expression(target, *params)
        return partial(torch.autograd.grad, nll, params, grad_nll.to(nll.dtype))

    return Work(
        step,
        lambda i, outputs: check(case, i, inputs[i % INPUT_SETS], outputs, tolerance),
        {"forward": forward, "backward": backward},
    )


def tolerance(case: Case) -> float:
    """In bfloat16 every operation rounds to 2^-9, and differences of lgamma magnify it."""
    return MEMBERS[case["likelihood"]].tolerance if case["dtype"] == "float32" else 0.06


def eager(case: Case) -> Work:
    member = MEMBERS[case["likelihood"]]
    expression = member.eager
    if case["dtype"] != "float32" and member.upcasts:

        def expression(target: Any, *params: Any) -> Any:
            return member.eager(target, *(p.float() for p in params))

    return torch_work(case, expression, tolerance(case))


def compiled(mode: str | None, case: Case) -> Work:
    import torch

    expression = torch.compile(MEMBERS[case["likelihood"]].eager, mode=mode)
    return torch_work(case, expression, tolerance(case))


def library(name: str, case: Case) -> Work:
    return torch_work(case, MEMBERS[case["likelihood"]].libraries[name][1](), tolerance(case))


def from_vae_fast(case: Case, functions: Any) -> Work:
    function = getattr(functions, f"{case['likelihood']}_nll")
    # in bfloat16 the gradient is rounded once where it is kept, once where it is multiplied with grad_nll
    tolerance = 1e-5 if case["dtype"] == "float32" else 2**-8
    return torch_work(case, lambda target, first, *others: function(first, target, *others), tolerance)


def ours(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast)


def ours_reference(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast.reference)


def jax_jit(case: Case) -> Work:
    import jax
    import jax.numpy as jnp
    import torch

    import likelihood_jax

    expression = getattr(likelihood_jax, case["likelihood"])
    forward_alone = jax.jit(expression)

    @jax.jit
    def forward_for_backward(target: Any, params: Any) -> Any:
        return jax.vjp(partial(expression, target), *params)

    @jax.jit
    def backward_alone(pull_back: Any, grad_nll: Any) -> Any:
        return pull_back(grad_nll)

    @jax.jit
    def program(params: Any, target: Any, grad_nll: Any) -> tuple[Any, ...]:
        nll, pull_back = jax.vjp(partial(expression, target), *params)
        return nll, *pull_back(grad_nll.astype(nll.dtype))

    def from_torch(t: Any) -> Any:
        if t.dtype == torch.bfloat16:  # which numpy does not have
            return jnp.asarray(t.detach().float().numpy()).astype("bfloat16")
        return jnp.asarray(t.detach().numpy())

    torch_inputs = make_inputs(case)
    inputs = jax.tree.map(from_torch, torch_inputs)

    def step(i: int) -> Any:
        return jax.block_until_ready(program(*inputs[i % INPUT_SETS]))

    def forward(i: int) -> Any:
        params, target, _ = inputs[i % INPUT_SETS]
        return lambda: (jax.block_until_ready(forward_alone(target, *params)),)

    def backward(i: int) -> Any:
        params, target, grad_nll = inputs[i % INPUT_SETS]
        nll, pull_back = jax.block_until_ready(forward_for_backward(target, params))
        grad_nll = grad_nll.astype(nll.dtype)
        return lambda: jax.block_until_ready(backward_alone(pull_back, grad_nll))

    def verify(i: int, outputs: Any) -> None:
        got = tuple(torch.tensor(jax.device_get(t.astype("float32"))) for t in outputs)
        check(case, i, torch_inputs[i % INPUT_SETS], got, tolerance(case))

    return Work(step, verify, {"forward": forward, "backward": backward})


def providers(likelihood: str, shape: tuple[int, ...], dtype: str) -> list[Provider]:
    """All of them for the large size in float32, fewer elsewhere: compilation is the slowest of all."""
    member = MEMBERS[likelihood]
    wide, large, small = dtype == "float32", shape == member.large, shape == member.small
    compiles = wide and (likelihood == "bernoulli" if QUICK else large or likelihood in COMPILED)
    autotunes = wide and large and likelihood in COMPILED
    return [
        Provider("eager", eager),
        *([Provider("torch.compile", partial(compiled, None))] * compiles),
        *([Provider("torch.compile max-autotune", partial(compiled, "max-autotune"))] * autotunes),
        *([Provider("jax.jit", jax_jit, requires=("jax",))] * member.jax),
        *(
            Provider(name, partial(library, name), requires=(module,))
            for name, (module, _) in member.libraries.items()
            if wide
        ),
        *([Provider("vae_fast reference", ours_reference, requires=("vae_fast",))] * (wide and not small)),
        Provider(OURS, ours, requires=("vae_fast",)),
    ]


def run(likelihood: str, shape: tuple[int, ...], dtype: str) -> Comparison:
    case = {"likelihood": likelihood, "shape": shape, "dtype": dtype}
    params, target, _ = make_inputs(case)[0]
    params_bytes = sum(p.nbytes for p in params)
    least = {
        "forward": Least(params_bytes + target.nbytes),
        "backward": Least(
            2 * params_bytes + target.nbytes
        ),  # reads them again, writes each parameter's gradient
    }
    size, host = " x ".join(map(str, shape)), ": the host's time alone" * (shape == ONE)
    return compare(
        f"{likelihood} nll, forward + backward, {size} {dtype}{host}",
        case,
        providers(likelihood, shape, dtype),
        least=least if shape != ONE else None,
        rounds=6,
    )


_suite = Suite("likelihood", ours)


@pytest.mark.parametrize(
    ("likelihood", "shape", "dtype"), CASES, ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v))
)
def test_likelihood(likelihood: str, shape: tuple[int, ...], dtype: str, benchmark: Any) -> None:
    _suite.add(run(likelihood, shape, dtype), benchmark)


if __name__ == "__main__":
    print(save("likelihood", [run(*case) for case in CASES if case[0] in (sys.argv[1:] or MEMBERS)]))
