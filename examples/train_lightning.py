"""A VAE of scikit-learn's digits with Lightning: bfloat16, accumulated gradients, a checkpoint after every epoch.

    python examples/train_lightning.py 4     and again with 8 epochs, which resumes

A resumed run has the weights of one that was never interrupted, bit for bit: the states of the generators of noise and
shuffling, which Lightning's checkpoints have not, go along in them.
"""

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from vae_fast.nn import VAE, MLPDecoder, MLPEncoder


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vae = VAE(MLPEncoder(64, 128, 8), MLPDecoder(8, 128, 64))
        self.order = torch.Generator().manual_seed(0)

    def train_dataloader(self) -> DataLoader:
        data = torch.tensor(load_digits().data / 16).float()
        return DataLoader(data, 128, shuffle=True, generator=self.order)

    def training_step(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae(x).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def generators(self) -> list[torch.Generator]:
        gpu = self.trainer.strategy.root_device.index  # None on a CPU
        return [self.order, torch.default_generator if gpu is None else torch.cuda.default_generators[gpu]]

    def on_save_checkpoint(self, checkpoint: dict[str, list[torch.Tensor]]) -> None:
        checkpoint["generators"] = [g.get_state() for g in self.generators()]

    def on_load_checkpoint(self, checkpoint: dict[str, list[torch.Tensor]]) -> None:
        for generator, state in zip(self.generators(), checkpoint["generators"], strict=True):
            generator.set_state(state.cpu())


def train(epochs: int, folder: Path, **options: object) -> VAE:
    lightning.seed_everything(0)
    options |= {"precision": "bf16-mixed", "accumulate_grad_batches": 2}
    options["callbacks"] = ModelCheckpoint(folder, save_last=True)
    module = Digits()
    lightning.Trainer(max_epochs=epochs, **options).fit(module, ckpt_path="last", weights_only=True)
    return module.vae


if __name__ == "__main__":
    train(int(sys.argv[1]) if sys.argv[1:] else 4, Path("digits-lightning"))
