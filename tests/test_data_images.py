"""Folders of images as they are found in the world: what is read, what is noted, or the one line that refuses them."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("PIL")

from PIL import Image

from vae_fast.training import DataError, labels, load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (4, 3), np.uint8)
COLOUR = RNG.integers(0, 256, (4, 3, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (4, 3)).astype(np.uint16)
HOLE = np.where(np.eye(4, 3) > 0, 0, 255).astype(np.uint8)  # an alpha channel, 0 on the diagonal
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF's orientation: what the stored pixels need
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


def chw(image: np.ndarray) -> np.ndarray:
    return image.transpose(2, 0, 1)


def saved(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    return saved(Image.fromarray(array), kind, **options)


def turned(array: np.ndarray, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return of(array, kind, exif=exif)


def png(colour_type: int, rows: np.ndarray) -> bytes:
    """16 bits a channel, which Pillow does not write."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def frames(array: np.ndarray, kind: str) -> bytes:
    return of(array, kind, save_all=True, append_images=[Image.fromarray(255 - array)])


PALETTE = Image.fromarray(COLOUR).quantize(8)
WHITE_HOLE = np.where(HOLE[..., None] == 0, 255, COLOUR).astype(np.uint8)
KEYED = np.where(GREY[1, 1] == GREY, 255, GREY).astype(np.uint8)
# name: (the file, what is read, what is noted)
IMAGES: dict[str, tuple[bytes, np.ndarray, str]] = {
    "1.png": (of(GREY > 99), GREY > 99, "values are bits"),
    "1.tif": (of(GREY > 99, "TIFF"), GREY > 99, "values are bits"),
    "L.png": (of(GREY), GREY, ""),
    "I;16.tif": (of(DEEP, "TIFF"), DEEP / 65535, "2 of 2 images: 16-bit grey, read as 65535ths"),
    "I;16B.tif": (of(DEEP.astype(">u2"), "TIFF"), DEEP / 65535, "16-bit grey"),
    "I;16.png": (png(0, DEEP), DEEP / 65535, "16-bit grey"),
    "I;16.pgm": (b"P5 3 4 65535\n" + DEEP.astype(">u2").tobytes(), DEEP / 65535, "16-bit grey"),
    "12 of 16.tif": (
        of(DEEP // 16, "TIFF"),
        (DEEP // 16) / 65535,
        f"brightest .* is {DEEP.max() // 16} of 65535",
    ),
    "I.tif": (of(DEEP.astype(np.int32), "TIFF"), DEEP * 1.0, "mode I, the numbers are read as they are"),
    "F.tif": (of(DEEP.astype(np.float32) / 9, "TIFF"), DEEP / np.float32(9), "mode F, the numbers"),
    "RGB.png": (of(COLOUR), chw(COLOUR), ""),
    "RGB;16.png": (
        png(2, COLOUR.astype(np.uint16) * 256 + 77),
        chw(COLOUR),
        "16 bits a channel, read with 8",
    ),
    "P.png": (saved(PALETTE, "PNG"), chw(np.asarray(PALETTE.convert("RGB"))), ""),
    "grey P.png": (saved(Image.fromarray(GREY).convert("P"), "PNG"), GREY, ""),
    "RGBA.png": (of(np.dstack([COLOUR, HOLE])), chw(WHITE_HOLE), "transparent, laid on white"),
    "RGBA.tif": (of(np.dstack([COLOUR, HOLE]), "TIFF"), chw(WHITE_HOLE), "transparent"),
    "opaque.png": (of(np.dstack([COLOUR, HOLE | 255])), chw(COLOUR), "alpha channel dropped"),
    "LA.png": (of(np.dstack([GREY, HOLE])), np.where(HOLE == 0, 255, GREY), "transparent"),
    "key.png": (of(GREY, transparency=int(GREY[1, 1])), KEYED, "transparent"),
    "CMYK.tif": (saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), chw(COLOUR), "from CMYK to RGB"),
    "frames.gif": (frames(GREY, "GIF"), GREY, "several frames, the first is read"),
    "frames.png": (frames(COLOUR, "PNG"), chw(COLOUR), "several frames"),
    "pages.tif": (frames(GREY, "TIFF"), GREY, "several frames"),
    **{
        f"turned {n}.png": (turned(GREY, n, "PNG"), UPRIGHT[n](GREY), "EXIF" if n > 1 else "")
        for n in UPRIGHT
    },
    **{f"turned {n}.tif": (turned(DEEP, n, "TIFF"), UPRIGHT[n](DEEP) / 65535, "grey|EXIF") for n in UPRIGHT},
    "damaged EXIF.png": (of(GREY, exif=b"Exif\0\0no TIFF header"), GREY, ""),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", IMAGES)
def test_images(tmp_path: Path, name: str) -> None:
    content, expected, note = IMAGES[name]
    for i in range(2):
        (tmp_path / f"{i}{Path(name).suffix}").write_bytes(content)
    data = load(str(tmp_path))
    assert data.train.dtype == {"b": torch.bool, "u": torch.uint8}.get(expected.dtype.kind, torch.float32)
    for image in (data.train[0], data.test[0]):
        np.testing.assert_array_equal(image.numpy(), expected.astype(image.numpy().dtype))
    said = [n for n in data.notes if "uint8 values up to" not in n]
    assert re.search(note, "; ".join(said)) if note else not said


def test_a_damaged_png_is_refused(tmp_path: Path) -> None:
    """Also where the damage is met when Pillow looks for the EXIF block, after which the rest of it would be black."""
    good = of(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8))
    bad = bytearray(good)
    bad[good.index(b"IDAT") + 30] ^= 255
    for name, content in (("a", good), ("b", bytes(bad))):
        (tmp_path / f"{name}.png").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.png: is not a readable image"):
        load(str(tmp_path))


def folder(tmp_path: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


A, B, C, D = (of(np.full((4, 3), 200 + i, np.uint8)) for i in range(4))
SYSTEM = dict.fromkeys(
    ("._0.png", ".DS_Store", "__MACOSX/._0.png", "__MACOSX/0.png", ".ipynb_checkpoints/0.png", "Thumbs.db"),
    b"x",
)
# name: (files, the train part's and the test part's values (None: split), what is noted)
FOLDERS: dict[str, tuple[dict[str, bytes], list[int], list[int] | None, str]] = {
    "hidden entries": ({"0.png": A, "1.png": B, **SYSTEM}, [200, 201], None, ""),
    "other files": (
        {"0.png": A, "1.png": B, "readme.txt": b"", "d/labels.csv": b""},
        [200, 201],
        None,
        "not used, no images: labels.csv, readme.txt",
    ),
    "names that hold idx": ({"idx0.png": A, "img-idx3.png": B}, [200, 201], None, ""),
    "IDX labels": (
        {"0.png": A, "1.png": B, "train-labels-idx1-ubyte": b""},
        [200, 201],
        None,
        "no images: train-labels",
    ),
    "classes": (
        {"cat/0.png": A, "dog/0.png": B},
        [200, 201],
        None,
        r"labels: the names of 2 folders \(cat, dog\)",
    ),
    "train and test": ({"Train/0.png": A, "TEST/0.png": B}, [200], [201], ""),
    "train and val": (
        {"train/0.png": A, "val/0.png": B},
        [200],
        [201],
        "validation part is the test part",
    ),
    "three parts of classes": (
        {"train/a/0.png": A, "train/b/0.png": D, "valid/a/0.png": B, "test/a/0.png": C},
        [200, 203],
        [202],
        r"^labels: the names of 2 folders \(a, b\)$",
    ),
    "files outside the parts": (
        {"train/0.png": A, "test/0.png": B, "0.png": C},
        [200],
        [201],
        r"^not used: files outside .* \(1\)$",
    ),
    "names with a part": ({"mnist_train/0.png": A, "mnist_test/0.png": B}, [200], [201], ""),
    "a class named valley": ({"train/0.png": A, "valley/0.png": B}, [200, 201], None, r"\(train, valley\)"),
    "parts below": ({"images/train/0.png": A, "images/test/0.png": B}, [200], [201], ""),
    "a class named train": (
        {"train/0.png": A, "plane/0.png": B},
        [200, 201],
        None,
        r"folders \(plane, train\)",
    ),
}


@pytest.mark.parametrize(("files", "train", "test", "note"), FOLDERS.values(), ids=FOLDERS)
def test_folders(tmp_path: Path, files: dict[str, bytes], train: Any, test: Any, note: str) -> None:
    data = load(folder(tmp_path, files))
    parts = [sorted(part[:, 0, 0].tolist()) for part in (data.train, data.test)]
    assert parts == [train, test] if test is not None else sorted(parts[0] + parts[1]) == train
    assert re.search(note, "; ".join(data.notes)) if note else data.notes == ()


def test_the_folders_of_classes_are_labels(tmp_path: Path) -> None:
    files = {"train/a/0.png": A, "train/b/1.png": B, "test/b/2.png": C, "valid/b/x/3.png": D}
    source = folder(tmp_path / "parts", files)
    data = load(source)
    assert data.valid is not None and data.valid[:, 0, 0].tolist() == [203]
    found = {part: labels.find(data, source, part) for part in ("train", "test", "valid")}
    assert {part: names.tolist() for part, names in found.items()} == {
        "train": ["a", "b"],
        "test": ["b"],
        "valid": ["b/x"],
    }
    greys = {f"{name}/{i}.png": 20 * i + 100 * (name == "b") for i in range(5) for name in "ab"}
    files = {name: of(np.full((4, 3), grey, np.uint8)) for name, grey in greys.items()}
    source = folder(tmp_path / "split", files)
    data, seen = load(source), []
    for part in ("train", "test"):
        names = labels.find(data, source, part)
        assert names is not None
        seen += list(zip(data.part(part)[:, 0, 0].tolist(), names.tolist(), strict=True))
    assert sorted(seen) == sorted((grey, name[0]) for name, grey in greys.items())
    of_train = range(len(data.train))[data.shown(4, "train")]  # what a picture shows has both classes
    assert list(of_train) == [0, 2, 4, 6] and range(2)[data.shown(48)] == range(2)
    assert replace(data, labels={}).shown(4, "train") == slice(0, 4, 1)


HALF = np.full((4, 3), 128, np.uint8)
BITS, BYTES, WORDS = of(HALF > 99), of(HALF), of(HALF.astype(np.uint16) * 257, "TIFF")


@pytest.mark.parametrize(
    ("files", "expected"),
    [((BITS, BYTES), [128, 255]), ((BYTES, WORDS), [128 / 255] * 2), ((BITS, WORDS), [128 / 255, 1])],
    ids=["bits and bytes", "bytes and words", "bits and words"],
)
def test_images_of_several_depths_have_one_white(tmp_path: Path, files: Any, expected: Any) -> None:
    data = load(folder(tmp_path, {f"{i}.png": content for i, content in enumerate(files)}))
    assert sorted(torch.cat([data.train, data.test])[:, 0, 0].tolist()) == pytest.approx(expected)


def test_numbers_do_not_mix_with_greys(tmp_path: Path) -> None:
    files = {"0.tif": of(GREY.astype(np.float32), "TIFF"), "1.png": A}
    with pytest.raises(DataError, match=r"0\.tif: has mode F, .* 1\.png has not"):
        load(folder(tmp_path, files))


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    folder(tmp_path / "elsewhere", {"0.png": A, "1.png": B})
    (tmp_path / "data").mkdir()
    try:
        (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    except OSError:
        pytest.skip("this system makes no links")
    data = load(str(tmp_path / "data"))
    assert len(data.train) + len(data.test) == 2
