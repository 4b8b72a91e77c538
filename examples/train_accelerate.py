"""A VAE of scikit-learn's digits with Accelerate: bfloat16, accumulated gradients, a checkpoint after every epoch.

    python examples/train_accelerate.py 4             and again with 8 epochs, which resumes
    accelerate launch examples/train_accelerate.py 4  on several GPUs: each process has a noise of its own

A resumed run has the weights of one that was never interrupted, bit for bit: save_state keeps the state of torch's
generator, which the noise comes from, and the seedable sampler shuffles by seed and epoch.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from vae_fast.nn import VAE, MLPDecoder, MLPEncoder


class Progress:
    epochs = 0

    def state_dict(self) -> dict[str, int]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epochs = state["epochs"]


def train(epochs: int, folder: Path) -> VAE:
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    options = {"mixed_precision": "bf16", "gradient_accumulation_steps": 2, "dataloader_config": loading}
    accelerator = Accelerator(**options)
    set_seed(0)
    data = DataLoader(torch.tensor(load_digits().data / 16, dtype=torch.float32), 128, shuffle=True)
    model = VAE(MLPEncoder(64, 128, 8), MLPDecoder(8, 128, 64))
    optimizer, progress = torch.optim.Adam(model.parameters(), lr=1e-3), Progress()
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    accelerator.register_for_checkpointing(progress)
    if folder.exists():
        accelerator.load_state(str(folder))
    for epoch in range(progress.epochs, epochs):
        data.set_epoch(epoch)
        for x in data:
            with accelerator.accumulate(model):
                loss = model(x).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.2f}")
        progress.epochs = epoch + 1
        accelerator.save_state(str(folder))
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    train(int(sys.argv[1]) if sys.argv[1:] else 4, Path("digits-accelerate"))
