"""Every Triton kernel compiled ahead of time for sm_80, sm_90 and gfx942, and its assembly read.

The backend's own functions are called with CPU tensors, and where they would launch, the kernel is compiled instead:
for the target, with exactly the specialization and block sizes of a launch. No GPU and no driver is needed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")
from conftest import HANG  # noqa: E402
from triton_objects import TARGETS, Driver, floats, tensors  # noqa: E402
from vae_fast.backends import triton as kernels  # noqa: E402
from vae_fast.backends.contract import OwnColumn  # noqa: E402
from vae_fast.backends.triton import launch, layout  # noqa: E402
from vae_fast.likelihoods import ELEMENTWISE  # noqa: E402
from vae_fast.likelihoods.csr import Csr  # noqa: E402

# Bytes that must be under way in each multiprocessor to keep its memory busy: bandwidth times latency (about 2, 4.8 and
# 5.3 TB/s, 600 to 800 ns) over the number of multiprocessors (108, 132, 304).
IN_FLIGHT = {"sm_80": 12 * 1024, "sm_90": 25 * 1024, "gfx942": 14 * 1024}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PARAMETERS = {name: len(spec.parameters) for name, spec in ELEMENTWISE.items()}
STATE = torch.empty(2, dtype=torch.int64, device="meta")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Kernel:
    """A compiled kernel and what its assembly says."""

    def __init__(self, job: launch.Job, compiled: Any, folder: Path) -> None:
        self.name, self.threads = job.kernel.__name__, job.threads
        names = job.kernel.arg_names
        self.options = dict(zip(names[len(names) - len(job.rest) :], job.rest, strict=True))
        self.exchanges = compiled.asm["ttgir"].count("ttg.convert_layout")
        self.amd = "cubin" not in compiled.asm
        self.hash = compiled.hash
        if not self.amd:
            cubin = folder / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            sass = self._dump("-sass", cubin)
            lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", sass)
            self.code = Counter(op for op in lines if op != "NOP")
            usage = self._dump("-res-usage", cubin)
            self.registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
            self.local = sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
            self.local += self.count(r"(LDL|STL)\b")
            self.loads, self.stores = self.count(r"LDG\.E.*\.128"), self.count(r"STG\.E.*\.128")
            self.middle = self.count(r"(LDG|STG)\.E.*\.64")
            self.narrow = self.count(r"(LDG|STG)\.E") - self.loads - self.stores
        else:
            text = compiled.asm["amdgcn"]
            self.code = Counter(re.findall(r"^\s+([a-z]\w+)", text, re.M))
            self.registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])  # type: ignore[index]
            pattern = r"\.(?:private_segment_fixed_size|vgpr_spill_count):\s+(\d+)"
            self.local = sum(int(n) for n in re.findall(pattern, text)) + self.count("scratch_")
            self.loads = self.count("(global|buffer)_load_dwordx4$")
            if self.count("global_load_dwordx4$") == 1 and "rng" in names:
                self.loads -= 1  # both words of rng_state
            self.stores = self.count("(global|buffer)_store_dwordx4$")
            self.middle = self.count("(global|buffer)_(load|store)_dwordx2$")
            self.narrow = self.count("(global|buffer)_(load|store)") - self.loads - self.stores

    @staticmethod
    def _dump(what: str, cubin: Path) -> str:
        return subprocess.run([CUOBJDUMP, what, cubin], check=True, capture_output=True, text=True).stdout

    def resident(self) -> int:
        """Threads that a multiprocessor has registers for: registers are given out in eights, to whole blocks."""
        each = -(-self.registers // 8) * 8
        if self.amd:
            return 4 * 64 * min(8, 512 // each)
        return min(2048, 65536 // (each * self.threads) * self.threads)

    def in_flight(self) -> int:
        """Bytes of 128-bit loads that a multiprocessor may have under way."""
        return 16 * self.loads * self.resident()

    def width(self, dtype: torch.dtype) -> int:
        """Accesses of 128 bits for a thread's elements of one tensor."""
        return self.options["ROWS"] * self.options["COLS"] // self.threads * dtype.itemsize // 16

    def rows(self) -> int:
        """Rows of a tile, of which a thread may have elements."""
        return self.options["ROWS"]

    def count(self, pattern: str) -> int:
        return sum(n for op, n in self.code.items() if re.match(pattern, op))


Compile = Callable[..., list[Kernel]]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compile]:
    """compiled(target, function, *args, **kwargs): the kernels that the function launches."""
    found: list[Kernel] = []

    def start(job: launch.Job, tensors: Sequence[Tensor | None]) -> None:
        assert len(job.grid) == 3 and all(0 < g < (2**31, 65536, 65536)[i] for i, g in enumerate(job.grid))
        found.append(Kernel(job, launch.compile_for(job, tensors), tmp_path))

    def call(target: str, function: Callable[..., None], *args: Any, **kwargs: Any) -> list[Kernel]:
        monkeypatch.setattr(triton.runtime.driver, "_active", Driver(target))
        found.clear()
        function(*args, **kwargs)
        assert found
        for kernel in found:
            assert kernel.local == 0, f"{kernel.name} spills or has local memory"
            assert kernel.resident() >= 384, (
                f"{kernel.name} takes {kernel.registers} registers"
            )  # 3 warps a scheduler
        return list(found)

    monkeypatch.setattr(launch, "start", start)
    yield call
    monkeypatch.undo()
    launch.forget()


class TestInterpreted:
    """Kernels that were imported for the interpreter cannot be compiled: another process does it."""

    __test__ = launch.INTERPRETED

    def test_in_its_own_process(self) -> None:
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG)
        assert run.returncode == 0, run.stdout[-4000:]


def assert_wide(
    target: str, kernel: Kernel, dtype: torch.dtype, loads: int, stores: int, narrow: int, each: int = 0
) -> None:
    """All tiles go in 128-bit accesses, `loads` and `stores` tensors of them. `narrow` other accesses are allowed:
    rng_state, and gradients and results per sample, `each` for every tile row of a thread.
    And registers leave room for as many threads as hide the latency of memory."""
    width = kernel.width(dtype)
    assert (kernel.loads, kernel.stores) == (loads * width, stores * width), f"{kernel.name}: {kernel.code}"
    assert kernel.narrow <= narrow + each * kernel.rows(), f"{kernel.name}: {kernel.code}"
    flying = f"{kernel.name}: {kernel.in_flight()} bytes in flight, {kernel.registers} registers"
    assert kernel.in_flight() >= IN_FLIGHT[target], flying


class TestDense:
    """Contiguous tensors: nothing but 128-bit accesses, and threads exchange nothing except for sums."""

    __test__ = not launch.INTERPRETED

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [*(((4000, 40), dtype) for dtype in DTYPES), *(((2**18, 256), dtype) for dtype in DTYPES)],
        ids=str,
    )
    def test_latent(self, compiled: Compile, target: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        mu, logvar, z, *grads = tensors(5, *shape, dtype=dtype)
        kl = floats(shape[0])
        (kernel,) = compiled(target, kernels.latent_forward, mu, logvar, None, STATE, None, None, z=z, kl=kl)
        assert_wide(target, kernel, dtype, 2, 1, 3 if target != "gfx942" else 4)
        (kernel,) = compiled(
            target, kernels.latent_backward, z, kl, mu, logvar, None, STATE, None, None,
            grad_mu=grads[0], grad_logvar=grads[1], grad_prior=None,
        )  # fmt: skip
        assert_wide(target, kernel, dtype, 3, 2, 2, each=1)
        assert kernel.exchanges == 0

    @pytest.mark.parametrize("target", ["sm_90"])
    def test_importance(self, compiled: Compile, target: str) -> None:
        """Without a prior, and with one whose gradient is summed."""
        mu, logvar, *grads = tensors(4, 4000, 40, dtype=torch.float32)
        (z,) = tensors(1, 3, 4000, 40, dtype=torch.float32)
        shared = floats(40).expand(4000, 40), floats(40).expand(4000, 40)
        for prior, of_prior in ((None, None), (shared, (floats(40), floats(40)))):
            args = mu, logvar, prior, STATE, None, None
            compiled(target, kernels.importance_forward, *args, z=z, weights=floats(3, 4000))
            compiled(
                target, kernels.importance_backward, z, floats(3, 4000), *args,
                grad_mu=grads[0], grad_logvar=grads[1], grad_prior=of_prior, path_derivative=True,
            )  # fmt: skip

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_noise(self, compiled: Compile, target: str, dtype: torch.dtype) -> None:
        (eps,) = tensors(1, 2, 300, 4096, dtype=dtype)
        (kernel,) = compiled(target, kernels.noise_fill, eps, STATE)
        assert kernel.exchanges == 0 and kernel.count("(LDS|STS|ds_)") == 0
        assert kernel.stores > 0 and kernel.narrow <= 2

    # Every likelihood once, those of the longest code and all dtypes of one for every target.
    @pytest.mark.parametrize(
        ("target", "likelihood", "dtype"),
        [
            *(("sm_90", likelihood, torch.float32) for likelihood in PARAMETERS if likelihood != "gaussian"),
            *(
                ("sm_90", likelihood, torch.bfloat16)
                for likelihood in ("continuous_bernoulli", "discretized_logistic")
            ),
            *(
                (target, likelihood, torch.float32)
                for likelihood in ("zero_inflated_negative_binomial", "negative_binomial_mixture")
                for target in ("sm_80", "gfx942")
            ),
            *((target, "gaussian", dtype) for target in TARGETS for dtype in DTYPES),
        ],
        ids=str,
    )
    def test_likelihood(self, compiled: Compile, target: str, likelihood: str, dtype: torch.dtype) -> None:
        x, *params = tensors(1 + PARAMETERS[likelihood], 2**16, 1024, dtype=dtype)
        nll = floats(2**16)
        (kernel,) = compiled(target, kernels.likelihood_forward, likelihood, params, x, None, None, nll=nll)
        assert_wide(target, kernel, dtype, 1 + len(params), 0, 1)
        args = (likelihood, params, x, None, None, nll)
        (kernel,) = compiled(target, kernels.likelihood_backward, *args, grads=params)
        assert_wide(target, kernel, dtype, 1 + len(params), len(params), 0, each=1)
        assert kernel.exchanges == 0

    @pytest.mark.parametrize(
        ("target", "dtype", "of_target"),
        [
            ("sm_80", torch.bfloat16, torch.float32),
            ("sm_90", torch.float32, torch.float32),
            ("sm_90", torch.bfloat16, torch.int64),
            ("sm_90", torch.float16, torch.int32),
            ("gfx942", torch.float32, torch.float32),
            ("gfx942", torch.bfloat16, torch.int64),
        ],
        ids=str,
    )
    def test_categorical(
        self, compiled: Compile, target: str, dtype: torch.dtype, of_target: torch.dtype
    ) -> None:
        """Counts where the target is a float, else classes."""
        (logits,), each = tensors(1, 2**16, 1, 1024, dtype=dtype), tensors(3, 2**16, 1)
        shape = logits.shape if of_target.is_floating_point else logits.shape[:2]
        (x,) = tensors(1, *shape, dtype=of_target)
        results = dict(zip(("nll", "lse", "total"), each, strict=True))
        (kernel,) = compiled(target, kernels.categorical_forward, logits, x, **results)
        assert kernel.loads >= kernel.width(dtype) * (x.ndim - 1) and kernel.stores == 0
        (kernel,) = compiled(target, kernels.categorical_backward, logits, x, *each, grad_logits=logits)
        assert kernel.loads >= kernel.width(dtype) * (x.ndim - 1) and kernel.stores == kernel.width(dtype)
        assert kernel.narrow <= 4 * kernel.rows()
        assert kernel.exchanges == 0

    @pytest.mark.parametrize(
        ("target", "channels", "dtype"),
        [
            ("sm_80", 1, torch.bfloat16),
            ("sm_90", 3, torch.float32),
            ("sm_90", 1, torch.float16),
            ("gfx942", 3, torch.bfloat16),
            ("gfx942", 1, torch.float32),
        ],
        ids=str,
    )
    def test_mixture(self, compiled: Compile, target: str, channels: int, dtype: torch.dtype) -> None:
        """64 bits a load, of pixels that lie side by side; threads exchange nothing but a sum."""
        each = 10 if channels == 3 else 3
        (params,), (x,) = tensors(1, 4096, 10 * each, 1024, dtype=dtype), tensors(1, 4096, channels, 1024)
        (kernel,) = compiled(target, kernels.mixture_forward, params, x, None, nll=floats(4096))
        assert kernel.middle >= each and kernel.exchanges == 0
        args = (params, x, None, floats(4096))
        (kernel,) = compiled(target, kernels.mixture_backward, *args, grad_params=params)
        assert kernel.middle >= 2 * each + each and kernel.exchanges == 0

    @pytest.mark.parametrize("target", ["sm_90", "gfx942"])
    def test_pairwise(self, compiled: Compile, target: str) -> None:
        (z, dims, grad_dims), (mu, logvar) = tensors(3, 4096, 24), tensors(2, 1000, 24)
        joint, own = floats(4096), OwnColumn(0, 5000)
        compiled(target, kernels.pairwise_forward, z, mu, logvar, None, own, joint=joint, dims=dims)
        args = (joint, grad_dims, z, mu, logvar, None, own, joint, dims)
        grads = {"grad_z": z, "grad_mu": None, "grad_logvar": None, "grad_log_weights": floats(1000)}
        compiled(target, kernels.pairwise_backward, *args, **grads)


class TestOtherShapes:
    """What else the kernels do: it compiles without local memory, and wide where it can be. What sm_80 has of its own
    shows in TestDense."""

    __test__ = not launch.INTERPRETED
    pytestmark = pytest.mark.parametrize("target", ["sm_90", "gfx942"])

    def test_long_samples(self, compiled: Compile, target: str) -> None:
        mu, logvar, z = tensors(3, 4, 2**20, dtype=torch.bfloat16)
        first, second = compiled(
            target, kernels.latent_forward, mu, logvar, None, STATE, None, None, z=z, kl=floats(4)
        )
        width = first.width(torch.bfloat16)
        assert (first.loads, first.stores) == (2 * width, width) and second.name == "combine"

    def test_prior_draws_and_states(self, compiled: Compile, target: str) -> None:
        mu, logvar, *grads = tensors(4, 256, 512)
        prior = tensors(2, 512)
        full = (prior[0].expand(256, 512), prior[1].expand(256, 512))
        (z,), (states,) = tensors(1, 5, 256, 512), tensors(1, 256, 2, dtype=torch.int64)
        args, clamp = (mu, logvar, full, states, None), (-30.0, 20.0)
        (kernel,) = compiled(target, kernels.latent_forward, *args, clamp, z=z, kl=floats(256))
        assert kernel.loads >= 4 and kernel.stores >= 1
        found = compiled(
            target, kernels.latent_backward, z, floats(1).expand(256), *args, clamp,
            grad_mu=grads[0], grad_logvar=grads[1], grad_prior=(floats(512), floats()),
        )  # fmt: skip
        assert [k.name for k in found] == ["_backward", "combine", "combine"]
        assert found[0].loads >= 4 and found[0].stores >= 2

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_packed_last_is_wide(self, compiled: Compile, target: str, dtype: torch.dtype) -> None:
        """Halves of (batch, tokens, 2 C): rows of C elements apart, and all accesses are 128 bits wide."""
        packed, grad = tensors(2, 16, 77, 64, dtype=dtype)
        (z,) = tensors(1, 16, 77, 32, dtype=dtype)
        kl = floats(16)
        args = (*packed.chunk(2, -1), None, STATE, None, None)
        (kernel,) = compiled(target, kernels.latent_forward, *args, z=z, kl=kl)
        width = kernel.width(dtype)
        assert (kernel.loads, kernel.stores) == (2 * width, width)
        halves = grad.chunk(2, -1)
        (kernel,) = compiled(
            target,
            kernels.latent_backward,
            z,
            kl,
            *args,
            grad_mu=halves[0],
            grad_logvar=halves[1],
            grad_prior=None,
        )
        width = kernel.width(dtype)
        assert (kernel.loads, kernel.stores) == (3 * width, 2 * width)

    def test_channels_last(self, compiled: Compile, target: str) -> None:
        mu, logvar, z = (x.to(memory_format=torch.channels_last) for x in tensors(3, 4, 32, 16, 16))
        compiled(target, kernels.latent_forward, mu, logvar, None, STATE, None, None, z=z, kl=floats(4))
        args = ("gaussian", (mu, logvar), z, None, None, floats(4))
        (kernel,) = compiled(target, kernels.likelihood_backward, *args, grads=(mu, logvar))
        assert kernel.narrow <= 1, "all tensors in one order read as dense ones"

    @pytest.mark.parametrize("of_target", [torch.uint8, torch.bool, torch.int16, torch.int64])
    def test_mixed_targets(self, compiled: Compile, target: str, of_target: torch.dtype) -> None:
        (logits,), (x,) = tensors(1, 500, 784, dtype=torch.bfloat16), tensors(1, 500, 784, dtype=of_target)
        compiled(target, kernels.likelihood_forward, "bernoulli", (logits,), x, None, None, nll=floats(500))
        args = ("bernoulli", (logits,), x, None, None, floats(500))
        (kernel,) = compiled(target, kernels.likelihood_backward, *args, grads=(logits,))
        assert kernel.loads >= 1 and kernel.stores >= 1

    def test_broadcast_parameters(self, compiled: Compile, target: str) -> None:
        mean, x = tensors(2, 500, 3, 32, 32)
        for shape in ((), (3, 1, 1), (3, 32, 32)):
            logvar = floats(*shape).expand(x.shape)
            grad = torch.zeros(shape if shape != (3, 1, 1) else x.shape)
            args = ("gaussian", (mean, logvar), x, None, None, floats(500))
            for grads in ((mean, grad), (mean, None), (None, grad)):
                compiled(target, kernels.likelihood_backward, *args, grads=grads)

    def test_masks_and_bits(self, compiled: Compile, target: str) -> None:
        """A mask per pixel, and bits drawn from grey levels."""
        (logits,), (x, mask) = tensors(1, 500, 3, 1024), tensors(2, 500, 3, 1024, dtype=torch.uint8)
        (mask,) = tensors(1, 500, 1, 1024, dtype=torch.bool)
        args = ("bernoulli", (logits,), x, mask.expand(500, 3, 1024), STATE)
        (kernel,) = compiled(target, kernels.likelihood_forward, *args, nll=floats(500))
        assert kernel.loads >= 1
        (kernel,) = compiled(target, kernels.likelihood_backward, *args, floats(500), grads=(logits,))
        assert kernel.loads >= 1 and kernel.stores >= 1

    def test_sparse_targets(self, compiled: Compile, target: str) -> None:
        """The parameters are read as beside a dense target; the search has no local memory."""
        mean, theta = tensors(2, 500, 1024)
        index = torch.empty(9999, dtype=torch.int32)
        csr = Csr(index[:501], index, torch.empty(9999, dtype=torch.uint16), 1024)
        args = ("negative_binomial", (mean, theta), csr, None, None)
        (kernel,) = compiled(target, kernels.likelihood_forward, *args, nll=floats(500))
        assert kernel.loads >= 2
        (kernel,) = compiled(target, kernels.likelihood_backward, *args, floats(500), grads=(mean, theta))
        assert kernel.loads >= 2 and kernel.stores >= 2
        each = tensors(3, 1, 500)
        results = dict(zip(("nll", "lse", "total"), each, strict=True))
        (logits,) = tensors(1, 1, 500, 1024)
        compiled(target, kernels.categorical_forward, logits, csr, **results)
        compiled(target, kernels.categorical_backward, logits, csr, *each[:2], each[2], grad_logits=logits)

    def test_categorical_shapes(self, compiled: Compile, target: str) -> None:
        """Programs share long rows, and take several short ones."""
        each = tensors(3, 8, 1)
        results = dict(zip(("nll", "lse", "total"), each, strict=True))
        (logits,) = tensors(1, 8, 1, 10**6)
        found = compiled(target, kernels.categorical_forward, logits, logits, **results)
        assert [k.name for k in found] == ["_forward", "_merge_parts"] and found[0].loads >= 4
        (logits,), (x, *each) = tensors(1, 1000, 100, 10, dtype=torch.bfloat16), tensors(4, 1000, 100)
        results = dict(zip(("nll", "lse", "total"), each, strict=True))
        compiled(target, kernels.categorical_forward, logits, x.long(), **results)
        compiled(target, kernels.categorical_backward, logits, x.long(), *each, grad_logits=logits)

    def test_mixture_channels_last(self, compiled: Compile, target: str) -> None:
        (params,), (x,) = (
            tensors(1, 64, 1024, 100, dtype=torch.bfloat16),
            tensors(1, 64, 1024, 3, dtype=torch.uint8),
        )
        (mask,) = tensors(1, 64, 1024, dtype=torch.bool)
        params, x = params.transpose(1, 2), x.transpose(1, 2)
        compiled(target, kernels.mixture_forward, params, x, mask, nll=floats(64))
        compiled(target, kernels.mixture_backward, params, x, mask, floats(64), grad_params=params)

    def test_odd_and_small(self, compiled: Compile, target: str) -> None:
        for shape in ((5, 7), (6,), (2, 100_003)):
            mu, logvar, z = tensors(3, *shape)
            kl = floats(shape[0])
            compiled(target, kernels.latent_forward, mu, logvar, None, STATE, None, None, z=z, kl=kl)

    def test_more_than_2_31_elements(self, compiled: Compile, target: str) -> None:
        """Offsets of 64 bits."""
        mu, logvar, z = tensors(3, 2, 2**31 + 8)
        found = compiled(
            target, kernels.latent_forward, mu, logvar, None, STATE, None, None, z=z, kl=floats(2)
        )
        assert found[0].options["OFFSETS_64"] and found[0].loads and found[0].stores


class TestInstructions:
    """Instructions per element on sm_90: the difference between two compilations, one with twice the elements a
    thread. What is left out is what a program does once."""

    __test__ = not launch.INTERPRETED

    # The limits are what was counted, plus a little. In bfloat16 a GPU of 30e12 instructions a second that copies
    # 3.35 TB/s has 53 instructions for an element of the forward pass (6 bytes) and 89 for one of backward (10 bytes).
    @pytest.mark.parametrize(
        ("what", "dtype", "limit"),
        [
            ("noise", torch.float32, 25),
            ("noise", torch.bfloat16, 24),
            ("forward", torch.float32, 57),
            ("forward", torch.bfloat16, 47),
            ("backward", torch.float32, 57),
            ("backward", torch.bfloat16, 49),
        ],
    )
    def test_per_element(
        self, compiled: Compile, monkeypatch, what: str, dtype: torch.dtype, limit: int
    ) -> None:
        mu, logvar, z, *grads = tensors(5, 1000, 1024, dtype=dtype)
        counts = []
        for threads in (64, 128):
            monkeypatch.setattr(layout.Plan, "threads", threads)
            launch.forget()
            args = (mu, logvar, None, STATE, None, None)
            if what == "noise":
                (kernel,) = compiled("sm_90", kernels.noise_fill, z[None], STATE)
            elif what == "forward":
                (kernel,) = compiled("sm_90", kernels.latent_forward, *args, z=z, kl=floats(1000))
            else:
                (kernel,) = compiled(
                    "sm_90", kernels.latent_backward, z, floats(1000), *args,
                    grad_mu=grads[0], grad_logvar=grads[1], grad_prior=None,
                )  # fmt: skip
            counts.append(kernel.code.total())
        launch.forget()
        each = (counts[0] - counts[1]) / 8
        print(f"{what} in {dtype}: {each} instructions an element")
        assert 0.8 * limit < each <= limit

    def test_rows_cost_nothing_an_element(self, compiled: Compile) -> None:
        """A state of four words is two scalar loads more a program, and one of two words has none of them."""
        mu, logvar, z, grad = tensors(4, 1000, 1024)
        loads = {}
        for rng_state in (STATE, STATE.new_empty(4)):
            args = (mu, logvar, None, rng_state, None, None)
            calls = (
                lambda: kernels.noise_fill(z[None], rng_state),  # noqa: B023
                lambda: kernels.latent_forward(*args, z=z, kl=floats(1000)),  # noqa: B023
                lambda: kernels.latent_backward(
                    z, floats(1000), *args, grad_mu=grad, grad_logvar=z, grad_prior=None  # noqa: B023
                ),
                lambda: kernels.likelihood_forward("bernoulli", (mu,), z, None, rng_state, nll=floats(1000)),  # noqa: B023
            )  # fmt: skip
            loads[len(rng_state)] = [
                (kernel.count("LDG"), kernel.code.total()) for f in calls for kernel in compiled("sm_90", f)
            ]
        for (few, short), (more, long) in zip(loads[2], loads[4], strict=True):
            assert few < more <= few + 2 and short < long <= short + 12

    def test_no_kernel_for_each_number_of_draws(self, compiled: Compile) -> None:
        mu, logvar, grad, other = tensors(4, 100, 64)
        found = set()
        for draws in (2, 3, 5, 16):
            (z,) = tensors(1, draws, 100, 64)
            args = (mu, logvar, None, STATE, None, None)
            for function in (
                lambda: kernels.noise_fill(z, STATE),  # noqa: B023
                lambda: kernels.latent_forward(*args, z=z, kl=floats(100)),  # noqa: B023
                lambda: kernels.latent_backward(
                    z, None, *args, grad_mu=grad, grad_logvar=other, grad_prior=None  # noqa: B023
                ),
            ):  # fmt: skip
                (kernel,) = compiled("sm_90", function)
                found.add((kernel.name, kernel.hash))
        assert len(found) == 3

    def test_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A compiled kernel is called where its call is known, else Triton's dispatch is."""
        jobs: list[tuple[launch.Job, Any]] = []
        monkeypatch.setattr(triton.runtime.driver, "_active", Driver("sm_90"))
        monkeypatch.setattr(launch, "start", lambda *arguments: jobs.append(arguments))
        launch.forget()
        kernels.noise_fill(tensors(1, 1, 100, 64)[0], STATE)
        [(job, arguments)] = jobs
        assert isinstance(launch.launcher(job, arguments), triton.compiler.CompiledKernel)
        monkeypatch.setattr(triton, "__version__", "4.0.0")
        calls: list[Any] = []
        dispatch = launch.launcher(job, arguments)
        monkeypatch.setattr(type(job.kernel), "run", lambda self, *a, **options: calls.append((a, options)))
        dispatch[job.grid](*arguments, *job.rest)
        [(given, options)] = calls
        assert given == (*arguments, *job.rest)
        assert options == {
            "grid": job.grid,
            "warmup": False,
            "num_warps": job.threads // 32,
            **launch.OPTIONS,
        }
        launch.forget()

    def test_philox_takes_one_multiply_a_product(self, compiled: Compile) -> None:
        """Two 32x32 bit products a round, each one IMAD.WIDE; the first rounds fold into scalars."""
        (kernel,) = compiled("sm_90", kernels.noise_fill, tensors(1, 1, 1000, 1024)[0], STATE)
        calls = 2  # eight elements a thread
        assert kernel.count(r"IMAD\.WIDE\.U32") + kernel.count(r"IMAD\.HI\.U32") <= 20 * calls + 4
        assert kernel.count(r"MUFU\.(LG2|SQRT)") == 8  # log2 and sqrt of four pairs
