"""Images as arrays: upright, grey or RGB, as a viewer shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .parts import Parts, folder_parts, listed
from .stored import NotStreamableError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"}
_SUFFIXES |= {".pbm", ".pgm", ".pnm", ".ppm", ".tga"}

# EXIF's orientation -> the transposition that turns the image upright. ImageOps.exif_transpose does the same, but
# rewrites the EXIF block too, and fails on images whose other tags are damaged.
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
_ORIENTATION = 0x0112
_GREY_16 = "16-bit grey, read as 65535ths"
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_AS_IT_IS = ("I", "F")  # modes whose numbers have no white


def read_folder(folder: Path, files: list[Path], is_stored: bool = False) -> Parts | None:
    """All images of the folder, of its folders train, test and valid where it has them. None if it has no image."""
    pictures = [path for path in files if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not pictures:
        return None
    if is_stored:
        raise NotStreamableError(
            f"{folder}: images are decoded into memory: save them as .npy to stream them"
        )
    of_parts = folder_parts(folder, pictures)
    array, notes = read_images([path for paths in of_parts.paths.values() for path in paths])
    unread = sorted(set(files) - set(pictures))
    if unread:
        notes += (f"not used, no images: {listed(path.name for path in unread)}",)
    starts = np.cumsum([len(paths) for paths in of_parts.paths.values()])[:-1]
    parts = dict(zip(of_parts.paths, np.split(array, starts), strict=True))
    return Parts(**parts, notes=(*notes, *of_parts.notes), labels=of_parts.labels)


def read_images(paths: Sequence[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The images as one array, (n, height, width) or (n, 3, height, width), and notes on what was done to them.

    bool where all have one bit a pixel; uint8 (255ths); float32 where one has more than 8 bits: grey of 16 bits is
    65535ths, the modes I and F (32 bits) are the file's own numbers. Raises DataError.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError("a folder of images takes Pillow: pip install pillow") from None
    arrays: list[np.ndarray] = []
    modes: list[str] = []
    done: Counter[str] = Counter()
    for path in paths:
        try:
            # A file and not its path: Pillow 13.0.0 maps turned TIFFs of a path into memory with the wrong width.
            with path.open("rb") as file, Image.open(file) as image:
                modes.append(image.mode if _is_as_it_is(image) else "")
                array, changes = _to_array(image)
        except MemoryError:
            raise
        except Exception as error:  # of nearly any type: a damaged file meets the decoders' own indexing
            raise DataError(f"{path}: is not a readable image ({error or type(error).__name__})") from None
        arrays.append(array)
        done.update(changes)
        size, first = array.shape[:2], arrays[0].shape[:2]
        if size != first:
            raise DataError(
                f"{path}: expected {first[1]}x{first[0]} pixels like {paths[0].name}, but got {size[1]}x{size[0]}"
            )
        if bool(modes[-1]) != bool(modes[0]):
            odd, mode, other = (path, modes[-1], paths[0]) if modes[-1] else (paths[0], modes[0], path)
            raise DataError(
                f"{odd}: has mode {mode}, numbers without a white, and {other.name} has not: they do not mix"
            )
    notes = tuple(f"{k:,} of {len(paths):,} images: {change}" for change, k in sorted(done.items()))
    brightest = max((float(a.max()) for a in arrays if a.dtype == np.float32), default=1.0)
    if _GREY_16 in done and brightest < 0.5:  # 12 bits in 16, say
        notes += (f"the brightest 16-bit grey is {brightest * 65535:.0f} of 65535",)
    return _stack(arrays), notes


def _to_array(image: Any) -> tuple[np.ndarray, list[str]]:
    """(height, width) or (height, width, 3), and what was done to the image."""
    from PIL import Image

    changes = []
    raw = str(image.tile)  # what the decoder makes of the file's bytes; empty once they are read
    if getattr(image, "is_animated", False):
        changes.append("several frames, the first is read")
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


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    kinds = {array.dtype for array in arrays}
    if np.dtype(np.float32) in kinds and len(kinds) > 1:
        arrays = [a / np.float32(255) if a.dtype == np.uint8 else a.astype(np.float32) for a in arrays]
    elif len(kinds) > 1:
        arrays = [a if a.dtype == np.uint8 else a * np.uint8(255) for a in arrays]
    if len({a.ndim for a in arrays}) == 2:  # grey among coloured ones
        arrays = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in arrays]
    stack = np.stack(arrays)
    return stack if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)
