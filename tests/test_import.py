"""`import vae_fast` needs torch alone, is quick and silent, and touches no GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conftest import HANG

CODE = """
import builtins, sys, time
start = time.process_time()
import torch
torch_alone = time.process_time() - start
before = set(sys.modules)

def no_import(name, *args, real=builtins.__import__, **kwargs):
    if name.split(".")[0] in {allowed!r}:
        raise ImportError(f"No module named {{name!r}}")
    return real(name, *args, **kwargs)

builtins.__import__ = no_import
start = time.process_time()
import vae_fast
share = (time.process_time() - start) / torch_alone
new = {{m.split(".")[0] for m in set(sys.modules) - before if not m.startswith(("vae_fast", "torch"))}}
heavy = [m for m in ("torch._dynamo", "torch._inductor", "torch.distributed.tensor") if m in set(sys.modules) - before]
assert not torch.cuda.is_initialized()
z, kl = vae_fast.reparameterize_kl(torch.zeros(2, 3), torch.zeros(2, 3))
assert set(vae_fast.__all__) <= set(dir(vae_fast))
assert "vae_fast.nn" not in sys.modules
model = vae_fast.nn.VAE(torch.nn.Linear(4, 4), torch.nn.Linear(2, 4))
assert model(torch.rand(3, 4)).loss.isfinite()
assert vae_fast.nn is sys.modules["vae_fast.nn"]
assert not hasattr(vae_fast, "training")  # its extra is not there
try:
    vae_fast.training
except AttributeError as error:
    assert "vae_fast.training cannot be imported: No module named" in str(error)
assert not hasattr(vae_fast, "nonsense")
print(share, sorted(m for m in new if m not in sys.stdlib_module_names), heavy, file=sys.stderr)
"""
OPTIONAL = [
    "triton",
    "numpy",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "typer",
    "rich",
    "matplotlib",
    "sklearn",
]


def test_import() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE.format(allowed=OPTIONAL)],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    share, modules = run.stderr.strip().split(" ", 1)
    assert modules == "[] []"  # nothing but torch and the standard library, and no compiler machinery
    assert float(share) < 0.25  # of the time that torch takes: about 0.05


def test_training_is_an_attribute_too() -> None:
    pytest.importorskip("accelerate")
    code = "import vae_fast; print(vae_fast.training.Trainer.__module__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert run.stdout.strip() == "vae_fast.training.loop", run.stderr
