"""On a GPU, with both engines: the tests of the ops once more, and what only a GPU has (streams, graphs, large memory).

`scripts/gpu_check.sh` runs this; the tests of extremes are in test_gpu_edges. In the environment:
VAE_FAST_TEST_ENGINES="cuda" leaves out the other engine; VAE_FAST_TEST_DEVICE=cpu tries the tests themselves where
there is none, on the engines that take CPU tensors.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import test_categorical
import test_csr
import test_importance
import test_latent
import test_likelihood
import test_mixture
import test_noise
import test_pairwise
import vae_fast
from conftest import NATIVE, TRITON, state
from likelihoods import check, make_params, make_target
from test_compile import everything, leaf
from vae_fast import backends
from vae_fast.backends import reference

GPU = torch.cuda.is_available()
DEVICE = os.environ.get("VAE_FAST_TEST_DEVICE", "cuda")
ENGINES = os.environ.get("VAE_FAST_TEST_ENGINES", "cuda triton").split()
if DEVICE == "cpu":
    ENGINES = ["triton" if TRITON else "cpu" if NATIVE else "twin"]
pytestmark = [
    pytest.mark.skipif(DEVICE == "cuda" and not GPU, reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device")


class OnDevice(TorchFunctionMode):
    """Tensors that a test makes without saying where are made on the CPU, with the same numbers, and moved."""

    FACTORIES = frozenset(
        (
            *(torch.randn, torch.rand, torch.randint, torch.tensor, torch.arange, torch.linspace),
            *(torch.zeros, torch.ones, torch.full, torch.eye),
        )
    )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if DEVICE == "cpu" or function not in self.FACTORIES or (kwargs or {}).get("device") is not None:
            return out
        return out.detach().to(DEVICE).requires_grad_(out.requires_grad)


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.function.__module__ == request.module.__name__:  # these say where
        yield
    else:
        with OnDevice():
            yield


@pytest.fixture(params=ENGINES)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if (reason := backends.unavailable_reason(request.param)) is not None:
        pytest.skip(reason)
    with vae_fast.backend(request.param):
        yield request.param


@pytest.fixture
def kernels(backend: str) -> str:
    return backend


# What never reaches a kernel (float64), and what gives a CPU generator by name (test_generators has it).
LEFT_OUT = ("test_gradcheck", "test_torch_generators_govern_it", "test_a_list_of_generators")


def taken_along(*modules: ModuleType) -> dict[str, Callable[..., None]]:
    """The tests of an engine in other modules, for the fixtures of the module that takes them."""
    return {
        f"{module.__name__}_{name.removeprefix('test_')}": test
        for module in modules
        for name, test in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("test_") and name not in LEFT_OUT
        if {"backend", "kernels", "seen"} & set(inspect.signature(test).parameters)
    }


seen = test_latent.seen
_OPS = (
    test_latent,
    test_importance,
    test_likelihood,
    test_csr,
    test_categorical,
    test_mixture,
    test_pairwise,
    test_noise,
)
globals().update(taken_along(*_OPS))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def needing(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def seeds() -> Tensor:
    return state(3, 4).to(DEVICE)


def step(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, x: Tensor, rng_state: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Forward and backward of every kind of kernel: samples, sums per sample, over the batch and over everything."""
    prior = (prior_mu, torch.zeros((), device=mu.device))
    z, kl = vae_fast.reparameterize_kl(mu, logvar, prior=prior, rng_state=rng_state)
    nll = vae_fast.bernoulli_nll(z, x) + vae_fast.gaussian_nll(z, x, prior_mu, mask=x)
    nll = nll + vae_fast.bernoulli_nll(
        z, prior_mu.detach().sigmoid().expand_as(z), binarize=True, rng_state=rng_state
    )
    nll = nll + vae_fast.negative_binomial_nll(z.exp(), x, prior_mu.exp())
    nll = nll + vae_fast.categorical_nll(z, x.sum(1) % z.shape[1]) + vae_fast.multinomial_nll(z, x)
    nll = nll + vae_fast.discretized_logistic_mixture_nll(z[:, :3], x[:, :1])
    grads = torch.autograd.grad((nll + kl).sum(), (mu, logvar, prior_mu))
    return z, kl, nll, *grads


def inputs(rows: int = 300, n: int = 70) -> tuple[Tensor, ...]:
    return (
        *needing(normal(rows, n), normal(rows, n, seed=1) - 1, normal(n, seed=2)),
        normal(rows, n, seed=3) > 0,
    )


SHAPES = [
    (1, 1_000_003),
    (3, 2**18 + 1),
    (200_003, 3),
    (300_001, 1),
    (70_000, 20),
    (130, 16_385),
    (1, 16_384),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_long_and_many_short_rows(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    with OnDevice():
        mu, logvar = test_latent.moments(*shape, dtype=dtype)
        test_latent.check(mu, logvar)
        test_latent.check(mu, logvar, prior=test_latent.moments(shape[1], dtype=dtype))
        x = make_target("bernoulli", *shape, dtype=torch.uint8)
        check("bernoulli", x, mu)
        for v in (logvar, logvar[0], logvar[0, 0]):
            check("gaussian", x, mu, v)
        x = make_target("negative_binomial", *shape, dtype=torch.int32)
        for other in (shape, shape[1:], ()):
            check("negative_binomial", x, *make_params("negative_binomial", [shape, other], dtype))
        test_categorical.check(mu, test_categorical.classes(shape[0], below=shape[1]))
        test_categorical.check(mu, test_categorical.counts(*shape, dtype=torch.uint8))


@pytest.mark.parametrize("size", [(1, 3, 5, 1000, 70), (3000, 1, 2, 7), (70, 3, 10, 32, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_and_many_images(backend: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, channels, components, *image = size
    with OnDevice():
        params = test_mixture.make_params(batch, channels, components, *image, dtype=dtype)
        test_mixture.check(params, test_mixture.levels(batch, channels, *image))


def test_binarization_is_that_of_the_cpu(backend: str) -> None:
    """The very bits of the contract, in the kernels too."""
    x = (torch.rand(33, 1021, generator=torch.Generator().manual_seed(0)) * 256).to(torch.uint8)
    logits = normal(33, 1021)
    many = torch.stack((torch.arange(33) * 0x123456789ABCDE - 7, torch.arange(33) - 2**40), 1)
    for rng_state in (state(-5, 2**50 + 1), many):
        bits = reference.binarize(x, rng_state).to(DEVICE)
        got = vae_fast.bernoulli_nll(logits, x.to(DEVICE), binarize=True, rng_state=rng_state.to(DEVICE))
        assert torch.equal(got, vae_fast.bernoulli_nll(logits, bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [24, 61])
def test_misaligned(backend: str, n: int, dtype: torch.dtype) -> None:
    """Every offset from a 128-bit boundary, of each tensor on its own."""
    base = normal(12 * n, dtype=dtype)
    for i in range(9):
        for j in (0, i, 5):
            with OnDevice():
                mu, logvar = base[i : i + 8 * n].view(8, n), base[j : j + 8 * n].view(8, n)
                test_latent.check(mu, logvar)
                check("gaussian", logvar, mu, logvar)
                test_categorical.check(mu, logvar.float())


def test_noise_is_that_of_the_cpu(backend: str) -> None:
    """Within 4e-6 of the float64 definition, and hence of the CPU engine's."""
    many = torch.stack((torch.arange(33) * 0x123456789ABCDE - 7, torch.arange(33) - 2**40), 1)
    for rng_state in (state(-5, 2**50 + 1), many):
        eps = vae_fast.noise((33, 5, 1021), rng_state.to(DEVICE), num_samples=3).cpu().double()
        exact = reference.noise((33, 5, 1021), rng_state, num_samples=3, dtype=torch.float64)
        assert (eps - exact).abs().max() <= 4e-6
        if backends.unavailable_reason("cpu") is None:
            with vae_fast.backend("cpu"):
                cpu = vae_fast.noise((33, 5, 1021), rng_state, num_samples=3)
            assert (eps - cpu.double()).abs().max() <= 4e-6


PHILOX = """
#include "philox.h"
__global__ void run(const unsigned* in, unsigned* out, int n) {
  const int i = threadIdx.x;
  const vae_fast::Words counter = {in[i], in[n + i], in[2 * n + i], in[3 * n + i]};
  const vae_fast::Words w = vae_fast::philox(counter, in[4 * n + i], in[5 * n + i]);
  out[i] = w.w0; out[n + i] = w.w1; out[2 * n + i] = w.w2; out[3 * n + i] = w.w3;
}
extern "C" int words(const void* in, void* out, int n) {
  run<<<1, n>>>(static_cast<const unsigned*>(in), static_cast<unsigned*>(out), n);
  return cudaDeviceSynchronize();
}
"""


@needs_gpu
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.no_poison
def test_philox_words_on_the_device(tmp_path: Path) -> None:
    """The integers that csrc/math gives when nvcc compiles it, exactly. (Triton's: test_triton_interpreter.)"""
    math = Path(__file__).parents[1] / "csrc" / "math"
    (tmp_path / "words.cu").write_text(PHILOX)
    options = ["-arch=native", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-I{math}"]
    command = ["nvcc", *options, "words.cu", "-o", "words.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    words = torch.randint(0, 2**32, (6, 512))
    on_gpu = words.to(torch.int32).cuda()  # the low 32 bits
    out = torch.zeros(4, 512, dtype=torch.int32, device="cuda")
    torch.cuda.synchronize()
    call = ctypes.CDLL(str(tmp_path / "words.so")).words
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    assert call(on_gpu.data_ptr(), out.data_ptr(), 512) == 0
    exact = torch.stack(reference.philox(list(words[:4]), list(words[4:])))
    assert torch.equal(out.cpu().long() & 0xFFFFFFFF, exact)


def test_generators(backend: str) -> None:
    mu = torch.zeros(4, 5, device=DEVICE)
    torch.manual_seed(3)
    first, second = (vae_fast.reparameterize(mu, mu) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(vae_fast.reparameterize(mu, mu), first) and not torch.equal(first, second)
    own = [
        vae_fast.reparameterize(mu, mu, generator=torch.Generator(DEVICE).manual_seed(9)) for _ in range(2)
    ]
    assert torch.equal(*own) and not torch.equal(own[0], first)


@pytest.mark.parametrize("shape", [(300, 70), (2, 50_001), (40_000, 3)], ids=str)
def test_runs_are_bit_identical(backend: str, shape: tuple[int, int]) -> None:
    args = inputs(*shape)
    first = step(*args, seeds())
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(step(*args, seeds()), first, strict=True))


def test_training_step(backend: str) -> None:
    """nn.VAE: loss and gradients as with the reference, and the loss falls."""
    from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

    torch.manual_seed(0)
    model = VAE(MLPEncoder(64, 32, 4), MLPDecoder(4, 32, 64), "bernoulli").to(DEVICE)
    x = (normal(128, 64) > 0).float()

    def gradients() -> list[Tensor]:
        out = model(x, rng_state=seeds())
        return [out.loss, *torch.autograd.grad(out.loss, list(model.parameters()))]

    got = gradients()
    with vae_fast.backend("reference"):
        torch.testing.assert_close(got, gradients(), rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(x).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.98 * got[0]


@pytest.mark.parametrize("target", [torch.float32, torch.uint8, torch.bool])
def test_autocast(backend: str, target: torch.dtype) -> None:
    """bfloat16 moments and logits, targets as they come, float32 losses."""
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(32, 16).to(DEVICE), torch.nn.Linear(8, 32).to(DEVICE)
    x = (normal(64, 32).sigmoid() * (255 if target == torch.uint8 else 1)).round().to(target)
    seen = normal(64, 32, seed=1)

    def run() -> tuple[Tensor, ...]:
        with torch.autocast(DEVICE, torch.bfloat16):
            z, kl = vae_fast.reparameterize_kl_packed(encoder(seen), rng_state=seeds())
            nll = vae_fast.bernoulli_nll(decoder(z), x)
        assert z.dtype == torch.bfloat16 and kl.dtype == nll.dtype == torch.float32
        return nll, kl, *torch.autograd.grad((nll + kl).mean(), (encoder.weight, decoder.weight))

    got = run()
    with vae_fast.backend("reference"):
        torch.testing.assert_close(got, run(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(backend: str, reentrant: bool) -> None:
    """Activation checkpointing recomputes the same noise, with more random numbers drawn in between."""
    args = inputs()

    def loss(mu: Tensor, logvar: Tensor) -> Tensor:
        z, kl = vae_fast.reparameterize_kl(torch.nn.functional.dropout(mu, 0.3), logvar)
        return z.pow(3).sum() + kl.sum()

    torch.manual_seed(7)
    want = torch.autograd.grad(loss(*args[:2]), args[:2])
    torch.manual_seed(7)
    out = checkpoint(loss, *args[:2], use_reentrant=reentrant)
    torch.rand(5, device=DEVICE)
    out.backward()
    assert all(torch.equal(x.grad, w) for x, w in zip(args[:2], want, strict=True))


# Compilers. The graph is whole; the numbers and the noise are eager's for the same rng_state.


@pytest.mark.no_poison
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(backend: str, mode: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, mode=mode)
    size = 24

    def arguments() -> list[Tensor]:
        shapes = ((64, size), (64, size), (64, 2 * size), (size,), ())
        target = torch.rand((64, size), generator=torch.Generator().manual_seed(9))
        made = [*(leaf(*s, seed=i) for i, s in enumerate(shapes)), target, leaf(1, size, seed=5), state()]
        return [t.detach().to(DEVICE).requires_grad_(t.requires_grad) for t in made]

    def run(function: Callable[..., Any]) -> list[Tensor]:
        args = arguments()
        torch.compiler.cudagraph_mark_step_begin()
        outputs = function(*args)
        grads = torch.autograd.grad(outputs[0], [a for a in args if a.requires_grad])
        return [t.detach().clone() for t in (*outputs, *grads)]

    want = run(everything)
    for _ in range(4):  # reduce-overhead warms up, records, then replays
        torch.testing.assert_close(run(compiled), want, rtol=1e-4, atol=1e-5)


@pytest.mark.no_poison
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_noise_is_fresh_and_backward_has_forwards(backend: str, mode: str) -> None:
    torch._dynamo.reset()
    mu = torch.zeros(64, 24, device=DEVICE, requires_grad=True)
    logvar = torch.zeros(64, 24, device=DEVICE, requires_grad=True)

    @torch.compile(fullgraph=True, mode=mode)
    def draw(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return vae_fast.reparameterize_kl(mu, logvar)

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        z, _ = draw(mu, logvar)
        (grad,) = torch.autograd.grad(z.sum(), logvar)
        assert torch.equal(2 * grad, z)  # z is eps, its derivative eps / 2
        return z.detach().clone()

    for _ in range(3):
        run()
    torch.manual_seed(1)
    first, second = run(), run()
    torch.manual_seed(1)
    assert torch.equal(run(), first) and not torch.equal(first, second)


# Streams, graphs, devices.


@needs_gpu
def test_side_stream(backend: str) -> None:
    """Work queued on the current stream alone: it waits for that stream's slow producer, and for nothing else."""
    args = inputs()
    want = step(*args, seeds())
    rng_state = seeds()
    stream = torch.cuda.Stream()

    def queue(cycles: int) -> tuple[tuple[Tensor, ...], bool]:
        """The step's results, and whether the device was still busy when all of it was queued."""
        late = [torch.full_like(t, float("nan") if t.is_floating_point() else 1) for t in args]
        for t in late[:3]:
            t.requires_grad_()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles)
            with torch.no_grad():
                for t, source in zip(late, args, strict=True):
                    t.copy_(source)
            got = step(*late, rng_state)
            done = stream.record_event()
        busy = not done.query()
        stream.synchronize()
        return got, busy

    # A host that others keep busy may need seconds for a step; one that waits for the device is always too late.
    for cycles in (200_000_000, 2_000_000_000, 10_000_000_000):
        got, busy = queue(cycles)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        if busy:
            return
    pytest.fail("the host waited for the device")


@needs_gpu
def test_streams_at_once(backend: str) -> None:
    """Sums that several blocks share do not mix with those of another stream."""
    args = [inputs(4, 100_003 + i) for i in range(4)]
    want = [step(*a, seeds()) for a in args]
    rng_state = seeds()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in args]
    got: list[Any] = [None] * len(args)
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i] = step(*args[i], rng_state)
    torch.cuda.synchronize()
    for some, expected in zip(got, want, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))


@needs_gpu
@pytest.mark.no_poison
def test_no_host_sync(backend: str) -> None:
    args, rng_state = inputs(4, 100_003), seeds()
    step(*args, rng_state)  # compiles and loads
    vae_fast.noise((4, 5), rng_state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*args)
        step(*args, rng_state)
        vae_fast.noise((4, 5), rng_state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = work()
    return graph, outputs


@needs_gpu
@pytest.mark.no_poison
@pytest.mark.parametrize("shape", [(300, 70), (2, 200_003)], ids=str)
def test_graph_gives_what_eager_gives(backend: str, shape: tuple[int, int]) -> None:
    args = inputs(*shape)
    rng_state = seeds()
    graph, outputs = capture(lambda: step(*args, rng_state))
    for offset in (4, 5, 6):
        rng_state.copy_(torch.tensor([3, offset]))
        for _ in range(2):
            for t in outputs:
                t.detach().fill_(float("nan"))
            graph.replay()
            want = step(*args, rng_state)
            assert all(torch.equal(a, b) for a, b in zip(outputs, want, strict=True))


@needs_gpu
@pytest.mark.no_poison
def test_graph_draws_fresh_noise(backend: str) -> None:
    mu = torch.zeros(64, 24, device="cuda", requires_grad=True)
    logvar = torch.zeros(64, 24, device="cuda", requires_grad=True)

    def work() -> tuple[Tensor, Tensor]:
        z, _ = vae_fast.reparameterize_kl(mu, logvar)
        return z, torch.autograd.grad(z.sum(), logvar)[0]

    graph, (z, grad) = capture(work)

    def replay() -> Tensor:
        graph.replay()
        assert torch.equal(2 * grad, z)
        return z.detach().clone()

    torch.manual_seed(1)
    first, second = replay(), replay()
    torch.manual_seed(1)
    assert torch.equal(replay(), first) and not torch.equal(first, second)


@needs_gpu
@pytest.mark.no_poison
def test_graph_with_a_generator(backend: str) -> None:
    """One that is not torch's own is registered with the graph, as torch wants it; then it governs the replays."""
    generator = torch.Generator("cuda")
    mu = torch.zeros(64, 24, device="cuda")

    def draw() -> Tensor:
        return vae_fast.reparameterize(mu, mu, generator=generator)

    draw()  # compiles and loads
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        z = draw()

    def replay() -> Tensor:
        graph.replay()
        return z.clone()

    generator.manual_seed(5)
    first, second = replay(), replay()
    generator.manual_seed(5)
    assert torch.equal(replay(), first) and not torch.equal(first, second)


@needs_gpu
@pytest.mark.no_poison
def test_graphed_steps_of_a_run_are_plain_steps(backend: str) -> None:
    """Of `vae-fast train --cuda-graph`, bit for bit. The last batch of an epoch is smaller, and runs as it is."""
    pytest.importorskip("accelerate")
    from vae_fast.training import Recipe, Trainer, data

    x = torch.randint(0, 256, (1000, 784), dtype=torch.uint8)
    dataset = data.Dataset("x", x[:900], x[900:])
    found = []
    for cuda_graph in (False, True):
        recipe = Recipe(
            batch_size=128, hidden=(64,), latent=8, epochs=2, clip_grad=1.0, ema=0.9, cuda_graph=cuda_graph
        )
        trainer = Trainer(recipe, dataset)
        trainer.fit()
        found.append((trainer.history[-1], trainer.model.state_dict()))
    (plain, weights), (graphed, weights_of_graph) = found
    assert {**plain, "seconds": 0} == {**graphed, "seconds": 0}
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), weights_of_graph.values(), strict=True))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_second_device(backend: str) -> None:
    """Tensors of another device than the current one are served there, and the current one stays."""
    args = inputs()
    want = step(*args, seeds())
    for current, device in ((0, 1), (1, 0), (1, 1)):
        there = [t.detach().to(f"cuda:{device}").requires_grad_(t.requires_grad) for t in args]
        with torch.cuda.device(current):
            got = step(*there, seeds().to(f"cuda:{device}"))
            assert torch.cuda.current_device() == current
        for a, b in zip(got, want, strict=True):
            assert a.device.index == device and torch.equal(a.cpu(), b.cpu())
