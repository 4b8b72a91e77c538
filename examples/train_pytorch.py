"""A VAE of scikit-learn's digits in plain PyTorch: bfloat16, accumulated gradients, a checkpoint after every epoch.

    python examples/train_pytorch.py 4       and again with 8 epochs, which resumes

A resumed run has the weights of one that was never interrupted, bit for bit: shuffling and noise come from one
generator, whose state is in the checkpoint.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from vae_fast.nn import VAE, MLPDecoder, MLPEncoder

BATCH, ACCUMULATE = 128, 2


def train(epochs: int, checkpoint: Path) -> VAE:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = torch.tensor(load_digits().data / 16, dtype=torch.float32, device=device)
    torch.manual_seed(0)
    generator = torch.Generator(device).manual_seed(0)
    model = VAE(MLPEncoder(64, 128, 8), MLPDecoder(8, 128, 64)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        start = state["epochs"]
    for epoch in range(start, epochs):
        order = torch.randperm(len(data), generator=generator, device=device)
        batches = data[order].split(BATCH)
        for i, x in enumerate(batches, 1):
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(x, generator=generator).loss
            (loss / ACCUMULATE).backward()
            if i % ACCUMULATE == 0 or i == len(batches):
                optimizer.step()
                optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.2f}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"generator": generator.get_state(), "epochs": epoch + 1}
        new = checkpoint.with_suffix(".new")
        torch.save(state, new)
        new.replace(checkpoint)  # a run that is killed leaves a whole file
    return model


if __name__ == "__main__":
    train(int(sys.argv[1]) if sys.argv[1:] else 4, Path("digits.pt"))
