"""Wrong input to the public functions raises before any kernel runs, and names the argument."""

from __future__ import annotations

import pytest
import torch

import vae_fast
from conftest import state
from vae_fast import backends

X = torch.zeros(8, 4)
ONE = torch.zeros(8)
META = torch.zeros(8, 4, device="meta")
kl, packed = vae_fast.reparameterize_kl, vae_fast.reparameterize_kl_packed

CASES = [
    # tensors
    (lambda: kl([0.0], X), TypeError, "expected mu to be a tensor, but got list"),
    (lambda: kl(X, None), TypeError, "expected logvar to be a tensor, but got NoneType"),
    (
        lambda: kl(X, X.long()),
        TypeError,
        "expected logvar to have dtype float32, bfloat16, float16 or float64, but got torch.int64",
    ),
    (
        lambda: kl(X.to(torch.complex64), X),
        TypeError,
        "expected mu to have dtype float32, bfloat16, float16 or float64, but got torch.complex64",
    ),
    (
        lambda: kl(torch.tensor(1.0), torch.tensor(1.0)),
        ValueError,
        r"expected mu to have shape \(batch, ...\), but got \(\)",
    ),
    (
        lambda: kl(X, X[:, :3]),
        ValueError,
        r"expected logvar to have shape \(8, 4\) like mu, but got \(8, 3\)",
    ),
    (lambda: kl(X, ONE), ValueError, r"expected logvar to have shape \(8, 4\) like mu, but got \(8,\)"),
    (lambda: kl(X, META), ValueError, "expected logvar to be on cpu like mu, but got meta"),
    (
        lambda: vae_fast.kl_divergence(X, X[:3]),
        ValueError,
        r"expected logvar to have shape \(8, 4\) like mu, but got \(3, 4\)",
    ),
    (
        lambda: vae_fast.reparameterize(X, X[:3]),
        ValueError,
        r"expected logvar to have shape \(8, 4\) like mu, but got \(3, 4\)",
    ),
    (
        lambda: kl(X.to_sparse(), X),
        TypeError,
        "expected mu to be a dense tensor, but got layout torch.sparse_coo",
    ),
    # packed
    (lambda: packed(None), TypeError, "expected moments to be a tensor, but got NoneType"),
    (
        lambda: packed(X[:, :3]),
        ValueError,
        r"expected moments to have an even size along dim 1, but got shape \(8, 3\)",
    ),
    (
        lambda: packed(X, dim=0),
        ValueError,
        r"expected dim to be 1 or -1 for moments of shape \(8, 4\), but got 0",
    ),
    (
        lambda: packed(X, dim=-2),
        ValueError,
        r"expected dim to be 1 or -1 for moments of shape \(8, 4\), but got -2",
    ),
    (
        lambda: packed(X, dim=2),
        ValueError,
        r"expected dim to be 1 or -1 for moments of shape \(8, 4\), but got 2",
    ),
    (lambda: packed(X, dim="1"), TypeError, "expected dim to be an int, but got str"),
    (
        lambda: packed(ONE),
        ValueError,
        r"expected moments to have shape \(batch, ...\) with mu and logvar along dim, but got \(8,\)",
    ),
    # prior
    (
        lambda: kl(X, X, prior=X),
        TypeError,
        r"expected prior to be a pair of tensors \(mu_p, logvar_p\), but got Tensor",
    ),
    (
        lambda: kl(X, X, prior=(X,)),
        TypeError,
        r"expected prior to be a pair of tensors \(mu_p, logvar_p\), but got 1 element\(s\)",
    ),
    (lambda: kl(X, X, prior=(X, 0.0)), TypeError, "expected prior logvar to be a tensor, but got float"),
    (
        lambda: kl(X, X, prior=(X.int(), X)),
        TypeError,
        "expected prior mu to have dtype float32, bfloat16, float16 or float64, but got torch.int32",
    ),
    (
        lambda: kl(X, X, prior=(X[:, :3], X)),
        ValueError,
        r"expected prior mu to broadcast to the shape \(8, 4\) of mu, but got \(8, 3\)",
    ),
    (
        lambda: kl(X, X, prior=(X, X[None])),
        ValueError,
        r"expected prior logvar to broadcast to the shape \(8, 4\) of mu, but got \(1, 8, 4\)",
    ),
    (
        lambda: kl(X, X, prior=(X, META)),
        ValueError,
        "expected prior logvar to be on cpu like mu, but got meta",
    ),
    # clamp
    (
        lambda: kl(X, X, clamp=1.0),
        TypeError,
        r"expected clamp to be a pair of numbers \(lo, hi\), but got 1.0",
    ),
    (
        lambda: kl(X, X, clamp=(1.0, 2.0, 3.0)),
        TypeError,
        r"expected clamp to be a pair of numbers \(lo, hi\), but got \(1.0, 2.0, 3.0\)",
    ),
    (
        lambda: kl(X, X, clamp=("a", 1.0)),
        TypeError,
        r"expected clamp to be a pair of numbers \(lo, hi\), but got \('a', 1.0\)",
    ),
    (
        lambda: kl(X, X, clamp=(1.0, -1.0)),
        ValueError,
        r"expected clamp to have lo <= hi, but got \(1.0, -1.0\)",
    ),
    (
        lambda: kl(X, X, clamp=(float("nan"), 1.0)),
        ValueError,
        r"expected clamp to have lo <= hi, but got \(nan, 1.0\)",
    ),
    # num_samples
    (lambda: kl(X, X, num_samples=0), ValueError, "expected num_samples to be at least 1, but got 0"),
    (lambda: kl(X, X, num_samples=-3), ValueError, "expected num_samples to be at least 1, but got -3"),
    (lambda: kl(X, X, num_samples=2.0), TypeError, "expected num_samples to be an int, but got float"),
    (lambda: kl(X, X, num_samples=True), TypeError, "expected num_samples to be an int, but got bool"),
    # where the noise comes from
    (
        lambda: kl(X, X, noise=X, rng_state=state()),
        ValueError,
        "at most one of noise, rng_state and generator",
    ),
    (lambda: kl(X, X, noise=X, generator=torch.Generator()), ValueError, "at most one of"),
    (lambda: kl(X, X, rng_state=state(), generator=torch.Generator()), ValueError, "at most one of"),
    (lambda: kl(X, X, generator=7), TypeError, "expected generator to be a torch.Generator, but got int"),
    (
        lambda: kl(X, X, generator=[torch.Generator(), 7]),
        TypeError,
        "expected generator to be a torch.Generator, but got int",
    ),
    (
        lambda: kl(X, X, generator=[torch.Generator()] * 2),
        ValueError,
        "You have passed a list of generators of length 2, but requested an effective batch size of 8",
    ),
    (
        lambda: kl(META, META, generator=torch.Generator()),
        ValueError,
        "expected generator to be on meta like mu, but got cpu",
    ),
    (lambda: kl(X, X, rng_state=7), TypeError, "expected rng_state to be an int64 tensor, but got int"),
    (
        lambda: kl(X, X, rng_state=state().int()),
        TypeError,
        "expected rng_state to have dtype int64, but got torch.int32",
    ),
    (
        lambda: kl(X, X, rng_state=state()[:1]),
        ValueError,
        r"expected rng_state to have shape \(2,\), \(4,\) or \(batch, 2\) = \(8, 2\), but got \(1,\)",
    ),
    (
        lambda: kl(X, X, rng_state=torch.zeros(7, 2, dtype=torch.int64)),
        ValueError,
        r"expected rng_state to have shape \(2,\), \(4,\) or \(batch, 2\) = \(8, 2\), but got \(7, 2\)",
    ),
    (
        lambda: kl(META, META, rng_state=state()),
        ValueError,
        "expected rng_state to be on meta like mu, but got cpu",
    ),
    (lambda: kl(X, X, noise=1.0), TypeError, "expected noise to be a tensor, but got float"),
    (
        lambda: kl(X, X, noise=X.long()),
        TypeError,
        "expected noise to have dtype float32, bfloat16, float16 or float64, but got torch.int64",
    ),
    (
        lambda: kl(X, X, noise=X[:3]),
        ValueError,
        r"expected noise to have shape \(8, 4\) like z, but got \(3, 4\)",
    ),
    (
        lambda: kl(X, X, noise=X, num_samples=2),
        ValueError,
        r"expected noise to have shape \(2, 8, 4\) like z, but got \(8, 4\)",
    ),
    (
        lambda: kl(X, X, noise=X.clone().requires_grad_()),
        ValueError,
        r"expected noise to be a constant \(noise.detach\(\), say\), but got a tensor that requires grad",
    ),
    (lambda: kl(X, X, noise=META), ValueError, "expected noise to be on cpu like mu, but got meta"),
    # counters of 32 bits
    (
        lambda: vae_fast.noise((1, 2**34), state()),
        ValueError,
        r"expected shape to have fewer than 2\*\*34 elements per sample for the noise, but got 17179869184",
    ),
    (
        lambda: vae_fast.noise((2**20, 1), state(), num_samples=2**12),
        ValueError,
        r"expected shape to have fewer than 2\*\*32 samples \(draws included\) for the noise, but got 4294967296",
    ),
    (
        lambda: vae_fast.reparameterize(*[ONE[:1].expand(1, 2**34)] * 2),
        ValueError,
        r"expected mu to have fewer than 2\*\*34 elements per sample for the noise, but got 17179869184",
    ),
    (
        lambda: vae_fast.reparameterize(*[ONE[:1].expand(2**32)] * 2),
        ValueError,
        r"expected mu to have fewer than 2\*\*32 samples \(draws included\) for the noise, but got 4294967296",
    ),
    # noise
    (lambda: vae_fast.noise((), state()), ValueError, r"expected shape to be \(batch, ...\), but got \(\)"),
    (
        lambda: vae_fast.noise((2, -1), state()),
        ValueError,
        r"expected shape to have sizes of at least 0, but got \(2, -1\)",
    ),
    (lambda: vae_fast.noise(5, state()), TypeError, "expected shape to be a sequence of ints, but got int"),
    (
        lambda: vae_fast.noise((2, 3), state(), dtype=torch.int64),
        TypeError,
        "expected dtype to be float32, bfloat16, float16 or float64, but got torch.int64",
    ),
    (
        lambda: vae_fast.noise((2, 3), state(), num_samples=0),
        ValueError,
        "expected num_samples to be at least 1, but got 0",
    ),
    (
        lambda: vae_fast.noise((2, 3), [1, 2]),
        TypeError,
        "expected rng_state to be an int64 tensor, but got list",
    ),
    (
        lambda: vae_fast.noise((2, 3), torch.zeros(3, 2, dtype=torch.int64)),
        ValueError,
        r"expected rng_state to have shape \(2,\), \(4,\) or \(batch, 2\) = \(2, 2\), but got \(3, 2\)",
    ),
    # likelihoods
    (lambda: vae_fast.bernoulli_nll(X, None), TypeError, "expected target to be a tensor, but got NoneType"),
    (lambda: vae_fast.bernoulli_nll(3.0, X), TypeError, "expected logits to be a tensor, but got float"),
    (
        lambda: vae_fast.bernoulli_nll(X.long(), X),
        TypeError,
        "expected logits to have dtype float32, bfloat16, float16 or float64, but got torch.int64",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X.to(torch.int8)),
        TypeError,
        "expected target to have dtype .*, float64, bool, uint8, int16, int32 or int64, but got torch.int8",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X[:, :3]),
        ValueError,
        r"expected target to have shape \(8, 4\) like logits, but got \(8, 3\)",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, META),
        ValueError,
        "expected target to be on cpu like logits, but got meta",
    ),
    (
        lambda: vae_fast.bernoulli_nll(torch.tensor(0.0), torch.tensor(0.0)),
        ValueError,
        r"expected logits to have shape \(batch, ...\), but got \(\)",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, ONE),
        ValueError,
        r"expected target to have shape \(8, 4\) like mean, but got \(8,\)",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X, ONE),
        ValueError,
        r"expected logvar to broadcast to the shape \(8, 4\) of mean, but got \(8,\)",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X, X[None, None]),
        ValueError,
        r"expected logvar to broadcast to the shape \(8, 4\) of mean, but got \(1, 1, 8, 4\)",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X, X.bool()),
        TypeError,
        "expected logvar to have dtype float32, bfloat16, float16 or float64, but got torch.bool",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X, META),
        ValueError,
        "expected logvar to be on cpu like mean, but got meta",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X, "1"),
        TypeError,
        "expected logvar to be a tensor, a number or None, but got str",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X.to_sparse()),
        TypeError,
        "expected target to be a dense tensor, but got layout torch.sparse_coo",
    ),
    (
        lambda: vae_fast.laplace_nll(X, X, X[:, :3]),
        ValueError,
        r"expected log_scale to broadcast to the shape \(8, 4\) of location, but got \(8, 3\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_nll(X, X, None),
        TypeError,
        "expected log_scale to be a tensor or a number, but got NoneType",
    ),
    (
        lambda: vae_fast.negative_binomial_nll(X, X, ONE),
        ValueError,
        r"expected theta to broadcast to the shape \(8, 4\) of mean, but got \(8,\)",
    ),
    (
        lambda: vae_fast.negative_binomial_nll(X, X, X.long()),
        TypeError,
        "expected theta to have dtype float32, bfloat16, float16 or float64, but got torch.int64",
    ),
    (
        lambda: vae_fast.zero_inflated_negative_binomial_nll(X, X, 1.0, "1"),
        TypeError,
        "expected dropout_logits to be a tensor or a number, but got str",
    ),
    (
        lambda: vae_fast.poisson_nll(X, X[:3]),
        ValueError,
        r"expected target to have shape \(8, 4\) like mean, but got \(3, 4\)",
    ),
    # mask and weight
    (
        lambda: vae_fast.poisson_nll(X, X, mask=X),
        TypeError,
        "expected mask to have dtype bool, but got torch.float32",
    ),
    (
        lambda: vae_fast.laplace_nll(X, X, mask=[True]),
        TypeError,
        "expected mask to be a bool tensor, but got list",
    ),
    (
        lambda: vae_fast.gaussian_nll(X, X, mask=ONE.bool()),
        ValueError,
        r"expected mask to broadcast to the shape \(8, 4\) of target, but got \(8,\)",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X, mask=META.bool()),
        ValueError,
        "expected mask to be on cpu like target, but got meta",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X, weight=2.0),
        TypeError,
        r"expected weight to be a tensor \(batch,\), but got float",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X, weight=ONE.long()),
        TypeError,
        "expected weight to have dtype float32, bfloat16, float16 or float64, but got torch.int64",
    ),
    (
        lambda: vae_fast.poisson_nll(X, X, weight=X),
        ValueError,
        r"expected weight to have shape \(batch,\) = \(8,\), but got \(8, 4\)",
    ),
    (
        lambda: vae_fast.poisson_nll(X, X, weight=META[:, 0]),
        ValueError,
        "expected weight to be on cpu like target, but got meta",
    ),
    # binarization
    (
        lambda: vae_fast.bernoulli_nll(X, X, binarize=1),
        TypeError,
        "expected binarize to be a bool, but got int",
    ),
    (lambda: vae_fast.bernoulli_nll(X, X, rng_state=state()), ValueError, "take binarize=True"),
    (lambda: vae_fast.bernoulli_nll(X, X, generator=torch.Generator()), ValueError, "take binarize=True"),
    (
        lambda: vae_fast.bernoulli_nll(X, X, binarize=True, rng_state=state(), generator=torch.Generator()),
        ValueError,
        "at most one of rng_state and generator",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X, binarize=True, generator=7),
        TypeError,
        "expected generator to be a torch.Generator, but got int",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X, binarize=True, rng_state=state()[:1]),
        ValueError,
        r"expected rng_state to have shape \(2,\), \(4,\) or \(batch, 2\) = \(8, 2\), but got \(1,\)",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X.clone().requires_grad_(), binarize=True),
        ValueError,
        r"expected target to be a constant .* for binarize, but got a tensor that requires grad",
    ),
    (
        lambda: vae_fast.bernoulli_nll(*[ONE[:1].expand(1, 2**34)] * 2, binarize=True),
        ValueError,
        r"expected target to have fewer than 2\*\*34 elements per sample for the noise, but got 17179869184",
    ),
    (lambda: vae_fast.binarize([1.0], state()), TypeError, "expected x to be a tensor, but got list"),
    (
        lambda: vae_fast.binarize(X.to(torch.complex64), state()),
        TypeError,
        "expected x to have dtype float32, .*, bool, uint8, .*, but got torch.complex64",
    ),
    (
        lambda: vae_fast.binarize(X, None),
        TypeError,
        "expected rng_state to be an int64 tensor, but got NoneType",
    ),
    (
        lambda: vae_fast.binarize(META, state()),
        ValueError,
        "expected rng_state to be on meta like x, but got cpu",
    ),
    # classes and counts of classes
    (
        lambda: vae_fast.categorical_nll(ONE, ONE.long()),
        ValueError,
        r"expected logits to have shape \(batch, ..., classes\) with at least one class, but got \(8,\)",
    ),
    (
        lambda: vae_fast.multinomial_nll(X[:, :0], X[:, :0]),
        ValueError,
        r"expected logits to have shape \(batch, ..., classes\) with at least one class, but got \(8, 0\)",
    ),
    (
        lambda: vae_fast.categorical_nll(X, ONE),
        TypeError,
        r"expected target to have dtype uint8, int16, int32 or int64 \(class numbers\), but got torch.float32",
    ),
    (
        lambda: vae_fast.categorical_nll(X, ONE.bool()),
        TypeError,
        r"expected target to have dtype uint8, int16, int32 or int64 \(class numbers\), but got torch.bool",
    ),
    (
        lambda: vae_fast.categorical_nll(X, X.long()),
        ValueError,
        r"expected target to have shape \(8,\) for logits of shape \(8, 4\), but got \(8, 4\)",
    ),
    (
        lambda: vae_fast.categorical_nll(X, META[:, 0].long()),
        ValueError,
        "expected target to be on cpu like logits, but got meta",
    ),
    (
        lambda: vae_fast.multinomial_nll(X, ONE),
        ValueError,
        r"expected target to have shape \(8, 4\) like logits, but got \(8,\)",
    ),
    (
        lambda: vae_fast.multinomial_nll(X, X, mask=X.bool()),
        ValueError,
        r"expected mask to broadcast to the shape \(8,\) of the positions of target, but got \(8, 4\)",
    ),
    # mixtures
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(ONE, ONE),
        ValueError,
        r"expected params to have shape \(batch, P, ...\), but got \(8,\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(torch.zeros(8, 6, 2), torch.zeros(8, 2, 2)),
        ValueError,
        r"expected target to have shape \(8, 1 or 3, 2\) for params of shape \(8, 6, 2\), but got \(8, 2, 2\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(torch.zeros(8, 6, 2), torch.zeros(8, 3, 2)),
        ValueError,
        r"expected params to have a multiple of 10 along dim 1 for target of 3 channel\(s\), but got shape \(8, 6, 2\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(X, X[:, :1]),
        ValueError,
        r"expected params to have a multiple of 3 along dim 1 for target of 1 channel\(s\), but got shape \(8, 4\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(
            torch.zeros(8, 6, 2), torch.zeros(8, 1, 2), mask=torch.ones(8, 2, 2) > 0
        ),
        ValueError,
        r"expected mask to broadcast to the shape \(8, 1, 2\) of the pixels of target, but got \(8, 2, 2\)",
    ),
    # backends
    (
        lambda: vae_fast.backend("gpu"),
        ValueError,
        "expected backend to be one of cpu, cuda, triton, reference.* but got 'gpu'",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), CASES, ids=[f"{i}: {c[2][:40]}" for i, c in enumerate(CASES)]
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


ARGUMENTS = {
    "categorical_nll": (X, ONE.long()),
    "discretized_logistic_mixture_nll": (torch.zeros(8, 3, 2), torch.zeros(8, 1, 2)),
    "discretized_logistic_nll": (X, X, 0.0),
    "negative_binomial_mixture_nll": (X, X, 1.0, 1.0, 0.0),
    "negative_binomial_nll": (X, X, 1.0),
    "zero_inflated_negative_binomial_nll": (X, X, 1.0, 0.0),
}
WEIGHTED = [name for name in vae_fast.__all__ if "_nll" in name and not name.startswith("linear_")]


@pytest.mark.parametrize("name", WEIGHTED)
def test_wrong_weight_raises_before_a_kernel_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "serving", lambda op, device_type: pytest.fail(f"{op} runs"))
    with pytest.raises(ValueError, match=r"weight .*\(7,\)"):
        getattr(vae_fast, name)(*ARGUMENTS.get(name, (X, X)), weight=ONE[:7])


def test_bits_are_drawn_after_the_weight_is_checked() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"weight .*\(7,\)"):
        vae_fast.bernoulli_nll(X, X, binarize=True, weight=ONE[:7])
    assert torch.equal(torch.get_rng_state(), before)


def test_functions_take_keywords_only() -> None:
    with pytest.raises(TypeError):
        kl(X, X, 2)
