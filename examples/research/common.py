"""What the scripts of this folder share: options, data, a training loop that resumes.

DIR of --data has mnist/ (the four IDX files, gzipped), binarized_mnist/binarized_mnist_bits.npz (train, valid and test
of Larochelle's fixed binarization, 8 pixels a byte) and frey/freyfaces.npz (data: uint8, 1965 x 560). A script needs
only the part that it reads.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch


def options(doc, **defaults):
    """--data and --out, and an option for each default, of its type."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the data sets are")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/research"))
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser


def mnist(folder, part="train"):
    """Images (n, 784), float32 in [0, 1], and labels."""
    part = "t10k" if part == "test" else part
    images, labels = (
        np.frombuffer(
            gzip.decompress((folder / f"mnist/{part}-{name}-ubyte.gz").read_bytes()), np.uint8, -1, skip
        )
        for name, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return torch.tensor(images).view(-1, 784) / 255, torch.tensor(labels).long()


def binarized_mnist(folder, part="train"):
    """Bits (n, 784) as float32."""
    packed = np.load(folder / "binarized_mnist/binarized_mnist_bits.npz")[part]
    return torch.from_numpy(np.unpackbits(packed, axis=1)[:, :784]).float()


def frey(folder):
    """Images (1965, 560) of 28 x 20, float32 in [0, 1]."""
    return torch.from_numpy(np.load(folder / "frey/freyfaces.npz")["data"]).view(-1, 560) / 255


def train(model, x, optimizer, folder, epochs, batch, rate=None, loss=None, check=None, every=1):
    """Trains on x and writes folder/state.pt and folder/log.jsonl; called again, it goes on from there.

    Each epoch shuffles and draws by its own number, so that a resumed run is the run that was never interrupted.
    rate(epoch) is the learning rate. check(model), after every `every` epochs, gives a dict for the log; the weights of
    the largest "score" in it are those that the model has in the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, seconds, best = 0, 0.0, None
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds, best = state["epochs"], state["seconds"], state["best"]
    for epoch in range(done, epochs):
        torch.manual_seed(epoch)
        start, total = time.perf_counter(), 0.0
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch)
        for rows in torch.randperm(len(x)).split(batch):
            value = model(x[rows]).loss if loss is None else loss(model, x[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item() * len(rows)
        seconds += time.perf_counter() - start
        row = {"epoch": epoch + 1, "seconds": round(seconds, 1), "loss": total / len(x)}
        if check is not None and (epoch + 1) % every == 0:
            model.eval()
            with torch.no_grad():
                row |= check(model)
            model.train()
            if "score" in row and (best is None or row["score"] > best["score"]):
                best = {"score": row["score"], "epoch": epoch + 1, "model": clone(model.state_dict())}
        with (folder / "log.jsonl").open("a") as log:
            print(json.dumps(row), file=log)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
        torch.save(state | {"epochs": epoch + 1, "seconds": seconds}, folder / "state.new")
        (folder / "state.new").replace(folder / "state.pt")  # a run that is killed leaves a whole file
    if best is not None:
        model.load_state_dict(best["model"])
    return model.eval()


def clone(state):
    return {name: tensor.clone() for name, tensor in state.items()}
