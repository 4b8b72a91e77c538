"""What one does with a trained model and a data set: its latents, evaluation, anomaly scores and decoded grids.

Each function takes any `vae_fast.nn.VAE` in eval mode. `samples` are batches of a model's arguments, `x` and, where
there is one, `condition`, as `batches` makes them of a data set. None of them keeps gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional, nn
from .data import Dataset, select
from .errors import TrainingError

BATCH = 1024  # samples that are encoded at once
EMBEDDINGS = ("pca", "tsne", "umap")

Batch = dict[str, Any]


def batches(
    dataset: Dataset, part: str = "test", indices: Tensor | None = None, batch_size: int = BATCH
) -> Iterator[Batch]:
    """The samples of a part, "train", "test", "valid" or "all", in order; with `indices` those alone."""
    x, labels = dataset.part(part), dataset.labels_of_condition(part)
    order = torch.arange(len(x)) if indices is None else indices
    for rows in order.split(batch_size):
        batch: Batch = {"x": select(x, rows)}
        if labels is not None:
            batch["condition"] = labels.index_select(0, rows.to(labels.device))
        yield batch


class Latents(NamedTuple):
    """Attributes:
    mu, logvar: of q(z | x), (samples, ...).
    z: draws of it, (samples, draws, ...), or None.
    """

    mu: Tensor
    logvar: Tensor
    z: Tensor | None = None


@torch.no_grad()
def encode(
    model: nn.VAE, samples: Iterable[Batch], draws: int = 0, *, generator: torch.Generator | None = None
) -> Latents:
    """q(z | x) of all samples, with `draws` draws of each."""
    parts: list[tuple[Tensor, ...]] = []
    for batch in samples:
        moments = model.encode(**batch)
        drawn: tuple[Tensor, ...] = ()
        if draws:
            z = functional.reparameterize(*moments, num_samples=draws, generator=generator)
            drawn = (z.movedim(0, 1),)
        parts.append((*moments, *drawn))
    return Latents(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def reconstruct(model: nn.VAE, samples: Iterable[Batch], **options: Any) -> Tensor:
    """`nn.VAE.reconstruct` of all samples, with its options."""
    return torch.cat([model.reconstruct(**batch, **options) for batch in samples])


def fill(
    model: nn.VAE,
    samples: Iterable[Batch],
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`nn.impute` of all samples: their missing entries (NaN) filled in by means, or with `sample` by a draw."""
    parts = [nn.impute(model, **b, draws=1 if sample else None, generator=generator) for b in samples]
    return torch.cat([part[0] if sample else part for part in parts])


def evaluate(
    model: nn.VAE, samples: Iterable[Batch], draws: int = 100, *, generator: torch.Generator | None = None
) -> nn.Evaluation:
    """`nn.evaluate` of the samples."""
    pairs = ((batch["x"], batch.get("condition")) for batch in samples)
    return nn.evaluate(model, pairs, draws, generator=generator)


def anomaly_scores(
    model: nn.VAE,
    samples: Iterable[Batch],
    score: str = "elbo",
    draws: int = 10,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`nn.anomaly_score` of each sample, (samples,): the higher, the odder."""
    return torch.cat(
        [nn.anomaly_score(model, **b, score=score, num_samples=draws, generator=generator) for b in samples]
    )


class Detection(NamedTuple):
    """Attributes:
    auroc: the share of pairs, an anomaly and a sample that is none, whose scores are in the right order.
    threshold: of the scores, where the share of anomalies at or above it less that of the others is largest (Youden's).
    found: that share of the anomalies.
    false_alarms: that share of the others.
    """

    auroc: float
    threshold: float
    found: float
    false_alarms: float


def detection(scores: Tensor, is_anomaly: Tensor) -> Detection:
    """How well scores tell anomalies from the others, by scikit-learn. Raises TrainingError."""
    from sklearn.metrics import roc_auc_score, roc_curve

    count = int(is_anomaly.sum())
    if not 0 < count < len(scores):
        raise TrainingError(
            f"expected anomalies and others among the samples, but {count} of {len(scores)} are anomalies"
        )
    truth, values = is_anomaly.cpu().numpy(), scores.cpu().numpy()
    false_alarms, found, thresholds = roc_curve(truth, values)
    best = 1 + int((found - false_alarms)[1:].argmax())  # the first threshold is infinite
    return Detection(
        float(roc_auc_score(truth, values)),
        float(thresholds[best]),
        float(found[best]),
        float(false_alarms[best]),
    )


@torch.no_grad()
def decode_grid(model: nn.VAE, z: Tensor, condition: Tensor | None = None) -> Tensor:
    """The means of p(x | z) for a grid of latents (rows, columns, ...). `condition` has a label for each row."""
    rows = None if condition is None else condition.repeat_interleave(z.shape[1])
    flat = z.flatten(0, 1)
    parts = [
        model.decode(part, condition=None if rows is None else rows[start : start + BATCH])
        for start, part in zip(range(0, len(flat), BATCH), flat.split(BATCH), strict=True)
    ]
    return torch.cat(parts).unflatten(0, z.shape[:2])


def interpolation(start: Tensor, end: Tensor, steps: int = 10, *, spherical: bool = False) -> Tensor:
    """Latents between each of `start` and the same of `end`, both (rows, ...): (rows, steps, ...). Raises
    TrainingError."""
    try:
        return nn.interpolate(start, end, steps, spherical=spherical).movedim(0, 1)
    except ValueError as error:
        raise TrainingError(str(error)) from None


def traversal(
    z: Tensor, dims: Sequence[int] | None = None, span: tuple[float, float] = (-3.0, 3.0), steps: int = 9
) -> Tensor:
    """A row for each of `dims` (None: all) of one latent (1, ...): (dims, steps, ...). Raises TrainingError."""
    _check_finite("span", *span)
    try:
        return nn.traverse(z, dims, span=span, steps=steps)
    except ValueError as error:
        raise TrainingError(str(error)) from None


def used_dims(model: nn.VAE, samples: Iterable[Batch]) -> list[int]:
    """The latent dimensions whose mu varies over the samples (`nn.active_units`); all where none does."""
    return dims_in_use(encode(model, samples).mu)


def dims_in_use(mu: Tensor) -> list[int]:
    """`used_dims` of samples that are encoded, mu (samples, ...)."""
    active = nn.active_units(mu).flatten().nonzero()[:, 0].tolist() if len(mu) > 1 else []
    return active or list(range(mu[0].numel()))


def steered(mu: Tensor, direction: Tensor, strength: float = 2.0, steps: int = 7) -> Tensor:
    """mu (rows, ...) and what lies along the direction from it, up to `strength` times: (rows, steps, ...). Raises
    TrainingError."""
    _check_finite("strength", strength)
    strengths = torch.linspace(0, strength, steps, dtype=mu.dtype, device=mu.device)
    return mu.unsqueeze(1) + strengths.view(1, -1, *[1] * direction.ndim) * direction


def manifold(model: nn.VAE, n: int = 20) -> Tensor:
    """Latents (n, n, 2) at the quantiles (i + 1/2) / n of a standard normal: z_0 grows to the right, z_1 upwards.

    Raises:
        TrainingError: the model's latents have not two dimensions.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, appendix A.
    """
    shape = model.latent_shape or ()
    if math.prod(shape) != 2:
        raise TrainingError(
            f"expected a model of two latent dimensions (--latent 2), but got {math.prod(shape)}"
        )
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    parameter = next(model.parameters())
    return torch.stack([right, up], 2).to(parameter.device, parameter.dtype).view(n, n, *shape)


def embedding(mu: Tensor, method: str = "pca", seed: int = 0) -> Tensor:
    """mu (samples, ...) in two dimensions, (samples, 2), by one of EMBEDDINGS: PCA and t-SNE are scikit-learn's.
    Latents of two dimensions stay as they are under PCA. Raises TrainingError."""
    points = mu.flatten(1).float().cpu()
    n, width = points.shape
    if method == "pca" and width <= 2:
        return torch.nn.functional.pad(points, (0, 2 - width))
    if n < 4:
        raise TrainingError(f"expected at least 4 samples for a map, but got {n}")
    if method == "pca":
        from sklearn.decomposition import PCA

        found = PCA(2, random_state=seed).fit_transform(points.numpy())
    elif method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (n - 1) / 3)
        found = TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(points.numpy())
    elif method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise TrainingError("umap is not installed: pip install umap-learn") from None
        found = UMAP(2, n_neighbors=min(15, n - 1), random_state=seed).fit_transform(points.numpy())
    else:
        raise TrainingError(f"expected method to be one of {', '.join(EMBEDDINGS)}, but got {method!r}")
    return torch.from_numpy(found).float()


def _check_finite(name: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise TrainingError(f"expected {name} to be finite, but got {', '.join(map(str, values))}")
