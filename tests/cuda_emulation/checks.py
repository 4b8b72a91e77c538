"""What the emulated CUDA kernels must do: run by test_cuda_emulation.py in a process under the sanitizers.

Everything is held against the definition in float64, and against the CPU engine, which runs the same csrc/common:
where both have fused multiply-add, what is not a sum must have the same bits.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import mmap
import os
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backends.native import cpu, cuda

from .layouts import BF16, BOOL, F16, F32, LAYOUTS, LONG, SHAPES, U8, poisoned, tensor, values

PATH = os.environ["VAE_FAST_CUDA_EMULATION"]
STREAM = 0x5EED
DTYPES = (F32, BF16, F16)
MIXED = list(itertools.product(DTYPES, DTYPES))
HAS_CPU = (
    cpu.unavailable_reason() is None
    and cpu.details()["isa"] != "baseline"
    and "fma" in os.environ["VAE_FAST_CUDA_FLAGS"]
)
STATE = torch.tensor([2**63 - 5, -(2**40) - 3])


def load() -> ctypes.CDLL:
    spec = importlib.util.spec_from_file_location("vae_fast.backends.native._cuda", PATH)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    cuda._cuda = module
    cuda._where = lambda t: (0, STREAM, cuda._Scratch(t.device, STREAM))  # type: ignore[assignment, return-value]
    torch.cuda.is_current_stream_capturing = lambda: False
    library = ctypes.CDLL(PATH)
    for name in ("emulation_launches", "emulation_blocks", "emulation_stream"):
        getattr(library, name).restype = ctypes.c_uint64
    library.emulation_seed.argtypes = [ctypes.c_uint64]
    return library


EMULATION = load()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def schedule(request: pytest.FixtureRequest) -> None:
    """Another order of blocks and threads for each check, the same in every run."""
    EMULATION.emulation_seed(zlib.crc32(request.node.name.encode()))


def close(got: Tensor, truth: Tensor, scale: Tensor | float = 1.0) -> None:
    """To rounding: in the dtype of the result, and a few units of float32 arithmetic on terms as large as `scale`."""
    assert not got.isnan().any(), "an element was not written"
    unit = torch.finfo(got.dtype).eps if got.dtype is not F32 else 0.0
    allowed = unit * truth.abs() + 2e-6 * (1 + truth.abs()) * scale
    assert ((got.double() - truth).abs() <= allowed).all(), ((got.double() - truth).abs() - allowed).max()


def same(got: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> None:
    for a, b in zip(got, other, strict=True):
        assert a is None or torch.equal(a, b)  # type: ignore[arg-type]


def double(x: Any) -> Any:
    return (
        x.double()
        if isinstance(x, Tensor) and x.is_floating_point()
        else tuple(map(double, x))
        if isinstance(x, tuple)
        else x
    )


def launches_once(call: Any, *args: Any, **kwargs: Any) -> None:
    before = EMULATION.emulation_launches()
    call(*args, **kwargs)
    assert EMULATION.emulation_launches() == before + 1
    for tickets in cuda._tickets.values():
        assert not tickets.any(), "the tickets must be zeros again"


# ---- noise ----


def test_words() -> None:
    words = (ctypes.c_uint32 * 4)()
    for seed, offset, group, row in ((0, 0, 0, 0), (-1, -1, 2**32 - 1, 2**32 - 1), (*STATE.tolist(), 77, 3)):
        EMULATION.emulation_words(ctypes.c_int64(seed), ctypes.c_int64(offset), group, row, words)
        low = [torch.tensor(x & 0xFFFFFFFF) for x in (group, row, offset, offset >> 32, seed, seed >> 32)]
        assert list(words) == [int(w) for w in reference.philox(low[:4], low[4:])]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise(dtype: torch.dtype, layout: str, per_sample: bool) -> None:
    for k, shape in itertools.product((1, 3), SHAPES):
        state = values((shape[0], 2), F32, 3).mul(2**62).long() if per_sample else STATE
        eps = poisoned((k, *shape), dtype, layout)
        launches_once(cuda.noise_fill, eps, state)
        truth = reference.noise(shape, state, num_samples=k, dtype=torch.float64)
        exact = eps if dtype is F32 else poisoned((k, *shape), F32, layout)
        if dtype is not F32:
            cuda.noise_fill(exact, state)
            assert torch.equal(eps, exact.to(dtype))
        assert ((exact.double() - truth).abs() <= 4e-6).all()
        if HAS_CPU:
            other = torch.empty((k, *shape))
            cpu.noise_fill(other, state)
            assert torch.equal(exact, other)


# ---- latent ----


def latent(shape: Sequence[int], dtypes: Any, layout: str, *, k: int | None = None, prior: str | None = None,
           clamp: Any = None, noise: bool = False, state: Tensor | None = STATE, z: bool = True, kl: bool = True,
           truth: bool = True) -> None:  # fmt: skip
    """Forward and backward, against float64 and the CPU engine."""
    first, second = dtypes
    mu, logvar = tensor(shape, first, layout, 1), tensor(shape, second, layout, 2)
    pair = None if prior is None else (tensor(shape, second, prior, 3), tensor(shape, first, prior, 4))
    sampled = tuple(shape) if k is None else (k, *shape)
    given = tensor(sampled, second, layout, 5) if noise else None
    rng = None if noise or not z else state
    args = (mu, logvar, pair, rng, given, clamp)
    out = {
        "z": poisoned(sampled, first, layout) if z else None,
        "kl": poisoned(shape[:1], F32, "every_other") if kl else None,
    }
    launches_once(cuda.latent_forward, *args, **out)

    grad_z = tensor(sampled, first, layout, 6) if z else None
    grad_kl = tensor(shape[:1], F32, "constant", 7) if kl else None
    summed = {"per_feature": shape[1:], "constant": ()}.get(prior or "", shape)
    back_args = (grad_z, grad_kl, *args)

    def gradients() -> dict[str, Any]:
        wanted = (
            None
            if prior is None
            else tuple(poisoned(summed, F32, "dense" if summed != shape else layout) for _ in "ab")
        )
        return {
            "grad_mu": poisoned(shape, first, layout),
            "grad_logvar": poisoned(shape, second, layout),
            "grad_prior": wanted,
        }

    grads = gradients()
    launches_once(cuda.latent_backward, *back_args, **grads)
    flat = [grads["grad_mu"], grads["grad_logvar"], *(grads["grad_prior"] or ())]

    if truth:
        true_out = {
            n: None if t is None else torch.empty(t.shape, dtype=torch.float64) for n, t in out.items()
        }
        reference.latent_forward(*double(args), **true_out)
        true_grads = {n: torch.empty(t.shape, dtype=torch.float64) for n, t in list(grads.items())[:2]}
        true_prior = None if prior is None else tuple(torch.empty(summed, dtype=torch.float64) for _ in "ab")
        reference.latent_backward(*double(back_args), **true_grads, grad_prior=true_prior)
        columns = max(1, mu[0].numel())
        spread = double(logvar if clamp is None else logvar.clamp(*clamp)).mul(0.5).exp()
        for n, size in (("z", 4 * (1 + spread)), ("kl", columns)):
            if out[n] is not None:
                close(out[n], true_out[n], size)
        close(grads["grad_mu"], true_grads["grad_mu"], 8 * (k or 1))
        close(grads["grad_logvar"], true_grads["grad_logvar"], 8 * (k or 1) * (1 + spread))
        for got, want in zip(grads["grad_prior"] or (), true_prior or (), strict=True):
            close(got, want, 8 * mu.numel() / max(1, got.numel()))
    if HAS_CPU:
        other = {n: None if t is None else torch.empty_like(t) for n, t in out.items()}
        cpu.latent_forward(*args, **other)
        if z:
            same([out["z"]], [other["z"]])
        other_grads = gradients()
        cpu.latent_backward(*back_args, **other_grads)
        same(flat[:2], [other_grads["grad_mu"], other_grads["grad_logvar"]])
        if kl and summed == shape and prior is not None:
            same(flat[2:], other_grads["grad_prior"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", MIXED, ids=str)
def test_latent(dtypes: Any, layout: str) -> None:
    shapes = SHAPES if dtypes[0] is dtypes[1] else SHAPES[4:8]
    for shape in shapes:
        latent(shape, dtypes, layout)


@pytest.mark.parametrize("prior", ["dense", "packed", "per_feature", "constant"])
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F16, F16)], ids=str)
def test_prior(dtypes: Any, prior: str) -> None:
    for shape in (*SHAPES, (70, 12), (600, 3)):
        latent(shape, dtypes, "dense" if prior != "packed" else "channels_last", prior=prior)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_and_given_noise(dtype: torch.dtype) -> None:
    states = values((9, 2), F32, 3).mul(2**62).long()
    for shape, layout in itertools.product(
        ((9,), (4, 7), (3, 16), (2, 3, 4, 4)), ("dense", "channels_last", "odd_address")
    ):
        for k in (None, 1, 5):
            latent(shape, (dtype, dtype), layout, k=k, state=states[: shape[0]])
            latent(shape, (dtype, dtype), layout, k=k, noise=True, prior="dense" if k is None else None)
            latent(shape, (dtype, dtype), layout, k=k)


@pytest.mark.parametrize("prior", [None, "dense"])
def test_one_result_alone(prior: str | None) -> None:
    for shape, layout in itertools.product(((4, 7), (3, 16), (2, 2304)), ("dense", "every_other")):
        latent(shape, (F32, F32), layout, z=False, prior=prior)
        latent(shape, (F32, F32), layout, kl=False, prior=prior)
        latent(shape, (BF16, BF16), layout, z=False, kl=False, prior=prior)


@pytest.mark.parametrize("prior", [None, "per_feature"])
def test_clamp(prior: str | None) -> None:
    for shape in ((4, 7), (3, 16), (1, 4999)):
        latent(shape, (F32, F32), "dense", clamp=(-0.5, 0.25), prior=prior)
        latent(shape, (BF16, BF16), "packed", clamp=(-0.5, 0.25), prior=prior)


def test_nan_and_infinity_stay_where_they_are() -> None:
    mu = values((4, 16), F32, 1)
    logvar = values((4, 16), F32, 2)
    logvar[1, 3], logvar[2, 5], mu[3, 7] = float("nan"), float("inf"), float("inf")
    for clamp in (None, (-2.0, 2.0)):
        z, kl = poisoned((4, 16), F32, "dense"), poisoned((4,), F32, "dense")
        cuda.latent_forward(mu, logvar, None, STATE, None, clamp, z=z, kl=kl)
        grad_mu, grad_logvar = poisoned((4, 16), F32, "dense"), poisoned((4, 16), F32, "dense")
        cuda.latent_backward(
            torch.ones(4, 16), torch.ones(4), mu, logvar, None, STATE, None, clamp,
            grad_mu=grad_mu, grad_logvar=grad_logvar, grad_prior=None,
        )  # fmt: skip
        finite = torch.ones(4, 16, dtype=torch.bool)
        finite[1, 3] = finite[3, 7] = False
        finite[2, 5] = clamp is not None
        assert torch.equal(z.isfinite(), finite)
        assert kl.isfinite().tolist() == [True, False, clamp is not None, False]
        assert grad_logvar[0].isfinite().all()
        assert grad_logvar[3].isfinite().all()
        if clamp is not None:
            assert grad_logvar[1, 3] == 0  # as torch.clamp: NaN lies outside
            assert grad_logvar[2, 5] == 0


def test_some_gradients_alone() -> None:
    mu, logvar, prior = (
        values((5, 12), F32, 1),
        values((5, 12), F32, 2),
        (values((5, 12), F32, 3), values((5, 12), F32, 4)),
    )
    grad_z, grad_kl = values((5, 12), F32, 5), values((5,), F32, 6)
    full = [poisoned((5, 12), F32, "dense") for _ in range(4)]
    args = (grad_z, grad_kl, mu, logvar, prior, STATE, None, None)
    cuda.latent_backward(*args, grad_mu=full[0], grad_logvar=full[1], grad_prior=(full[2], full[3]))
    for wanted in range(4):
        got = poisoned((5, 12), F32, "dense")
        some: list[Tensor | None] = [got if i == wanted else None for i in range(4)]
        cuda.latent_backward(*args, grad_mu=some[0], grad_logvar=some[1], grad_prior=(some[2], some[3]))
        assert torch.equal(got, full[wanted])


# ---- likelihood ----


def likelihood(shape: Sequence[int], member: str, dtype: torch.dtype, target: torch.dtype, layout: str,
               second: str = "dense", grad_layout: str = "dense") -> None:  # fmt: skip
    x = tensor(shape, target, layout, 1)
    if member == "bernoulli" and x.is_floating_point():
        x.sigmoid_()
    params = (tensor(shape, dtype, layout, 2),)
    if member == "gaussian":
        params += (tensor(shape, dtype, layout if second == "dense" else second, 3),)
    nll = poisoned(shape[:1], F32, "every_other")
    launches_once(cuda.likelihood_forward, member, params, x, nll=nll)
    true_nll = torch.empty(shape[:1], dtype=torch.float64)
    reference.likelihood_forward(
        member, double(params), x.double() if x.is_floating_point() else x, nll=true_nll
    )
    if target is U8:  # which the reference divides in float32
        reference.likelihood_forward(member, double(params), x.double() / 255, nll=true_nll)
    close(nll, true_nll, 4 * max(1, x[0].numel()))

    grad = tensor(shape[:1], F32, grad_layout, 4)
    summed = {"per_feature": shape[1:], "constant": ()}.get(second, shape)

    def gradients() -> tuple[Tensor, ...]:
        grads = (poisoned(shape, dtype, layout),)
        return (
            grads
            if member == "bernoulli"
            else (*grads, poisoned(summed, F32 if summed != shape else dtype, "dense"))
        )

    grads = gradients()
    launches_once(cuda.likelihood_backward, member, params, x, grad, grads=grads)
    truth = tuple(torch.empty(g.shape, dtype=torch.float64) for g in grads)
    value = {U8: x.double() / 255, BOOL: x.double()}.get(target, x.double())
    reference.likelihood_backward(member, double(params), value, grad.double(), grads=truth)
    for got, want in zip(grads, truth, strict=True):
        close(got, want, 8 * x.numel() / max(1, got.numel()) if got.numel() else 1)
    if HAS_CPU:
        others = gradients()
        cpu.likelihood_backward(member, params, x, grad, grads=others)
        same(grads[:1] if summed != shape else grads, others[:1] if summed != shape else others)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("member", ["bernoulli", "gaussian"])
def test_likelihood(member: str, layout: str) -> None:
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        likelihood(shape, member, dtype, dtype, layout)


@pytest.mark.parametrize("target", [F32, BF16, F16, U8, BOOL])
@pytest.mark.parametrize("dtype", DTYPES)
def test_targets(dtype: torch.dtype, target: torch.dtype) -> None:
    for member, shape in itertools.product(("bernoulli", "gaussian"), (*SHAPES[3:9], LONG)):
        likelihood(shape, member, dtype, target, "dense", grad_layout="constant")
        likelihood(shape, member, dtype, target, "channels_last" if len(shape) > 2 else "odd_address")


def test_every_byte_is_its_255th() -> None:
    for shape in ((256, 1), (1, 256), (32, 8)):
        x, zero, grad = (
            torch.arange(256, dtype=U8).view(shape),
            torch.zeros(shape),
            poisoned(shape, F32, "dense"),
        )
        cuda.likelihood_backward("gaussian", (zero, zero), x, torch.ones(shape[0]), grads=(grad, None))
        assert torch.equal(grad, -(x.float() / 255))


@pytest.mark.parametrize("second", ["per_feature", "constant"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_variance(dtype: torch.dtype, second: str) -> None:
    for shape in (*SHAPES, (70, 12), (600, 3), (20, 300)):
        likelihood(shape, "gaussian", dtype, F32, "dense", second)
    likelihood((2, 3, 4, 4), "gaussian", dtype, U8, "channels_last", second)


def test_nothing_to_add_up_is_zero() -> None:
    for shape in ((0, 5), (3, 0), (0, 0)):
        empty = torch.empty(shape)
        nll, z, kl = (poisoned(s, F32, "dense") for s in (shape[:1], shape, shape[:1]))
        cuda.likelihood_forward("gaussian", (empty, empty), empty, nll=nll)
        cuda.latent_forward(empty, empty, None, STATE, None, None, z=z, kl=kl)
        cuda.noise_fill(poisoned((2, *shape), F32, "dense"), STATE)
        per_feature, constant = poisoned(shape[1:], F32, "dense"), poisoned((), F32, "dense")
        upstream = torch.ones(shape[:1])
        cuda.likelihood_backward("gaussian", (empty, empty), empty, upstream, grads=(per_feature, constant))
        sums = poisoned(shape[1:], F32, "dense"), poisoned((), F32, "dense")
        cuda.latent_backward(
            empty, upstream, empty, empty, (empty, empty), STATE, None, None,
            grad_mu=torch.empty(shape), grad_logvar=torch.empty(shape), grad_prior=sums,
        )  # fmt: skip
        for result in (nll, kl, per_feature, constant, *sums):
            assert not result.any(), shape


# ---- size, order, the launch ----


@pytest.mark.parametrize(("shape", "orders"), [((3, 4501), 4), ((3, 600), 24), ((70, 12), 24)])
def test_sums_do_not_depend_on_the_order_of_blocks_and_threads(shape: tuple[int, int], orders: int) -> None:
    mean, logvar, x = (values(shape, F32, i) for i in range(3))
    results = []
    for seed in range(orders):
        EMULATION.emulation_seed(seed)
        nll, grads = (
            poisoned(shape[:1], F32, "dense"),
            (poisoned(shape[1:], F32, "dense"), poisoned((), F32, "dense")),
        )
        cuda.likelihood_forward("gaussian", (mean, logvar), x, nll=nll)
        cuda.likelihood_backward("gaussian", (mean, logvar), x, torch.ones(shape[0]), grads=grads)
        results.append((nll, *grads))
    for other in results[1:]:
        same(results[0], other)


def test_many_short_rows() -> None:
    before = EMULATION.emulation_blocks()
    rows = 66_000
    x, logits, nll = (
        values((rows, 16), F32, 1).sigmoid(),
        values((rows, 16), F32, 2),
        poisoned((rows,), F32, "dense"),
    )
    cuda.likelihood_forward("bernoulli", (logits,), x, nll=nll)
    assert EMULATION.emulation_blocks() - before == -(-rows // 64)  # 4 threads a row
    truth = torch.empty(rows, dtype=torch.float64)
    reference.likelihood_forward("bernoulli", (logits.double(),), x.double(), nll=truth)
    close(nll, truth, 16)


def test_offsets_beyond_32_bits() -> None:
    stride = (1 << 32) + 8  # bytes; only the pages that are touched exist
    memory = torch.frombuffer(mmap.mmap(-1, 2 * stride + 64, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=U8)
    for start, columns in ((0, 16), (3, 13)):
        target = memory[start:].as_strided((3, columns), (stride, 1))
        target.copy_(values((3, columns), U8, 1))
        logits, nll = values((3, columns), F32, 2), poisoned((3,), F32, "dense")
        cuda.likelihood_forward("bernoulli", (logits,), target, nll=nll)
        truth = torch.empty(3, dtype=torch.float64)
        reference.likelihood_forward("bernoulli", (logits.double(),), target.double() / 255, nll=truth)
        close(nll, truth, columns)


def test_runs_on_the_stream_and_device_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_where", lambda t: (1, 0x77, None))
    cuda.noise_fill(torch.empty(1, 2, 3), STATE)
    assert EMULATION.emulation_stream() == 0x77
    assert EMULATION.emulation_launch_device() == 1
    assert EMULATION.emulation_device() == 0, "the caller's device must be current again"
    monkeypatch.setattr(cuda, "_where", lambda t: (7, 0, None))
    with pytest.raises(RuntimeError, match="cudaSetDevice: invalid device"):
        cuda.noise_fill(torch.empty(1, 2, 3), STATE)
    assert EMULATION.emulation_device() == 0


def test_a_failed_launch_says_why() -> None:
    EMULATION.emulation_fail_next(209)
    with pytest.raises(
        RuntimeError, match=r"latent_forward: no kernel image.*built for emulated.*TORCH_CUDA_ARCH_LIST"
    ):
        latent((3, 4), (F32, F32), "dense")
