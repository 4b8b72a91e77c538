"""The CPU engine itself: every instruction set gives the same words and the same bits, on any number of threads."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import noise_rows
from conftest import HANG, assert_same_bits_for_threads, bits, needs_native
from cuda_emulation.build import OPS
from vae_fast.backends import reference
from vae_fast.backends.native import cpu
from vae_fast.likelihoods import ELEMENTWISE

pytestmark = needs_native
CSRC = Path(__file__).parents[1] / "csrc"
STRICT = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w")
X86 = platform.machine() in ("x86_64", "AMD64")
LOW = (torch.float32, torch.bfloat16, torch.float16)


def signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word


KNOWN = (
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)


def use_isa(engine: ModuleType, name: str) -> Iterator[ModuleType]:
    before = engine.isa()
    engine.use_isa(name)
    yield engine
    engine.use_isa(before)


@pytest.fixture(params=cpu.extension.available_isas() if cpu.extension else [])
def engine(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The extension module, on each of this machine's instruction sets."""
    yield from use_isa(cpu.extension, request.param)


def compile_engine(folder: Path) -> Path:
    """The extension with the AVX-512 kernels behind every instruction set's name, emulated on AVX2."""
    import pybind11

    emulate = (
        "-include",
        str(Path(__file__).parent / "avx512_emulation" / "avx512.h"),
        "-mavx2",
        "-mfma",
        "-mf16c",
    )
    python = f"-I{sys.base_prefix}/include/python{sys.version_info.major}.{sys.version_info.minor}"
    flags = dict.fromkeys(OPS, ("-DVAE_FAST_ISA=avx512", *emulate))
    flags["dispatch"] = ("-Dbaseline=avx512", "-Davx2=avx512", "-D__builtin_cpu_supports(x)=1")
    jobs = [(source, flags.get(source.stem, ())) for source in sorted((CSRC / "cpu").glob("*.cpp"))]
    jobs += [(CSRC / "bindings" / "cpu.cpp", (f"-I{pybind11.get_include()}", python))]
    compiler = os.environ.get("CXX", "c++").split()

    def compile_one(job: tuple[Path, tuple[str, ...]]) -> str:
        source, own = job
        target = str(folder / f"{source.parent.name}_{source.stem}.o")
        subprocess.run([*compiler, *STRICT, *own, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    module = folder / "emulated_cpu.so"
    subprocess.run([*compiler, "-shared", *objects, "-o", str(module)], check=True)
    return module


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The AVX-512 kernels without AVX-512."""
    if not X86 or "avx2" not in cpu.extension.available_isas():
        pytest.skip("needs an x86-64 machine with AVX2 to emulate AVX-512 on")
    if not CSRC.is_dir():
        pytest.skip("needs the source checkout")
    path = compile_engine(tmp_path_factory.mktemp("emulated"))
    loader = importlib.machinery.ExtensionFileLoader("emulated._cpu", str(path))
    spec = importlib.util.spec_from_file_location("emulated._cpu", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def avx512(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The AVX-512 kernels: the processor runs them, or they are emulated."""
    if "avx512" in cpu.extension.available_isas():
        yield from use_isa(cpu.extension, "avx512")
    else:
        yield request.getfixturevalue("emulated")


def words(
    engine: ModuleType, counter: tuple[int, ...], key: tuple[int, int], count: int = 1
) -> list[list[int]]:
    group, row, low, high = counter
    flat = engine.noise_words(signed(key[1] << 32 | key[0]), signed(high << 32 | low), group, row, count)
    return [flat[i : i + 4] for i in range(0, len(flat), 4)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(engine: ModuleType, counter, key, expected) -> None:
    assert " ".join(f"{w:08x}" for w in words(engine, counter, key)[0]) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers_on_avx512(avx512: ModuleType, counter, key, expected) -> None:
    assert " ".join(f"{w:08x}" for w in words(avx512, counter, key)[0]) == expected


def check_random_words(engine: ModuleType) -> None:
    g = torch.Generator().manual_seed(1)
    counters = torch.randint(0, 2**32, (30, 6), generator=g).tolist()
    for a, b, c, d, k0, k1 in counters:
        for i, got in enumerate(words(engine, (a, b, c, d), (k0, k1), 37)):
            at = [torch.tensor(w) for w in ((a + i) % 2**32, b, c, d)]
            assert got == [w.item() for w in reference.philox(at, [torch.tensor(k0), torch.tensor(k1)])]


def test_philox_on_random_counters(engine: ModuleType) -> None:
    check_random_words(engine)


def test_philox_on_random_counters_on_avx512(avx512: ModuleType) -> None:
    check_random_words(avx512)


def every_result(monkeypatch: pytest.MonkeyPatch, engine: ModuleType) -> list[bytes]:
    """The bits of all that the engine computes, over dtypes, layouts, odd sizes, priors, draws, states, targets."""
    monkeypatch.setattr(cpu, "extension", engine)
    g = torch.Generator().manual_seed(2)
    results = []

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=g) * 2).to(dtype)

    shapes = ((5, 37), (3, 1031), (130, 20), (1, 4099), (600, 1), (2, 6, 5, 7))
    for shape, dtype in itertools.product(shapes, LOW):
        batch = shape[0]
        packed = random(batch, 2 * shape[1], *shape[2:], dtype=dtype)
        if len(shape) == 4:
            packed = packed.contiguous(memory_format=torch.channels_last)
        mu, logvar = packed.chunk(2, 1)
        full = (random(*shape, dtype=dtype), random(*shape))
        per_feature = (random(*shape[1:]).expand(shape), random(*shape[1:]).expand(shape))
        for draws, prior, per_sample in itertools.product((1, 3), (None, full, per_feature), (False, True)):
            state = torch.randint(-(2**63), 2**63 - 1, (batch, 2) if per_sample else (2,), generator=g)
            z = torch.empty((draws, *shape), dtype=dtype)
            kl = torch.empty(batch)
            cpu.latent_forward(mu, logvar, prior, state, None, (-3.0, 2.0), z=z, kl=kl)
            grads = [torch.empty_like(mu), torch.empty_like(logvar)]
            summed = prior is per_feature
            grad_prior = prior and tuple(torch.empty(shape[1:] if summed else shape) for _ in range(2))
            cpu.latent_backward(
                random(draws, *shape, dtype=dtype), random(batch), mu, logvar, prior, state, None, (-3.0, 2.0),
                grad_mu=grads[0], grad_logvar=grads[1], grad_prior=grad_prior,
            )  # fmt: skip
            results += [bits(t) for t in (z, kl, *grads, *(grad_prior or ()))]
        for (likelihood, code), target_dtype in itertools.product(cpu.likelihoods.items(), cpu.dtypes):
            x = torch.rand(shape, generator=g) * (1.5 if target_dtype.is_floating_point else 255)
            count = len(ELEMENTWISE[likelihood].parameters)
            params = (mu, random().expand(shape), *(random(*shape) for _ in range(3)))[:count]
            if likelihood in cpu.of_counts:
                params = tuple(p.abs() for p in params)
            mask = random(*shape) > 0 if code % 2 else None
            state = torch.tensor([7, 8]) if likelihood == "bernoulli" else None
            nll = torch.empty(batch)
            cpu.likelihood_forward(likelihood, params, x.to(target_dtype), mask, state, nll=nll)
            sums = (torch.empty(shape[1:]) for _ in range(3))
            out = (torch.empty_like(mu), torch.empty(()), *sums)[: len(params)]
            cpu.likelihood_backward(
                likelihood, params, x.to(target_dtype), mask, state, random(1).expand(batch), grads=out
            )
            results += [bits(t) for t in (nll, *out)]
    return results + categorical_results(g) + mixture_results(g)


def categorical_results(g: torch.Generator) -> list[bytes]:
    """Few classes and many, in whole blocks and not, adjacent in memory or not; numbers of classes and counts."""
    results = []
    for (batch, positions, classes), dtype in itertools.product(
        ((3, 1, 1031), (2, 70, 10), (600, 1, 3), (2, 3, 20_000)), LOW
    ):
        logits = (torch.randn((batch, positions, classes), generator=g) * 3).to(dtype)
        numbers = torch.randint(0, classes, (batch, positions), generator=g)
        numbers[0, 0] = -100
        counts = torch.poisson(torch.rand(logits.shape, generator=g), generator=g).to(torch.int16)
        for el, x in itertools.product((logits, logits.mT.contiguous().mT), (numbers, counts)):
            nll, lse, total = torch.empty((3, batch, positions)).unbind()
            cpu.categorical_forward(el, x, nll=nll, lse=lse, total=total)
            grad = torch.empty_like(el)
            cpu.categorical_backward(el, x, lse, total, torch.randn(nll.shape, generator=g), grad_logits=grad)
            results += [bits(t) for t in (nll, lse, total, grad)]
    return results


def mixture_results(g: torch.Generator) -> list[bytes]:
    results = []
    for channels, components, dtype in itertools.product((1, 3), (1, 5), LOW):
        per_component = 3 if channels == 1 else 10
        params = torch.randn((2, per_component * components, 133), generator=g).to(dtype)
        x = torch.randint(0, 256, (2, channels, 133), generator=g, dtype=torch.uint8)
        mask = torch.rand((2, 133), generator=g) < 0.9
        for p in (params, params.mT.contiguous().mT):
            nll, grad = torch.empty(2), torch.empty_like(p)
            cpu.mixture_forward(p, x, mask, nll=nll)
            cpu.mixture_backward(p, x, mask, torch.randn(2, generator=g), grad_params=grad)
            results += [bits(t) for t in (nll, grad)]
    return results


def test_avx512_gives_the_bits_of_avx2(monkeypatch: pytest.MonkeyPatch, avx512: ModuleType) -> None:
    for native in use_isa(cpu.extension, "avx2"):
        expected = every_result(monkeypatch, native)
    assert every_result(monkeypatch, avx512) == expected


def check_rows() -> None:
    noise_rows.check_noise(cpu, LOW)
    noise_rows.check_latent(cpu, LOW)
    noise_rows.check_likelihood(cpu)


def test_a_part_of_a_batch_has_its_noise(engine: ModuleType) -> None:
    check_rows()


def test_a_part_of_a_batch_has_its_noise_on_avx512(
    monkeypatch: pytest.MonkeyPatch, avx512: ModuleType
) -> None:
    monkeypatch.setattr(cpu, "extension", avx512)
    check_rows()


@pytest.mark.parametrize("shape", [(3, 50_000), (4_001, 33)], ids=["few long", "many short"])
def test_threads_do_not_change_the_bits(engine: ModuleType, shape: tuple[int, int]) -> None:
    """Large enough to be shared out among threads."""
    g = torch.Generator().manual_seed(3)
    mu, logvar, prior_mu, grad_z = (torch.randn(shape, generator=g) for _ in range(4))
    grad_nll = torch.randn(shape[0], generator=g)
    rng_state = torch.tensor([5, 6])
    prior = prior_mu, torch.zeros(()).expand(shape)
    logits, counts = mu[None], mu.abs()[None]
    params = mu.flatten()[:120_000].view(3, 10, 4_000)
    pixels = params[:, :3].sigmoid()

    def compute() -> tuple[Tensor, ...]:
        z, kl, each, nll = (
            torch.empty(shape),
            torch.empty(shape[0]),
            torch.empty((3, 1, shape[0])),
            torch.empty(3),
        )
        grads = torch.empty(shape), torch.empty(shape)
        grad_prior = torch.empty(shape[1:]), torch.empty(())
        grad_logits, grad_params = torch.empty(logits.shape), torch.empty(params.shape)
        cpu.latent_forward(mu, logvar, prior, rng_state, None, None, z=z, kl=kl)
        cpu.latent_backward(
            grad_z, grad_nll, mu, logvar, prior, rng_state, None, None,
            grad_mu=grads[0], grad_logvar=grads[1], grad_prior=grad_prior,
        )  # fmt: skip
        cpu.categorical_forward(logits, counts, nll=each[0], lse=each[1], total=each[2])
        cpu.categorical_backward(logits, counts, each[1], each[2], grad_nll[None], grad_logits=grad_logits)
        cpu.mixture_forward(params, pixels, None, nll=nll)
        cpu.mixture_backward(params, pixels, None, grad_nll[:3], grad_params=grad_params)
        return z, kl, *grads, *grad_prior, each, grad_logits, nll, grad_params

    assert_same_bits_for_threads(compute)


@pytest.mark.parametrize("likelihood", ELEMENTWISE)
@pytest.mark.parametrize("off", [-1, 1])
def test_a_kernel_counts_its_parameters(likelihood: str, off: int) -> None:
    """It would read what is not there."""
    x = torch.ones(2, 3)
    right = len(ELEMENTWISE[likelihood].parameters)
    params = (x,) * (right + off)
    message = f"expected {right} parameters, but got {right + off}"
    with pytest.raises(ValueError, match=message):
        cpu.likelihood_forward(likelihood, params, x, None, None, nll=torch.empty(2))
    with pytest.raises(ValueError, match=message):
        cpu.likelihood_backward(
            likelihood, params, x, None, None, torch.ones(2), grads=(torch.empty_like(x),) * len(params)
        )


@pytest.mark.skipif(not X86, reason="instruction sets are chosen on x86-64 only")
def test_environment_chooses_the_instruction_set() -> None:
    def run(isa: str) -> subprocess.CompletedProcess[str]:
        code = "import torch, vae_fast; vae_fast.noise((1, 4), torch.tensor([1, 2])); print(vae_fast.info())"
        env = os.environ | {"VAE_FAST_CPU_ISA": isa}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    assert "isa: baseline" in run("baseline").stdout
    wrong = run("sse9")
    assert wrong.returncode != 0 and "sse9" in wrong.stderr and "baseline" in wrong.stderr


def run_python(code: str, *arguments: str, **env: str) -> str:
    """In a process of its own: what it prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return done.stdout


POOL = """
import torch
from vae_fast.backends.native import cpu
def make(n): return cpu.empty_strided((n,), (1,), torch.float32)
a, b = make(1 << 20), make(1 << 19)  # 4 MB, 2 MB
address = a.data_ptr()
del a
print(cpu.extension.cached_bytes() >> 20, make(1 << 20).data_ptr() == address)
views = [make(1 << 20)[::2] for _ in range(3)]
del b, views  # 14 MB in all
print(cpu.extension.cached_bytes() >> 20)
cpu.empty_cache()
print(cpu.extension.cached_bytes())
"""


@pytest.mark.parametrize(("megabytes", "kept"), [("", "4 True 14 0"), ("6", "4 True 6 0")])
def test_memory_of_freed_outputs_is_kept_up_to_a_limit(megabytes: str, kept: str) -> None:
    assert run_python(POOL, VAE_FAST_CACHE_MB=megabytes).split() == kept.split()


RESIZED = """
import torch, vae_fast
z = vae_fast.reparameterize(torch.zeros(512, 1024), torch.zeros(512, 1024))
z.resize_(1024, 1024)
z.untyped_storage().resize_(0)
torch.ones(2048, 1024, out=z)
assert z.shape == (2048, 1024) and z.mean() == 1
"""


def test_without_the_cache_outputs_are_resized() -> None:
    run_python(RESIZED, VAE_FAST_CACHE_MB="0")


FORKS = """
import os, signal, sys, threading, torch, vae_fast
from vae_fast.backends.native import cpu
torch.set_num_threads(1)  # OpenMP's own do not survive a fork, torch's neither
mu = torch.zeros(256, 1024)
def churn():
    while True:
        kept = [cpu.empty_strided((n,), (1,), torch.float32) for n in (1 << 19, 1 << 20)]
        del kept
for _ in range(4):
    threading.Thread(target=churn, daemon=True).start()
for i in range(200):
    child = os.fork()
    if child == 0:
        signal.alarm(int(sys.argv[1]))  # ends a child that hangs
        vae_fast.reparameterize_kl(mu, mu)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, f"child {i} hung"
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("megabytes", ["0", ""], ids=["off", "default"])
def test_no_child_hangs(megabytes: str) -> None:
    """Of a process whose threads allocate and free large outputs."""
    run_python(FORKS, str(int(HANG / 10)), VAE_FAST_CACHE_MB=megabytes)


SHARDED = """
import tempfile, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from vae_fast.backends.native import cpu
from vae_fast.nn import VAE
dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
x = torch.rand(4096, 96)
resized, resize = [], torch.UntypedStorage.resize_
torch.UntypedStorage.resize_ = lambda storage, size: resized.append(size) or resize(storage, size)
for sharded in (False, True):
    for fused_head in (False, "auto"):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(96, 256), nn.ReLU(), nn.Linear(256, 2 * 128))
        model = VAE(encoder, nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 96)), latent_shape=(128,))
        if sharded:
            for part in (encoder, model):
                fully_shard(part)
        model.fused_head = fused_head
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autograd.graph.save_on_cpu():
                loss = model(x).loss
            loss.backward()
            optimizer.step()
        print(loss.item())
assert resized and cpu.extension.cached_bytes()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_sharding_and_offloading_take_large_outputs() -> None:
    """Their storages cannot be resized; FSDP2 resizes only its own."""
    losses = [float(line) for line in run_python(SHARDED).splitlines()]
    assert len(losses) == 4 and max(losses) - min(losses) < 1e-5 * losses[0]
