"""Encoder and decoder as programs that run without vae_fast's modules: torch.export and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .condition import AddCondition, takes_condition
from .files import replace_file
from .hierarchy import HierarchicalVAE
from .inputs import float_dtype

if TYPE_CHECKING:
    from .vae import VAE

__all__ = ["export_model"]

PARTS = ("encode", "decode")
FORMATS = {"pt2": ".pt2", "onnx": ".onnx"}
BATCHES = (3, 1, 8)  # the first is traced, all are compared


class _Part(nn.Module):
    """A function of a model as a module."""

    def __init__(self, model: VAE, part: str) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Any:
        return getattr(self.model, self.part)(x, condition=condition)


@torch.no_grad()
def export_model(
    model: VAE,
    folder: Path | str,
    *,
    formats: tuple[str, ...] = ("pt2", "onnx"),
    conditions: int | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> list[Path]:
    """encode (x to mu and logvar) and decode (z to the mean of p(x | z)) of a model in eval mode, for batches of any
    size, as files encode.pt2, decode.pt2, encode.onnx, decode.onnx. Each is run and compared with the model: by torch,
    and by onnxruntime if that is installed.

    Args:
        formats: "pt2" (torch.export; `torch.export.load(path).module()`), "onnx" (takes onnx and onnxscript).
        conditions: how many labels there are, where the networks take one: a second input of labels (batch,). By
            default what the networks of vae_fast.nn say.
        rtol, atol: how near the outputs have to be to the model's.

    Raises:
        ValueError: a format that there is not; a model whose shapes are not known; outputs that differ.
        ImportError: onnx or onnxscript is missing.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"expected formats to be some of {', '.join(FORMATS)}, but got {', '.join(unknown)}")
    if conditions is None and not isinstance(model, HierarchicalVAE):  # whose condition is its own z2
        conditions = next((m.conditions for m in model.modules() if isinstance(m, AddCondition)), None)
    folder, was_training, made = Path(folder), model.training, []
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    try:
        for part in PARTS:
            module = _Part(model, part).eval()
            batches = [_inputs(model, part, n, conditions) for n in BATCHES]
            for name in formats:
                path = folder / f"{part}{FORMATS[name]}"
                (_save_pt2 if name == "pt2" else _save_onnx)(module, batches[0], path)
                outputs = (_run_pt2 if name == "pt2" else _run_onnx)(path, batches)
                for inputs, got in zip(batches, outputs, strict=False):
                    _compare(path, got, module(*inputs), rtol, atol)
                made.append(path)
    finally:
        model.train(was_training)
    return made


def _inputs(model: VAE, part: str, n: int, conditions: int | None) -> tuple[Tensor, ...]:
    """A batch of n for the part: noise, class numbers 0, labels 0."""
    shape = model.data_shape if part == "encode" else model.latent_shape
    network = model.encoder if part == "encode" else model.decoder
    if shape is None:
        raise ValueError(f"expected a model whose {'data' if part == 'encode' else 'latent'} shape is known")
    parameter = next(model.parameters())
    dtype = float_dtype(network) or parameter.dtype
    generator = torch.Generator().manual_seed(n)
    sample = torch.rand((n, *shape), generator=generator, dtype=dtype).to(parameter.device)
    if part == "encode" and model.likelihood.support == "classes":
        sample = sample.long()
    if conditions is None or not takes_condition(network):
        return (sample,)
    return sample, torch.arange(n, device=parameter.device) % conditions


def _save_pt2(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    program = torch.export.export(module, inputs, dynamic_shapes=_dynamic_dims(inputs), strict=False)

    def write(new: Path) -> None:
        with new.open("wb") as file:
            torch.export.save(program, file)

    replace_file(path, write)


def _save_onnx(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    program = torch.onnx.export(
        module, inputs, dynamo=True, dynamic_shapes=_dynamic_dims(inputs), verbose=False
    )
    replace_file(path, lambda new: program.save(new))  # type: ignore[union-attr]


def _dynamic_dims(inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name, _ in zip(("x", "condition"), inputs, strict=False)}


def _run_pt2(path: Path, batches: list[tuple[Tensor, ...]]) -> list[Any]:
    run = torch.export.load(path).module()
    return [run(*inputs) for inputs in batches]


def _run_onnx(path: Path, batches: list[tuple[Tensor, ...]]) -> list[Any]:
    """Nothing where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return []
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    outputs = []
    for inputs in batches:
        feed = {name: t.cpu().numpy() for name, t in zip(names, inputs, strict=True)}
        outputs.append([torch.from_numpy(o) for o in session.run(None, feed)])
    return outputs


def _compare(path: Path, got: Any, want: Any, rtol: float, atol: float) -> None:
    got, want = ([t] if isinstance(t, Tensor) else list(t) for t in (got, want))
    try:
        torch.testing.assert_close([t.cpu() for t in got], [t.cpu() for t in want], rtol=rtol, atol=atol)
    except AssertionError as error:
        difference = " ".join(str(error).split())
        raise ValueError(f"{path}: computes other numbers than the model: {difference}") from None
