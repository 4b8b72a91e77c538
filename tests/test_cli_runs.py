"""Which folder a run writes to and what is there after it: a second run, --resume, --overwrite, two runs at once, an
interrupt, a full disk, several processes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from command import COMMAND, QUICK, contents, ordinary_process, save_images
from conftest import HANG
from vae_fast import cli
from vae_fast.cli import train as train_command
from vae_fast.training import checkpoint, load_model
from vae_fast.training.checkpoint import PICTURES

Capture = pytest.CaptureFixture[str]
TRAIN = ["train", "--data", "tiny.npy", *QUICK]
WRITTEN = {"config.json", "config.toml", "loss.png", "metrics.csv", "model.safetensors"}
WRITTEN |= {"reconstructions.png", "samples.png", "training.safetensors"}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts in an empty folder with tiny.npy."""
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path)
    yield from ordinary_process(monkeypatch)


def run(*arguments: str) -> None:
    assert cli.run(list(arguments)) == 0, arguments


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def epoch_of(folder: str) -> int:
    return int(checkpoint.read_progress(Path(folder))["epoch"])


def test_second_run_takes_the_next_free_folder(capsys: Capture) -> None:
    run(*TRAIN)
    first = contents(Path("runs/tiny"))
    assert capsys.readouterr().out.startswith("a new run in runs/tiny/\n")
    run(*TRAIN, "--seed", "1")
    assert capsys.readouterr().out.startswith("a new run in runs/tiny-2/, runs/tiny/ is taken\n")
    assert contents(Path("runs/tiny")) == first
    assert contents(Path("runs/tiny-2")).keys() == WRITTEN
    shutil.rmtree("runs/tiny")
    Path("runs/tiny").write_text("a file of that name")
    run(*TRAIN)
    assert contents(Path("runs/tiny-3")).keys() == WRITTEN


def test_out_that_holds_a_run_is_refused(capsys: Capture) -> None:
    """And what the refusal names works."""
    run(*TRAIN, "--out", "mine")
    before = contents(Path("mine"))
    assert cli.run([*TRAIN, "--out", "mine"]) == 1
    line = "vae-fast: mine holds a run: --resume goes on with it, --overwrite replaces it\n"
    assert capsys.readouterr().err == line
    assert contents(Path("mine")) == before
    run("train", "--out", "mine", "--resume", "--epochs", "3")
    assert epoch_of("mine") == 3
    run(*TRAIN, "--out", "mine", "--overwrite", "--latent", "4")
    assert "a new run in mine/, in place of the one that is there" in capsys.readouterr().out
    assert epoch_of("mine") == 2
    assert load_model("mine").config["latent"] == 4


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "samples.png"])
def test_out_that_holds_a_file_of_a_run_is_refused(name: str, capsys: Capture) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("somebody's")
    Path("mine/notes.txt").write_text("somebody's")
    assert cli.run([*TRAIN, "--out", "mine"]) == 1
    line = f"vae-fast: mine holds {name}: --overwrite replaces what a run writes\n"
    assert capsys.readouterr().err == line
    run(*TRAIN, "--out", "mine", "--overwrite")
    assert contents(Path("mine")).keys() == {*WRITTEN, "notes.txt"}
    assert Path("mine/notes.txt").read_text() == "somebody's"


@pytest.mark.parametrize("way", [["--overwrite"], ["--resume", "--epochs", "3"]], ids=lambda way: way[0])
def test_no_old_picture_beside_a_new_model(way: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the new run ends before it draws."""
    run(*TRAIN)
    run("generate")
    run("reconstruct")
    assert contents(Path("runs/tiny")).keys() == {*WRITTEN, "generated.png", "reconstructed.png"}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command.callbacks, "draw", interrupt)
    assert cli.run([*(TRAIN if way == ["--overwrite"] else ["train"]), *way]) == 1
    assert not contents(Path("runs/tiny")).keys() & {*PICTURES}


def test_resume_overwrite_generate_and_reconstruct_without_a_folder(capsys: Capture) -> None:
    """The newest run, or the newest of --data; --overwrite replaces the plain name."""
    run(*TRAIN)
    run(*TRAIN)
    run("train", "--data", str(save_images(Path.cwd(), "other")), *QUICK)
    capsys.readouterr()
    run("train", "--resume", "--data", "tiny.npy", "--epochs", "3")
    assert capsys.readouterr().out.startswith("the run in runs/tiny-2/, the newest\n")
    assert [epoch_of(f"runs/{name}") for name in ("tiny", "tiny-2", "other")] == [2, 3, 2]
    run("generate", "-n", "3")
    run("reconstruct", "-n", "3")
    want = ["runs/tiny-2/generated.png", "runs/tiny-2/reconstructed.png"]
    assert capsys.readouterr().out.split() == want
    run("train", "--resume", "--out", "runs/other", "--epochs", "3")
    run("train", "--resume", "--epochs", "4")
    assert [epoch_of(f"runs/{name}") for name in ("tiny", "tiny-2", "other")] == [2, 3, 4]
    run(*TRAIN, "--overwrite", "--latent", "4")
    assert load_model("runs/tiny").config["latent"] == 4
    assert names("runs") == ["other", "tiny", "tiny-2"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["generate"], "runs/ holds no run here: train one, or name the folder of one"),
        (["reconstruct"], "runs/ holds no run here: train one, or name the folder of one"),
        (["train", "--resume"], "runs/ holds no run here: train one, or name the folder of one"),
        (
            ["train", "--resume", "--data", "x"],
            "runs/ holds no run of x here: train one, or name the folder of one",
        ),
        (
            ["train", "--resume", "--overwrite"],
            "--resume goes on with a run, --overwrite replaces it: give one of them",
        ),
    ],
)
def test_nothing_to_go_on_with(arguments: list[str], line: str, capsys: Capture) -> None:
    assert cli.run(arguments) == 1
    assert capsys.readouterr().err == f"vae-fast: {line}\n"
    run(*TRAIN, "--out", "mine")  # either way
    run("generate", "mine")
    run(*TRAIN)
    run("generate")


def test_resume_to_fewer_epochs_than_done(capsys: Capture) -> None:
    run(*TRAIN)
    before = contents(Path("runs/tiny"))
    assert cli.run(["train", "--resume", "--epochs", "1"]) == 1
    assert (
        capsys.readouterr().err
        == "vae-fast: expected --epochs to be at least 2, which the run in runs/tiny has done, but got 1\n"
    )
    assert contents(Path("runs/tiny")) == before


DIVERGING = ["--lr", "1e6", "--evaluate-every", "1"]


def test_diverged_run_says_what_is_on_disk(capsys: Capture) -> None:
    """Nothing, and then no folder; or the run that was to be replaced, whole."""
    error = "vae-fast: the loss is nan by epoch 1: a smaller --lr may help; "
    assert cli.run([*TRAIN, *DIVERGING]) == 1
    assert capsys.readouterr().err == f"{error}nothing was saved\n"
    assert names("runs") == []
    run(*TRAIN)
    before = contents(Path("runs/tiny"))
    assert cli.run([*TRAIN, *DIVERGING, "--overwrite"]) == 1
    assert capsys.readouterr().err == f"{error}runs/tiny/ still holds the run that was to be replaced\n"
    assert contents(Path("runs/tiny")) == before


@pytest.mark.parametrize("way", ["late", "resumed"])
def test_diverged_run_names_its_checkpoint(
    way: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train_command.Trainer._train_epoch

    def train_epoch(self: Any, epoch: int, totals: torch.Tensor) -> None:
        original(self, epoch, totals)
        if epoch == 3:
            totals += torch.nan

    monkeypatch.setattr(train_command.Trainer, "_train_epoch", train_epoch)
    if way == "late":  # a save after each evaluation
        monkeypatch.setattr(train_command.Checkpoints.__init__, "__defaults__", (0.0,))
        assert cli.run([*TRAIN, "--epochs", "9"]) == 1
        saved = 3
    else:
        run(*TRAIN)
        assert cli.run(["train", "--resume", "--epochs", "9"]) == 1
        saved = 2
    line = rf"vae-fast: the loss is nan by epoch 4: .*; runs/tiny/ holds the checkpoint of epoch {saved}\n"
    error = capsys.readouterr().err
    assert re.fullmatch(line, error), error
    assert epoch_of("runs/tiny") == saved
    load_model("runs/tiny")


def interrupted(arguments: list[str], until: Path) -> str:
    """The error line of a run that Ctrl-C ends once `until` is there."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background jobs, and all their children, ignore it otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + HANG
    while not until.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=HANG)
    assert process.returncode == 1, error
    return error


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_run_goes_on_as_it_says() -> None:
    """The line is pasted into a shell; the folder's name has a space."""
    long = [*TRAIN, "--epochs", "1000000", "--evaluate-every", "9", "--out", "my run"]
    error = interrupted(long, Path("my run") / checkpoint.METRICS)
    line = r"vae-fast: interrupted; (--resume --out 'my run') resumes from epoch (\d+) of 1000000\n"
    found = re.fullmatch(line, error)
    assert found, error
    assert epoch_of("my run") == int(found[2])
    run("train", *shlex.split(found[1]), "--epochs", str(int(found[2]) + 1))
    assert epoch_of("my run") == int(found[2]) + 1


def test_interrupted_before_the_first_checkpoint(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    run(*TRAIN)
    monkeypatch.setattr(train_command.Trainer, "_train_epoch", interrupt)
    line = "vae-fast: interrupted before the first checkpoint; "
    assert cli.run(TRAIN) == 1
    assert capsys.readouterr().err == f"{line}nothing was saved\n"
    assert names("runs") == ["tiny"]
    assert cli.run([*TRAIN, "--overwrite"]) == 1
    assert capsys.readouterr().err == f"{line}runs/tiny/ still holds the run that was to be replaced\n"
    assert epoch_of("runs/tiny") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_two_runs_at_once_do_not_share_a_folder(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train_command.Trainer.fit
    others = [TRAIN, [*TRAIN, "--out", "runs/tiny"], [*TRAIN, "--overwrite"], ["train", "--resume"]]

    def fit(self: Any) -> None:
        """Starts the other runs in the midst of the first."""
        monkeypatch.setattr(train_command.Trainer, "fit", original)
        original(self)
        assert [cli.run(other) for other in others] == [0, 1, 1, 0]

    monkeypatch.setattr(train_command.Trainer, "fit", fit)
    run(*TRAIN)
    assert epoch_of("runs/tiny") == epoch_of("runs/tiny-2") == 2
    busy = "runs/tiny: another process trains there; give --out another folder"
    holds = "runs/tiny holds a run: --resume goes on with it, --overwrite replaces it"
    assert capsys.readouterr().err.splitlines() == [f"vae-fast: {holds}", f"vae-fast: {busy}"]
    run(*TRAIN, "--out", "another")


FULL_DISK = """
import resource, sys
from accelerate.state import AcceleratorState
from vae_fast import cli
assert cli.run(sys.argv[2:]) == 0
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # no file may grow beyond: as on a full disk
AcceleratorState._reset_state(True)
sys.exit(cli.run([*sys.argv[2:], "--overwrite", "--latent", "4"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize(
    ("size", "file", "latent", "left", "state"),
    [
        (8_000, checkpoint.STATE, 3, WRITTEN, "still holds the run that was to be replaced"),
        (20_000, "loss.png", 4, WRITTEN - {*PICTURES}, "holds the checkpoint of epoch 2"),
    ],
    ids=["state", "pictures"],
)
def test_full_disk(size: int, file: str, latent: int, left: set[str], state: str) -> None:
    """What is written last is what is missing: pictures; the training state is refused before the old model is gone."""
    command = [sys.executable, "-c", FULL_DISK, str(size), *TRAIN, "--out", "mine"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith(f"vae-fast: mine/{file}: cannot be written (File too large)")
    assert process.stderr.endswith(f"; mine/ {state}\n"), process.stderr
    assert load_model("mine").config["latent"] == latent
    assert {*names("mine")} == left


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=HANG,
    )


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--master-addr", "127.0.0.1", "--master-port", port]
    return launch("torch.distributed.run", "--nproc-per-node", "2", *where, *command)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_two_processes_train_one_model() -> None:
    """On a machine without a GPU with and without --cpu; in a second folder, too."""
    Path("runs/tiny").mkdir(parents=True)
    process = torchrun("-m", "vae_fast.cli", *TRAIN, *(["--cpu"] if torch.accelerator.is_available() else []))
    assert process.returncode == 0, process.stderr
    assert "vae-fast:" not in process.stderr
    assert process.stdout.count("test ELBO  ") == 1
    assert ", 2 processes" in process.stdout
    progress = checkpoint.read_progress(Path("runs/tiny-2"))
    assert (progress["epoch"], progress["steps"]) == (2, 4)  # 32 samples in batches of 2 x 8
    load_model("runs/tiny-2")
    assert names("runs") == ["tiny", "tiny-2"]


ENDS = """
import torch
from pathlib import Path
from torch import distributed
from vae_fast.cli import run

destroy = distributed.destroy_process_group

def destroy_with_work_left(*args):
    for _ in range(300):  # the threads of Gloo are still at it, and free tensors when the group waits for them
        distributed.all_reduce(torch.ones(1000), async_op=True)
    destroy(*args)

distributed.destroy_process_group = destroy_with_work_left
assert run() == 0
names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
assert not any("gloo" in name for name in names), names
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the threads' names are read from /proc")
def test_the_process_group_ends() -> None:
    """It waits for its threads and not for ever: one that is left while the interpreter ends aborts the process, now
    and then; waited for under Python's lock it never ends."""
    Path("train.py").write_text(ENDS)
    process = torchrun("train.py", *TRAIN, *(["--cpu"] if torch.accelerator.is_available() else []))
    assert process.returncode == 0, process.stderr


WARNING = (
    "vae-fast: warning: {0} processes were asked for, this one trains alone; "
    "torchrun --nproc-per-node {1} -m vae_fast.cli train ... starts {1} that train together\n"
)


@pytest.mark.skipif(
    torch.accelerator.is_available(), reason="accelerate launch starts them where there is a GPU"
)
def test_accelerate_launch_starts_one_process_and_it_says_so() -> None:
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "bf16"]
    process = launch(*launcher, "-m", "vae_fast.cli", *TRAIN)
    assert process.returncode == 0, process.stderr
    assert WARNING.format("several", "N") in process.stderr
    assert "cpu, bf16; fused" in process.stdout  # the launcher's precision
    assert checkpoint.read_progress(Path("runs/tiny"))["recipe"]["mixed_precision"] == "bf16"


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "4"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "several"),
        ({"MASTER_ADDR": "127.0.0.1"}, None),
        ({"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, None),
    ],
    ids=str,
)
def test_a_launcher_that_promised_more(
    environment: dict[str, str], asked: str | None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run(*TRAIN)
    number = "N" if asked == "several" else asked
    assert capsys.readouterr().err == (WARNING.format(asked, number) if asked else "")
