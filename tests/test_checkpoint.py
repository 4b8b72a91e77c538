"""Checkpoints: they come back the same, survive a kill at any moment, and a damaged one is one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from conftest import HANG
from vae_fast.nn import files
from vae_fast.training import CheckpointError, HubVAE, Recipe, checkpoint, load_model, save_model


def make(**config: Any) -> HubVAE:
    torch.manual_seed(0)
    return HubVAE(**{"shape": (4, 3), "hidden": (8,), "latent": 2, **config})


def trained(model: HubVAE) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(torch.rand((6, 4, 3))).loss.backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden": (8, 5), "beta": 0.5, "clamp": (-4.0, 2.0), "num_samples": 3},
        {"likelihood": "gaussian", "variance": "learned"},
        {"likelihood": "gaussian", "variance": 0.25},
        {"likelihood": "gaussian", "variance": "decoder", "architecture": "conv", "shape": (3, 9, 7)},
        {"architecture": "resnet", "shape": (3, 9), "dims": 1, "blocks": 2, "hidden": (4, 6)},
        {"hidden": np.array([8, 5]), "latent": np.int64(3), "clamp": (np.float32(-4), np.float32(2))},
        {
            "likelihood": "gaussian",
            "variance": np.float32(0.25),
            "beta": np.float32(0.5),
            "num_samples": np.int64(3),
        },
    ],
    ids=["bernoulli", "options", "learned", "fixed", "conv", "resnet", "numpy sizes", "numpy numbers"],
)
def test_model_comes_back(tmp_path: Path, config: dict[str, Any]) -> None:
    model = make(**config)
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert not back.training
    assert back.config == model.config
    assert (back.beta, back.clamp, back.num_samples) == (model.beta, model.clamp, model.num_samples)
    for (name, a), (_, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    x, state = torch.rand((5, *model.shape)), torch.tensor([1, 2])
    assert torch.equal(model(x, rng_state=state).loss, back(x, rng_state=state).loss)


def test_hub_folders_are_understood_both_ways(tmp_path: Path) -> None:
    model = make(likelihood="gaussian", variance="learned")
    save_model(model, tmp_path / "ours") if (tmp_path / "ours").mkdir() is None else None
    model.save_pretrained(tmp_path / "theirs")
    z = torch.rand((3, 2))
    want = model.decode(z)
    assert torch.equal(HubVAE.from_pretrained(tmp_path / "ours").decode(z), want)
    assert torch.equal(HubVAE.from_pretrained(tmp_path / "theirs").decode(z), want)
    assert torch.equal(load_model(tmp_path / "theirs").decode(z), want)


def test_weights_carry_their_config(tmp_path: Path) -> None:
    """A kill between the two files leaves new weights beside an old config.json."""
    save_model(make(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(make(latent=7).config))
    assert load_model(tmp_path).config["latent"] == 2


def test_state_comes_back(tmp_path: Path) -> None:
    model = make()
    optimizer = trained(model)
    checkpoint.save_state(tmp_path, model, optimizer, {"epoch": 3})
    other = make()
    other_optimizer = torch.optim.Adam(other.parameters(), fused=True)
    checkpoint.load_state(tmp_path, other, other_optimizer)
    assert checkpoint.read_progress(tmp_path) == {"epoch": 3}
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert (
            optimizer.state[p].keys() == other_optimizer.state[q].keys() == {"step", "exp_avg", "exp_avg_sq"}
        )
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other_optimizer.state[q][key]), key


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    """The config.json of a folder whose weights do not carry one."""

    def damage(folder: Path) -> None:
        model = make()
        checkpoint.save_tensors(folder / "model.safetensors", model.state_dict(), {})
        config = {**model.config, **changes}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))

    return damage


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None  # type: ignore[return-value]


def _cut(fraction: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])

    return damage


def _without_config(then: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        _edit_config()(folder)
        then(folder)

    return damage


def _other_weights(folder: Path) -> None:
    checkpoint.save_tensors(
        folder / "model.safetensors", {"w": torch.ones(3)}, {"config": json.dumps(make().config)}
    )


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
    "empty weights": (_cut(0), "truncated or damaged"),
    "weights cut in the header": (_cut(0.2), "truncated or damaged"),
    "weights cut in the middle": (_cut(0.6), "truncated or damaged"),
    "weights without their end": (_cut(0.999), "truncated or damaged"),
    "weights of text": (
        _write("model.safetensors", b"hello, this is no safetensors file"),
        "truncated or damaged",
    ),
    "weights of zeros": (_write("model.safetensors", bytes(5000)), "truncated or damaged"),
    "a folder for weights": (
        lambda folder: (folder / "model.safetensors").unlink() or (folder / "model.safetensors").mkdir(),  # type: ignore[func-returns-value]
        "truncated or damaged",
    ),
    "other weights": (_other_weights, "weights do not fit the config"),
    "other sizes": (_edit_config(latent=5), "weights do not fit the config"),
    "no config": (_without_config(lambda folder: (folder / "config.json").unlink()), "holds no config.json"),
    "config cut": (_without_config(_write("config.json", b'{"shape": [4,')), "is not the config"),
    "config of bytes": (_without_config(_write("config.json", b"\xff\xfe\x00")), "cannot be read"),
    "config a list": (_without_config(_write("config.json", b"[1, 2]")), "is not the config"),
    "config unknown key": (_edit_config(colour="red"), "is not the config"),
    "config no shape": (_edit_config(shape="gone"), "is not the config"),
    "config bad shape": (_edit_config(shape="big"), "is not the config"),
    "config negative": (_edit_config(latent=-3), "is not the config"),
    "config bad name": (_edit_config(likelihood="cauchy"), "is not the config.*cauchy"),
    "config conv shape": (_edit_config(architecture="conv", shape=[12]), "is not the config"),
}


@pytest.mark.parametrize(("damage", "match"), BAD.values(), ids=BAD)
def test_bad_checkpoint_is_one_line(tmp_path: Path, damage: Callable[[Path], None], match: str) -> None:
    save_model(make(), tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read_progress(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.999])
def test_bad_state_is_one_line(tmp_path: Path, fraction: float) -> None:
    model = make()
    checkpoint.save_state(tmp_path, model, trained(model), {"epoch": 1})
    path = tmp_path / checkpoint.STATE
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    for read in (
        lambda: checkpoint.read_progress(tmp_path),
        lambda: checkpoint.load_state(tmp_path, model, None),
    ):
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read()
    save_model(model, tmp_path)
    (tmp_path / checkpoint.MODEL).rename(path)
    with pytest.raises(CheckpointError, match="holds no training state"):
        checkpoint.read_progress(tmp_path)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"hidden": []}, {"lr": "fast"}, {"lr": -1.0}, {"seed": -1}])
def test_bad_recipe_is_one_line(bad: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="recipe"):
        Recipe.from_dict({**Recipe().to_dict(), **bad})


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.replace_bytes(path, b"old")

    def fail(new: Path) -> None:
        new.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.replace_file(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from vae_fast.training import CheckpointError, HubVAE, load_model, save_model
folder = Path(sys.argv[1])
old, new = HubVAE((40, 30), hidden=(50,)), HubVAE((40, 30), hidden=(50,))
save_model(old, folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow beyond: as on a full disk
try:
    save_model(new, folder)
except CheckpointError as error:
    print(error)
assert torch.equal(load_model(folder).encoder[1].weight, old.encoder[1].weight)
print(sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    error, names = run.stdout.splitlines()
    assert "model.safetensors: cannot be written" in error
    assert names == "['config.json', 'model.safetensors']"


KILLS = 12
KILLED_RUNS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
import torch._dynamo  # an optimizer imports it, and that takes seconds: once, before the forks
torch.set_num_threads(1)
from vae_fast.training import Recipe, Trainer, checkpoint, load_model
from vae_fast.training.callbacks import Checkpoints
from vae_fast.training.data import Dataset
images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8))
recipe = Recipe(epochs=10_000, batch_size=16, evaluate_every=1, hidden=(300,))  # most of its time goes into writing
folder, random_ = Path(sys.argv[1]), random.Random(0)
last = kills = torn = 0
while kills < int(sys.argv[2]) or not torn:  # goes on until one is killed in the midst of writing
    child = os.fork()
    if child == 0:
        trainer = Trainer(recipe, Dataset("random", images[:32], images[32:]), callbacks=[Checkpoints(folder, 0.0)])
        if kills:
            trainer.resume(folder)
        trainer.fit()
    while not (folder / checkpoint.STATE).exists() or checkpoint.read_progress(folder)["epoch"] <= last:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.01)
    time.sleep(random_.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    torn += any(name.endswith(".new") for name in os.listdir(folder))
    load_model(folder)
    epoch = checkpoint.read_progress(folder)["epoch"]
    assert epoch > last, (epoch, last)
    last = epoch
checkpoint.remove_leftovers(folder)
assert len(os.listdir(folder)) == 4, os.listdir(folder)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_runs_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED_RUNS, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr


def test_content_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(fd: int) -> None:
        events.append("fsync")
        fsync(fd)

    def recorded_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    save_model(make(), tmp_path)
    assert events[:2] == ["fsync", "rename"]
    assert events.count("rename") == 2
