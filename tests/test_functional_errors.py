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
    (lambda: kl([0.0], X), TypeError, "mu is list, it takes a tensor"),
    (lambda: kl(X, None), TypeError, "logvar is NoneType, it takes a tensor"),
    (
        lambda: kl(X, X.long()),
        TypeError,
        "logvar has dtype torch.int64, it takes float32, bfloat16, float16 or float64",
    ),
    (lambda: kl(X.to(torch.complex64), X), TypeError, "mu has dtype torch.complex64"),
    (
        lambda: kl(torch.tensor(1.0), torch.tensor(1.0)),
        ValueError,
        r"mu has shape \(\), it takes \(batch, ...\)",
    ),
    (lambda: kl(X, X[:, :3]), ValueError, r"logvar has shape \(8, 3\), mu has \(8, 4\)"),
    (lambda: kl(X, ONE), ValueError, r"logvar has shape \(8,\), mu has \(8, 4\)"),
    (lambda: kl(X, META), ValueError, "logvar is on meta, mu is on cpu"),
    (lambda: vae_fast.kl_divergence(X, X[:3]), ValueError, r"logvar has shape \(3, 4\), mu has \(8, 4\)"),
    (lambda: vae_fast.reparameterize(X, X[:3]), ValueError, r"logvar has shape \(3, 4\), mu has \(8, 4\)"),
    (lambda: kl(X.to_sparse(), X), TypeError, "mu has layout torch.sparse_coo, it takes a dense tensor"),
    # packed
    (lambda: packed(None), TypeError, "moments is NoneType"),
    (lambda: packed(X[:, :3]), ValueError, r"moments has shape \(8, 3\), it takes an even size along dim 1"),
    (lambda: packed(X, dim=0), ValueError, r"dim is 0, moments of shape \(8, 4\) takes 1 or -1"),
    (lambda: packed(X, dim=-2), ValueError, "dim is -2"),
    (lambda: packed(X, dim=2), ValueError, "dim is 2"),
    (lambda: packed(X, dim="1"), TypeError, "dim is str, it takes an int"),
    (
        lambda: packed(ONE),
        ValueError,
        r"moments has shape \(8,\), it takes \(batch, ...\) with mu and logvar along dim",
    ),
    # prior
    (lambda: kl(X, X, prior=X), TypeError, r"prior is Tensor, it takes a pair of tensors \(mu_p, logvar_p\)"),
    (lambda: kl(X, X, prior=(X,)), TypeError, "prior has 1 element"),
    (lambda: kl(X, X, prior=(X, 0.0)), TypeError, "prior logvar is float, it takes a tensor"),
    (lambda: kl(X, X, prior=(X.int(), X)), TypeError, "prior mu has dtype torch.int32"),
    (
        lambda: kl(X, X, prior=(X[:, :3], X)),
        ValueError,
        r"prior mu has shape \(8, 3\), which does not broadcast to mu's",
    ),
    (
        lambda: kl(X, X, prior=(X, X[None])),
        ValueError,
        r"prior logvar has shape \(1, 8, 4\), which does not broadcast",
    ),
    (lambda: kl(X, X, prior=(X, META)), ValueError, "prior logvar is on meta, mu is on cpu"),
    # clamp
    (lambda: kl(X, X, clamp=1.0), TypeError, r"clamp is 1.0, it takes a pair of numbers \(lo, hi\)"),
    (lambda: kl(X, X, clamp=(1.0, 2.0, 3.0)), TypeError, "clamp is"),
    (lambda: kl(X, X, clamp=("a", 1.0)), TypeError, "clamp is"),
    (lambda: kl(X, X, clamp=(1.0, -1.0)), ValueError, r"clamp is \(1.0, -1.0\), it takes lo <= hi"),
    (lambda: kl(X, X, clamp=(float("nan"), 1.0)), ValueError, "clamp is"),
    # num_samples
    (lambda: kl(X, X, num_samples=0), ValueError, "num_samples is 0, it takes at least 1"),
    (lambda: kl(X, X, num_samples=-3), ValueError, "num_samples is -3"),
    (lambda: kl(X, X, num_samples=2.0), TypeError, "num_samples is float, it takes an int"),
    (lambda: kl(X, X, num_samples=True), TypeError, "num_samples is bool, it takes an int"),
    # where the noise comes from
    (
        lambda: kl(X, X, noise=X, rng_state=state()),
        ValueError,
        "at most one of noise, rng_state and generator",
    ),
    (lambda: kl(X, X, noise=X, generator=torch.Generator()), ValueError, "at most one of"),
    (lambda: kl(X, X, rng_state=state(), generator=torch.Generator()), ValueError, "at most one of"),
    (lambda: kl(X, X, generator=7), TypeError, "generator is int, it takes a torch.Generator"),
    (lambda: kl(META, META, generator=torch.Generator()), ValueError, "generator is on cpu, mu is on meta"),
    (lambda: kl(X, X, rng_state=7), TypeError, "rng_state is int, it takes an int64 tensor"),
    (
        lambda: kl(X, X, rng_state=state().int()),
        TypeError,
        "rng_state has dtype torch.int32, it takes torch.int64",
    ),
    (
        lambda: kl(X, X, rng_state=state()[:1]),
        ValueError,
        r"rng_state has shape \(1,\), it takes \(2,\) or \(batch, 2\)",
    ),
    (lambda: kl(X, X, rng_state=torch.zeros(7, 2, dtype=torch.int64)), ValueError, r"\(7, 2\).*\(8, 2\)"),
    (lambda: kl(META, META, rng_state=state()), ValueError, "rng_state is on cpu, mu is on meta"),
    (lambda: kl(X, X, noise=1.0), TypeError, "noise is float, it takes a tensor"),
    (lambda: kl(X, X, noise=X.long()), TypeError, "noise has dtype torch.int64"),
    (lambda: kl(X, X, noise=X[:3]), ValueError, r"noise has shape \(3, 4\), z has \(8, 4\)"),
    (lambda: kl(X, X, noise=X, num_samples=2), ValueError, r"noise has shape \(8, 4\), z has \(2, 8, 4\)"),
    (
        lambda: kl(X, X, noise=X.clone().requires_grad_()),
        ValueError,
        "noise requires grad, it takes a constant",
    ),
    (lambda: kl(X, X, noise=META), ValueError, "noise is on meta, mu is on cpu"),
    # counters of 32 bits
    (lambda: vae_fast.noise((1, 2**34), state()), ValueError, "the noise takes fewer than"),
    (
        lambda: vae_fast.noise((2**20, 1), state(), num_samples=2**12),
        ValueError,
        "the noise takes fewer than",
    ),
    (
        lambda: vae_fast.reparameterize(*[ONE[:1].expand(1, 2**34)] * 2),
        ValueError,
        r"mu has 17179869184 elements per",
    ),
    (lambda: vae_fast.reparameterize(*[ONE[:1].expand(2**32)] * 2), ValueError, r"mu has 4294967296 samples"),
    # noise
    (lambda: vae_fast.noise((), state()), ValueError, r"shape is \(\), it takes \(batch, ...\)"),
    (lambda: vae_fast.noise((2, -1), state()), ValueError, "shape is"),
    (lambda: vae_fast.noise(5, state()), TypeError, "shape is int, it takes a sequence of ints"),
    (
        lambda: vae_fast.noise((2, 3), state(), dtype=torch.int64),
        TypeError,
        "dtype is torch.int64, it takes float32",
    ),
    (lambda: vae_fast.noise((2, 3), state(), num_samples=0), ValueError, "num_samples is 0"),
    (lambda: vae_fast.noise((2, 3), [1, 2]), TypeError, "rng_state is list"),
    (
        lambda: vae_fast.noise((2, 3), torch.zeros(3, 2, dtype=torch.int64)),
        ValueError,
        r"rng_state has shape \(3, 2\)",
    ),
    # likelihoods
    (lambda: vae_fast.bernoulli_nll(X, None), TypeError, "target is NoneType, it takes a tensor"),
    (lambda: vae_fast.bernoulli_nll(3.0, X), TypeError, "logits is float, it takes a tensor"),
    (lambda: vae_fast.bernoulli_nll(X.long(), X), TypeError, "logits has dtype torch.int64"),
    (
        lambda: vae_fast.bernoulli_nll(X, X.to(torch.int8)),
        TypeError,
        r"target has dtype torch.int8, it takes .*uint8.*bool",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X[:, :3]),
        ValueError,
        r"target has shape \(8, 3\), logits has \(8, 4\)",
    ),
    (lambda: vae_fast.bernoulli_nll(X, META), ValueError, "target is on meta, logits is on cpu"),
    (
        lambda: vae_fast.bernoulli_nll(torch.tensor(0.0), torch.tensor(0.0)),
        ValueError,
        r"logits has shape \(\)",
    ),
    (lambda: vae_fast.gaussian_nll(X, ONE), ValueError, r"target has shape \(8,\), mean has \(8, 4\)"),
    (
        lambda: vae_fast.gaussian_nll(X, X, ONE),
        ValueError,
        r"logvar has shape \(8,\), which does not broadcast to mean's",
    ),
    (lambda: vae_fast.gaussian_nll(X, X, X[None]), ValueError, r"logvar has shape \(1, 8, 4\)"),
    (lambda: vae_fast.gaussian_nll(X, X, X.bool()), TypeError, "logvar has dtype torch.bool"),
    (lambda: vae_fast.gaussian_nll(X, X, META), ValueError, "logvar is on meta, mean is on cpu"),
    (
        lambda: vae_fast.gaussian_nll(X, X, "1"),
        TypeError,
        "logvar is str, it takes a tensor, a number or None",
    ),
    (lambda: vae_fast.gaussian_nll(X, X.to_sparse()), TypeError, "target has layout torch.sparse_coo"),
    (
        lambda: vae_fast.laplace_nll(X, X, X[:, :3]),
        ValueError,
        r"log_scale has shape \(8, 3\), which does not broadcast to location's \(8, 4\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_nll(X, X, None),
        TypeError,
        "log_scale is NoneType, it takes a tensor or a number$",
    ),
    (lambda: vae_fast.negative_binomial_nll(X, X, ONE), ValueError, r"theta has shape \(8,\)"),
    (lambda: vae_fast.negative_binomial_nll(X, X, X.long()), TypeError, "theta has dtype torch.int64"),
    (
        lambda: vae_fast.zero_inflated_negative_binomial_nll(X, X, 1.0, "1"),
        TypeError,
        "dropout_logits is str, it takes a tensor or a number",
    ),
    (lambda: vae_fast.poisson_nll(X, X[:3]), ValueError, r"target has shape \(3, 4\), mean has \(8, 4\)"),
    # mask and weight
    (
        lambda: vae_fast.poisson_nll(X, X, mask=X),
        TypeError,
        "mask has dtype torch.float32, it takes torch.bool",
    ),
    (lambda: vae_fast.laplace_nll(X, X, mask=[True]), TypeError, "mask is list, it takes a bool tensor"),
    (
        lambda: vae_fast.gaussian_nll(X, X, mask=ONE.bool()),
        ValueError,
        r"mask has shape \(8,\), which does not broadcast to target's \(8, 4\)",
    ),
    (lambda: vae_fast.bernoulli_nll(X, X, mask=META.bool()), ValueError, "mask is on meta, target is on cpu"),
    (lambda: vae_fast.bernoulli_nll(X, X, weight=2.0), TypeError, "weight is float, it takes a tensor"),
    (lambda: vae_fast.bernoulli_nll(X, X, weight=ONE.long()), TypeError, "weight has dtype torch.int64"),
    (
        lambda: vae_fast.poisson_nll(X, X, weight=X),
        ValueError,
        r"weight has shape \(8, 4\), it takes \(batch,\) = \(8,\)",
    ),
    (lambda: vae_fast.poisson_nll(X, X, weight=META[:, 0]), ValueError, "weight is on meta"),
    # binarization
    (lambda: vae_fast.bernoulli_nll(X, X, binarize=1), TypeError, "binarize is int, it takes a bool"),
    (lambda: vae_fast.bernoulli_nll(X, X, rng_state=state()), ValueError, "take binarize=True"),
    (lambda: vae_fast.bernoulli_nll(X, X, generator=torch.Generator()), ValueError, "take binarize=True"),
    (
        lambda: vae_fast.bernoulli_nll(X, X, binarize=True, rng_state=state(), generator=torch.Generator()),
        ValueError,
        "at most one of rng_state and generator",
    ),
    (lambda: vae_fast.bernoulli_nll(X, X, binarize=True, generator=7), TypeError, "generator is int"),
    (
        lambda: vae_fast.bernoulli_nll(X, X, binarize=True, rng_state=state()[:1]),
        ValueError,
        r"rng_state has shape \(1,\)",
    ),
    (
        lambda: vae_fast.bernoulli_nll(X, X.clone().requires_grad_(), binarize=True),
        ValueError,
        "target requires grad, binarize takes a constant",
    ),
    (
        lambda: vae_fast.bernoulli_nll(*[ONE[:1].expand(1, 2**34)] * 2, binarize=True),
        ValueError,
        "target has 17179869184 elements per sample",
    ),
    (lambda: vae_fast.binarize([1.0], state()), TypeError, "x is list, it takes a tensor"),
    (lambda: vae_fast.binarize(X.to(torch.complex64), state()), TypeError, "x has dtype torch.complex64"),
    (lambda: vae_fast.binarize(X, None), TypeError, "rng_state is NoneType"),
    (lambda: vae_fast.binarize(META, state()), ValueError, "rng_state is on cpu, x is on meta"),
    # classes and counts of classes
    (
        lambda: vae_fast.categorical_nll(ONE, ONE.long()),
        ValueError,
        r"logits has shape \(8,\), it takes \(batch, ..., classes\)",
    ),
    (lambda: vae_fast.multinomial_nll(X[:, :0], X[:, :0]), ValueError, r"logits has shape \(8, 0\)"),
    (
        lambda: vae_fast.categorical_nll(X, ONE),
        TypeError,
        "target has dtype torch.float32, it takes class numbers",
    ),
    (lambda: vae_fast.categorical_nll(X, ONE.bool()), TypeError, "target has dtype torch.bool"),
    (
        lambda: vae_fast.categorical_nll(X, X.long()),
        ValueError,
        r"target has shape \(8, 4\), logits of \(8, 4\) take \(8,\)",
    ),
    (
        lambda: vae_fast.categorical_nll(X, META[:, 0].long()),
        ValueError,
        "target is on meta, logits is on cpu",
    ),
    (lambda: vae_fast.multinomial_nll(X, ONE), ValueError, r"target has shape \(8,\), logits has \(8, 4\)"),
    (
        lambda: vae_fast.multinomial_nll(X, X, mask=X.bool()),
        ValueError,
        r"mask has shape \(8, 4\), which does not broadcast to the positions of target \(8,\)",
    ),
    # mixtures
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(ONE, ONE),
        ValueError,
        r"params has shape \(8,\), it takes \(batch, P, ...\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(torch.zeros(8, 6, 2), torch.zeros(8, 2, 2)),
        ValueError,
        r"target has shape \(8, 2, 2\), params of \(8, 6, 2\) takes \(8, 1 or 3, 2\)",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(torch.zeros(8, 6, 2), torch.zeros(8, 3, 2)),
        ValueError,
        r"params has shape \(8, 6, 2\), target of 3 channel\(s\) takes a multiple of 10 along dim 1",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(X, X[:, :1]),
        ValueError,
        "target of 1 channel.* takes a multiple of 3",
    ),
    (
        lambda: vae_fast.discretized_logistic_mixture_nll(
            torch.zeros(8, 6, 2), torch.zeros(8, 1, 2), mask=torch.ones(8, 2, 2) > 0
        ),
        ValueError,
        r"mask has shape \(8, 2, 2\), which does not broadcast to the pixels of target \(8, 1, 2\)",
    ),
    # backends
    (
        lambda: vae_fast.backend("gpu"),
        ValueError,
        "backend is 'gpu', it takes one of cpu, cuda, triton, reference",
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
