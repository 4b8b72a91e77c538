"""The oldest and the newest Triton that are supported, each in a folder and a process of its own.

Forward and backward in the interpreter, with masks and tuples of parameters, against the reference in float64, and one
compilation for sm_90. Run as a script this file is what such a process does.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from conftest import HANG

VERSIONS = os.environ.get("VAE_FAST_TRITON_VERSIONS", "3.6.0 3.9.0").split()
CACHE = Path(tempfile.gettempdir()) / f"vae_fast-triton-versions-{getpass.getuser()}"


def installed(version: str) -> Path:
    """The folder that holds this Triton and nothing else. Made once, then found in the temporary directory."""
    folder = CACHE / f"{version}-{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as partial:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
            ]
            command += [
                "--retries",
                "1",
                "--timeout",
                "15",
                "--target",
                f"{partial}/{version}",
                f"triton=={version}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
            if done.returncode:
                pytest.skip(
                    f"Triton {version} could not be installed: {done.stderr.strip().splitlines()[-1][:300]}"
                )
            try:
                Path(partial, version).rename(folder)
            except OSError:  # another process was first
                assert folder.exists()
    return folder


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("what", ["interpret", "compile"])
@pytest.mark.parametrize("version", VERSIONS)
def test_version(version: str, what: str) -> None:
    tests = Path(__file__).parent
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    env["PYTHONPATH"] = os.pathsep.join([str(installed(version)), str(tests.parent), str(tests)])
    if what == "interpret":
        env["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, __file__, what, version], env=env, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def interpret() -> None:
    import torch

    import vae_fast

    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 3, 20)
    rng_state = torch.tensor([1, 2])
    counts, mask = torch.poisson(torch.full((3, 20), 2.0)), torch.rand(3, 20) > 0.3
    mean, theta, dropout = mu.exp(), logvar.exp(), torch.randn(3, 20)
    bits, classes = (torch.rand(3, 20) > 0.5).float(), torch.tensor([3, -100, 19])
    pixels, packed = torch.rand(2, 1, 3, 4), torch.randn(2, 6, 3, 4)
    prior = (torch.randn(20), torch.randn(20))
    cases = {
        "latent": (
            lambda m, v: vae_fast.reparameterize_kl(m, v, num_samples=3, rng_state=rng_state),
            (mu, logvar),
        ),
        "latent, prior": (
            lambda m, v, pm, pv: vae_fast.reparameterize_kl(m, v, prior=(pm, pv), rng_state=rng_state),
            (mu, logvar, *prior),
        ),
        "bernoulli": (lambda el: (vae_fast.bernoulli_nll(el, bits, mask=mask),), (mu,)),
        "gaussian": (lambda m, v: (vae_fast.gaussian_nll(m, bits, v, mask=mask),), (mu, logvar[0])),
        "counts": (
            lambda m, t, p: (
                vae_fast.zero_inflated_negative_binomial_nll(m, counts, theta=t, dropout_logits=p, mask=mask),
            ),
            (mean, theta, dropout),
        ),
        "categorical": (lambda el: (vae_fast.categorical_nll(el, classes),), (mu,)),
        "multinomial": (lambda el: (vae_fast.multinomial_nll(el, counts),), (mu,)),
        "mixture": (lambda p: (vae_fast.discretized_logistic_mixture_nll(p, pixels),), (packed,)),
    }
    for name, (function, inputs) in cases.items():
        results = []
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            with vae_fast.backend(backend):
                given = [x.to(dtype).requires_grad_() for x in inputs]
                outputs = function(*given)
                weights = [
                    torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).reshape(o.shape) for o in outputs
                ]
                results.append([*outputs, *torch.autograd.grad(outputs, given, weights)])
        for i, (got, right) in enumerate(zip(*results, strict=True)):
            error = (got.double() - right).abs().max() / right.abs().max()
            assert error < 1e-5, f"{name}, result {i}: relative error {error}"


def compile_ahead() -> None:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from vae_fast.backends import triton as kernels
    from vae_fast.backends.triton import launch

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    started = []
    triton.runtime.driver._active = Driver()
    launch.start = lambda job, arguments: started.append(launch.launcher(job, arguments))
    x, mean, logvar, *grads = (torch.empty(4096, 256, device="meta") for _ in range(5))
    each = torch.empty(4096, device="meta")
    kernels.likelihood_backward("gaussian", (mean, logvar), x, None, None, each, grads=grads)
    (compiled,) = started
    assert not isinstance(compiled, launch.Dispatch), (
        "a call of the compiled kernel was seen with this version"
    )
    # As the interpreter's test cannot see: the products of a sum are fused, whatever a version does by default.
    assert "fma" in compiled.asm["ptx"] and compiled.metadata.enable_fp_fusion


if __name__ == "__main__":
    import triton

    assert triton.__version__ == sys.argv[2], f"{triton.__version__} of {triton.__file__}"
    warnings.filterwarnings("error", message=".*FP.FUSION.*")
    {"interpret": interpret, "compile": compile_ahead}[sys.argv[1]]()
