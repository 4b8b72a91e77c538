"""encode and decode as torch.export's and ONNX's programs: the numbers of the model, for every batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fast.nn as vnn
from vae_fast.nn import export as module

pytestmark = pytest.mark.no_poison


def make(likelihood: Any, conditions: int | None = None, **options: Any) -> vnn.VAE:
    torch.manual_seed(0)
    networks = vnn.build_networks((4, 3), likelihood, hidden=(5,), latent=2, conditions=conditions, **options)
    return vnn.VAE(*networks, likelihood, clamp=(-0.5, 0.5))


CASES: dict[str, tuple[Any, int | None, dict[str, Any]]] = {
    "bernoulli, conditions": ("bernoulli", 3, {}),
    "counts": ("poisson", None, {}),
    "conv": ("gaussian", None, {"architecture": "conv"}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_torch_export_loads_and_computes_the_same(name: str, tmp_path: Path) -> None:
    likelihood, conditions, options = CASES[name]
    model = make(likelihood, conditions, **options)
    paths = vnn.export_model(model, tmp_path, formats=("pt2",))
    assert [p.name for p in paths] == ["encode.pt2", "decode.pt2"] and model.training
    model.eval()
    x, z = torch.rand(7, 4, 3), torch.randn(7, 2)
    label: tuple[Tensor, ...] = () if conditions is None else (torch.arange(7) % 3,)
    given = {"condition": label[0]} if label else {}
    mu, logvar = torch.export.load(paths[0]).module()(x, *label)
    torch.testing.assert_close((mu, logvar), model.encode(x, **given), rtol=1e-6, atol=1e-6)
    mean = torch.export.load(paths[1]).module()(z, *label)
    torch.testing.assert_close(mean, model.decode(z, **given), rtol=1e-6, atol=1e-6)


def test_other_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._run_pt2
    monkeypatch.setattr(module, "_run_pt2", lambda path, batches: [t[0] + 1 for t in run(path, batches)])
    with pytest.raises(ValueError, match=r"encode\.pt2: computes other numbers"):
        vnn.export_model(make("bernoulli"), tmp_path, formats=("pt2",))
    with pytest.raises(ValueError, match="some of pt2, onnx, but got tflite"):
        vnn.export_model(make("bernoulli"), tmp_path, formats=("tflite",))


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="takes onnx and onnxscript")
def test_onnx_computes_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make("bernoulli", 3)
    paths = vnn.export_model(model, tmp_path, formats=("onnx",))
    model.eval()
    inputs = (torch.rand(7, 4, 3), torch.randn(7, 2))
    condition = torch.arange(7) % 3
    for path, x, function in zip(paths, inputs, (model.encode, model.decode), strict=True):
        session = onnxruntime.InferenceSession(str(path))
        names = [i.name for i in session.get_inputs()]
        got = session.run(None, {names[0]: x.numpy(), names[1]: condition.numpy()})
        want = function(x, condition=condition)
        want = [want] if isinstance(want, Tensor) else list(want)
        torch.testing.assert_close([torch.from_numpy(t) for t in got], want, rtol=1e-5, atol=1e-5)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    pytest.importorskip("safetensors")
    from vae_fast.cli import run

    model = make("bernoulli")
    model.save_pretrained(tmp_path)
    assert run(["export", str(tmp_path), "--out", str(tmp_path / "out"), "--format", "pt2"]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "out" / f"{n}.pt2") for n in ("encode", "decode")
    ]
    z = torch.randn(2, 2)
    mean = torch.export.load(tmp_path / "out" / "decode.pt2").module()(z)
    torch.testing.assert_close(mean, model.eval().decode(z), rtol=1e-6, atol=1e-6)
    assert run(["export", str(tmp_path / "none")]) == 1
    assert "none: no such folder" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(["export", str(tmp_path), "--format", "onnx"]) == 1
    assert "pip install 'vae_fast[onnx]'" in capsys.readouterr().err
