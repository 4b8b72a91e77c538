"""Pictures of a run: samples, reconstructions beside their originals, the loss curve. Drawn without a display."""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from .. import nn
from . import checkpoint
from .errors import CheckpointError
from .inference import Detection
from .model import HubVAE

COLUMNS, _FEWEST = 12, 6  # of reconstructions; fewer are too narrow for their title
_INCH = 100  # dots
_SMALLEST = 56  # dots across an image: smaller ones are enlarged
_COLOURS = 20  # of a scatter's labels
_CUT = 0.01  # the share of an image's values beyond 0 to 1 that are cut: few would make all the others grey
_LETTERS = 14  # of a title, to an inch
_CURVE = (60, 120)  # dots of a signal's tile: height, width


def image_shape(shape: Sequence[int]) -> tuple[int, ...] | None:
    """How samples of this shape are drawn: (height, width) or (3, height, width); None if they are no images."""
    if is_signal(shape):
        return None
    if len(shape) == 3 and shape[0] in (1, 3):
        return tuple(shape) if shape[0] == 3 else tuple(shape[1:])
    return tuple(shape) if len(shape) == 2 else None


def is_signal(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are drawn as curves: (n,), (1, n), (n, 1)."""
    return len(shape) in (1, 2) and 1 < math.prod(shape) == max(shape)


def is_of_sounds(model: nn.VAE) -> bool:
    return isinstance(model, HubVAE) and model.sound is not None


def can_draw(model: nn.VAE, shape: Sequence[int] | None = None) -> bool:
    """`shape`: a sample's; None: the model's own."""
    shape = model.data_shape if shape is None else shape
    if shape is None or isinstance(model.likelihood, nn.MixedColumns):  # a row of a table
        return False
    is_drawn = image_shape(shape) is not None or is_signal(shape)
    return model.likelihood.support in ("unit", "real") and is_drawn


def noun(model: nn.VAE, shape: Sequence[int] | None = None) -> str:
    """What a sample is called."""
    if isinstance(model, HubVAE) and (model.vocabulary or model.sound):
        return "line" if model.vocabulary else "sound"
    shape = model.data_shape if shape is None else shape
    return "image" if shape is not None and can_draw(model, shape) and not is_signal(shape) else "sample"


def save_grid(
    path: Path | str,
    samples: Tensor,
    columns: int,
    title: str,
    gap_every: int | None = None,
    *,
    are_sounds: bool = False,
) -> None:
    """What `draw_grid` draws."""
    _save(draw_grid(samples, columns, title, gap_every, are_sounds=are_sounds), path)


def draw_grid(
    samples: Tensor,
    columns: int,
    title: str,
    gap_every: int | None = None,
    *,
    across: int = _SMALLEST,
    ends: tuple[float, float] | None = None,
    are_sounds: bool = False,
) -> Figure:
    """Samples (n, *shape) in rows of `columns`, as images or curves; a wider gap after every `gap_every` rows.

    Black is 0 and white 1, unless values are far from there: then they are the smallest and the largest value, which
    the title tells, as it does the range of the curves. A sample of NaN is an empty tile. Sounds are spectrograms, with
    the low frequencies at the bottom and time to the right.

    Args:
        across: images of fewer dots are enlarged, and curves as much as those of 56 dots.
        ends: the values that are black and white. [default: `limits` of the samples]
    """
    if are_sounds:
        samples = samples.flip(-2)
    shape = image_shape(samples.shape[1:])
    if shape is None and not is_signal(samples.shape[1:]):
        raise CheckpointError(f"samples of shape {tuple(samples.shape[1:])} are no images")
    samples = samples.detach().float().cpu()
    lo, hi = ends or limits(samples, are_sounds)
    samples = (samples - lo) / (hi - lo)
    if shape is None:
        curves = samples.flatten(1)
        height, width = (side * across // _SMALLEST for side in _CURVE)
    else:
        images = _enlarged(samples.reshape(-1, *shape).nan_to_num(1).clamp(0, 1), across)
        height, width = images.shape[-2:]
    if are_sounds:
        title += ", low frequencies at the bottom"
    elif (lo, hi) != (0, 1):
        title += f", {'black' if shape else 'bottom'} is {lo:.3g}, {'white' if shape else 'top'} {hi:.3g}"
    rows = -(-len(samples) // columns)
    gap = max(2, height // 14)
    tops = [r * (height + gap) + (0 if gap_every is None else r // gap_every * 2 * gap) for r in range(rows)]
    corners = [(tops[i // columns], i % columns * (width + gap)) for i in range(len(samples))]
    size = (tops[-1] + height, columns * (width + gap) - gap)
    border = 0.15  # inches
    w = size[1] / _INCH + 2 * border
    lines = textwrap.wrap(title, max(30, int(_LETTERS * size[1] / _INCH)))
    header = 0.23 + 0.17 * len(lines)
    h = size[0] / _INCH + border + header
    figure = Figure(figsize=(w, h), dpi=_INCH)
    box = (border / w, border / h, 1 - 2 * border / w, 1 - (border + header) / h)
    axes: Any = figure.add_axes(box)
    if shape is None:
        _draw_curves(axes, curves, corners, size, (height, width))
    else:
        _draw_images(axes, images, corners, size, "magma" if are_sounds else "gray")
    axes.set_axis_off()
    axes.set_title("\n".join(lines), fontsize=10, loc="left")
    return figure


def limits(samples: Tensor, are_sounds: bool = False) -> tuple[float, float]:
    """The values that are drawn as black and white, or at the bottom and the top."""
    is_image = image_shape(samples.shape[1:]) is not None and not are_sounds
    known = samples[samples.isfinite()]
    lo, hi = (known.min().item(), known.max().item()) if len(known) else (0.0, 1.0)
    for low, high in ((0.0, 1.0), (-1.0, 1.0)) if is_image and len(known) else ():
        is_far = (known < low - 0.5) | (known > high + 0.5)  # a mean may overshoot
        if is_far.float().mean() < _CUT:
            return low, high
    return (lo, hi) if lo < hi else (lo - 0.5, lo + 0.5)


def _draw_images(
    axes: Any, images: Tensor, corners: list[tuple[int, int]], size: tuple[int, int], colours: str
) -> None:
    between = 1.0 if colours == "gray" else math.nan  # NaN is not drawn
    canvas = torch.full((*images.shape[1:-2], *size), between)
    height, width = images.shape[-2:]
    for image, (top, left) in zip(images, corners, strict=True):
        canvas[..., top : top + height, left : left + width] = image
    pixels = canvas.movedim(0, -1) if canvas.ndim == 3 else canvas
    axes.imshow(pixels.numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest", aspect="auto")


def _draw_curves(
    axes: Any, curves: Tensor, corners: list[tuple[int, int]], size: tuple[int, int], tile: tuple[int, int]
) -> None:
    height, width = tile
    if curves.shape[1] > 8 * width:  # more than can be seen: the lowest and the highest value of each stretch
        ends = [sign * F.adaptive_max_pool1d(sign * curves, width) for sign in (-1, 1)]
        curves = torch.stack(ends, 2).flatten(1)
    across = torch.linspace(0, width, curves.shape[1])
    lines = [
        torch.stack([left + across, top + height * (1 - curve)], 1).numpy()
        for curve, (top, left) in zip(curves, corners, strict=True)
    ]
    axes.add_collection(LineCollection(lines, colors="black", linewidths=0.7))
    axes.set_xlim(0, size[1])
    axes.set_ylim(size[0], 0)


def save_samples(
    path: Path,
    model: nn.VAE,
    n: int = 64,
    *,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    sample: bool = False,
) -> Tensor:
    """The means of p(x | z) at n draws of z from the prior; with `sample`, a draw of p(x | z) at each. Returns them."""
    samples = model.generate(
        n, condition=condition, generator=generator, temperature=temperature, sample=sample
    )
    title = f"{n} sample{'s' * (n != 1)}{'' if temperature == 1 else f', temperature {temperature:g}'}"
    save_grid(path, samples, round(n**0.5), title, are_sounds=is_of_sounds(model))
    return samples


def save_reconstructions(
    path: Path, model: nn.VAE, x: Tensor, condition: Tensor | None = None, **options: Any
) -> Tensor:
    """Rows of originals, below each its reconstruction, with the options of `nn.VAE.reconstruct`. The columns are
    filled up with nothing. Returns the reconstructions."""
    originals = x / 255 if x.dtype == torch.uint8 else x.float()
    reconstructed = model.reconstruct(x, condition=condition, **options)
    columns = max(_FEWEST, min(COLUMNS, len(x)))
    pairs = zip(originals.split(columns), reconstructed.float().split(columns), strict=True)
    rows = [
        F.pad(part, (0, 0) * (x.ndim - 1) + (0, columns - len(part)), value=math.nan)
        for p in pairs
        for part in p
    ]
    title = "originals, and below each its reconstruction"
    save_grid(path, torch.cat(rows), columns, title, gap_every=2, are_sounds=is_of_sounds(model))
    return reconstructed


def save_curve(path: Path, history: list[dict[str, float]], noun: str = "sample") -> None:
    """Training loss and -ELBO of the test or the validation part over the epochs, in nats for each `noun`."""
    figure = Figure(figsize=(7, 4), dpi=_INCH, layout="constrained")
    axes: Any = figure.subplots()
    epochs = [row["epoch"] for row in history]
    part, name = ("valid", "validation") if "valid_elbo" in history[0] else ("test", "test")
    curves = {
        "training loss": [row["train_loss"] for row in history],
        f"{name} −ELBO": [-row[f"{part}_elbo"] for row in history],
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
    axes.set_ylabel(f"nats per {noun}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def save_scatter(path: Path, points: Tensor, title: str, labels: Sequence[str] | None = None) -> None:
    """Points (n, 2), coloured by their labels, which a legend names: the 20 most frequent ones; others are grey."""
    figure = Figure(figsize=(8, 7), dpi=_INCH, layout="constrained")
    axes: Any = figure.subplots()
    size = max(1.0, min(20.0, 40_000 / max(1, len(points))))
    for name, members, colour in coloured([""] * len(points) if labels is None else labels):
        x, y = points[members].float().cpu().numpy().T
        axes.scatter(x, y, s=size, color=colour, linewidths=0, alpha=0.7, label=name)
    if labels is not None:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        for handle in legend.legend_handles:
            handle.set_sizes([40])
            handle.set_alpha(1)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_aspect("equal", "datalim")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def save_roc(path: Path, scores: Tensor, is_anomaly: Tensor, detection: Detection) -> None:
    """scikit-learn's ROC curve and the threshold that `detection` names; chance is the diagonal."""
    from sklearn.metrics import roc_curve

    false_alarms, found, _ = roc_curve(is_anomaly.cpu(), scores.cpu())
    figure = Figure(figsize=(5, 5), dpi=_INCH, layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="0.6")
    axes.plot(false_alarms, found, label=f"AUROC {detection.auroc:.3f}")
    name = f"threshold {detection.threshold:.4g}"
    axes.plot(detection.false_alarms, detection.found, "o", color="black", label=name)
    axes.set_xlabel("share of the others at or above the threshold")
    axes.set_ylabel("share of the anomalies at or above it")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def coloured(labels: Sequence[str]) -> list[tuple[str, list[int], str]]:
    """Each label with its samples' places and its colour; the 20 most frequent ones, and first the others, in grey."""
    groups: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        groups.setdefault(str(label), []).append(place)
    shown = [name for name, _ in Counter({name: len(m) for name, m in groups.items()}).most_common(_COLOURS)]
    rest = sorted(place for name in groups.keys() - set(shown) for place in groups[name])
    palette = colormaps["tab10" if len(shown) <= 10 else "tab20"]
    found = [(f"{len(groups) - len(shown)} more", rest, "#cccccc")] if rest else []
    for place, name in enumerate(sorted(shown, key=natural)):
        found.append((name, groups[name], to_hex(palette(place))))
    return found


def natural(text: str) -> tuple[bool, float, str]:
    """Numbers before names, and by their size."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _enlarged(images: Tensor, across: int) -> Tensor:
    """By a whole factor, with soft edges: 8x8 pixels are hard to read as squares."""
    factor = -(-across // max(images.shape[-2:]))
    if factor == 1:
        return images
    stack = images if images.ndim == 4 else images.unsqueeze(1)
    large = F.interpolate(stack, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)
    return large if images.ndim == 4 else large.squeeze(1)


def png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _save(figure: Figure, path: Path | str) -> None:
    checkpoint.replace_file(Path(path), lambda new: figure.savefig(new, format="png"))
