"""Each person's way from a file to the answer, by the commands of docs/tutorials on small files."""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("accelerate")
pytest.importorskip("pandas")
pytest.importorskip("scipy")
pytest.importorskip("h5py")

import h5py
import pandas as pd
import scipy.sparse
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from command import ordinary_process
from conftest import load
from vae_fast import cli
from vae_fast.training import data, load_model

ROOT = Path(__file__).parent.parent
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.no_poison


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which scripts extend
    yield from ordinary_process(monkeypatch)


def call(line: str) -> None:
    assert cli.run(line.split()) == 0, line


def array(line: str) -> np.ndarray:
    """What the command writes."""
    call(f"{line} --out values.npy")
    return np.load("values.npy")


def write_idx(path: Path, x: np.ndarray) -> None:
    path.write_bytes(bytes([0, 0, 8, x.ndim]) + np.array(x.shape, ">u4").tobytes() + x.tobytes())


def test_images_with_labels(capsys: Capture) -> None:
    """MNIST's four files, of smaller digits."""
    digits = load_digits()
    images, y = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.uint8)
    Path("mnist").mkdir()
    for name, part in (("train", slice(0, 1400)), ("t10k", slice(1400, None))):
        write_idx(Path(f"mnist/{name}-images-idx3-ubyte"), images[part])
        write_idx(Path(f"mnist/{name}-labels-idx1-ubyte"), y[part])
    call("train --data mnist --epochs 40 --batch-size 70 --lr 3e-3 --hidden 128 --latent 6 --out run")
    capsys.readouterr()
    call("evaluate run --draws 20 --json")
    found = json.loads(capsys.readouterr().out)
    assert found["nll"] < -found["elbo"] < 25.5  # of the mean image: 26.8
    assert found["active_units"] >= 4

    call("encode run --part all")
    latents = np.load("run/latents.npz")
    assert latents["labels"].tolist() == y.astype(str).tolist()
    neighbours = KNeighborsClassifier(5).fit(latents["mu"][:1400], y[:1400])
    assert neighbours.score(latents["mu"][1400:], y[1400:]) > 0.85

    judge = LogisticRegression(C=0.1, max_iter=200).fit(images[:1400].reshape(-1, 64) / 255, y[:1400])
    steered = array("steer run --label 0 -n 60 --strength 2")
    of_column = [(judge.predict(steered[:, c].reshape(-1, 64)) == 0).mean() for c in (0, 3, 6)]
    assert of_column[0] < 0.1 and of_column[2] > 0.8 and sorted(of_column) == of_column

    way = array("interpolate run --between 3,8 --between 5,20 --steps 12")
    ends = array("reconstruct run --only 3,8,5,20")
    np.testing.assert_allclose(way[:, [0, -1]].reshape(ends.shape), ends, rtol=1e-4, atol=1e-5)
    steps = np.abs(np.diff(way, axis=1)).mean((2, 3))
    assert (steps.max(1) < 0.5 * np.abs(way[:, 0] - way[:, -1]).mean((1, 2))).all()
    changed = array("traverse run --sample 3").reshape(-1, 9, 64)
    assert len(changed) == found["active_units"] and (np.ptp(changed, axis=1).max(1) > 0.3).all()
    call("embed run")
    assert Path("run/embedding.png").exists()


def test_faces_in_two_latents() -> None:
    """A spot whose place is two numbers, in place of a face: two latents are a map of the places."""
    rng = np.random.default_rng(0)
    place, noise = rng.uniform(0.25, 0.75, (900, 2)), 0.04
    rows, columns = np.mgrid[0:12, 0:10] / 12
    far = (rows - place[:, :1, None]) ** 2 + (columns - 0.8 * place[:, 1:, None]) ** 2
    x = 0.15 + 0.7 * np.exp(-far / 0.05) + noise * rng.normal(size=far.shape)
    np.savez("faces.npz", data=np.rint(255 * x.clip(0, 1)).astype(np.uint8).reshape(900, 120))
    options = "--likelihood gaussian --variance learned --latent 2 --hidden 128 --batch-size 60 --lr 3e-3"
    call(f"train --data faces.npz --shape 12,10 {options} --epochs 70 --out run")
    mu = array("encode run --part all")
    known = KNeighborsRegressor(8).fit(mu[:600], place[:600])
    assert known.score(mu[600:], place[600:]) > 0.9  # R squared
    deviation = float((load_model("run").likelihood.logvar.detach() / 2).exp())
    assert noise < deviation < 2 * noise
    shown = array("manifold run -n 12")
    assert shown.shape == (12, 12, 12, 10)
    neighbours = [np.abs(np.diff(shown[1:-1, 1:-1], axis=axis)).mean() for axis in (0, 1)]
    across = [np.abs(np.take(shown, 1, axis) - np.take(shown, -2, axis)).mean() for axis in (0, 1)]
    assert max(neighbours) < 0.3 * min(across) and min(across) > 0.05
    drawn = array("reconstruct run --only 5 --sample")
    assert 0.5 * noise < (drawn - array("reconstruct run --only 5")).std() < 2.5 * noise


def test_cells_with_batches() -> None:
    example = load(ROOT / "examples" / "single_cell.py")
    counts, kind, batch = example.simulate(1000, 150)
    with h5py.File("cells.h5ad", "w") as file:
        matrix, group = scipy.sparse.csr_matrix(counts.astype(np.float32)), file.create_group("X")
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"} | {"shape": counts.shape}
        )
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        names = h5py.string_dtype()
        file["obs/type"], file["obs/batch"] = (np.char.mod("%d", v).astype(names) for v in (kind, batch))
    options = "--batch-norm --dropout 0.1 --hidden 128 --latent 10 --batch-size 200 --lr 3e-3 --epochs 80"
    call(f"train --data cells.h5ad --likelihood negative_binomial --batch-key batch {options} --out run")
    call("encode run --part all --labels type")
    latents = np.load("run/latents.npz")
    assert latents["labels"].tolist() == kind.astype(str).tolist()
    call("encode run --out cells_z.h5ad")
    with h5py.File("cells_z.h5ad") as file:
        mu = file["obsm/X_vae"][:]
    np.testing.assert_allclose(mu, latents["mu"], rtol=1e-5, atol=1e-6)
    of_types, of_batches = example.clusters(mu, kind, batch)
    assert of_types > 0.7 and abs(of_batches) < 0.05


def test_table_with_faults_and_gaps(capsys: Capture) -> None:
    made = load(ROOT / "scripts" / "tutorial_data.py")
    table, whole = made.machines(2000), made.machines(2000, missing=0)
    table.to_csv("machines.csv", index=False)
    options = "--columns machine:skip --columns state:skip --columns alarms:poisson --hidden 64,64 --latent 4"
    call(
        f"train --data machines.csv {options} --batch-size 200 --lr 5e-3 --epochs 70 --kl-warmup 30 --out run"
    )
    capsys.readouterr()
    call("score run --part all --labels state --anomalies fault")
    assert float(capsys.readouterr().out.split()[1]) > 0.75
    scores = pd.read_csv("run/scores.csv")
    assert scores.label.tolist() == table.state.tolist() and Path("run/roc.png").exists()
    assert (table.state[scores.score.nlargest(30).index] == "fault").mean() > 0.35  # by chance 0.03

    call("reconstruct run --part all --fill --out filled.csv")
    filled, ok = pd.read_csv("filled.csv"), table.state == "ok"
    for name in ("temperature", "current", "speed"):
        gap, numbers = table[name].isna(), table[name].astype(float)
        np.testing.assert_allclose(filled[name][~gap], numbers[~gap], rtol=1e-5, atol=1e-5)
        truth = whole[name].astype(float)[gap & ok]
        assert (filled[name] - truth).std() < 0.6 * (numbers.mean() - truth).std()
    gap = table["mode"].isna()
    right = filled["mode"][gap] == whole["mode"][gap]
    assert right.mean() > 0.1 + table["mode"].value_counts(normalize=True).max()


def test_clicks() -> None:
    """Items that were clicked on and not shown are found, better than by what all users click on."""
    made, metrics = (load(ROOT / path) for path in ("scripts/tutorial_data.py", "examples/train_multvae.py"))
    clicked, seen, hidden = made.held_out(made.clicks(1500, 200), 300)
    for name, part in (("clicks", clicked), ("seen", seen)):
        scipy.sparse.save_npz(f"{name}.npz", part)
    options = "--likelihood multinomial --beta 0.2 --dropout 0.5 --hidden 64 --latent 12"
    call(f"train --data clicks.npz {options} --batch-size 100 --lr 3e-3 --epochs 40 --out run")
    scores = array("reconstruct run --data seen.npz --part all")
    popular = np.repeat(np.asarray(clicked.mean(0)), 300, 0)
    has_both = (np.diff(seen.indptr) > 0) & (np.diff(hidden.indptr) > 0)
    held_out = torch.from_numpy(hidden.toarray()[has_both]).float()
    found = []
    for each in (scores, popular):
        each[seen.nonzero()] = -1
        found.append(metrics.metrics(torch.from_numpy(each[has_both]).float(), held_out, ks=(20,)))
    assert all(found[0][name] > 1.15 * found[1][name] for name in ("Recall@20", "NDCG@100")), found


def test_sounds() -> None:
    """A folder for each pitch: latents tell the pitches apart, and a generated sound is one of them."""
    rate, pitches = 8000, (500, 1000, 2000)
    rng, time = np.random.default_rng(0), np.arange(2400) / 8000
    for pitch in pitches:
        Path(f"tones/{pitch}").mkdir(parents=True)
        for i in range(40):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.97, 1.03) * time) * rng.uniform(0.3, 1)
            x = tone + 0.01 * rng.normal(size=len(time))
            with wave.open(f"tones/{pitch}/{i}.wav", "wb") as file:
                file.setparams((1, 2, rate, 0, "NONE", ""))
                file.writeframes((x * 2**14).astype(np.int16).tobytes())
    options = "--likelihood gaussian --variance learned --hidden 64 --latent 3 --batch-size 24 --lr 3e-3"
    call(f"train --data tones {options} --epochs 30 --out run")
    call("encode run --part all")
    latents = np.load("run/latents.npz")
    neighbours = KNeighborsClassifier(3).fit(latents["mu"][::2], latents["labels"][::2])
    assert neighbours.score(latents["mu"][1::2], latents["labels"][1::2]) > 0.9
    call("reconstruct run --only 0,8,16")
    for i, label in enumerate(np.load("run/latents.npz")["labels"][data.split_rows("", 120)[1]][[0, 8, 16]]):
        with wave.open(f"run/reconstructed/{i}-reconstruction.wav") as file:
            given_back = np.frombuffer(file.readframes(2400), np.int16)
        loudest = np.abs(np.fft.rfft(given_back)).argmax() * rate / len(given_back)
        assert abs(loudest / int(label) - 1) < 0.1


def test_lines() -> None:
    """Words of two syllables out of four each: new ones are of these letters in this order, and mostly such words."""
    syllables = ["ba", "du", "ki", "so"]
    words = [a + b + c for a in syllables for b in syllables for c in syllables] * 8
    Path("words.txt").write_text("\n".join(np.random.default_rng(0).permutation(words)) + "\n")
    options = "--hidden 48 --latent 10 --batch-size 32 --lr 5e-3 --epochs 30 --objective free_bits"
    call(f"train --data words.txt {options} --out run")
    call("generate run -n 100 --out new.txt")
    made = Path("new.txt").read_text().split()
    assert np.mean([word in words for word in made]) > 0.5 and len(set(made)) > 20
    call("reconstruct run --out back.txt")
    pairs = [line.split("\t") for line in Path("back.txt").read_text().splitlines()]
    right = np.mean([a == b for line in pairs for a, b in zip(*line, strict=False)])
    assert len(pairs) == 102 and right > 0.7  # of the letters; by chance 0.25
