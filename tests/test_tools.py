"""PyTorch's tools around a model: compiled autograd, jit.trace, the flop counter, AOTInductor, resizing, keys."""

from __future__ import annotations

import importlib.util
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import linear_heads
import vae_fast
from conftest import HANG, needs_native
from linear_heads import normal, uniform
from vae_fast.nn import VAE
from vae_fast.ops import op

pytestmark = pytest.mark.no_poison
VAES: dict[str, dict[str, Any]] = {
    "two parameters": {"likelihood": "gaussian", "variance": "feature"},
    "fused": {"fused_head": True, "num_samples": 2},
}


def make_vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 64))
    return VAE(nn.Linear(64, 4), decoder, latent_shape=(2,), **options)


def compute_grads(model: nn.Module, x: Tensor, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    model(x)[0].backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", VAES)
def test_compiled_autograd_is_one_graph_for_every_batch(name: str) -> None:
    """Dynamo traces the backward pass of an eager forward pass."""
    torch._dynamo.reset()
    model, counter = make_vae(**VAES[name]), CompileCounterWithBackend("eager")
    compiler = torch.compile(backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for n in (8, 9, 30):
        x = uniform(n, 64, seed=n)
        want = compute_grads(model, x)
        with torch._dynamo.compiled_autograd._enable(compiler):
            torch.testing.assert_close(compute_grads(model, x), want)
        counts.append(counter.frame_count)
    assert counts[-1] == counts[0] > 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", VAES)
def test_a_traced_vae_is_saved_and_takes_other_batches(name: str) -> None:
    model, file = make_vae(**VAES[name]).eval(), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, uniform(8, 64), check_trace=False), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for n in (1, 70_000):
        x = uniform(n, 64)
        for got, want in zip(compute_grads(traced, x), compute_grads(model, x), strict=True):
            torch.testing.assert_close(got, want)
        torch.manual_seed(1)
        got = traced(x)
        torch.manual_seed(1)
        torch.testing.assert_close(tuple(got), tuple(model(x)))


def test_every_op_has_a_flop_formula() -> None:
    assert {getattr(torch.ops.vae_fast, name) for name in op.FLOPS} <= set(flop_registry)
    assert set(op.FLOPS) == {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("vae_fast::")
    }


REGISTERED = """
import sys, torch, vae_fast
assert "torch.utils.flop_counter" not in sys.modules
import torch.utils.flop_counter as counter, torch.utils.module_tracker
assert torch.ops.vae_fast.latent in counter.flop_registry
import importlib
assert importlib.reload(counter) is counter
"""


def test_flop_formulas_wait_for_the_counter() -> None:
    """It imports Triton: import vae_fast would take twice as long."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REGISTERED], capture_output=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("title", linear_heads.CASES)
def test_flops_of_a_fused_head_are_those_of_its_layer(title: str) -> None:
    """Three products in a training step, two where hidden has no gradient, one without gradients."""
    case = linear_heads.CASES[title]
    fused = getattr(vae_fast, f"linear_{case[0]}_nll")
    hidden, weight, bias = (t.detach() for t in linear_heads.layer(case))
    product = 2 * hidden.numel() * weight.shape[0]
    for learning, products in (
        ((hidden, weight, bias), 3),
        ((weight,), 2),
        ((hidden,), 2),
        ((bias,), 1),
        ((), 1),
    ):
        for tensor in (hidden, weight, bias):
            tensor.requires_grad_(any(tensor is t for t in learning))
        with FlopCounterMode(display=False) as counter:
            nll = fused(hidden, weight, bias, case[2], **case[3])
            if learning:
                nll.sum().backward()
        assert counter.get_total_flops() == products * product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_flops_of_a_vae(dtype: torch.dtype) -> None:
    """Fused or not; float16 takes its gradients in backward, and makes the outputs once more there."""
    counts = []
    for fused_head in (False, True):
        model = make_vae(fused_head=fused_head).to(dtype)
        with FlopCounterMode(display=False) as counter:
            model(uniform(8, 64).to(dtype)).loss.backward()
        counts.append(counter.get_total_flops())
    assert counts[1] - counts[0] == (0 if dtype is torch.float32 else 2 * 8 * 3 * 64)


@pytest.mark.slow
def test_aot_inductor_takes_every_batch(tmp_path: Path) -> None:
    model = make_vae(fused_head=True).eval()
    dims = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (uniform(8, 64),), dynamic_shapes=dims)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "vae.pt2"))
    packaged = torch._inductor.aoti_load_package(path)
    for n in (1, 5, 70_000):
        x = uniform(n, 64)
        torch.manual_seed(1)
        got = packaged(x)
        torch.manual_seed(1)
        assert isinstance(got, vae_fast.nn.VAEOutput)
        torch.testing.assert_close(got, model(x))


@needs_native
def test_a_large_output_is_as_a_tensor_over_memory_of_others() -> None:
    """The documented limit: torch lets nobody resize memory that it does not own. All else is as ever."""
    with vae_fast.backend("cpu"):
        z = vae_fast.reparameterize(torch.zeros(512, 1024), torch.zeros(512, 1024))
    assert torch.equal(pickle.loads(pickle.dumps(z)), z)
    assert z.clone().resize_(2048, 1024).shape == (2048, 1024)
    for resize in (lambda: z.untyped_storage().resize_(0), lambda: z.detach().resize_(2048, 1024)):
        with pytest.raises(RuntimeError, match="not resizable"):
            resize()
    row = z[0].clone()
    assert torch.equal(z.resize_(2, 1024)[0], row)
    assert z.share_memory_().is_shared() and torch.equal(z[0], row)
    assert z.set_(torch.ones(3)).untyped_storage().resizable()


@pytest.mark.parametrize("seed", [7, 2**64 - 5])
def test_a_key_of_torch_is_a_state(backend: str, seed: int) -> None:
    key = torch.tensor([seed, 0], dtype=torch.uint64)
    if importlib.util.find_spec("torch.func._random") is not None:
        import torch.func._random as random

        assert torch.equal(random.key(seed), key)
    state = torch.tensor([seed - 2**64 if seed >= 2**63 else seed, 0])
    mu, keys, states = normal(3, 4), key.expand(3, 2), state.expand(3, 2)
    assert torch.equal(vae_fast.noise((3, 4), keys), vae_fast.noise((3, 4), states))
    assert torch.equal(vae_fast.reference.noise((3, 4), key), vae_fast.reference.noise((3, 4), state))
    assert torch.equal(vae_fast.binarize(mu.sigmoid(), key), vae_fast.binarize(mu.sigmoid(), state))
    leaf = mu.clone().requires_grad_()
    z = vae_fast.reparameterize(leaf, leaf, rng_state=key)
    assert torch.equal(z, vae_fast.reparameterize(mu, mu, rng_state=state))
    (grad,) = torch.autograd.grad(z.sum(), leaf)
    torch.testing.assert_close(grad, 1 + (z - mu).detach() / 2)
    nlls = (vae_fast.bernoulli_nll(mu, mu.sigmoid(), binarize=True, rng_state=s) for s in (key, state))
    assert torch.equal(*nlls)
