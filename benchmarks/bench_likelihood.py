"""-log p(x given decoder output) per sample, forward, backward and both, for every likelihood.

Every provider returns (nll, gradient of each parameter) for a given grad_nll and allocates them anew. In bfloat16 are
the parameters, as a layer under autocast gives them; the target stays as data is read.

    python -m benchmarks --only "test_likelihood and laplace"          pytest benchmarks/bench_likelihood.py -s
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from .comparison import Case, Comparison
from .floors import Least
from .harness import HOST, Provider, Suite, case_id, compare, size_of
from .likelihoods import LIKELIHOODS, Expression
from .settings import QUICK
from .timing import OURS
from .work import INPUT_SETS, Inputs, Work, as_tuple, jax_work, torch_work

# the likelihoods whose small size is compiled, too, and the large one also with max-autotune
COMPILED = ("bernoulli", "gaussian")
ONE = (1, 1)
# (likelihood, shape, dtype of the parameters)
CASES = [
    (name, shape, dtype)
    for name, likelihood in LIKELIHOODS.items()
    for shape, dtype in (
        ((likelihood.tiny, "float32"), (likelihood.tiny, "bfloat16"))
        if QUICK
        else ((likelihood.small, "float32"), (likelihood.large, "float32"), (likelihood.large, "bfloat16"))
    )
] + [("bernoulli", ONE, "float32")] * (not QUICK)


def make_inputs(case: Case) -> list[Inputs]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shape, dtype = tuple(case["shape"]), getattr(torch, case["dtype"])

    def one() -> Inputs:
        target, *params = LIKELIHOODS[case["likelihood"]].make(shape, generator)
        grad_nll = torch.randn(shape[0], generator=generator)
        return Inputs(tuple(p.to(dtype).requires_grad_() for p in params), (grad_nll,), (target,))

    return [one() for _ in range(INPUT_SETS)]


def check(case: Case, tolerance: float, i: int, inputs: Inputs, outputs: tuple[Any, ...]) -> None:
    if i:  # float64 takes long at the large size
        return
    import torch

    from vae_fast import reference

    (grad_nll,), (target,) = inputs.grads, inputs.data
    (first, *others) = exact = [p.detach().double().requires_grad_() for p in inputs.params]
    x = target.double() if target.is_floating_point() else target
    nll = getattr(reference, f"{case['likelihood']}_nll")(first, x, *others)
    wants = (nll, *torch.autograd.grad(nll, exact, grad_nll.double()))
    for got, want in zip(outputs, wants, strict=True):
        error = (torch.as_tensor(got).detach().double() - want).abs().max() / (1 + want.abs().max())
        assert error <= tolerance, f"off by {error:.2g} of the largest value, {tolerance:.2g} allowed"


def work(case: Case, expression: Expression, tolerance: float) -> Work:
    return torch_work(make_inputs(case), as_tuple(expression), partial(check, case, tolerance))


def tolerance(case: Case) -> float:
    """In bfloat16 every operation rounds to 2^-9, and differences of lgamma magnify it."""
    return LIKELIHOODS[case["likelihood"]].tolerance if case["dtype"] == "float32" else 0.06


def eager(case: Case) -> Work:
    likelihood = LIKELIHOODS[case["likelihood"]]
    if case["dtype"] == "float32" or not likelihood.upcasts:
        return work(case, likelihood.eager, tolerance(case))
    return work(
        case, lambda target, *params: likelihood.eager(target, *(p.float() for p in params)), tolerance(case)
    )


def compiled(mode: str | None, case: Case) -> Work:
    import torch

    expression = torch.compile(LIKELIHOODS[case["likelihood"]].eager, mode=mode)
    return work(case, expression, tolerance(case))


def library(name: str, case: Case) -> Work:
    return work(case, LIKELIHOODS[case["likelihood"]].libraries[name][1](), tolerance(case))


def from_vae_fast(case: Case, functions: Any) -> Work:
    function = getattr(functions, f"{case['likelihood']}_nll")
    # in bfloat16 the gradient is rounded once where it is kept, once where it is multiplied with grad_nll
    tolerance = 1e-5 if case["dtype"] == "float32" else 2**-8
    return work(case, lambda target, first, *others: function(first, target, *others), tolerance)


def ours(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast)


def ours_reference(case: Case) -> Work:
    import vae_fast

    return from_vae_fast(case, vae_fast.reference)


def jax_jit(case: Case) -> Work:
    from . import likelihoods_jax

    expression = as_tuple(getattr(likelihoods_jax, case["likelihood"]))
    return jax_work(make_inputs(case), expression, partial(check, case, tolerance(case)))


def providers(name: str, shape: tuple[int, ...], dtype: str) -> list[Provider]:
    """All of them for the large size in float32, fewer elsewhere: compilation is the slowest of all."""
    likelihood = LIKELIHOODS[name]
    wide, large, small = dtype == "float32", shape == likelihood.large, shape == likelihood.small
    compiles = wide and (name == "bernoulli" if QUICK else large or name in COMPILED)
    autotunes = wide and large and name in COMPILED
    return [
        Provider("eager", eager),
        *([Provider("torch.compile", partial(compiled, None))] * compiles),
        *([Provider("torch.compile max-autotune", partial(compiled, "max-autotune"))] * autotunes),
        *([Provider("jax.jit", jax_jit, requires=("jax",))] * likelihood.jax),
        *(
            Provider(each, partial(library, each), requires=(module,))
            for each, (module, _) in likelihood.libraries.items()
            if wide
        ),
        *([Provider("vae_fast reference", ours_reference)] * (wide and not small)),
        Provider(OURS, ours),
    ]


def run(likelihood: str, shape: tuple[int, ...], dtype: str) -> Comparison:
    case = {"likelihood": likelihood, "shape": shape, "dtype": dtype}
    inputs = make_inputs(case)[0]
    params, target = (sum(t.nbytes for t in tensors) for tensors in (inputs.params, inputs.data))
    # backward reads them again and writes each parameter's gradient
    least = {"forward": Least(params + target), "backward": Least(2 * params + target)}
    host = HOST * (shape == ONE)
    return compare(
        f"{likelihood} nll, forward + backward, {size_of(shape)} {dtype}{host}",
        case,
        providers(likelihood, shape, dtype),
        least=least if shape != ONE else None,
        rounds=6,
    )


_suite = Suite("likelihood", ours)


@pytest.mark.parametrize(("likelihood", "shape", "dtype"), CASES, ids=case_id)
def test_likelihood(likelihood: str, shape: tuple[int, ...], dtype: str, benchmark: Any) -> None:
    _suite.add(run(likelihood, shape, dtype), benchmark)
