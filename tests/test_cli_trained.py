"""The commands for a trained model: what they write and print is what the functions give for the model."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import vae_fast

pytest.importorskip("typer")
pytest.importorskip("accelerate")

import typer.main
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from command import save_digits_run
from conftest import HANG
from vae_fast import cli, nn
from vae_fast.cli.app import app
from vae_fast.training import HubVAE, data, inference, labels, load_model, pictures

Capture = pytest.CaptureFixture[str]
DIGITS = data.load("digits")
X = DIGITS.test
LABELS = load_digits().target[data.split_rows("digits", 1797)[1]].astype(str)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on digits and two latents."""
    folder = tmp_path_factory.mktemp("run")
    save_digits_run(folder)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> HubVAE:
    return load_model(run)


@pytest.fixture(scope="module")
def mu(model: HubVAE) -> Tensor:
    return model.encode(X)[0].detach()


def call(*arguments: object) -> None:
    assert cli.run([str(a) for a in arguments]) == 0, arguments


def values(run: Path, command: str, *arguments: object) -> np.ndarray:
    """What the command writes to a .npy."""
    call(command, run, *arguments, "--out", run / "values.npy")
    return np.load(run / "values.npy")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_decoded(got: np.ndarray, model: HubVAE, z: Tensor) -> None:
    want = model.decode(z.flatten(0, 1)).detach().unflatten(0, z.shape[:2]).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_evaluate(run: Path, model: HubVAE, capsys: Capture) -> None:
    call("evaluate", run, "--draws", 7, "--seed", 3, "--json")
    found = json.loads(capsys.readouterr().out)
    want = nn.evaluate(model, [X], 7, generator=generator(3))
    for name in ("elbo", "nll", "rate", "distortion"):
        assert found[name] == pytest.approx(getattr(want, name), rel=1e-6), name
    assert found["kl_per_dimension"] == pytest.approx(want.kl_per_dimension.tolist(), rel=1e-6)  # type: ignore[union-attr]
    assert (found["active_units"], found["samples"], found["draws"]) == (want.active_units, len(X), 7)
    call("evaluate", run, "--draws", 7, "--seed", 3)
    table = capsys.readouterr().out
    assert f"ELBO          {want.elbo:.2f} nats/image\n" in table
    assert f"-log p(x)     {want.nll:.2f}, " in table
    assert f"{want.active_units} of 2 latent dimensions" in table
    call("evaluate", run, "--draws", 2, "--part", "train", "--json")
    assert json.loads(capsys.readouterr().out)["samples"] == len(DIGITS.train)


def test_score(run: Path, model: HubVAE, capsys: Capture) -> None:
    for kind in ("elbo", "reconstruction", "iwae"):
        call("score", run, "--score", kind, "--draws", 3, "--seed", 5)
        want = nn.anomaly_score(model, X, kind, 3, generator=generator(5))
        with (run / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        np.testing.assert_allclose([float(row["score"]) for row in rows], want, rtol=1e-6)
        assert [row["label"] for row in rows] == LABELS.tolist()
        assert [row["sample"] for row in rows] == [str(i) for i in range(len(X))]
        threshold = float(capsys.readouterr().out.split()[1].rstrip(":"))
        assert np.mean(want.numpy() > threshold) == pytest.approx(0.05, abs=0.005)
    call("score", run, "--anomalies", "0", "--anomalies", "7")
    scores = nn.anomaly_score(model, X, generator=generator(0)).numpy()
    is_anomaly = np.isin(LABELS, ["0", "7"])
    printed = capsys.readouterr().out
    assert f"AUROC        {roc_auc_score(is_anomaly, scores):.4f}\n" in printed
    found = inference.detection(torch.from_numpy(scores), torch.from_numpy(is_anomaly))
    is_above = scores >= found.threshold
    assert (is_above[is_anomaly].mean(), is_above[~is_anomaly].mean()) == (found.found, found.false_alarms)
    gains = [np.mean(scores[is_anomaly] >= t) - np.mean(scores[~is_anomaly] >= t) for t in scores]
    assert found.found - found.false_alarms == pytest.approx(max(gains))
    assert f"threshold    {found.threshold:.4f}: at or above it are {found.found:.1%} of" in printed
    assert printed.endswith(f"written      {run / 'scores.csv'}, {run / 'roc.png'}\n")
    pictures.save_roc(run / "want.png", torch.from_numpy(scores), torch.from_numpy(is_anomaly), found)
    assert (run / "roc.png").read_bytes() == (run / "want.png").read_bytes()
    (run / "roc.png").unlink()
    call("score", run, "--anomalies", "0", "--out", run / "zeros.csv")
    assert (run / "zeros_roc.png").exists() and not (run / "roc.png").exists()


def test_an_epoch_of_a_run_has_the_run_s_data(run: Path, capsys: Capture) -> None:
    """A folder that --save-every leaves holds a model alone."""
    folder = run / "epoch-2"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, folder)
    shutil.copytree(run, own := run.parent / "epoch-9")  # a run of this name
    printed = []
    for place in (run, folder, own):
        call("evaluate", place, "--draws", 2)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]


def test_threshold_of_scores_that_are_worse_than_chance() -> None:
    found = inference.detection(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([False, False, True]))
    assert found == (0.0, 1.0, 1.0, 1.0)


def test_encode(run: Path, model: HubVAE, mu: Tensor) -> None:
    call("encode", run, "--draws", 2, "--seed", 4)
    saved = np.load(run / "latents.npz")
    np.testing.assert_allclose(saved["mu"], mu, rtol=1e-5, atol=1e-6)
    logvar = model.encode(X)[1].detach()
    np.testing.assert_allclose(saved["logvar"], logvar, rtol=1e-5, atol=1e-6)
    want = vae_fast.reparameterize(mu, logvar, num_samples=2, generator=generator(4)).movedim(0, 1)
    np.testing.assert_allclose(saved["z"], want, rtol=1e-4, atol=1e-5)
    assert saved["labels"].tolist() == LABELS.tolist()
    np.testing.assert_array_equal(values(run, "encode"), saved["mu"])
    np.testing.assert_array_equal(values(run, "encode", "--draws", 2, "--seed", 4), saved["z"])
    call("encode", run, "--draws", 2, "--seed", 4, "--out", run / "latents.csv")
    with (run / "latents.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["sample", "label", "mu_0", "mu_1", "z0_0", "z0_1", "z1_0", "z1_1"]
    numbers = np.array([row[2:] for row in rows[1:]], np.float32)
    np.testing.assert_array_equal(numbers, np.concatenate([saved["mu"], *saved["z"].swapaxes(0, 1)], 1))
    assert [row[1] for row in rows[1:]] == LABELS.tolist()


def test_grids(run: Path, model: HubVAE, mu: Tensor, capsys: Capture) -> None:
    """Every panel is the decoded latent that belongs there, of every command that draws a grid."""
    pairs = ["--between", "3,5", "--between", "7,2"]
    way = nn.interpolate(mu[[3, 7]], mu[[5, 2]], 4)
    assert_decoded(values(run, "interpolate", *pairs, "--steps", 4), model, way.movedim(0, 1))
    round_way = nn.interpolate(mu[[3, 7]], mu[[5, 2]], 4, spherical=True)
    assert (round_way - way).abs().max() > 0.1
    spherical = values(run, "interpolate", *pairs, "--steps", 4, "--spherical")
    assert_decoded(spherical, model, round_way.movedim(0, 1))
    zero = values(run, "traverse", "--steps", 3, "--span", 2)
    assert_decoded(zero, model, torch.tensor([[[-2.0, 0], [0, 0], [2, 0]], [[0, -2], [0, 0], [0, 2]]]))
    one = values(run, "traverse", "--sample", 6, "--dims", "1", "--steps", 3)
    assert_decoded(one, model, nn.traverse(mu[6:7], [1], steps=3))

    train_mu = model.encode(DIGITS.train)[0].detach()
    is_three = torch.from_numpy(load_digits().target[data.split_rows("digits", 1797)[0]] == 3)
    direction = train_mu[is_three].mean(0) - train_mu[~is_three].mean(0)
    others = mu[torch.from_numpy(LABELS != "3")][:4]
    steered = torch.stack([others, others + 0.75 * direction, others + 1.5 * direction], 1)
    got = values(run, "steer", "--label", 3, "-n", 4, "--strength", 1.5, "--steps", 3)
    assert_decoded(got, model, steered)

    grid = values(run, "manifold", "-n", 3)
    q = 0.967421566101701  # where the normal's distribution function is 5/6
    rows = [[[x, y] for x in (-q, 0.0, q)] for y in (q, 0.0, -q)]
    assert_decoded(grid, model, torch.tensor(rows))
    capsys.readouterr()
    call("manifold", run, "-n", 3)
    assert capsys.readouterr().out == f"{run / 'manifold.png'}\n"
    title = "3 x 3 latents at the prior's quantiles: the first grows to the right, the second upwards"
    pictures.save_grid(run / "want.png", torch.from_numpy(grid).flatten(0, 1), 3, title)
    assert (run / "manifold.png").read_bytes() == (run / "want.png").read_bytes()


def test_traverse_leaves_out_dims_that_are_not_used(model: HubVAE, tmp_path: Path) -> None:
    """Where the data is not known, all are drawn."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.encoder[-1].weight[0] = 0  # mu of dim 0
    model.save_pretrained(tmp_path)
    assert len(values(tmp_path, "traverse", "--steps", 3)) == 2
    only = values(tmp_path, "traverse", "--steps", 3, "--data", "digits")
    assert_decoded(only, model, torch.tensor([[[0.0, -3], [0, 0], [0, 3]]]))
    with torch.no_grad():
        model.encoder[-1].weight[1] = 0
    assert inference.used_dims(model, inference.batches(DIGITS)) == [0, 1]


def test_embed(run: Path, mu: Tensor, capsys: Capture) -> None:
    np.testing.assert_allclose(values(run, "embed"), mu, rtol=1e-5, atol=1e-6)  # two latents are a map
    call("embed", run)
    assert (run / "embedding.png").read_bytes().startswith(b"\x89PNG")
    assert "warning" not in capsys.readouterr().err
    wide = torch.randn(50, 4, generator=generator(0)) * torch.tensor([1.0, 5.0, 0.1, 3.0])
    wide[:, 1] += torch.arange(50) % 2 * 40  # two clusters
    centred = wide - wide.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
    found = inference.embedding(wide, "pca")
    torch.testing.assert_close(found.abs(), (centred @ axes.T).abs(), rtol=1e-4, atol=1e-4)
    with threadpool_limits(1):  # of a thousand tiny steps, for which threads wait longer than they take
        found = inference.embedding(wide, "tsne")
    near = torch.cdist(found, found).fill_diagonal_(torch.inf).argmin(1)
    assert bool((near % 2 == torch.arange(50) % 2).all())


def test_generate_with_temperature_and_sample(run: Path, model: HubVAE) -> None:
    cold = values(run, "generate", "-n", 5, "--temperature", 0.3, "--seed", 2)
    np.testing.assert_array_equal(cold, model.generate(5, temperature=0.3, generator=generator(2)))
    drawn = values(run, "generate", "-n", 5, "--sample", "--seed", 2)
    np.testing.assert_array_equal(drawn, model.generate(5, sample=True, generator=generator(2)))
    assert set(np.unique(drawn)) <= {0, 1}


def test_reconstruct_chosen_samples_and_draws(run: Path, model: HubVAE, mu: Tensor) -> None:
    chosen = [30, 2, 2]
    means = values(run, "reconstruct", "--only", "30,2,2")
    np.testing.assert_allclose(means, model.decode(mu[chosen]).detach(), rtol=1e-5, atol=1e-6)
    some = values(run, "reconstruct", "--sample-z", "--seed", 2, "--only", "30,2,2")
    z = vae_fast.reparameterize(*model.encode(X[chosen]), generator=generator(2))
    np.testing.assert_allclose(some, model.decode(z).detach(), rtol=1e-4, atol=1e-6)
    drawn = values(run, "reconstruct", "--sample", "--seed", 2, "-n", 200)
    assert set(np.unique(drawn)) == {0, 1}
    assert abs(drawn - model.reconstruct(X[:200]).numpy()).mean() < 0.35
    assert abs(drawn.mean(0) - model.reconstruct(X[:200]).mean(0).numpy()).max() < 0.15
    call("reconstruct", run, "--only", "5", "--sample", "--seed", 2)
    pictures.save_reconstructions(run / "want.png", model, X[5:6], sample=True, generator=generator(2))
    assert (run / "reconstructed.png").read_bytes() == (run / "want.png").read_bytes()
    assert len(values(run, "reconstruct")) == len(X)


def test_part_all_is_in_the_order_of_the_file(run: Path, model: HubVAE, tmp_path: Path) -> None:
    """Where train and test are files of their own, train comes first."""
    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    want = model.encode(images)[0].detach()
    call("encode", run, "--part", "all")
    saved = np.load(run / "latents.npz")
    np.testing.assert_allclose(saved["mu"], want, rtol=1e-5, atol=1e-6)
    assert saved["labels"].tolist() == digits.target.astype(str).tolist()
    last = values(run, "reconstruct", "--part", "all", "--only", "1796")
    np.testing.assert_allclose(last, model.decode(want[-1:]).detach(), rtol=1e-5, atol=1e-6)
    y = digits.target
    np.savez(tmp_path / "a.npz", x_train=images[:9], y_train=y[:9], x_test=images[9:12], y_test=y[9:12])
    call("encode", run, "--data", tmp_path / "a.npz", "--part", "all")
    saved = np.load(run / "latents.npz")
    np.testing.assert_allclose(saved["mu"], want[:12], rtol=1e-5, atol=1e-6)
    assert saved["labels"].tolist() == y[:12].astype(str).tolist()


# What is in the .npz; from where each part's samples, and so its labels, are: "split" ones of the name are split.
NPZ_LABELS: dict[str, dict[str, str]] = {
    "x y": {"split": "x"},
    "x_test y_test": {"split": "x_test"},
    "x_val y_val": {"split": "x_val"},
    "x_train y": {"split": "x_train"},
    "images y_test": {"split": "images"},
    "arr_0 labels": {"split": "arr_0"},
    "x_train y_train x_test y_test": {"train": "x_train", "test": "x_test"},
    "x_train y_train x_val y_val": {"train": "x_train", "test": "x_val"},
    "x y x_test y_test": {"train": "x", "test": "x_test"},
    "x_train y_train x_test y_test x_val y_val": {"train": "x_train", "test": "x_test", "valid": "x_val"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("names", NPZ_LABELS)
def test_labels_in_an_npz(names: str, stream: bool, tmp_path: Path) -> None:
    """Each sample's label is its own number, whatever the arrays are called; read by chunks too."""
    arrays: dict[str, np.ndarray] = {}
    numbers = np.arange(0)
    for start, name in enumerate(names.split()):
        if name.startswith(("y", "labels")):
            arrays[name] = numbers.astype(float)[:, None]
        else:
            numbers = 100 * start + np.arange(20)
            arrays[name] = np.repeat(numbers[:, None], 4, 1).astype(np.float32)
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = data.load(str(tmp_path / "a.npz"), stream=stream)
    sources = NPZ_LABELS[names]
    assert dataset.parts.keys() == (sources if "split" not in sources else {"train": 0, "test": 0}).keys()
    for part in dataset.parts:
        x = dataset.part(part)[:][:, 0].int()
        found = labels.find(dataset, str(tmp_path / "a.npz"), part)
        assert found is not None and found.tolist() == [str(n) for n in x.tolist()], part
        assert set(x.tolist()) <= set(arrays[sources.get("split") or sources[part]][:, 0].astype(int))


def test_labels_beside_one_idx_file(tmp_path: Path) -> None:
    """Of a test part that comes alone, which is split, and of a train part in a folder without a test part."""

    def save(name: str, values: np.ndarray) -> None:
        sizes = struct.pack(f">{values.ndim}I", *values.shape)
        (tmp_path / name).write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())

    for sub, prefix, path in (("a", "t10k", "a/t10k-images-idx3-ubyte"), ("b", "train", "b")):
        (tmp_path / sub).mkdir()
        images = np.repeat(np.arange(30, dtype=np.uint8), 4).reshape(30, 2, 2) + np.uint8(100)
        save(f"{sub}/{prefix}-images-idx3-ubyte", images)
        save(f"{sub}/{prefix}-labels-idx1-ubyte", images[:, 0, 0])
        dataset = data.load(str(tmp_path / path))
        for part in ("train", "test"):
            found = labels.find(dataset, str(tmp_path / path), part)
            assert found is not None and found.tolist() == [
                str(x) for x in dataset.part(part)[:, 0, 0].tolist()
            ]


def test_labels(tmp_path: Path) -> None:
    """Those that come with the data, and those of a file: of the part's samples or of all."""
    images = np.arange(20 * 4, dtype=np.float32).reshape(20, 2, 2) / 100
    y = np.array([f"{i}" for i in range(20)])
    np.savez(tmp_path / "a.npz", x=images, y=y)
    np.save(tmp_path / "b.npy", images)
    np.save(tmp_path / "y.npy", np.arange(20.0))
    (tmp_path / "y.txt").write_text("".join(f"{i}\n" for i in range(20)))
    for name, file in (("a.npz", None), ("b.npy", tmp_path / "y.npy"), ("b.npy", tmp_path / "y.txt")):
        dataset = data.load(str(tmp_path / name))
        for part, x in (("train", dataset.train), ("test", dataset.test)):
            found = labels.find(dataset, str(tmp_path / name), part, file)
            assert found is not None
            assert found.tolist() == [f"{round(v * 25)}" for v in x[:, 0, 0].tolist()]  # type: ignore[index]
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "c.h5ad", "w") as file:
        file["X"], file["obs/number"] = images.reshape(20, 4), y.astype(bytes)
    dataset = data.load(str(tmp_path / "c.h5ad"))
    found = labels.find(dataset, str(tmp_path / "c.h5ad"), "test", "number")
    assert found is not None and found.tolist() == [f"{round(v * 25)}" for v in dataset.test[:, 0].tolist()]  # type: ignore[index]
    assert labels.find(dataset, str(tmp_path / "c.h5ad"), "all", "number").tolist() == y.tolist()  # type: ignore[union-attr]
    pytest.importorskip("pandas")
    lines = [f"{i},{i / 7},{['bad', 'good'][i % 2]}\n" for i in range(20)]
    (tmp_path / "d.csv").write_text("".join(["a,b,state\n", *lines]))
    dataset = data.load(str(tmp_path / "d.csv"))
    for column, want in (("state", ["bad", "good"] * 10), ("a", y.tolist())):
        for part, rows in zip(("train", "test"), data.split_rows("d", 20), strict=True):
            found = labels.find(dataset, str(tmp_path / "d.csv"), part, column)
            assert found is not None and found.tolist() == [want[i] for i in rows]
    with pytest.raises(data.DataError, match=r"expected --labels to be a column \(a, b, state\), but got c"):
        labels.find(dataset, str(tmp_path / "d.csv"), "test", "c")
    dataset = data.load(str(tmp_path / "b.npy"))
    assert labels.find(dataset, str(tmp_path / "b.npy")) is None
    np.save(tmp_path / "four.npy", np.array(["a", "b", "b", "c"]))
    found = labels.find(dataset, str(tmp_path / "b.npy"), "test", tmp_path / "four.npy")
    assert found is not None and found.tolist() == ["a", "b", "b", "c"]
    parts = {
        "train-images": images,
        "t10k-images": images[:3],
        "train-labels": y,
        "t10k-labels": y[:3] + y[:3],
    }
    for name, array in parts.items():
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        kind = f"idx{array.ndim}-ubyte"
        content = (
            array.astype(np.float32).astype(np.uint8) if array.dtype.kind == "U" else array.astype(np.uint8)
        )
        (tmp_path / f"{name}-{kind}").write_bytes(header + content.tobytes())
    source = str(tmp_path / "train-images-idx3-ubyte")
    found = labels.find(data.load(source), source)
    assert found is not None and found.tolist() == ["0", "11", "22"]


ERRORS = {
    "sample": (
        ["interpolate", "--between", "0,400"],
        "expected numbers of test samples, 0 to 358, but got 400",
    ),
    "chosen": (["reconstruct", "--only", "3,359"], "expected numbers of test samples, 0 to 358, but got 359"),
    "chosen and first": (["reconstruct", "--only", "3", "-n", "1"], "give one of them"),
    "pair": (["interpolate", "--between", "0"], "'0' is not two samples' numbers like 0,1"),
    "dimension": (["traverse", "--dims", "2"], "expected --dims to be less than 2"),
    "span": (["traverse", "--span", "inf"], "expected --span to be finite, but got -inf, inf"),
    "temperature": (["generate", "--temperature", "inf"], "inf is not finite"),
    "strength": (
        ["steer", "--label", "4", "--strength", "nan"],
        "expected --strength to be finite, but got nan",
    ),
    "label": (["steer", "--label", "ten"], "digits: no sample of the train part has the label ten"),
    "no label": (["steer"], "Missing option"),
    "anomaly": (["score", "--anomalies", "ten"], "digits: no sample has the label ten"),
    "labels": (["score", "--labels", "no.npy"], "no.npy: cannot be read: No such file or directory"),
    "umap": (["embed", "--method", "umap"], "umap is not installed: pip install umap-learn"),
    "kind of picture": (
        ["manifold", "--out", "a.jpeg"],
        "expected --out to be a name that ends in .png or .npy",
    ),
    "kind of latents": (["encode", "--out", "a.txt"], "to be a name that ends in .npz, .csv, .npy or .h5ad"),
    "picture's size": (["manifold", "-n", "999"], "expected rows times columns to be at most"),
    "folder": (
        ["score", "--out", "no/such.csv"],
        "no/such.csv: cannot be written (No such file or directory)",
    ),
    "condition": (["manifold", "--condition", "a"], "expected --condition to be one of nothing"),
}


@pytest.mark.parametrize(("arguments", "line"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(
    run: Path, capsys: Capture, arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert cli.run([arguments[0], str(run), *arguments[1:]]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vae-fast: ") and captured.err.count("\n") == 1
    assert line in captured.err


def test_manifold_takes_two_latents() -> None:
    with pytest.raises(
        inference.TrainingError, match=r"expected a model of two latent dimensions .*, but got 3"
    ):
        inference.manifold(HubVAE((4,), latent=3))


def test_version_module_and_completion(capsys: Capture) -> None:
    call("--version")
    assert capsys.readouterr().out == f"vae-fast {vae_fast.__version__}\n"
    names = typer.main.get_command(app).commands.keys()  # type: ignore[attr-defined]
    code = "import os, runpy, sys; sys.argv = ['vae-fast']; runpy.run_module('vae_fast', run_name='__main__')"
    completing = {"_VAE_FAST_COMPLETE": "complete_bash", "COMP_WORDS": "vae-fast e", "COMP_CWORD": "1"}
    process = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ.update({completing!r}); {code}"],
        capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert process.stdout.split() == [name for name in names if name.startswith("e")], process.stderr
