"""What the page shows of a run, and each thing that it does, without a page library."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import nn
from ..cli.trained import Run
from ..training import checkpoint, inference, matrices, pictures, tables
from ..training.errors import CheckpointError, TrainingError

STEPS = 8  # samples of a way
MOST = 10_000  # points of the map
SPAN = 3.0  # of a slider: the prior's deviation is 1
TOP = 20  # features of a sample that is no picture
ACROSS, ACROSS_MANY = 336, 72  # dots of a picture of one sample, and of each of several


class Point(NamedTuple):
    """Attributes:
    z: one latent, (1, ...).
    condition: the label's number, or None where the model takes none.
    name: what it is.
    number: of the test sample.
    """

    z: Tensor
    condition: int | None
    name: str
    number: int | None = None


class Map(NamedTuple):
    """Attributes:
    points: (samples, 2), float32.
    numbers: of the test samples.
    labels: of each, or None.
    is_latent: the two coordinates are z itself, instead of a projection.
    """

    points: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray | None
    is_latent: bool


class Scene:
    """A run's model and, where its data are there, the latents of its test part. It belongs to all visitors.

    Attributes:
        missing: why there are no data; None where they are.
        dims: the latent dimensions, those in use first, by their KL.
        in_use: how many of them are.
        kl: of each dimension in nats, in the order of z; None without data.
        spans: how far the slider of each goes, in the order of z.
        map: None without data, or with too few.
        names: of the labels.
    """

    def __init__(self, run: Run, labels_file: Path | None = None) -> None:
        self.run, self.model, self._labels_file = run, run.model, labels_file
        self.shape = self.model.latent_shape or ()
        size = math.prod(self.shape)
        self.dims, self.in_use = list(range(size)), size
        self.kl: list[float] | None = None
        self.spans = [SPAN] * size
        self.map: Map | None = None
        self.names: list[str] = []
        self._labels: np.ndarray | None = None
        self._directions: dict[str, Tensor] = {}  # by label
        self.missing = run.missing_data()
        self._features: list[str] = []  # their names, where the data have any
        if self.missing is None:
            self._look_at_data()
        first = 0 if self.model.conditions else None
        some = self.model.sample_prior(64, condition=first, generator=_generator(0))
        self._ends = pictures.limits(self.decode(some, first))

    def _look_at_data(self) -> None:
        n = len(self.run.dataset.test)
        numbers = torch.arange(n) if n <= MOST else torch.linspace(0, n - 1, MOST).long()
        found = inference.encode(self.model, inference.batches(self.run.dataset, indices=numbers))
        kl = nn.kl_per_dimension(found.mu, found.logvar).flatten().tolist()
        used = inference.dims_in_use(found.mu)
        rest = set(self.dims) - set(used)
        self.kl, self.in_use = kl, len(used)
        self.dims = [d for part in (used, rest) for d in sorted(part, key=lambda d: -kl[d])]
        largest = found.mu.flatten(1).abs().amax(0).tolist()
        self.spans = [max(SPAN, float(math.ceil(most))) for most in largest]
        self._labels = self.run.labels("test", self._labels_file)
        named = matrices.feature_names(self.run.source)
        self._features = named if (len(named),) == self.model.shape else []
        if self._labels is not None:
            self.names = sorted(set(self._labels.tolist()), key=pictures.natural)
        try:
            points = inference.embedding(found.mu).numpy()
        except TrainingError:  # too few samples
            return
        shown = None if self._labels is None else self._labels[numbers.numpy()]
        self.map = Map(points, numbers.numpy(), shown, is_latent=len(self.dims) <= 2)

    @property
    def facts(self) -> dict[str, str]:
        """Of the run, by name."""
        model, size = self.model, len(self.dims)
        found = {"likelihood": str(model.config["likelihood"]), "latent dimensions": str(size)}
        if self.missing is None:
            found["latent dimensions"] += f", {self.in_use} in use"
            data = self.run.dataset
            found["data"] = f"{data.name}, {len(data.test):,} test samples"
        try:
            history = checkpoint.read_progress(self.run.folder).get("history")
        except CheckpointError:  # a model alone
            history = None
        if history:
            last = history[-1]
            part = "test" if "test_elbo" in last else "valid"
            found[f"{part} ELBO"] = (
                f"{last[f'{part}_elbo']:.2f} nats/{pictures.noun(model)}, epoch {last['epoch']:g}"
            )
        return found

    # Points

    def zero(self, condition: int | None) -> Point:
        z = torch.zeros(1, *self.shape, device=self.run.device)
        return Point(z, condition, "z = 0, the prior's mean")

    def draw(self, seed: int, condition: int | None) -> Point:
        """The z of `vae-fast generate -n 1 --seed SEED`."""
        z = self.model.sample_prior(1, condition=condition, generator=_generator(seed))
        return Point(z, condition, f"a draw from the prior, seed {seed}")

    def sample(self, number: int) -> Point:
        """mu of a test sample. Raises DataError."""
        mu, condition = self.run.latents([number])
        name = f"test sample {number}" + ("" if self._labels is None else f", label {self._labels[number]}")
        return Point(mu, None if condition is None else int(condition[0]), name, number)

    def two(self) -> tuple[Point, Point]:
        """Two points to begin with: test samples, of two labels where they have any; else draws from the prior."""
        if self.missing is None and (n := len(self.run.dataset.test)) > 1:
            others = np.arange(n) if self._labels is None else np.flatnonzero(self._labels != self._labels[0])
            return self.sample(0), self.sample(int(others[0]) if len(others) and others[0] else 1)
        condition = 0 if self.model.conditions else None
        return self.draw(0, condition), self.draw(1, condition)

    def at(self, x: float, y: float, condition: int | None) -> Point:
        """The point of the map, of two latents; else mu of the nearest test sample."""
        assert self.map is not None
        if self.map.is_latent:
            z = torch.tensor([x, y][: len(self.dims)], device=self.run.device).view(1, *self.shape)
            return Point(z, condition, "a point of the map")
        nearest = np.square(self.map.points - (x, y)).sum(1).argmin()
        return self.sample(int(self.map.numbers[nearest]))

    def place(self, point: Point) -> tuple[float, float] | None:
        """Where on the map it is; None where it is no point of the map, nor a sample."""
        if self.map is None:
            return None
        if self.map.is_latent:
            x, y, *_ = (*point.z.flatten().tolist(), 0.0)
            return x, y
        found = np.flatnonzero(self.map.numbers == point.number)
        return tuple(self.map.points[found[0]].tolist()) if len(found) else None

    # Ways from point to point: (STEPS, ...)

    def between(self, start: Point, end: Point, spherical: bool) -> Tensor:
        return inference.interpolation(start.z, end.z, STEPS, spherical=spherical)[0]

    def towards(self, start: Point, label: str, strength: float) -> Tensor:
        """Raises DataError: all samples have the label, or none."""
        if label not in self._directions:
            self._directions[label] = self.run.direction(label, self._labels_file)
        return inference.steered(start.z, self._directions[label], strength, STEPS)[0]

    # Samples

    def decode(self, z: Tensor, condition: int | None = None) -> Tensor:
        """The means of p(x | z), (n, ...), of z (n, ...) and one condition."""
        return inference.decode_grid(self.model, z.unsqueeze(0), self._label(condition))[0]

    def _label(self, condition: int | None) -> Tensor | None:
        return None if condition is None else torch.tensor([condition], device=self.run.device)

    def picture(self, samples: Tensor, title: str) -> bytes | None:
        """A PNG of one sample, or of several beside each other; None where they are no images or curves."""
        if not pictures.can_draw(self.model):
            return None
        are_sounds = pictures.is_of_sounds(self.model)
        lo, hi = pictures.limits(samples, are_sounds)
        # They only get wider: a curve must not jump to another scale while a slider moves.
        self._ends = min(lo, self._ends[0]), max(hi, self._ends[1])
        across, columns = ACROSS if len(samples) == 1 else ACROSS_MANY, len(samples)
        if pictures.is_signal(self.model.shape):  # whose tiles are twice as wide
            across, columns = min(across, ACROSS // 2), min(columns, STEPS // 2)
        figure = pictures.draw_grid(
            samples, columns, title, ends=self._ends, across=across, are_sounds=are_sounds
        )
        return pictures.png(figure)

    def table(self, samples: Tensor) -> tuple[list[str], list[list[str]]]:
        """Names, and their values in each sample: a table's columns, a line of text, or the features that are largest
        somewhere."""
        if self.model.vocabulary:
            return ["line"], [[line] for line in self.model.vocabulary.decode(samples)]
        if self.model.columns:
            header, *rows = csv.reader(io.StringIO(self.file(samples).decode()))
            return header, rows
        values = samples.flatten(1).float().cpu()
        top = values.amax(0).sort(descending=True, stable=True).indices[:TOP]
        named = self._features
        return [named[i] if named else f"feature {i}" for i in top.tolist()], [
            [f"{v:.4g}" for v in row] for row in values[:, top].tolist()
        ]

    @property
    def suffix(self) -> str:
        """Of the file of values."""
        return ".csv" if self.model.columns else ".txt" if self.model.vocabulary else ".npy"

    def file(self, samples: Tensor) -> bytes:
        """The values, (n, ...), as a file: NumPy's, for a table CSV, of text its lines."""
        if self.model.vocabulary:
            return "".join(f"{line}\n" for line in self.model.vocabulary.decode(samples)).encode()
        if self.model.columns:
            return tables.to_csv(samples.float().cpu().numpy(), self.model.columns)
        return npy(samples)


def npy(values: Tensor) -> bytes:
    content = io.BytesIO()
    np.save(content, values.float().cpu().numpy())
    return content.getvalue()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
