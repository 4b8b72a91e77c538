"""`vae-fast generate` and `vae-fast reconstruct`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn import Bernoulli
from ..training import checkpoint, data, filled_tables, inference, outputs, pictures, tables
from ..training.config import Recipe
from ..training.errors import CheckpointError, DataError, TrainingError
from ..training.model import HubVAE
from ..training.parts import listed
from . import runs

SHOWN = 48  # reconstructions
SUFFIXES, TEXT = (".png", ".npy"), ".txt"  # of what is written
MOST_PIXELS, MOST_SIDE = 80_000_000, 60_000  # of a picture: Pillow and matplotlib take little more


def run_generate(
    folder: Path | None,
    n: int,
    out: Path | None,
    seed: int,
    cpu: bool,
    condition: str | None = None,
    temperature: float = 1.0,
    sample: bool = False,
) -> None:
    folder = folder or runs.newest(checkpoint.MODEL)
    _check_out(out)
    model = load_model(folder, cpu)
    out = _chosen_out(model, out, folder / "generated")
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same samples on every device
    options: dict[str, Any] = {"condition": labels_of(model, condition, n), "generator": generator}
    options |= {"temperature": temperature}
    if model.vocabulary:
        tokens = model.generate_tokens(n, **options)
        if out.suffix.lower() == TEXT:
            outputs.save_lines(out, model, tokens)
        else:
            save_array(out, tokens)
        print(out)
        return
    options |= {"sample": sample or bool(model.columns)}
    if is_picture(out):
        check_picture(model, n)
        samples = pictures.save_samples(out, model, n, **options)
        if model.sound:
            save_sounds(out, folder, model, samples, outputs.numbered(n))
    elif model.columns:
        outputs.save_table(out, model, model.generate(n, **options))
    else:
        save_array(out, model.generate(n, **options))
    print(out)


def labels_of(model: HubVAE, condition: str | None, n: int) -> Tensor | None:
    """The labels of n samples: all of `condition`, or each in turn. None where the model takes none."""
    if condition is None:
        return model.each_condition(n)
    if condition not in model.conditions:
        names = ", ".join(model.conditions) or "nothing: the model was trained without --batch-key"
        raise TrainingError(f"expected --condition to be one of {names}, but got {condition}")
    return torch.full((n,), model.conditions.index(condition), device=next(model.parameters()).device)


def run_reconstruct(
    folder: Path | None,
    source: str | None,
    part: str,
    n: int | None,
    only: list[int] | None,
    out: Path | None,
    seed: int,
    cpu: bool,
    *,
    sample: bool,
    sample_z: bool,
    fill: bool,
) -> None:
    if n is not None and only is not None:
        raise TrainingError("-n takes the first samples, --only those of these numbers: give one of them")
    folder = folder or runs.newest(checkpoint.MODEL)
    _check_out(out)
    model = load_model(folder, cpu)
    if fill and not model.columns:
        raise TrainingError("--fill is of tables")
    out = _chosen_out(model, out, folder / "reconstructed")
    if fill and sample_z:
        raise TrainingError("--fill takes no --sample-z: it draws as many z as it needs")
    dataset, source = load_data(folder, model, source)
    total = dataset.count(part)
    if n is not None and total < n:
        raise DataError(
            f"{dataset.name}: expected -n to be at most {total}, the samples of the {part} part, but got {n}"
        )
    indices = None
    if only is not None:
        indices = chosen(dataset, part, only)
    elif is_picture(out):
        indices = torch.arange(total)[dataset.shown(n or SHOWN, part)]
    elif n is not None:
        indices = torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"sample": sample, "sample_z": sample_z, "generator": generator}
    if is_picture(out) and indices is not None:
        option = "-n" if only is None else "--only"
        check_picture(model, len(indices), tiles=2, columns=pictures.COLUMNS, option=option)
        [batch] = inference.batches(dataset, part, indices, batch_size=len(indices))
        reconstructed = pictures.save_reconstructions(out, model, **batch, **options)
        if model.sound:
            numbers = outputs.numbered(len(indices))
            names = [f"{i}-{what}" for what in ("original", "reconstruction") for i in numbers]
            save_sounds(out, folder, model, torch.cat([batch["x"], reconstructed]), names)
    else:
        samples = inference.batches(dataset, part, indices)
        if fill:
            x = inference.fill(model, samples, sample=sample, generator=generator)
            rows = dataset.numbers(part)
            rows = rows if indices is None else rows[indices.numpy()]
            filled_tables.save(out, Path(source), rows, x.float().cpu().numpy(), model.columns)
            print(out)
            return
        x = inference.reconstruct(model, samples, **options)
        if model.columns:
            outputs.save_table(out, model, x)
        elif out.suffix.lower() == TEXT:
            originals = torch.cat([batch["x"] for batch in inference.batches(dataset, part, indices)])
            outputs.save_pairs(out, model, originals, x)
        else:
            save_array(out, x)
    print(out)


def chosen(dataset: data.Dataset, part: str, indices: list[int]) -> Tensor:
    """The numbers of these samples of the part. DataError where it has no such sample."""
    n = dataset.count(part)
    if wrong := [i for i in indices if not 0 <= i < n]:
        raise DataError(
            f"{dataset.name}: expected numbers of {part} samples, 0 to {n - 1}, but got {wrong[0]}"
        )
    return torch.tensor(indices)


def load_data(folder: Path, model: HubVAE, source: str | None) -> tuple[data.Dataset, str]:
    """The data of `source`, or of the run, on the model's device and with its labels of the condition; and their
    source."""
    is_asked = source is None or model.conditions
    # The state is read for other data, too, where there is one: they are drawn as the run's.
    is_known = (_run_of(folder) / checkpoint.STATE).exists() and isinstance(model.likelihood, Bernoulli)
    recipe = _recipe(folder) if is_asked or is_known else {}
    source = data.resolve(str(recipe.get("data", data.DIGITS)) if source is None else source)
    batch_key = recipe.get("batch_key") if model.conditions else None
    dataset = data.load(
        source,
        batch_key,
        recipe.get("stream") or None,
        split_seed=int(recipe.get("split_seed", data.SPLIT_SEED)),
        known=model.columns,
        vocabulary=model.vocabulary,
        like=model.sound,
    )
    kinds = {"a table": dataset.columns, "text": dataset.vocabulary, "of sounds": dataset.sound}
    kind = next((kind for kind, found in kinds.items() if found), None)
    if kind and not (model.columns or model.vocabulary or model.sound):
        raise DataError(f"{source}: is {kind}, the model was trained on samples of shape {model.shape}")
    if dataset.shape != model.shape:
        dataset = dataset.reshaped(model.shape)
    if (static_seed := Recipe.from_dict(recipe).static_seed) is not None:
        dataset = dataset.binarized(static_seed)
    if unknown := [name for name in dataset.conditions if name not in model.conditions]:
        raise DataError(f"{dataset.name}: the model was trained without {listed(unknown)} of {batch_key}")
    if dataset.conditions:
        order = torch.tensor([model.conditions.index(name) for name in dataset.conditions])
        labels = [
            None if part is None else order[part] for part in (dataset.train_labels, dataset.test_labels)
        ]
        dataset = replace(dataset, train_labels=labels[0], test_labels=labels[1], conditions=model.conditions)
    return dataset.to(next(model.parameters()).device), source


def load_model(folder: Path, cpu: bool) -> HubVAE:
    return checkpoint.load_model(folder, "cuda" if torch.cuda.is_available() and not cpu else "cpu")


def _run_of(folder: Path) -> Path:
    """The folder itself, or the run's of one of its epochs."""
    is_epoch = not (folder / checkpoint.STATE).exists() and folder.resolve().name.startswith(checkpoint.EPOCH)
    return folder.resolve().parent if is_epoch else folder


def _recipe(folder: Path) -> dict[str, Any]:
    run = _run_of(folder)
    if not (run / checkpoint.STATE).exists():
        raise CheckpointError(f"{run}: holds no {checkpoint.STATE}, which names the data: give --data")
    recipe: dict[str, Any] = checkpoint.read_progress(run).get("recipe", {})
    return recipe


def _check_out(out: Path | None) -> None:
    """Before the model is loaded."""
    if out is not None and out.suffix.lower() not in (*SUFFIXES, *tables.WRITTEN, TEXT):
        of_tables = ", ".join(tables.WRITTEN)
        raise TrainingError(
            f"expected --out to be a name that ends in {' or '.join(SUFFIXES)} ({of_tables} for a table, {TEXT} for "
            f"text; a .png of sounds has a folder of them beside it), but got {out}"
        )


def _chosen_out(model: HubVAE, out: Path | None, default: Path) -> Path:
    suffixes = outputs.suffixes(model)
    if out is not None and out.suffix.lower() not in suffixes:
        raise TrainingError(
            f"expected --out to be a name that ends in {' or '.join(suffixes)} for this model, but got {out}"
        )
    return out or default.with_suffix(suffixes[0])


def save_sounds(picture: Path, folder: Path, model: HubVAE, samples: Tensor, names: list[str]) -> None:
    """In a folder of the picture's name beside it: in the run's own those of an earlier call go."""
    sounds = picture.with_suffix("")
    if picture.parent == folder:
        checkpoint.remove_sounds(sounds)
    outputs.save_sounds(sounds, model, samples, names)
    print(f"{sounds}/: {len(names)} sounds")


def is_picture(out: Path) -> bool:
    return out.suffix.lower() == ".png"


def check_picture(
    model: HubVAE, n: int, tiles: int = 1, columns: int | None = None, option: str = "-n"
) -> None:
    """TrainingError if n samples of so many tiles are none, or too large a one. Without `columns`: a square."""
    if not pictures.can_draw(model):
        what = "counts" if model.likelihood.support == "counts" else f"samples of shape {model.shape}"
        raise TrainingError(f"{what} are no images: give --out a name that ends in .npy")
    side = max((56, *(pictures.image_shape(model.shape) or ()))) * 8 // 7  # with a gap
    most = MOST_PIXELS // side**2
    if columns is not None:
        most = min(most, columns * (MOST_SIDE // side))
    if n > most // tiles:
        raise TrainingError(
            f"expected {option} to be at most {most // tiles} for a picture, but got {n}: "
            "give --out a name that ends in .npy for more"
        )


def save_array(path: Path, values: Tensor) -> None:
    array = np.ascontiguousarray(values.float().cpu().numpy())

    def write(new: Path) -> None:
        with new.open("wb") as file:  # in two parts, as np.save does not say why the disk refuses
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.data)

    checkpoint.replace_file(path, write)
