"""What is written of a model where it is no picture: lines of text, sounds, latents beside the data."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from . import checkpoint, sound, tables
from .errors import CheckpointError, DataError
from .model import HubVAE


def suffixes(model: HubVAE) -> tuple[str, ...]:
    """What names of a file of samples may end in, the default first."""
    if model.columns:
        return tables.WRITTEN
    return (".txt" if model.vocabulary else ".png", ".npy")


def save_table(path: Path, model: HubVAE, x: Tensor) -> None:
    """Rows of a table (n, columns), as text or Parquet by the path's suffix; those of a grid (rows, columns, columns of
    the table) by their places in it."""
    places = {}
    if x.ndim == 3:
        rows, columns = x.shape[:2]
        places = {"row": np.repeat(range(rows), columns), "column": np.tile(range(columns), rows)}
    values = x.flatten(0, -2).float().cpu().numpy()
    content = tables.to_csv(values, model.columns, tables.separator(path), places)
    if path.suffix.lower() != ".parquet":
        return checkpoint.replace_bytes(path, content)
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(content), keep_default_na=False)
    return checkpoint.replace_file(path, lambda new: frame.to_parquet(new, engine="pyarrow"))


def save_lines(path: Path, model: HubVAE, tokens: Tensor) -> None:
    """Lines of text (n, length); of a grid (rows, columns, length) an empty line after each row."""
    assert model.vocabulary is not None
    rows = tokens.unsqueeze(0) if tokens.ndim == 2 else tokens
    blocks = ["".join(f"{line}\n" for line in model.vocabulary.decode(row)) for row in rows]
    checkpoint.replace_bytes(path, "\n".join(blocks).encode())


def save_sounds(folder: Path, model: HubVAE, samples: Tensor, names: Sequence[str]) -> None:
    """NAME.wav of each sample, in the folder."""
    assert model.sound is not None
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from None
    for name, clip in zip(names, model.sound.decode(samples), strict=True):
        checkpoint.replace_bytes(folder / f"{name}.wav", sound.to_wav(clip, model.sound.rate))


def numbered(n: int) -> list[str]:
    return [f"{i:0{len(str(n - 1))}}" for i in range(n)]


def save_pairs(path: Path, model: HubVAE, originals: Tensor, reconstructed: Tensor) -> None:
    """Each line, a tab, and its reconstruction."""
    assert model.vocabulary is not None
    pairs = zip(model.vocabulary.decode(originals), model.vocabulary.decode(reconstructed), strict=True)
    checkpoint.replace_bytes(path, "".join(f"{a}\t{b}\n" for a, b in pairs).encode())


def copy_with_obsm(path: Path, out: Path, key: str, values: np.ndarray) -> None:
    """`out`, a copy of the .h5ad with the values (cells, ...) as obsm[key], written as AnnData writes them. Raises
    CheckpointError, DataError."""
    import h5py

    def write(new: Path) -> None:
        shutil.copyfile(path, new)
        with h5py.File(new, "r+") as file:
            if not isinstance(file.get("obsm", file), h5py.Group):
                raise DataError(
                    f"{path}: has its obsm as AnnData before 0.7 wrote it: read and write it anew"
                )
            is_new = "obsm" not in file
            obsm = file.require_group("obsm")
            if is_new:
                obsm.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
            if key in obsm:
                del obsm[key]
            obsm[key] = values
            obsm[key].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    checkpoint.replace_file(out, write)
