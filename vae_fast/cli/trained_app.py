"""The commands for a trained model and their options. What they do is imported when they run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..nn.anomaly import SCORES
from .options import CPU, MOST, Folder, Part, PartOption, Seed, numbers

Score = StrEnum("Score", {name: name for name in SCORES})  # type: ignore[misc]
_ELBO = Score("elbo")


class Method(StrEnum):
    pca = "pca"
    tsne = "tsne"
    umap = "umap"


def _pair(text: str) -> tuple[int, ...]:
    return numbers(text, int, "two samples' numbers like 0,1", count=2)


def _dims(text: str) -> list[int]:
    return list(numbers(text, int, "dimensions like 0,3,5"))


Data = Annotated[str | None, typer.Option(help="As in train. [default: what it was trained on]")]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A label for each sample of the part, or of all data: .npy, IDX, or a text with one on a line; "
        "of an .h5ad also a column of obs, of a table a column. "
        "[default: those that come with digits, MNIST's files, .npz; --batch-key's]",
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(help="A .png, or .npy for the values. [default: a .png in the folder]"),
]
Steps = Annotated[int, typer.Option(min=2, max=1000, help="Columns of the picture.")]
Condition = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="A value of the --batch-key that all are decoded with. [default: the first]"
    ),
]


def evaluate(
    folder: Folder = None,
    data: Data = None,
    part: PartOption = Part.test,
    draws: Annotated[int, typer.Option(min=1, max=MOST, help="Of z, for each sample.")] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Seed = 0,
    cpu: CPU = False,
) -> None:
    """Measure a trained model on data, in nats.

    ELBO, the bound of -log p(x) by importance sampling, rate, distortion, active units, KL of each dimension.
    """
    from .trained import run_evaluate

    run_evaluate(folder, data, part.value, draws, json, seed, cpu)


def score(
    folder: Folder = None,
    data: Data = None,
    part: PartOption = Part.test,
    score: Annotated[
        Score,
        typer.Option(help="-ELBO, the negative reconstruction probability, or IWAE's bound of -log p(x)."),
    ] = _ELBO,
    draws: Annotated[int, typer.Option(min=1, max=MOST, help="Of z, for each sample.")] = 10,
    anomalies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Samples of this label are anomalies: AUROC and a threshold are printed, roc.png is drawn beside "
            "the scores. Again for more labels.",
        ),
    ] = None,
    labels: Labels = None,
    out: Annotated[Path | None, typer.Option(help="A .csv. [default: scores.csv in the folder]")] = None,
    seed: Seed = 0,
    cpu: CPU = False,
) -> None:
    """Score how odd each sample is to a trained model.

    In nats: the higher, the odder.
    """
    from .trained import run_score

    run_score(folder, data, part.value, score.value, draws, anomalies or [], labels, out, seed, cpu)


def encode(
    folder: Folder = None,
    data: Data = None,
    part: PartOption = Part.test,
    draws: Annotated[int, typer.Option(min=0, max=MOST, help="Of z, for each sample, beside the means.")] = 0,
    labels: Labels = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=".npz (mu, logvar, draws z, labels), .csv (the same without logvar), .npy: mu, or with --draws z; "
            "or .h5ad: the data with mu of all cells in obsm as X_vae. [default: latents.npz in the folder]"
        ),
    ] = None,
    seed: Seed = 0,
    cpu: CPU = False,
) -> None:
    """Write the latents of data.

    They are the means of q(z given x) and, where asked, draws of it.
    """
    from .trained import run_encode

    run_encode(folder, data, part.value, draws, labels, out, seed, cpu)


def interpolate(
    folder: Folder = None,
    data: Data = None,
    between: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_pair,
            metavar="I,J",
            help="Numbers of two test samples, from 0. Again for more rows. [default: 8 pairs]",
        ),
    ] = None,
    steps: Steps = 10,
    spherical: Annotated[
        bool, typer.Option("--spherical", help="Along a great circle instead of a straight line.")
    ] = False,
    out: Picture = None,
    cpu: CPU = False,
) -> None:
    """Decode the way between two samples' latents.

    A row for each pair.
    """
    from .trained import run_interpolate

    run_interpolate(folder, data, between or [], steps, spherical, out, cpu)


def traverse(
    folder: Folder = None,
    data: Data = None,
    sample: Annotated[
        int | None,
        typer.Option(min=0, max=MOST, help="Start at this test sample's latent. [default: at zero]"),
    ] = None,
    dims: Annotated[
        Any,
        typer.Option(parser=_dims, metavar="D,...", help="Which latent dimensions. [default: those in use]"),
    ] = None,
    span: Annotated[float, typer.Option(help="From -SPAN to SPAN; the prior's deviation is 1.")] = 3.0,
    steps: Steps = 9,
    condition: Condition = None,
    out: Picture = None,
    cpu: CPU = False,
) -> None:
    """Decode a latent with single dimensions changed.

    A row for each dimension. In use are those whose mean varies over the test samples.
    """
    from .trained import run_traverse

    run_traverse(folder, data, sample, dims, span, steps, condition, out, cpu)


def steer(
    label: Annotated[
        str,
        typer.Option(metavar="LABEL", help="Towards the training samples of this label, from the others."),
    ],
    folder: Folder = None,
    data: Data = None,
    labels: Labels = None,
    n: Annotated[
        int, typer.Option("-n", min=1, max=MOST, help="How many test samples without the label.")
    ] = 8,
    strength: Annotated[
        float, typer.Option(help="Of the last column, in differences of the two groups' mean latents.")
    ] = 2.0,
    steps: Steps = 7,
    out: Picture = None,
    cpu: CPU = False,
) -> None:
    """Decode samples steered towards a label.

    A row for each sample.
    """
    from .trained import run_steer

    run_steer(folder, data, labels, label, n, strength, steps, out, cpu)


def manifold(
    folder: Folder = None,
    n: Annotated[int, typer.Option("-n", min=2, max=1000, help="Rows and columns.")] = 20,
    condition: Condition = None,
    out: Picture = None,
    cpu: CPU = False,
) -> None:
    """Decode a grid of two-dimensional latents.

    They are at the quantiles of the prior.
    """
    from .trained import run_manifold

    run_manifold(folder, n, condition, out, cpu)


def embed(
    folder: Folder = None,
    data: Data = None,
    part: PartOption = Part.test,
    method: Annotated[Method, typer.Option(help="umap takes: pip install umap-learn.")] = Method.pca,
    labels: Labels = None,
    out: Picture = None,
    seed: Seed = 0,
    cpu: CPU = False,
) -> None:
    """Draw a map of the latents of data, coloured by label."""
    from .trained import run_embed

    run_embed(folder, data, part.value, method.value, labels, out, seed, cpu)


def explore(
    folder: Folder = None,
    data: Data = None,
    labels: Labels = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="[default: 5006, or the next that is free]")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address alone.")] = False,
    cpu: CPU = False,
) -> None:
    """Open a local page to steer a trained model by.

    Sliders for the latents, the map of the test samples, ways between two, towards a label. Only this machine sees it.
    """
    from .explore import run_explore

    run_explore(folder, data, labels, port, not no_browser, cpu)


COMMANDS = (evaluate, score, encode, interpolate, traverse, steer, manifold, embed, explore)
