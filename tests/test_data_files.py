"""IDX and .npz files as they are found in the world: what is read, what is noted, or the one line that refuses them."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from vae_fast.training import DataError, load


def folder(tmp_path: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


def idx(values: list[int], ndim: int = 3) -> bytes:
    shape = (len(values), 2, 2)[:ndim]
    array = np.repeat(np.array(values, np.uint8), 4 if ndim == 3 else 1)
    return bytes([0, 0, 8, ndim]) + struct.pack(f">{ndim}I", *shape) + array.tobytes()


TRAIN, TEST, LABELS = idx([200, 201, 202]), idx([250]), idx([1, 2, 3], 1)
MNIST = {"train-images-idx3-ubyte": TRAIN, "t10k-images-idx3-ubyte": TEST}
# name: (files, below which the path is, what is noted)
IDX: dict[str, tuple[dict[str, bytes], str, str]] = {
    "mnist": (MNIST, "", ""),
    "gz": ({f"{k}.gz": gzip.compress(v) for k, v in MNIST.items()}, "", ""),
    "labels": ({**MNIST, "train-labels-idx1-ubyte": LABELS}, "", "not trained on: train-labels-idx1-ubyte"),
    "dots": ({k.replace("-idx", ".idx"): v for k, v in MNIST.items()}, "", ""),
    "kaggle": ({f"{k}/{k}": v for k, v in MNIST.items()}, "", ""),
    "kaggle twice": (
        {
            **{f"{k}/{k}": v for k, v in MNIST.items()},
            **{k.replace("-idx", ".idx"): v for k, v in MNIST.items()},
        },
        "",
        "",
    ),
    "torchvision": (
        {f"MNIST/raw/{k}{z}": gzip.compress(v) if z else v for k, v in MNIST.items() for z in ("", ".gz")},
        "",
        "",
    ),
    "hidden": (
        {**MNIST, "._train-images-idx3-ubyte": b"x", "__MACOSX/._train-images-idx3-ubyte": b"x"},
        "",
        "",
    ),
    "emnist": (
        {f"emnist-letters-{k.replace('t10k', 'test')}": v for k, v in MNIST.items()},
        "",
        "EMNIST's files hold the images transposed",
    ),
    "qmnist": ({"qmnist-train-images-idx3-ubyte": TRAIN, "qmnist-test-images-idx3-ubyte": TEST}, "", ""),
    "the train file": (MNIST, "train-images-idx3-ubyte", "the test part is t10k-images-idx3-ubyte beside it"),
    "a validation part": ({**MNIST, "validation-images-idx3-ubyte": idx([240, 241])}, "", ""),
    "a validation part beside": (
        {**MNIST, "validation-images-idx3-ubyte": idx([240, 241])},
        "train-images-idx3-ubyte",
        "valid part is validation-images-idx3-ubyte beside it",
    ),
    "another below": (
        {**MNIST, "old/train-images-idx3-ubyte": TEST},
        "",
        "not trained on: train-images-idx3-ubyte",
    ),
}


@pytest.mark.parametrize(("files", "below", "note"), IDX.values(), ids=IDX)
def test_idx_layouts(tmp_path: Path, files: dict[str, bytes], below: str, note: str) -> None:
    data = load(str(Path(folder(tmp_path, files)) / below))
    assert data.train[:, 0, 0].tolist() == [200, 201, 202]
    assert data.test[:, 0, 0].tolist() == [250]
    assert (None if data.valid is None else data.valid[:, 0, 0].tolist()) == (
        [240, 241] if "validation" in str(files) else None
    )
    assert re.search(note, "; ".join(data.notes)) if note else data.notes == ()


def test_a_test_part_alone_is_split(tmp_path: Path) -> None:
    data = load(folder(tmp_path, {"t10k-images-idx3-ubyte": TRAIN}))
    assert sorted(torch.cat([data.train, data.test])[:, 0, 0].tolist()) == [200, 201, 202]


def test_labels_are_no_samples(tmp_path: Path) -> None:
    source = folder(tmp_path, {"train-labels-idx1-ubyte": LABELS})
    with pytest.raises(
        DataError, match=r"no images and no train-images-idx3-ubyte \(train-labels-idx1-ubyte\)"
    ):
        load(source)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: expected images, but got labels"):
        load(str(tmp_path / "train-labels-idx1-ubyte"))
    folder(tmp_path, MNIST)
    with pytest.raises(DataError, match=r"got labels: .*, train-images-idx3-ubyte$"):
        load(str(tmp_path / "train-labels-idx1-ubyte"))


def test_of_several_sets_one_is_given(tmp_path: Path) -> None:
    """By the file that the message names."""
    names = [
        f"emnist-{kind}-{part}-images-idx3-ubyte"
        for kind in ("mnist", "letters")
        for part in ("train", "test")
    ]
    folder(tmp_path, {name: TRAIN if "train" in name else TEST for name in names})
    with pytest.raises(DataError, match="expected one set, but got 2") as caught:
        load(str(tmp_path))
    named = re.findall(r"emnist\S+ubyte", str(caught.value))
    assert len(named) == 2
    for name in named:
        assert [
            len(part) for part in (load(str(tmp_path / name)).train, load(str(tmp_path / name)).test)
        ] == [3, 1]


# Arrays' names: (train, test (None: train's is split), what is noted)
KEYS: dict[str, tuple[str, str | None, str]] = {
    "train test": ("train", "test", ""),
    "x_train y_train x_test y_test": ("x_train", "x_test", "not trained on: y_train, y_test"),
    "X_train X_test": ("X_train", "X_test", ""),
    "train_x test_x": ("train_x", "test_x", ""),
    "trainX testX trainY": ("trainX", "testX", "not trained on: trainY"),
    "train_images val_images test_images train_labels": (
        "train_images",
        "test_images",
        "not trained on: train_labels$",
    ),
    "train valid test": ("train", "test", ""),
    "train valid": ("train", "valid", "valid is the test part"),
    "x_train x_val": ("x_train", "x_val", "x_val is the test part"),
    "train": ("train", None, ""),
    "data": ("data", None, ""),
    "images labels": ("images", None, "not trained on: labels"),
    "imgs latents_values latents_classes metadata": ("imgs", None, "not trained on: latents_values"),
    "data test": ("data", "test", ""),
    "arr_0": ("arr_0", None, ""),
    "faces": ("faces", None, ""),
    "faces target": ("faces", None, "not trained on: target"),
    "x_test": ("x_test", None, "x_test is the only part, and is split"),
    "x_test y_test": ("x_test", None, "not trained on: y_test"),
    "valid": ("valid", None, "only part"),
}


@pytest.mark.parametrize("keys", KEYS)
def test_npz_keys(tmp_path: Path, keys: str) -> None:
    train, test, note = KEYS[keys]
    arrays = {key: np.full((5, 4), 200 + i, np.uint8) for i, key in enumerate(keys.split())}
    for array in arrays.values():
        array[:, 0] = np.arange(5)  # the sample
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(str(tmp_path / "a.npz"))
    assert data.train[0, 1] == arrays[train][0, 1]
    assert data.test[0, 1] == arrays[test or train][0, 1]
    valid = next((key for key in keys.split() if key.startswith("val")), None)
    if test in (None, valid, "x_val"):
        assert data.valid is None
    else:
        assert valid is None if data.valid is None else data.valid[0, 1] == arrays[str(valid)][0, 1]
    if test is None:  # no sample is in both
        assert sorted(torch.cat([data.train, data.test])[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert re.search(note, "; ".join(data.notes)) if note else data.notes == ()


@pytest.mark.parametrize(
    "keys", ["a b", "arr_0 arr_1", "test valid", "images data", "x_train train", "y labels"]
)
def test_npz_keys_that_do_not_tell(tmp_path: Path, keys: str) -> None:
    np.savez(tmp_path / "a.npz", **dict.fromkeys(keys.split(), np.ones((5, 4))))
    with pytest.raises(
        DataError, match=f"expected one array, or train and test, but got {keys.replace(' ', ', ')}"
    ):
        load(str(tmp_path / "a.npz"))
