"""Sparse matrices from files: read, split and gathered without being made dense; the command on them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("h5py")

import h5py
import scipy.io
import scipy.sparse

from command import ordinary_process
from vae_fast import cli
from vae_fast.training import DataError, csr, data, load_model
from vae_fast.training.csr import ChunkedCsr, SparseSamples
from vae_fast.training.data import Dataset

CELLS, GENES = 50, 9
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(csr, "CHUNK_ROWS", 4)
    monkeypatch.setattr("vae_fast.training.stream.POOL_CHUNKS", 3)
    yield from ordinary_process(monkeypatch)


def counts(dtype: str = "uint8") -> np.ndarray:
    x = np.random.default_rng(0).poisson(0.5, (CELLS, GENES))
    x[3] = 0
    x[:, 0] = np.arange(CELLS) % 200  # tells the rows apart
    return x.astype(dtype)


def batches_of(n: int = CELLS) -> np.ndarray:
    return np.arange(n) % 3


def write_h5ad(
    path: str, x: np.ndarray, layout: str = "csr", column: str = "category", **options: Any
) -> None:
    """As AnnData 0.12 writes it."""
    with h5py.File(path, "w") as file:
        if layout == "dense":
            file["X"] = x
        else:
            group = file.create_group("X")
            matrix = getattr(scipy.sparse, f"{layout}_matrix")(x)
            group.attrs.update(
                {"encoding-type": f"{layout}_matrix", "encoding-version": "0.1.0", "shape": x.shape}
            )
            for name in ("data", "indices", "indptr"):
                group.create_dataset(name, data=getattr(matrix, name), **options)
        obs = file.create_group("obs")
        names = np.array(["a", "b", "c"], dtype=h5py.string_dtype())
        if column == "category":
            group = obs.create_group("donor")
            group["codes"], group["categories"] = batches_of(len(x)).astype(np.int8), names
        else:
            obs["donor"] = names[batches_of(len(x))] if column == "text" else batches_of(len(x)) + 7


def write(kind: str, x: np.ndarray) -> str:
    if kind.startswith("npz"):
        scipy.sparse.save_npz("a.npz", scipy.sparse.csr_matrix(x), compressed=kind == "npz compressed")
        return "a.npz"
    if kind == "mtx":
        Path("cells").mkdir()
        with gzip.open("cells/matrix.mtx.gz", "wb") as file:
            scipy.io.mmwrite(file, scipy.sparse.coo_matrix(x.T))
        with gzip.open("cells/barcodes.tsv.gz", "wt") as file:
            file.write("cell\n" * len(x))
        return "cells"
    layout, _, options = kind.removeprefix("h5ad ").partition(" ")
    write_h5ad("a.h5ad", x, layout, **({"compression": "gzip", "chunks": (7,)} if options else {}))
    return "a.h5ad"


def all_rows(dataset: Dataset) -> np.ndarray:
    """Train and test, in the file's order."""
    for part in (dataset.train, dataset.test):
        assert isinstance(part, SparseSamples)
        if isinstance(part.csr, ChunkedCsr):
            part.pools(None)
    parts = [part[:].to_dense() for part in (dataset.train, dataset.test)]
    x = torch.cat(parts).numpy()
    return x[np.argsort(x[:, 0], kind="stable")]


@pytest.mark.parametrize("kind", ["h5ad csr", "h5ad csr gzip", "h5ad csc", "npz", "npz compressed", "mtx"])
@pytest.mark.parametrize("stream", [False, True])
def test_formats(kind: str, stream: bool) -> None:
    x = counts()
    dataset = data.load(write(kind, x), stream=stream)
    assert dataset.is_sparse and dataset.shape == (GENES,)
    assert (len(dataset.train), len(dataset.test)) == (40, 10)
    assert np.array_equal(all_rows(dataset), x)
    assert dataset.limits() == (0, x.max()) and not dataset.has_fractions()
    dense = data.load(write_npy(x))
    assert torch.equal(
        dense.test, dataset.test[:].to_dense().to(dense.test.dtype)
    )  # the split is that of any data


def write_npy(x: np.ndarray) -> str:
    np.save("dense.npy", x)
    return "dense.npy"


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("uint8", "uint8"),
        ("uint16", "uint16"),
        ("int32", "int32"),
        ("int64", "int32"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
def test_values_keep_their_dtype(dtype: str, kept: str) -> None:
    write_h5ad("a.h5ad", counts(dtype))
    x = data.load("a.h5ad").train[:3]
    assert x.dtype is getattr(torch, kept) and x.col_indices().dtype is x.crow_indices().dtype is torch.int32


def test_uncompressed_files_are_mapped() -> None:
    for kind in ("h5ad csr", "npz"):
        train = data.load(write(kind, counts())).train
        assert isinstance(train, SparseSamples) and isinstance(train.csr.values, np.memmap)


@pytest.mark.parametrize("column", ["category", "text", "numbers"])
def test_labels(column: str) -> None:
    x = counts()
    write_h5ad("a.h5ad", x, column=column)
    dataset = data.load("a.h5ad", batch_key="donor")
    assert dataset.conditions == (("7", "8", "9") if column == "numbers" else ("a", "b", "c"))
    for part, labels in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)):
        assert labels is not None
        assert np.array_equal(labels, part[:].to_dense().numpy()[:, 0] % 3)


def test_streamed_epochs_hold_every_row_once_and_read_ahead() -> None:
    x = counts()
    train = data.load(write("h5ad csr gzip", x), stream=True).train
    assert isinstance(train, SparseSamples) and isinstance(train.csr, ChunkedCsr)
    orders = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        pools = train.pools(generator)
        assert pools is not None
        order = list(data.batches(len(train), 7, generator, pools))
        orders.append(torch.cat(order).tolist())
        most = 0
        for indices in order:
            got = train.index_select(0, indices).to_dense().numpy()
            assert np.array_equal(got, x[train.numbers[indices]])
            most = max(most, len(train.csr.reader._reads))
        assert most == 2  # of 5: this pool and the next
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(len(train))) != orders[0]


def test_unsorted_columns() -> None:
    matrix = scipy.sparse.csr_matrix(counts("int32"))
    matrix.indices[:2] = matrix.indices[1::-1].copy()
    matrix.data[:2] = matrix.data[1::-1].copy()
    matrix.has_sorted_indices = False
    scipy.sparse.save_npz("a.npz", matrix)
    dataset = data.load("a.npz")
    assert np.array_equal(all_rows(dataset), counts("int32"))
    with pytest.raises(DataError, match="columns of a row are not in order"):
        data.load("a.npz", stream=True)


def test_errors() -> None:
    write_h5ad("a.h5ad", counts())
    with pytest.raises(
        DataError, match=r"expected --batch-key to be a column of obs \(donor\), but got plate"
    ):
        data.load("a.h5ad", batch_key="plate")
    with pytest.raises(DataError, match="expected a likelihood of counts"):
        data.check_support(data.load("a.h5ad"), "unit", "bernoulli")
    with pytest.raises(DataError, match=r"--batch-key is a column of an \.h5ad's obs"):
        data.load("digits", batch_key="donor")
    with h5py.File("a.h5ad", "r+") as file:
        file["X/indices"][0] = GENES
    with pytest.raises(DataError, match="column 9 is not below 9"):
        data.load("a.h5ad")
    Path("a.h5ad").write_bytes(Path("a.h5ad").read_bytes()[:200])
    with pytest.raises(DataError, match="truncated or damaged"):
        data.load("a.h5ad")


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    sizes = [len(indices) for indices in data.batches(9, 4, None, least=2)]
    assert sizes == [4, 5]


TRAIN = [
    "train",
    "--data",
    "a.h5ad",
    "--likelihood",
    "negative_binomial",
    "--batch-key",
    "donor",
    "--batch-norm",
]
TRAIN += [
    "--dropout",
    "0.1",
    "--hidden",
    "8",
    "--latent",
    "2",
    "--batch-size",
    "13",
    "--cpu",
    "--out",
    "run",
    "--stream",
]


def test_the_command(capsys: Capture) -> None:
    """Trains, resumes to the same bits, generates and reconstructs by the names of the labels."""
    write_h5ad("a.h5ad", counts("uint16"))
    assert cli.run([*TRAIN, "--epochs", "4"]) == 0
    assert "9, 3 of donor" in capsys.readouterr().out
    whole = load_model("run").state_dict()
    assert cli.run([*TRAIN, "--epochs", "2", "--overwrite"]) == 0
    assert cli.run(["train", "--resume", "--epochs", "4", "--out", "run"]) == 0
    model = load_model("run")
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole[name]), name
    assert model.conditions == ("a", "b", "c") and model.config["dropout"] == 0.1

    write_h5ad("b.h5ad", counts(), column="numbers")
    with h5py.File("b.h5ad", "r+") as file:  # the same samples with the labels' names in another order
        del file["obs/donor"]
        file["obs/donor/codes"] = 2 - batches_of().astype(np.int8)
        file["obs/donor/categories"] = np.array(["c", "b", "a"], dtype=h5py.string_dtype())
    arrays = []
    for arguments in (
        ["reconstruct", "run"],
        ["reconstruct", "run", "--data", "b.h5ad"],
        ["generate", "run", "-n", "3"],
        ["generate", "run", "-n", "3", "--condition", "b"],
    ):
        assert cli.run([*arguments, "--out", "x.npy", "--cpu"]) == 0
        arrays.append(np.load("x.npy"))
    assert arrays[0].shape == (10, GENES) and np.array_equal(arrays[0], arrays[1])
    assert np.allclose(arrays[2][1], arrays[3][1]) and not np.allclose(arrays[2][0], arrays[3][0])
    capsys.readouterr()
    assert cli.run(["generate", "run", "--condition", "d", "--out", "x.npy"]) == 1
    assert "expected --condition to be one of a, b, c, but got d" in capsys.readouterr().err
    _check_copy_with_latents(capsys)


def _check_copy_with_latents(capsys: Capture) -> None:
    """All cells' latents, in the order of the file and of all its groups; the file itself is left as it is."""
    with h5py.File("a.h5ad", "r+") as file:
        file["obsm/X_pca"] = np.ones((CELLS, 2))
        file["obsm/X_vae"] = np.ones((CELLS, 1))  # of an earlier run
    before = Path("a.h5ad").read_bytes()
    assert cli.run(["encode", "run", "--out", "with.h5ad", "--cpu"]) == 0
    model, dataset = load_model("run"), data.load("a.h5ad", "donor")
    assert isinstance(dataset.train, SparseSamples)
    with h5py.File("with.h5ad") as file:
        found, attributes = file["obsm/X_vae"][:], dict(file["obsm/X_vae"].attrs)
        assert file["obsm/X_pca"].shape == (CELLS, 2) and "donor" in file["obs"] and "X" in file
    assert attributes == {"encoding-type": "array", "encoding-version": "0.2.0"} and found.dtype == np.float32
    x = torch.from_numpy(counts("float32"))
    mu = model.encode(x, condition=torch.from_numpy(batches_of()))[0]
    assert np.allclose(found, mu.detach().numpy(), atol=1e-5)
    assert Path("a.h5ad").read_bytes() == before
    np.save("x.npy", counts())
    Path("link.h5ad").symlink_to("a.h5ad")
    for arguments, message in (
        (["--out", "a.h5ad"], "holds the data"),
        (["--out", "link.h5ad"], "holds the data"),
        (["--out", "z.h5ad", "--draws", "2"], "leave --draws out"),
    ):
        capsys.readouterr()
        assert cli.run(["encode", "run", *arguments, "--cpu"]) == 1
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1


def test_pictures_of_a_conditional_model(capsys: Capture) -> None:
    """Images with labels: a run draws them, and a picture of one label differs from another's."""
    bright = (np.arange(80) % 2)[:, None]
    with h5py.File("images.h5ad", "w") as file:
        file["X"] = np.where(bright, 0.9, 0.1).repeat(16, 1).astype(np.float32)
        file["obs/kind"] = np.where(bright[:, 0], b"bright", b"dark")
    options = ["--batch-key", "kind", "--shape", "4,4", "--hidden", "8", "--latent", "2", "--epochs", "30"]
    options += ["--lr", "0.05"]
    assert cli.run(["train", "--data", "images.h5ad", "--out", "run", "--cpu", *options]) == 0
    assert "samples.png, reconstructions.png, loss.png" in capsys.readouterr().out
    pictures = []
    for name in ("bright", "dark"):
        assert cli.run(["generate", "run", "-n", "4", "--condition", name, "--out", "x.png", "--cpu"]) == 0
        pictures.append(Path("x.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert cli.run(["reconstruct", "run", "--out", "y.png", "--cpu"]) == 0
