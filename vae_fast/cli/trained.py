"""What the commands for a trained model do: evaluate, score, encode, interpolate, traverse, steer, manifold, embed."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn import attribute_direction
from ..training import checkpoint, inference, labels, outputs, pictures, text
from ..training.data import Dataset
from ..training.errors import CheckpointError, DataError, TrainingError
from ..training.model import HubVAE
from . import runs
from .inference import (
    TEXT,
    check_picture,
    chosen,
    is_picture,
    labels_of,
    load_data,
    load_model,
    save_array,
    save_sounds,
)

PAIRS = 8  # rows of `interpolate`
OBSM = "X_vae"  # the name of the latents in an .h5ad, as scanpy has X_pca and scvi-tools X_scVI
USUAL = 0.95  # the quantile of the scores that is the threshold where no anomalies are known


class Run:
    """A run's folder and what is in it: the model, and the data where a command asks for them."""

    def __init__(self, folder: Path | None, source: str | None, cpu: bool) -> None:
        self.folder = folder or runs.newest(checkpoint.MODEL)
        self.model: HubVAE = load_model(self.folder, cpu)
        self._source = source
        self._data: tuple[Dataset, str] | None = None
        self._mu: dict[str, Tensor] = {}
        self._labels: dict[tuple[str, Path | None], np.ndarray | None] = {}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dataset(self) -> Dataset:
        if self._data is None:
            self._data = load_data(self.folder, self.model, self._source)
        return self._data[0]

    @property
    def source(self) -> Path:
        """What the data were read from."""
        assert self.dataset and self._data is not None
        return Path(self._data[1])

    def missing_data(self) -> str | None:
        """Why the run's data are not there; None where they are. Raises CheckpointError, DataError for those of a
        source that was named."""
        try:
            self.dataset  # noqa: B018, reads them
        except (CheckpointError, DataError) as error:
            if self._source is not None:
                raise
            return str(error)
        return None

    def labels(self, part: str, file: Path | None) -> np.ndarray | None:
        dataset = self.dataset
        assert self._data is not None
        if (part, file) not in self._labels:
            self._labels[part, file] = labels.find(dataset, self._data[1], part, file)
        return self._labels[part, file]

    def known_labels(self, part: str, file: Path | None) -> np.ndarray:
        found = self.labels(part, file)
        if found is None:
            raise DataError(f"{self.dataset.name}: {labels.NO_LABELS.format(part=part)}")
        return found

    def mu(self, part: str) -> Tensor:
        """Of all samples of the part."""
        if part not in self._mu:
            self._mu[part] = inference.encode(self.model, inference.batches(self.dataset, part)).mu
        return self._mu[part]

    def direction(self, label: str, file: Path | None) -> Tensor:
        """From the training samples without the label to those with it."""
        # A file may hold the labels of the test part alone: then the direction is that part's.
        part = "test" if labels.are_of_test_alone(self.dataset, file) else "train"
        has_label = self.known_labels(part, file) == label
        if has_label.all() or not has_label.any():
            state = "every" if has_label.all() else "no"
            raise DataError(f"{self.dataset.name}: {state} sample of the {part} part has the label {label}")
        mu = self.mu(part)
        return attribute_direction(mu, torch.from_numpy(has_label).to(mu.device))

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def latents(self, indices: list[int]) -> tuple[Tensor, Tensor | None]:
        """mu and the condition of these test samples."""
        batches = list(inference.batches(self.dataset, indices=chosen(self.dataset, "test", indices)))
        conditions = [batch["condition"] for batch in batches if "condition" in batch]
        return inference.encode(self.model, batches).mu, torch.cat(conditions) if conditions else None

    def save_grid(self, out: Path, z: Tensor, condition: Tensor | None, title: str) -> None:
        """Decodes latents (rows, columns, ...) and writes a picture, or the values (rows, columns, *shape)."""
        rows, columns = z.shape[:2]
        if is_picture(out):
            check_picture(self.model, rows * columns, columns=columns, option="rows times columns")
        samples = inference.decode_grid(self.model, z, condition)
        if out.suffix.lower() == TEXT:
            outputs.save_lines(out, self.model, samples)
        elif self.model.columns:
            outputs.save_table(out, self.model, samples)
        elif is_picture(out):
            flat = samples.flatten(0, 1)
            pictures.save_grid(out, flat, columns, title, are_sounds=self.model.sound is not None)
            if self.model.sound:
                names = [f"{r}-{c}" for r in outputs.numbered(rows) for c in outputs.numbered(columns)]
                save_sounds(out, self.folder, self.model, flat, names)
        else:
            save_array(out, samples)
        print(out)

    def grid_out(self, given: Path | None, name: str) -> Path:
        """The file of decoded samples to write."""
        suffixes = outputs.suffixes(self.model)
        return self.out(given, f"{name}{suffixes[0]}", *suffixes)

    def out(self, given: Path | None, name: str, *suffixes: str) -> Path:
        """The file to write: `given`, which must end in one of the suffixes, or `name` in the folder."""
        out = given or self.folder / name
        if out.suffix.lower() not in suffixes:
            ends = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
            raise TrainingError(f"expected --out to be a name that ends in {ends}, but got {out}")
        return out


def run_evaluate(
    folder: Path | None, source: str | None, part: str, draws: int, as_json: bool, seed: int, cpu: bool
) -> None:
    run = Run(folder, source, cpu)
    samples = inference.batches(run.dataset, part)
    try:
        found = inference.evaluate(run.model, samples, draws, generator=run.generator(seed))
    except ValueError as error:
        raise DataError(f"{run.dataset.name}: {error}") from None
    kl = None if found.kl_per_dimension is None else found.kl_per_dimension.flatten().tolist()
    x = run.dataset.part(part)
    bits = text.bits(found.nll, x) if run.model.vocabulary and isinstance(x, Tensor) else None
    if as_json:
        values = {**found._asdict(), "kl_per_dimension": kl, "draws": draws}
        print(json.dumps(values if bits is None else {**values, "bits_per_character": bits}, indent=2))
        return
    noun, of_bits = pictures.noun(run.model), "" if bits is None else f", {bits:.3f} bits a character"
    rows = [
        ("data", f"{run.dataset.name}, {found.samples:,} {part} {noun}s, {draws:,} draws of z for each"),
        ("ELBO", f"{found.elbo:.2f} nats/{noun}"),
        ("-log p(x)", f"{found.nll:.2f}, by importance sampling: an upper bound{of_bits}"),
        ("distortion", f"{found.distortion:.2f}, -log p(x | z)"),
        ("rate", f"{found.rate:.2f}, KL of q(z | x) from p(z)"),
        (
            "active units",
            f"{found.active_units} of {math.prod(run.model.latent_shape or ())} latent dimensions",
        ),
    ]
    for start in range(0, len(kl or ()), 5):
        shown = "  ".join(f"{d:>3}: {v:6.3f}" for d, v in enumerate((kl or [])[start : start + 5], start))
        rows.append(("" if start else "KL of each", shown))
    for name, value in rows:
        print(f"{name:<13} {value}")


def run_score(
    folder: Path | None,
    source: str | None,
    part: str,
    score: str,
    draws: int,
    anomalies: list[str],
    file: Path | None,
    out: Path | None,
    seed: int,
    cpu: bool,
) -> None:
    run = Run(folder, source, cpu)
    out, curve = run.out(out, checkpoint.SCORES, ".csv"), None
    known = run.known_labels(part, file) if anomalies else run.labels(part, file)
    if known is not None and (missing := [label for label in anomalies if label not in known]):
        raise DataError(f"{run.dataset.name}: no sample has the label {missing[0]}")
    samples = inference.batches(run.dataset, part)
    scores = inference.anomaly_scores(run.model, samples, score, draws, generator=run.generator(seed)).cpu()
    columns: dict[str, Any] = {"sample": range(len(scores)), "score": scores.tolist()}
    if known is not None:
        columns["label"] = known
    _save_table(out, columns)
    if known is not None and anomalies:
        is_anomaly = torch.from_numpy(np.isin(known, anomalies))
        found = inference.detection(scores, is_anomaly)
        curve = out.with_name("roc.png" if out.name == checkpoint.SCORES else f"{out.stem}_roc.png")
        pictures.save_roc(curve, scores, is_anomaly, found)
        print(f"AUROC        {found.auroc:.4f}")
        print(
            f"threshold    {found.threshold:.4f}: at or above it are {found.found:.1%} of the anomalies "
            f"and {found.false_alarms:.1%} of the others"
        )
    else:
        print(f"threshold    {scores.quantile(USUAL):.4f}: {1 - USUAL:.0%} of these samples are above it")
    print(f"written      {out}{f', {curve}' if curve else ''}")


def run_encode(
    folder: Path | None,
    source: str | None,
    part: str,
    draws: int,
    file: Path | None,
    out: Path | None,
    seed: int,
    cpu: bool,
) -> None:
    run = Run(folder, source, cpu)
    out = run.out(out, checkpoint.LATENTS, ".npz", ".csv", ".npy", ".h5ad")
    if out.suffix.lower() == ".h5ad":
        _encode_into(run, out, draws)
        return
    known = run.labels(part, file)
    samples = inference.batches(run.dataset, part)
    found = inference.encode(run.model, samples, draws, generator=run.generator(seed))
    suffix = out.suffix.lower()
    if suffix == ".npy":
        save_array(out, found.mu if found.z is None else found.z)
    elif suffix == ".npz":
        arrays: dict[str, Any] = {
            name: t.float().cpu().numpy() for name, t in found._asdict().items() if t is not None
        }
        content = io.BytesIO()
        np.savez(content, **(arrays if known is None else {**arrays, "labels": known}))
        checkpoint.replace_bytes(out, content.getvalue())
    else:
        columns: dict[str, Any] = {"sample": range(len(found.mu))}
        if known is not None:
            columns["label"] = known
        columns |= {f"mu_{d}": values.tolist() for d, values in enumerate(found.mu.flatten(1).T)}
        if found.z is not None:
            for k, z in enumerate(found.z.flatten(2).unbind(1)):
                columns |= {f"z{k}_{d}": values.tolist() for d, values in enumerate(z.T)}
        _save_table(out, columns)
    print(out)


def _encode_into(run: Run, out: Path, draws: int) -> None:
    """mu of all cells, in the order of the file, in a copy of it."""
    source = run.source
    if source.suffix.lower() != ".h5ad":
        raise DataError(f"{out}: a copy of an .h5ad has the latents in its obsm, but the data are {source}")
    if draws:
        raise TrainingError(f"{out}: holds the means of q(z | x): leave --draws out, or write .npz")
    if out.exists() and out.samefile(source):
        raise TrainingError(f"{out}: holds the data: give the copy with the latents another name")
    mu = inference.encode(run.model, inference.batches(run.dataset, "all")).mu
    outputs.copy_with_obsm(source, out, OBSM, mu.flatten(1).float().cpu().numpy())
    print(f'{out}: obsm["{OBSM}"], {len(mu):,} x {mu[0].numel()}')


def run_interpolate(
    folder: Path | None,
    source: str | None,
    between: list[tuple[int, int]],
    steps: int,
    spherical: bool,
    out: Path | None,
    cpu: bool,
) -> None:
    run = Run(folder, source, cpu)
    out = run.grid_out(out, "interpolation")
    shown = range(len(run.dataset.test))[run.dataset.shown(2 * PAIRS)]
    pairs = between or list(zip(shown[::2], shown[1::2], strict=False))
    start, condition = run.latents([i for i, _ in pairs])
    end, _ = run.latents([j for _, j in pairs])
    z = inference.interpolation(start, end, steps, spherical=spherical)
    way = "a great circle" if spherical else "a straight line"
    run.save_grid(out, z, condition, f"from one sample's latent to another's, along {way}")


def run_traverse(
    folder: Path | None,
    source: str | None,
    sample: int | None,
    dims: list[int] | None,
    span: float,
    steps: int,
    condition: str | None,
    out: Path | None,
    cpu: bool,
) -> None:
    run = Run(folder, source, cpu)
    out = run.grid_out(out, "traversal")
    if sample is None:
        z = torch.zeros(1, *(run.model.latent_shape or ()), device=run.device)
        of_sample = None
    else:
        z, of_sample = run.latents([sample])
    if dims is None:
        dims = _used_dims(run)
    grid = inference.traversal(z, dims, (-span, span), steps)
    chosen = of_sample if condition is None and of_sample is not None else _first(run.model, condition, 1)
    labels_of_rows = None if chosen is None else chosen.expand(len(grid))
    title = f"from {-span:g} to {span:g}: latent dimensions {', '.join(map(str, dims))}"
    run.save_grid(out, grid, labels_of_rows, title)


def run_steer(
    folder: Path | None,
    source: str | None,
    file: Path | None,
    label: str,
    n: int,
    strength: float,
    steps: int,
    out: Path | None,
    cpu: bool,
) -> None:
    run = Run(folder, source, cpu)
    out = run.grid_out(out, "steered")
    direction = run.direction(label, file)
    others = np.flatnonzero(run.known_labels("test", file) != label)[:n].tolist()
    if not others:
        raise DataError(f"{run.dataset.name}: every test sample has the label {label}")
    start, condition = run.latents(others)
    z = inference.steered(start, direction, strength, steps)
    run.save_grid(out, z, condition, f"towards {label}, strength 0 to {strength:g}")


def run_manifold(folder: Path | None, n: int, condition: str | None, out: Path | None, cpu: bool) -> None:
    run = Run(folder, None, cpu)
    out = run.grid_out(out, "manifold")
    z = inference.manifold(run.model, n)
    title = f"{n} x {n} latents at the prior's quantiles: the first grows to the right, the second upwards"
    run.save_grid(out, z, _first(run.model, condition, n), title)


def run_embed(
    folder: Path | None,
    source: str | None,
    part: str,
    method: str,
    file: Path | None,
    out: Path | None,
    seed: int,
    cpu: bool,
) -> None:
    run = Run(folder, source, cpu)
    out = run.out(out, "embedding.png", ".png", ".npy")
    known = run.labels(part, file)
    mu = inference.encode(run.model, inference.batches(run.dataset, part)).mu
    points = inference.embedding(mu, method, seed % 2**32)
    if is_picture(out):
        names = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
        way = f", {names[method]}" if method != "pca" or mu[0].numel() > 2 else ""
        title = f"latents of {len(mu):,} {part} samples of {run.dataset.name}{way}"
        pictures.save_scatter(out, points, title, None if known is None else known.tolist())
    else:
        save_array(out, points)
    print(out)
    if known is None:
        print(f"vae-fast: warning: {run.dataset.name}: {labels.NO_LABELS.format(part=part)}", file=sys.stderr)


def _used_dims(run: Run) -> list[int]:
    if run.missing_data():
        return list(range(math.prod(run.model.latent_shape or ())))
    return inference.used_dims(run.model, inference.batches(run.dataset))


def _first(model: HubVAE, condition: str | None, n: int) -> Tensor | None:
    """n labels of the condition, or of the first where none is named."""
    name = condition if condition is not None or not model.conditions else model.conditions[0]
    return labels_of(model, name, n)


def _save_table(path: Path, columns: dict[str, Any]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    checkpoint.replace_bytes(path, file.getvalue().encode())
