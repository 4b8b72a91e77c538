"""Pictures of a run: samples, reconstructions beside their originals, the loss curve. Drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from . import checkpoint
from .errors import CheckpointError
from .model import HubVAE

_INCH = 100  # dots
_SMALLEST = 56  # dots across an image: smaller ones are enlarged


def image_shape(shape: Sequence[int]) -> tuple[int, ...] | None:
    """How samples of this shape are drawn: (height, width) or (3, height, width); None if they are no images."""
    if len(shape) == 1:  # flat, as MNIST often is
        side = round(shape[0] ** 0.5)
        return (side, side) if side * side == shape[0] and side > 3 else None
    if len(shape) == 3 and shape[0] in (1, 3):
        return tuple(shape) if shape[0] == 3 else tuple(shape[1:])
    return tuple(shape) if len(shape) == 2 else None


def can_draw(model: HubVAE) -> bool:
    return model.likelihood.support in ("unit", "real") and image_shape(model.shape) is not None


def save_grid(path: Path, images: Tensor, columns: int, title: str, gap_every: int | None = None) -> None:
    """Images (n, *shape) with values 0 to 1 in rows of `columns`; a wider gap after every `gap_every` rows."""
    shape = image_shape(images.shape[1:])
    if shape is None:
        raise CheckpointError(f"samples of shape {tuple(images.shape[1:])} are no images")
    images = _enlarged(images.detach().float().cpu().reshape(-1, *shape).clamp(0, 1))
    height, width = images.shape[-2:]
    rows = -(-len(images) // columns)
    gap = max(2, height // 14)
    tops = [r * (height + gap) + (0 if gap_every is None else r // gap_every * 2 * gap) for r in range(rows)]
    canvas = torch.ones((*images.shape[1:-2], tops[-1] + height, columns * (width + gap) - gap))
    for i, image in enumerate(images):
        top, left = tops[i // columns], i % columns * (width + gap)
        canvas[..., top : top + height, left : left + width] = image
    pixels = canvas.movedim(0, -1) if canvas.ndim == 3 else canvas
    border, header = 0.15, 0.4  # inches
    w, h = pixels.shape[1] / _INCH + 2 * border, pixels.shape[0] / _INCH + border + header
    figure = Figure(figsize=(w, h), dpi=_INCH)
    box = (border / w, border / h, 1 - 2 * border / w, 1 - (border + header) / h)
    axes: Any = figure.add_axes(box)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, loc="left")
    _save(figure, path)


def save_samples(path: Path, model: HubVAE, n: int = 64, *, generator: torch.Generator | None = None) -> None:
    """The means of p(x | z) at n draws of z from the prior."""
    save_grid(path, model.generate(n, generator=generator), round(n**0.5), f"{n} samples")


def save_reconstructions(path: Path, model: HubVAE, x: Tensor, columns: int = 12) -> None:
    """Rows of originals, below each its reconstruction. The columns are filled up with nothing."""
    originals = x / 255 if x.dtype == torch.uint8 else x.float()
    pairs = zip(originals.split(columns), model.reconstruct(x).split(columns), strict=True)
    rows = [
        F.pad(part, (0, 0) * (x.ndim - 1) + (0, columns - len(part)), value=1.0) for p in pairs for part in p
    ]
    title = "originals, and below each its reconstruction"
    save_grid(path, torch.cat([r.float() for r in rows]), columns, title, gap_every=2)


def save_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Training loss and test -ELBO over the epochs."""
    figure = Figure(figsize=(7, 4), dpi=_INCH, layout="constrained")
    axes: Any = figure.subplots()
    epochs = [row["epoch"] for row in history]
    curves = {
        "training loss": [row["train_loss"] for row in history],
        "test −ELBO": [-row["test_elbo"] for row in history],
    }
    for (label, values), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(
            epochs, values, style, marker="o" if len(epochs) < 3 else None, label=f"{label}: {values[-1]:.2f}"
        )
    if len(epochs) > 20:  # the first steps would hide all that follows
        settled = [v for values in curves.values() for v in values[len(values) // 20 :]]
        lo, hi = min(settled), max(settled)
        axes.set_ylim(lo - 0.05 * (hi - lo), hi + 0.05 * (hi - lo))
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per image")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _enlarged(images: Tensor) -> Tensor:
    """By a whole factor, with soft edges: 8x8 pixels are hard to read as squares."""
    factor = -(-_SMALLEST // max(images.shape[-2:]))
    if factor == 1:
        return images
    stack = images if images.ndim == 4 else images.unsqueeze(1)
    large = F.interpolate(stack, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)
    return large if images.ndim == 4 else large.squeeze(1)


def _save(figure: Figure, path: Path) -> None:
    try:
        checkpoint.replace_file(path, lambda new: figure.savefig(new, format="png"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None
