"""`vae-fast explore` without its page: what a scene shows and does is what the functions give, and its port."""

from __future__ import annotations

import io
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from vae_fast import cli
from vae_fast.cli import explore
from vae_fast.cli.trained import Run
from vae_fast.explore.scene import STEPS, Point, Scene
from vae_fast.training import HubVAE, checkpoint, data, inference, labels, tables
from vae_fast.training.errors import TrainingError

DIGITS = data.load("digits")


def scene_of(folder: Path, source: str | None = "digits", /, **config: object) -> Scene:
    """Of a model whose weights are drawn, and whose latents 3, 5, ... vary little."""
    folder.mkdir()
    torch.manual_seed(0)
    model = HubVAE(**{"shape": (8, 8), "hidden": (16,), **config})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
        *_, last = (p for p in model.encoder.parameters() if p.ndim == 2)
        last[3::2] *= 1e-4
    checkpoint.save_model(model, folder)
    return Scene(Run(folder, source, cpu=True))


def test_a_click_decodes_the_nearest_sample_and_of_two_latents_the_point(tmp_path: Path) -> None:
    scene, plane = scene_of(tmp_path / "many", latent=8), scene_of(tmp_path / "two", latent=2)
    mu, logvar = scene.model.encode(DIGITS.test)
    kl = vae_kl(mu, logvar)
    used = inference.used_dims(scene.model, inference.batches(DIGITS))
    assert 0 < len(used) < 8 and scene.in_use == len(used) and set(scene.dims[: len(used)]) == set(used)
    assert scene.dims[: len(used)] == sorted(used, key=lambda d: -kl[d])
    assert all(span >= mu[:, d].abs().max() for d, span in enumerate(scene.spans))

    points = inference.embedding(mu.detach())
    assert scene.map is not None and not scene.map.is_latent
    x, y = (points[17] + 1e-4).tolist()
    found = scene.at(x, y, None)
    assert found.number == 17
    torch.testing.assert_close(found.z, mu[17:18].detach())
    assert scene.place(found) == pytest.approx(points[17].tolist())
    assert scene.place(scene.zero(None)) is None
    known = labels.find(DIGITS, "digits")
    assert known is not None and found.name == f"test sample 17, label {known[17]}"
    start, end = scene.two()
    assert known[start.number] != known[end.number]

    found = plane.at(0.25, -1.5, None)
    assert found.z.tolist() == [[0.25, -1.5]] and plane.place(found) == (0.25, -1.5)


def vae_kl(mu: torch.Tensor, logvar: torch.Tensor) -> list[float]:
    return (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).mean(0).tolist()


def test_samples_as_pictures_tables_and_files(tmp_path: Path) -> None:
    scene = scene_of(tmp_path / "run", latent=8)
    drawn = scene.draw(5, None)
    want = scene.model.generate(1, generator=torch.Generator().manual_seed(5))
    samples = scene.decode(drawn.z)
    torch.testing.assert_close(samples, want)
    np.testing.assert_array_equal(np.load(io.BytesIO(scene.file(samples))), samples.numpy())
    way = scene.between(drawn, scene.zero(None), spherical=False)
    torch.testing.assert_close(way[0], drawn.z[0])
    one, row = (
        Image.open(io.BytesIO(scene.picture(s, "title") or b"")) for s in (samples, scene.decode(way))
    )
    assert one.width > 336 and row.width > STEPS * 72 and row.height < 150
    strong = scene.towards(drawn, "4", 3.0)
    torch.testing.assert_close((strong[-1] - strong[0]) / 3, scene.run.direction("4", None))


def test_a_curve_keeps_its_scale_while_a_slider_moves(tmp_path: Path) -> None:
    scene = scene_of(tmp_path / "run", None, shape=(40,), likelihood="gaussian", latent=3)
    quiet, loud = (scene.decode(torch.full((1, 3), value)) for value in (0.0, 50.0))
    before = scene.picture(quiet, "a")
    assert scene.picture(quiet / 2, "a") != before  # drawn smaller, not on a scale of its own
    scene.picture(loud, "a")
    assert scene.picture(quiet, "a") != before


def test_a_model_without_data_and_one_of_a_table(tmp_path: Path) -> None:
    columns = [
        tables.Column("size", "gaussian", mean=10.0, deviation=2.0).to_dict(),
        tables.Column("kind", "bernoulli", values=("a<b", "c")).to_dict(),
    ]
    scene = scene_of(tmp_path / "table", None, shape=(2,), columns=columns, latent=3)
    assert "training.safetensors" in (scene.missing or "") and scene.map is None and scene.dims == [0, 1, 2]
    assert all(point.number is None for point in scene.two())
    samples = scene.decode(scene.draw(0, None).z)
    header, rows = scene.table(samples)
    assert header == ["size", "kind"] and float(rows[0][0]) == pytest.approx(10 + 2 * samples[0, 0].item())
    assert scene.suffix == ".csv" and scene.file(samples).decode().splitlines() == [
        "size,kind",
        ",".join(rows[0]),
    ]
    assert scene.picture(samples, "") is None

    counts = scene_of(
        tmp_path / "counts", None, shape=(50,), likelihood="poisson", latent=3, conditions=("p", "q")
    )
    z = torch.ones(2, 3)
    means = counts.decode(z, 1)
    torch.testing.assert_close(means, counts.model.decode(z, condition=torch.tensor([1, 1])).detach())
    header, rows = counts.table(means)
    assert header[0] == f"feature {means[0].argmax()}" and len(header) == len(rows[0]) == 20
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "cells.h5ad", "w") as file:  # as AnnData writes it
        file["X"] = np.random.default_rng(0).poisson(1.0, (20, 50)).astype(np.float32)
        file["var/gene"] = [f"GENE{i}" for i in range(50)]
        file["var"].attrs["_index"] = "gene"
    cells = scene_of(tmp_path / "cells", str(tmp_path / "cells.h5ad"), shape=(50,), likelihood="poisson")
    means = cells.decode(cells.sample(3).z, None)
    assert cells.table(means)[0][0] == f"GENE{means[0].argmax()}"
    assert isinstance(counts.two()[0], Point) and counts.two()[0].condition == 0


def test_ports_and_a_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind((explore.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(explore, "PORT", port)
        assert explore.free_port() > port
        with pytest.raises(TrainingError, match=f"port {port} is taken: give --port another"):
            explore.check_free(port)
    assert explore.check_free(port) == port
    monkeypatch.setitem(sys.modules, "panel", None)
    assert cli.run(["explore", str(tmp_path)]) == 1
    assert re.fullmatch(r"vae-fast: .*pip install 'vae_fast\[explore\]'\n", capsys.readouterr().err)
