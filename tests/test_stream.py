"""Dense samples read by chunks: the samples, checks and notes of memory, in bounded memory, the same bits again."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")

from accelerate import Accelerator

from command import QUICK, ordinary_process
from streamed_run import train
from vae_fast import cli
from vae_fast.training import (
    DataError,
    Recipe,
    Trainer,
    TrainingError,
    checkpoint,
    data,
    graph,
    images,
    memory,
    optimization,
    stream,
)
from vae_fast.training.stream import HostSamples, StreamedSamples

N = 50
GREY = np.random.default_rng(0).integers(0, 256, (N, 6, 5), np.uint8)


@pytest.fixture(autouse=True)
def small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """13 chunks, 5 pools."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stream, "CHUNK_ROWS", 4)
    monkeypatch.setattr(stream, "POOL_CHUNKS", 3)
    yield from ordinary_process(monkeypatch)


def save(array: np.ndarray) -> str:
    np.save("x.npy", array)
    return "x.npy"


def save_npz(**arrays: np.ndarray) -> str:
    np.savez("x.npz", **arrays)
    return "x.npz"


def save_idx(array: np.ndarray, code: int, name: str = "x-idx3-ubyte") -> str:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    Path(name).write_bytes(head + array.tobytes())
    return name


def save_mnist() -> str:
    Path("mnist").mkdir()
    save_idx(GREY, 8, "mnist/train-images-idx3-ubyte")
    save_idx(GREY[::-1], 8, "mnist/t10k-images-idx3-ubyte")
    return "mnist"


def save_h5ad(array: np.ndarray) -> str:
    h5py = pytest.importorskip("h5py")
    with h5py.File("x.h5ad", "w") as file:
        file["X"] = array
    return "x.h5ad"


def real(dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, 30)).astype(dtype)


def whole(dtype: Any, most: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(-most, most, (N, 30)).astype(dtype)


BITS = np.packbits(GREY.reshape(N, 30) > 99, axis=1)
# name: what writes it, and the shape that it is read as
SOURCES: dict[str, tuple[Callable[[], str], tuple[int, ...] | None]] = {
    "uint8": (lambda: save(GREY), None),
    "dark uint8": (lambda: save(GREY // 9), None),
    "uint8 bits": (lambda: save(GREY & 1), None),
    "bool": (lambda: save(GREY > 99), None),
    "packed bits": (lambda: save(BITS), (6, 5)),
    "channels last": (lambda: save(np.stack([GREY, GREY, 255 - GREY], -1)), None),
    "channels last float64": (lambda: save(GREY[..., None] / 255), (6, 5)),
    "float32": (lambda: save(real("f4")), (1, 30)),
    "float16": (lambda: save(real("f2")), None),
    "big-endian float64": (lambda: save(real(">f8")), None),
    "int8": (lambda: save(whole("i1")), None),
    "large int64": (lambda: save(whole("i8", 1 << 30)), None),
    "idx of floats": (lambda: save_idx(real(">f4"), 0x0D), None),
    "idx of int16": (lambda: save_idx(whole(">i2"), 0x0B), None),
    "mnist": (save_mnist, None),
    "npz of parts": (lambda: save_npz(x_train=GREY, x_test=GREY[:9], x_val=GREY[9:20], y_train=GREY[0]), None),
    "npz": (lambda: save_npz(x=real("f8")), None),
    "h5ad": (lambda: save_h5ad(real("f4")), None),
}  # fmt: skip


@pytest.mark.parametrize(("write", "shape"), SOURCES.values(), ids=SOURCES)
def test_samples_are_those_in_memory(write: Callable[[], str], shape: tuple[int, ...] | None) -> None:
    source = write()
    loaded, streamed = data.load(source, stream=False), data.load(source, stream=True)
    if shape is not None:
        loaded, streamed = loaded.reshaped(shape), streamed.reshaped(shape)
    assert streamed.is_streamed and not loaded.is_streamed
    assert streamed.notes == loaded.notes
    assert streamed.shape == loaded.shape
    assert streamed.limits() == loaded.limits()
    assert streamed.has_fractions() == loaded.has_fractions()
    assert streamed.is_between_levels() == loaded.is_between_levels()
    assert streamed.dense.keys() == loaded.dense.keys()
    some = torch.tensor([7, 0, 7, 5])  # in no order, twice
    for name, part in loaded.dense.items():
        read = streamed.part(name)
        assert isinstance(read, StreamedSamples) and (read.shape, read.dtype) == (part.shape, part.dtype)
        for rows in (slice(None), slice(3, 8), slice(1, None, 7), slice(0)):
            assert torch.equal(read[rows], part[rows])
        assert torch.equal(read.index_select(0, some), part[some])


def save_images(**kinds: int) -> str:
    """A folder of images of each mode."""
    image = pytest.importorskip("PIL.Image")
    for mode, count in kinds.items():
        for i in range(count):
            path = Path("images", str(i % 2), f"{mode}{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            if mode == "I16":
                image.fromarray(GREY[i].astype(np.uint16) * 90).save(path)
            else:
                image.fromarray(GREY[i]).convert(mode).save(path)
    return "images"


IMAGES = (
    {"L": 9},
    {"RGB": 9},
    {"1": 9},
    {"L": 5, "RGB": 4},
    {"L": 5, "1": 4},
    {"L": 5, "I16": 4},
    {"RGBA": 5, "1": 4},
)


@pytest.mark.parametrize("kinds", IMAGES, ids=str)
def test_images_are_decoded_when_they_are_read(
    kinds: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_images(**kinds)
    loaded, streamed = data.load(source), data.load(source, stream=True)
    assert sorted(streamed.notes) == sorted(loaded.notes) and streamed.limits() == loaded.limits()
    assert streamed.labels.keys() == loaded.labels.keys() == {"train", "test"}
    decoded: list[Path] = []
    original = images._open
    monkeypatch.setattr(images, "_open", lambda path: decoded.append(path) or original(path))
    assert isinstance(streamed.test, StreamedSamples) and isinstance(loaded.test, Tensor)
    assert torch.equal(streamed.test[:], loaded.test)
    assert len(decoded) == len(loaded.test)  # and none between them
    order, found = epoch(streamed.train, 0, 3)
    assert isinstance(loaded.train, Tensor)
    assert all(torch.equal(a, loaded.train[i]) for a, i in zip(found, order, strict=True))
    assert streamed.train.dtype == loaded.train.dtype


def epoch(train: Any, seed: int, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    order = list(data.batches(len(train), batch_size, generator, train.pools(generator)))
    return order, [train.index_select(0, indices) for indices in order]


@pytest.mark.parametrize("batch_size", [7, 12, 29, 64])  # the last ones span several pools, and the set
def test_an_epoch_has_every_sample_once_in_shuffled_pools(batch_size: int) -> None:
    save(GREY)
    train = data.load("x.npy", stream=True).train
    assert isinstance(train, StreamedSamples)
    x = GREY[train.numbers]
    orders = []
    for seed in (0, 0, 1):
        order, found = epoch(train, seed, batch_size)
        assert all(np.array_equal(a, x[i]) for a, i in zip(found, order, strict=True))
        orders.append(torch.cat(order).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(40)) != orders[0]
    chunk_of = train.numbers[orders[0]] // 4
    first = {int(c) for c in chunk_of[: np.isin(train.numbers // 4, np.unique(chunk_of[:3])).sum()]}
    assert len(first) <= 3 and max(first) - min(first) > 2  # chunks from all over the file


def test_a_pool_is_read_ahead_into_two_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    save(GREY)
    train = data.load("x.npy", stream=True).train
    assert isinstance(train, StreamedSamples)
    read: list[list[int]] = []
    original = stream.RowReader._read_pool

    def watched(self: Any, chunks: np.ndarray, slot: int) -> Tensor:
        read.append(chunks.tolist())
        return original(self, chunks, slot)

    monkeypatch.setattr(train.reader.reader, "_read_pool", lambda *args: watched(train.reader, *args))
    order = data.batches(40, 5, None, train.pools(None))
    for step, indices in enumerate(order):
        train.index_select(0, indices)
        train.reader.reader._thread.submit(int).result()  # what was asked of the thread before is done
        if step == 0:
            assert len(read) == 2  # its own pool, and one ahead
            train[20:22]  # other samples meanwhile: neither read as a pool nor in its place
    assert [c for pool in read for c in pool] == list(range(13))
    assert {buffer.shape for buffer in train.reader._buffers.values()} == {(12, 6, 5)}
    assert len(train.reader._buffers) == 2


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "NaN in the last chunk": (lambda: save(np.where(np.arange(N)[:, None] < N - 1, real("f4"), np.nan)), "NaN or inf"),
    "beyond float32": (lambda: save(real("f8") * 1e200), "beyond float32"),
    "objects": (lambda: save(np.array([[{}]])), "Python objects"),
    "text": (lambda: save(np.array([["a"], ["b"]])), "expected numbers"),
    "one dim": (lambda: save(np.zeros(9)), "expected shape"),
    "empty": (lambda: save(np.zeros((0, 3))), "is empty"),
    "one sample": (lambda: save(np.zeros((1, 3))), "at least 2 samples"),
    "fortran": (lambda: save(np.asfortranarray(real("f4"))), "Fortran's order: numpy.ascontiguousarray"),
    "digits": (lambda: "digits", "are kept in memory"),
    "gz": (lambda: save_gz(), "is compressed: gunzip it"),
    "parts": (lambda: save_npz(train=GREY, test=GREY[:, 1:]), "expected test samples to have shape"),
}  # fmt: skip


def save_gz() -> str:
    import gzip

    Path("x-idx.gz").write_bytes(gzip.compress(Path(save_idx(GREY, 8)).read_bytes()))
    return "x-idx.gz"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("write", "match"), BAD.values(), ids=BAD)
def test_what_cannot_be_streamed_is_one_line(write: Callable[[], str], match: str) -> None:
    with pytest.raises(DataError, match=match):
        data.load(write(), stream=True)


def test_more_that_cannot_be_streamed() -> None:
    np.savez_compressed("x.npz", x=GREY)
    with pytest.raises(DataError, match="is compressed: numpy"):
        data.load("x.npz", stream=True)
    np.save("x.npy", BITS | 1)
    with pytest.raises(DataError, match="those after them are not 0"):
        data.load("x.npy", stream=True).reshaped((6, 5))
    np.save("x.npy", GREY)
    train = data.load("x.npy", stream=True).train
    with Path("x.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match="has become shorter"):
        train[:]
    with pytest.raises(DataError, match="truncated"):
        data.load("x.npy", stream=True)


def test_a_resumed_run_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is streamed since it does not fit; how it is read is part of the run, whatever fits later."""
    save(GREY)
    monkeypatch.setattr(memory, "available", lambda: 3 * GREY.nbytes - 1)
    command = ["train", "--data", "x.npy", *QUICK, "--evaluate-every", "1", "--out"]
    assert cli.run([*command, "whole", "--epochs", "3"]) == 0
    assert cli.run([*command, "half", "--epochs", "1"]) == 0
    monkeypatch.setattr(memory, "available", lambda: 3 * GREY.nbytes)
    assert cli.run(["train", "--resume", "--out", "half", "--epochs", "3"]) == 0
    assert cli.run([*command, "resident", "--epochs", "3"]) == 0
    repeated = ["train", "--data", "x.npy", "--config", "whole/config.toml", "--out", "repeated"]
    assert cli.run(repeated) == 0
    models = [
        (Path(run) / checkpoint.MODEL).read_bytes() for run in ("whole", "half", "repeated", "resident")
    ]
    assert models[0] == models[1] == models[2] != models[3]
    recipes = [checkpoint.read_progress(Path(run))["recipe"]["stream"] for run in ("half", "resident")]
    assert recipes == [True, False]
    assert cli.run(["reconstruct", "half", "-n", "3"]) == 0


def test_what_does_not_fit_is_streamed_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    save(real("f8"))
    needed = N * 30 * (8 + 4 + 4)  # the file's numbers, what is kept, a copy of it
    monkeypatch.setattr(memory, "available", lambda: needed)
    assert not data.load("x.npy").is_streamed
    monkeypatch.setattr(memory, "available", lambda: needed - 1)
    found = data.load("x.npy")
    assert found.is_streamed and "of memory 0 MB are free" in found.notes[-1]
    assert not data.load("x.npy", stream=False).is_streamed
    np.savez_compressed("x.npz", x=GREY)  # cannot be streamed, and is loaded as far as that goes
    assert not data.load("x.npz").is_streamed


def test_sparse_ones_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(N, 30, 0.2, "csr", "f4", 0)
    sparse.save_npz("x.npz", matrix, compressed=False)
    size = matrix.data.nbytes + matrix.indices.nbytes
    for free, is_streamed in ((size + 1000, False), (size - 1, True)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        found = data.load("x.npz")
        assert found.is_streamed == is_streamed == any(n.startswith("streamed") for n in found.notes)
        assert np.array_equal(found.test[:].to_dense(), matrix.toarray()[data.split_rows("", N)[1]])


def test_limits_of_control_groups(tmp_path: Path) -> None:
    new = tmp_path / "a/b"
    new.mkdir(parents=True)
    (new / "memory.max").write_text("max\n")
    (new.parent / "memory.max").write_text("1000\n")
    (new.parent / "memory.current").write_text("700\n")
    (new.parent / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    old = tmp_path / "memory/c"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("600\n")
    (old / "memory.usage_in_bytes").write_text("500\n")
    (old / "memory.stat").write_text("total_inactive_file 10\n")
    own = tmp_path / "own"
    for text, free in (("0::/a/b\n", 450), ("5:cpu,memory:/c\n", 110), ("0::/a/b\n4:memory:/c\n", 110)):
        own.write_text(text)
        assert min(memory._of_cgroups(tmp_path, own)) == free
    assert min(memory._of_cgroups(tmp_path, tmp_path / "none")) > 1e300


def test_samples_too_large_for_a_device_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device of no memory: torch's own copy to it is not tried here, which a GPU alone has."""
    save(GREY)
    dataset = data.load("x.npy")
    free = 2 * GREY.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    cuda = torch.device("cuda")
    assert memory.fits_on(cuda, GREY.nbytes) and not memory.fits_on(cuda, GREY.nbytes + 1)
    monkeypatch.setattr(memory, "fits_on", lambda device, size: size < GREY.nbytes)
    moved = dataset.to(torch.device("meta"))
    assert isinstance(moved.train, HostSamples) and moved.shape == dataset.shape
    batch = data.select(
        moved.train, torch.tensor([3, 1])
    )  # numbers that went to the device could not come back
    assert batch.device.type == "meta" and batch.shape == (2, 6, 5)
    assert torch.equal(moved.train.gather(torch.tensor([3, 1])), dataset.train[[3, 1]])  # type: ignore[index]
    assert moved.limits() == dataset.limits() and moved.train.pools(None) is None
    assert torch.equal(moved.to(torch.device("cpu")).test[2:4], dataset.test[2:4])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts memory on Linux alone")
def test_a_set_four_times_as_large_as_the_memory(tmp_path: Path) -> None:
    """The limit is of all memory of the process that is no file's page, beyond what it has taken before the data."""
    generator = np.random.default_rng(0)
    shapes, labels = generator.random((10, 256)) ** 3, generator.integers(0, 10, 31_250)
    some = (shapes[labels] * generator.uniform(0.5, 1, (31_250, 1)) * 255).astype(np.uint8)
    x, path, limit = np.tile(some, (16, 1)), tmp_path / "x.npy", 32 * 10**6
    np.save(path, x)
    assert x.nbytes == 4 * limit
    command = [sys.executable, str(Path(__file__).with_name("streamed_run.py")), str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "does not fit in memory: --stream" in found["refused"]
    assert found["is_streamed"] and any(n.startswith("streamed:") for n in found["notes"])
    assert found["seen"] == 490_000 and found["peak"] < limit
    resident = train(data.load(str(path), stream=False)).history[-1]["test_elbo"]
    assert found["elbo"] == pytest.approx(resident, rel=0.01)


def test_steps_of_a_graph_are_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graph that replays a function: what is copied into its inputs and out of its output, which steps it
    takes, which it leaves. The epochs' last batches, of 8, are none of its size."""
    save(GREY)
    dataset = data.load("x.npy")
    replayed = []

    def record(work: Callable[[], Tensor], stream: Any) -> tuple[Callable[[], None], Tensor]:
        output = torch.full((4,), torch.nan)

        def replay() -> None:
            replayed.append(output.copy_(work()))

        return replay, output

    monkeypatch.setattr(graph, "record", record)
    monkeypatch.setattr(graph, "warm_up", lambda work, stream: work())
    monkeypatch.setattr(graph, "check", lambda *args: None)
    options: dict[str, Any] = {
        "clip_grad": 0.1,
        "ema": 0.5,
        "lr_schedule": "cosine",
        "kl_warmup": 2.0,
        "dropout": 0.2,
    }
    rows = []
    for is_graph in (False, True):
        recipe = Recipe(batch_size=16, hidden=(8,), latent=2, epochs=3, cuda_graph=is_graph, **options)
        trainer = Trainer(recipe, dataset)
        trainer.fit()
        rows.append(([{**row, "seconds": 0} for row in trainer.history], trainer.result.state_dict()))
    assert len(replayed) == 3 * 2 - graph.WARM_UP
    assert rows[0][0] == rows[1][0]
    assert all(torch.equal(a, b) for a, b in zip(rows[0][1].values(), rows[1][1].values(), strict=True))


def test_what_no_graph_can_hold_is_one_line() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    graph.check(Recipe(mixed_precision="bf16"), gpu, 1, False)
    for args, match in (
        ((Recipe(), cpu, 1, False), "takes a CUDA device$"),
        ((Recipe(), gpu, 2, False), "takes one process$"),
        ((Recipe(mixed_precision="fp16"), gpu, 1, False), "fp16's scaler"),
        ((Recipe(accumulate=2), gpu, 1, False), "takes accumulate 1$"),
        ((Recipe(), gpu, 1, True), "takes dense samples"),
    ):
        with pytest.raises(TrainingError, match=match):
            graph.check(*args)
    save(GREY)
    with pytest.raises(TrainingError, match="--cuda-graph takes a CUDA device"):
        Trainer(Recipe(cuda_graph=True, epochs=1), data.load("x.npy"), accelerator=Accelerator(cpu=True))


def test_the_learning_rate_of_a_recorded_step() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    rate = torch.tensor(0.0)
    optimizer = torch.optim.SGD([weight], lr=rate)
    optimization.set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate and rate == 0.25
