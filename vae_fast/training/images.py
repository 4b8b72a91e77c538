"""Images as arrays: upright, grey or RGB, as a viewer shows them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, reason
from .parts import Parts, folder_parts, listed

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"}
SUFFIXES |= {".pbm", ".pgm", ".pnm", ".ppm", ".tga"}

# EXIF's orientation -> the transposition that turns the image upright. ImageOps.exif_transpose does the same, but
# rewrites the EXIF block too, and fails on images whose other tags are damaged.
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
_ORIENTATION = 0x0112
_GREY_16 = "16-bit grey, read as 65535ths"
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
DECODERS = 4  # threads that decode streamed images: Pillow lets go of Python's lock
_AS_IT_IS = ("I", "F")  # modes whose numbers have no white


def read_folder(folder: Path, files: list[Path], is_stored: bool = False) -> Parts | None:
    """All images of the folder, of its folders train, test and valid where it has them. None if it has no image."""
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not pictures:
        return None
    of_parts = folder_parts(folder, pictures)
    survey = Survey([path for paths in of_parts.paths.values() for path in paths])
    notes: tuple[str, ...] = ()
    if not is_stored:
        array, notes = survey.read()
    unread = sorted(set(files) - set(pictures))
    if unread:
        notes += (f"not used, no images: {listed(path.name for path in unread)}",)
    parts: dict[str, Any]
    if is_stored:
        parts = {part: StoredImages(survey, paths) for part, paths in of_parts.paths.items()}
    else:
        starts = np.cumsum([len(paths) for paths in of_parts.paths.values()])[:-1]
        parts = dict(zip(of_parts.paths, np.split(array, starts), strict=True))
    return Parts(**parts, notes=(*notes, *of_parts.notes), labels=of_parts.labels)


def read_images(paths: Sequence[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The images as one array, and notes on what was done to them. Raises DataError."""
    return Survey(paths).read()


class Survey:
    """What images become in one array depends on all of them: (n, height, width) or (n, 3, height, width); bool where
    all have one bit a pixel; uint8 (255ths); float32 where one has more than 8 bits: grey of 16 bits is 65535ths, the
    modes I and F (32 bits) are the file's own numbers."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._done: Counter[str] = Counter()
        self._kinds: set[np.dtype[Any]] = set()
        self._has_colour, self._brightest = False, 0.0
        self._threads = ThreadPoolExecutor(DECODERS, "vae-fast-decoder")
        self._notes: tuple[str, ...] | None = None

    def read(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The images as one array, and notes on what was done to them. Raises DataError."""
        arrays = list(self._look())
        return np.stack([self._fit(array) for array in arrays]), self.notes()

    def notes(self) -> tuple[str, ...]:
        """What was done to the images, once all were looked at."""
        if self._notes is None:
            if not self._done and not self._kinds:
                for _ in self._look():
                    pass
            n = len(self.paths)
            notes = [f"{k:,} of {n:,} images: {change}" for change, k in sorted(self._done.items())]
            if _GREY_16 in self._done and self._brightest < 0.5:  # 12 bits in 16, say
                notes.append(f"the brightest 16-bit grey is {self._brightest * 65535:.0f} of 65535")
            self._notes = tuple(notes)
        return self._notes

    def decode(self, paths: Sequence[Path]) -> Iterator[np.ndarray]:
        """Images as they stand in the array of all, several at a time."""
        return self._threads.map(lambda path: self._fit(_open(path)[0]), paths)

    def _look(self) -> Iterator[np.ndarray]:
        first: tuple[tuple[int, ...], str] | None = None
        for path in self.paths:
            array, mode, changes = _open(path)
            size, first = array.shape[:2], first or (array.shape[:2], mode)
            if size != first[0]:
                raise DataError(
                    f"{path}: expected {first[0][1]}x{first[0][0]} pixels like {self.paths[0].name}, "
                    f"but got {size[1]}x{size[0]}"
                )
            if bool(mode) != bool(first[1]):
                odd, kind, other = (path, mode, self.paths[0]) if mode else (self.paths[0], first[1], path)
                raise DataError(
                    f"{odd}: has mode {kind}, numbers without a white, and {other.name} has not: they do not mix"
                )
            self._done.update(changes)
            self._kinds.add(array.dtype)
            self._has_colour |= array.ndim == 3
            if array.dtype == np.float32:
                self._brightest = max(self._brightest, float(array.max()))
            yield array

    def _fit(self, array: np.ndarray) -> np.ndarray:
        """An image as all are: (height, width) or (3, height, width)."""
        if len(self._kinds) > 1:
            if np.dtype(np.float32) in self._kinds:
                array = array / np.float32(255) if array.dtype == np.uint8 else array.astype(np.float32)
            elif array.dtype != np.uint8:
                array = array * np.uint8(255)
        if not self._has_colour:
            return array
        return np.moveaxis(array, -1, 0) if array.ndim == 3 else np.repeat(array[None], 3, axis=0)


class StoredImages:
    """Images of a part that are decoded when they are asked for. Shape and dtype are those of the first image until
    `rows` has looked at all."""

    def __init__(self, survey: Survey, paths: Sequence[Path]) -> None:
        self._survey, self._paths = survey, paths
        first = _open(paths[0])[0]
        self.shape = (len(paths), *([3] if first.ndim == 3 else []), *first.shape[:2])
        self.ndim, self.dtype = len(self.shape), first.dtype
        self.nbytes = math.prod(self.shape) * first.itemsize

    def rows(self) -> tuple[DecodedRows, tuple[str, ...]]:
        """The images as training reads them, and notes on all images of the set. Raises DataError."""
        notes = self._survey.notes()
        [first] = self._survey.decode(self._paths[:1])
        return DecodedRows(self._survey, self._paths, first.dtype, (len(self._paths), *first.shape)), notes


@dataclass(frozen=True)
class DecodedRows:
    survey: Survey
    paths: Sequence[Path]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    gap: int = 0  # no image is decoded that is not wanted

    def read(self, start: int, out: np.ndarray) -> None:
        for place, image in enumerate(self.survey.decode(self.paths[start : start + len(out)])):
            out[place] = image.reshape(out.shape[1:])


def _open(path: Path) -> tuple[np.ndarray, str, list[str]]:
    """An image, its mode where that has no white, and what was done to it. Raises DataError."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError("a folder of images takes Pillow: pip install pillow") from None
    try:
        # A file and not its path: Pillow 13.0.0 maps turned TIFFs of a path into memory with the wrong width.
        with path.open("rb") as file, Image.open(file) as image:
            mode = image.mode if _is_as_it_is(image) else ""
            array, changes = _to_array(image)
            return array, mode, changes
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: is not a readable image (of no format that Pillow knows, or cut off)"
        ) from None
    except Exception as error:  # of nearly any type: a damaged file meets the decoders' own indexing
        raise DataError(f"{path}: is not a readable image ({reason(error)})") from None


def _to_array(image: Any) -> tuple[np.ndarray, list[str]]:
    """(height, width) or (height, width, 3), and what was done to the image."""
    from PIL import Image

    changes = []
    raw = str(image.tile)  # what the decoder makes of the file's bytes; empty once they are read
    if getattr(image, "is_animated", False):
        changes.append("several frames, the first is read")
    if image.format != "TIFF":  # which turns itself, and then has no orientation
        image.load()  # before the EXIF block is asked for: for that Pillow decodes a PNG, whose error would be lost
    as_it_is, is_16_bit = _is_as_it_is(image), image.mode.startswith("I")
    if ";16" in raw and not is_16_bit:
        changes.append("16 bits a channel, read with 8")
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        changes.append("turned as their EXIF orientation says")
        if image.format == "TIFF":
            image.load()  # turns itself
        else:
            image = image.transpose(Image.Transpose[turn])
    if as_it_is:
        changes.append(f"mode {image.mode}, the numbers are read as they are")
        return np.asarray(image, np.float32), changes
    if is_16_bit:
        changes.append(_GREY_16)
        return np.asarray(image).astype(np.float32) / 65535, changes
    is_palette = image.mode in ("P", "PA")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        is_channel = "transparency" not in image.info
        image, opaque = _on_white(image)
        if not opaque:
            changes.append("transparent, laid on white")
        elif is_channel:
            changes.append("alpha channel dropped, opaque everywhere")
    if image.mode not in ("1", "L", "P", "RGB"):
        changes.append(f"converted from {image.mode} to RGB")
    array = np.asarray(image if image.mode in ("1", "L", "RGB") else image.convert("RGB"))
    is_grey = is_palette and bool((array == array[..., :1]).all())
    return array[..., 0] if is_grey else array, changes


def _is_as_it_is(image: Any) -> bool:
    # PNG and PGM have 16 bits at most; Pillow scales PGM's to 65535, and until 11 read both as mode I.
    return image.mode in _AS_IT_IS and image.format not in ("PNG", "PPM")


def _orientation(image: Any) -> int:
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, of nearly any type: the image itself may be sound
        return 1
    return value if isinstance(value, int) else 1


def _on_white(image: Any) -> tuple[Any, bool]:
    """The image without its alpha channel or transparent colour, and whether it was opaque everywhere.

    Alpha alone left out would show the colours below it, which no viewer shows: often all black.
    """
    from PIL import Image

    is_grey = image.mode in ("1", "L", "LA", "La")
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if layer.getextrema()[3][0] == 255:
        return layer.convert("L" if is_grey else "RGB"), True
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("L" if is_grey else "RGB"), False
