"""Data sets: what each kind of file gives, and one clear line for each way it can be wrong."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from vae_fast.training import DataError, load
from vae_fast.training.data import batches

GREY = np.arange(10 * 4 * 3, dtype=np.uint8).reshape(10, 4, 3)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def rows(tensor: torch.Tensor) -> set[bytes]:
    return {t.numpy().tobytes() for t in tensor}


def test_digits_are_split_the_same_way_each_time() -> None:
    pytest.importorskip("sklearn")
    one, two = load("digits"), load("digits")
    assert one.train.shape == (1438, 8, 8)
    assert one.test.shape == (359, 8, 8)
    assert one.train.dtype == torch.uint8
    assert one.train.max() == 255
    assert one.train.min() == 0
    assert torch.equal(one.train, two.train)
    assert torch.equal(one.test, two.test)


def test_split_takes_every_sample_once(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    data = load(str(tmp_path / "a.npy"))
    assert len(data.train) == 8
    assert len(data.test) == 2
    assert rows(data.train) | rows(data.test) == rows(torch.from_numpy(GREY))
    assert data.name == "a"
    assert data.shape == (4, 3)


@pytest.mark.parametrize("pack", [lambda raw: raw, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, np.uint8), (9, np.int8), (11, np.int16), (12, np.int32), (13, np.float32), (14, np.float64)],
)
def test_idx(tmp_path: Path, code: int, dtype: Any, pack: Callable[[bytes], bytes]) -> None:
    array = (np.arange(24).reshape(4, 6) * 5).astype(dtype)
    path = tmp_path / "a-idx2-ubyte"
    path.write_bytes(pack(idx(array, code)))
    data = load(str(path))
    assert data.train.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
    got = torch.cat([data.train, data.test]).double()
    assert rows(got) == rows(torch.from_numpy(array.astype(np.float64)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_folder_of_mnist(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(idx(GREY)))
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx(GREY[:3])))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(np.zeros(10, np.uint8))))
    data = load(str(tmp_path))
    assert np.array_equal(data.train.numpy(), GREY)
    assert np.array_equal(data.test.numpy(), GREY[:3])


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x_train=GREY, x_test=GREY[:2], y_train=np.zeros(10))
    data = load(str(path))
    assert (len(data.train), len(data.test)) == (10, 2)
    np.savez_compressed(path, faces=GREY)
    assert len(load(str(path)).train) == 8


def test_floats_bools_and_channels_last(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.linspace(-1, 2, 20).reshape(5, 4))
    data = load(str(path))
    assert data.train.dtype == torch.float32
    assert data.limits() == (-1.0, 2.0)
    np.save(path, GREY > 60)
    assert load(str(path)).train.dtype == torch.bool
    colour = np.stack([GREY, GREY // 2, GREY // 3], axis=-1)
    np.save(path, colour)
    data = load(str(path))
    assert data.shape == (3, 4, 3)
    assert rows(torch.cat([data.train, data.test])) == rows(
        torch.from_numpy(np.ascontiguousarray(colour.transpose(0, 3, 1, 2)))
    )


def test_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, grey in enumerate(GREY):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        image.fromarray(grey).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    (tmp_path / "readme.txt").write_text("not an image")
    data = load(str(tmp_path))
    assert rows(torch.cat([data.train, data.test])) == rows(torch.from_numpy(GREY))
    image.fromarray(np.zeros((4, 3, 3), np.uint8)).save(tmp_path / "colour.png")
    assert load(str(tmp_path)).shape == (3, 4, 3)


def test_reshaped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY.reshape(10, 12))
    data = load(str(tmp_path / "a.npy"))
    assert torch.equal(data.reshaped((4, 3)).train.flatten(1), data.train)
    with pytest.raises(DataError, match=r"\(12,\).*\(5, 3\)"):
        data.reshaped((5, 3))


def _write(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _numpy(array: Any, cut: int | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "a.npy", array, allow_pickle=True)
        raw = (folder / "a.npy").read_bytes()
        (folder / "a.npy").write_bytes(raw[:cut])
        return folder / "a.npy"

    return write


def _npz(cut: int | None = None, **arrays: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        raw = (folder / "a.npz").read_bytes()
        (folder / "a.npz").write_bytes(raw[:cut])
        return folder / "a.npz"

    return write


def _images(*sizes: tuple[int, int], cut: int | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = pytest.importorskip("PIL.Image")
        for i, size in enumerate(sizes):
            path = folder / f"{i}.png"
            image.fromarray(np.random.default_rng(0).integers(0, 255, size, np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[:cut])
        return folder

    return write


def _mnist(train: bytes, test: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "train-images-idx3-ubyte").write_bytes(train)
        (folder / "t10k-images-idx3-ubyte").write_bytes(test)
        return folder

    return write


FLOATS = np.ones((4, 3))
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "nothing.npy", "no such file"),
    "unknown kind": (_write("a.dat", b"1,2"), "is not IDX"),
    "unreadable": (lambda folder: (folder / "a.npy").mkdir() or folder / "a.npy", "holds no images"),  # type: ignore[func-returns-value]
    "idx empty": (_write("a.idx", b""), "is not an IDX file"),
    "idx text": (_write("a.idx", b"hello, world"), "is not an IDX file"),
    "idx type": (_write("a.idx", b"\0\0\x0a\x01\0\0\0\x01\0"), "is not an IDX file"),
    "idx header": (_write("a.idx", idx(GREY)[:9]), "ends in its header"),
    "idx truncated": (_write("a.idx", idx(GREY)[:-1]), "truncated IDX file.*expected 120 bytes .* got 119"),
    "idx too long": (_write("a.idx", idx(GREY) + b"\0"), "damaged IDX file.*120 bytes .* got 121"),
    "idx huge": (_write("a.idx", b"\0\0\x08\x03" + b"\xff" * 12), "truncated IDX file"),
    "idx labels": (
        _write("a.idx", idx(np.zeros(9, np.uint8))),
        r"expected shape \(samples, features\) .* got \(9,\)",
    ),
    "idx no samples": (_write("a.idx", idx(np.zeros((0, 4), np.uint8))), "is empty"),
    "gz truncated": (_write("a.idx.gz", gzip.compress(idx(GREY))[:-9]), "truncated or damaged gzip"),
    "gz damaged": (
        _write("a.idx.gz", gzip.compress(idx(GREY))[:-8] + b"12345678"),
        "truncated or damaged gzip",
    ),
    "gz of text": (_write("a.idx.gz", gzip.compress(b"hello")), "is not an IDX file"),
    "mnist shapes": (
        _mnist(idx(GREY), idx(GREY[:, :2])),
        r"expected test samples to have shape \(4, 3\) like train samples, but got \(2, 3\)",
    ),
    "mnist empty test": (_mnist(idx(GREY), idx(GREY[:0])), "is empty"),
    "npy empty file": (_write("a.npy", b""), "truncated or damaged"),
    "npy text": (_write("a.npy", b"hello"), "Python objects|truncated or damaged"),
    "npy truncated": (_numpy(FLOATS, -1), "truncated or damaged"),
    "npy header": (_numpy(FLOATS, 20), "truncated or damaged"),
    "npy objects": (_numpy(np.array([{}, {}], dtype=object)), "Python objects"),
    "npy words": (_numpy(np.array([["a", "b"], ["c", "d"]])), "expected numbers, but got <U1"),
    "npy complex": (_numpy(FLOATS * 1j), "expected numbers, but got complex128"),
    "npy dates": (_numpy(np.zeros((3, 2), "datetime64[s]")), r"expected numbers, but got datetime64\[s\]"),
    "npy nan": (_numpy(FLOATS * np.nan), "NaN or infinite"),
    "npy one inf": (_numpy(np.where(np.eye(4), np.inf, 0.0)), "NaN or infinite"),
    "npy beyond float32": (_numpy(FLOATS * 1e300), "beyond float32"),
    "npy scalar": (_numpy(np.float64(3)), r"expected shape .* got \(\)"),
    "npy one axis": (_numpy(np.ones(8)), r"expected shape .* got \(8,\)"),
    "npy one sample": (_numpy(np.ones((1, 3))), "expected at least 2 samples .* got 1"),
    "npy no samples": (_numpy(np.ones((0, 3))), "is empty"),
    "npy no features": (_numpy(np.ones((5, 0))), "is empty"),
    "npz truncated": (_npz(-30, a=FLOATS), "is not a .npz file, or truncated"),
    "npz text": (_write("a.npz", b"hello"), "is not a .npz file"),
    "npz is npy": (lambda folder: _numpy(FLOATS)(folder).rename(folder / "b.npz"), "is not a .npz file"),
    "npz many": (_npz(a=FLOATS, b=FLOATS), "expected one array, or train and test, but got a, b"),
    "npz none": (_npz(), "but got nothing"),
    "folder empty": (lambda folder: folder, "holds no images"),
    "images of two sizes": (_images((4, 3), (4, 5)), "expected 3x4 pixels like 0.png, but got 5x4"),
    "image truncated": (_images((40, 30), (40, 30), cut=200), "is not a readable image"),
    "image of text": (
        lambda folder: _write("0.png", b"hello")(folder).parent,
        r"0.png: is not a readable image \(of no format that Pillow knows, or cut off\)$",
    ),
    "a single image": (_write("0.png", b"hello"), "is not IDX"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(("write", "match"), BAD.values(), ids=BAD)
def test_bad_data_is_one_line(tmp_path: Path, write: Callable[[Path], Path], match: str) -> None:
    source = str(write(tmp_path))
    with pytest.raises(DataError, match=match) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not re.search(r"""<_|object at|\bb['"]|local variable""", str(caught.value))  # of Python's own


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_an_epoch_takes_each_sample_once() -> None:
    parts = list(batches(10, 4, generator()))
    assert [len(p) for p in parts] == [4, 4, 2]
    assert torch.cat(parts).sort().values.tolist() == list(range(10))
    assert torch.cat(parts).tolist() != list(range(10))


def test_a_large_batch_takes_samples_evenly() -> None:
    (part,) = batches(10, 25, generator())
    assert len(part) == 25
    counts = part.bincount(minlength=10)
    assert counts.min() == 2
    assert counts.max() == 3
