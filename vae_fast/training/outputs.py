"""What the commands write of a model's samples, by what it was trained on: lines of text here."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from . import checkpoint
from .model import HubVAE


def suffixes(model: HubVAE) -> tuple[str, ...]:
    """What names of a file of samples may end in, the default first."""
    if model.columns:
        return (".csv",)
    return (".txt" if model.vocabulary else ".png", ".npy")


def save_lines(path: Path, model: HubVAE, tokens: Tensor) -> None:
    """Lines of text (n, length); of a grid (rows, columns, length) an empty line after each row."""
    assert model.vocabulary is not None
    rows = tokens.unsqueeze(0) if tokens.ndim == 2 else tokens
    blocks = ["".join(f"{line}\n" for line in model.vocabulary.decode(row)) for row in rows]
    checkpoint.replace_bytes(path, "\n".join(blocks).encode())


def save_pairs(path: Path, model: HubVAE, originals: Tensor, reconstructed: Tensor) -> None:
    """Each line, a tab, and its reconstruction."""
    assert model.vocabulary is not None
    pairs = zip(model.vocabulary.decode(originals), model.vocabulary.decode(reconstructed), strict=True)
    checkpoint.replace_bytes(path, "".join(f"{a}\t{b}\n" for a, b in pairs).encode())
