"""The training loop. Accelerate places it: devices, processes, mixed precision."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..backends.reference.rng import draw_rng_state, state_of_part
from . import checkpoint, data, divergence
from .config import Recipe
from .errors import CheckpointError, DivergenceError, TrainingError, is_out_of_memory
from .model import HubVAE

if TYPE_CHECKING:
    from .callbacks import Callback

Row = dict[str, float]


def make_accelerator(recipe: Recipe, cpu: bool = False) -> Accelerator:
    """The devices and processes. Where there is no GPU, Accelerate joins the processes of a launcher only if it is told
    to stay on the CPU: otherwise each would train by itself."""
    cpu = cpu or not torch.accelerator.is_available()
    if recipe.mixed_precision == "fp16" and cpu:
        raise TrainingError("mixed precision is fp16, which takes a GPU; bf16 runs on a CPU, too")
    if torch.distributed.is_available():
        # DistributedDataParallel imports it. Its functions' default argument is the process group at the time of the
        # import: imported later they keep the group past destroy_process_group, and a thread of Gloo's that still
        # frees a tensor when the interpreter ends aborts the process ("terminate called without an active exception").
        from torch.distributed.nn import functional  # noqa: F401
    return Accelerator(mixed_precision=recipe.mixed_precision, cpu=cpu)


class Trainer:
    """Trains a HubVAE as a recipe says: Adam, batches shuffled anew in every epoch, evaluation on the test part.

    All randomness comes from the recipe's seed and the epoch's number, so that a resumed run is the same as one that
    was never interrupted. Several processes share each batch, its noise and its loss, so that their number changes
    nothing but rounding. Nothing waits for the device but the evaluations.

    Attributes for callbacks: recipe, model, dataset, accelerator, epoch (finished ones), steps, seconds (of training
    alone), history (a row for each evaluation).
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: data.Dataset,
        *,
        callbacks: Sequence[Callback] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        if recipe.likelihood == "discretized_logistic_mixture" and len(dataset.shape) == 2:
            dataset = dataset.reshaped((1, *dataset.shape))  # grey images are of one channel
        if dataset.columns:
            recipe = replace(recipe, likelihood="mixed_columns")
        recipe = replace(recipe, stream=dataset.is_streamed)  # a resumed run shuffles in the same way
        self.recipe = recipe
        self.accelerator = accelerator or make_accelerator(recipe)
        device = self.accelerator.device
        self.dataset = dataset.to(device)
        torch.manual_seed(recipe.seed)
        self.model = self._make_model(dataset)
        data.check_support(dataset, self.model.likelihood.support, recipe.likelihood)
        self.model.validate = False  # all of the data have just been looked at
        self._try_batch(dataset)
        try:
            for part in self.dataset.dense_parts[:1]:
                self.model.likelihood.start(part)
        except ValueError as error:
            raise TrainingError(f"{dataset.name}: {error}") from None
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=recipe.lr, fused=device.type in ("cpu", "cuda")
        )
        self._wrapped: Any
        self._wrapped, self._optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.callbacks = tuple(callbacks)
        self.epoch, self.steps, self.seconds = 0, 0, 0.0
        self.history: list[Row] = []

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def images(self) -> int:
        """Training samples seen, by all processes."""
        return self.epoch * max(self.recipe.batch_size, len(self.dataset.train))

    def fit(self) -> None:
        """Trains from the last finished epoch to the recipe's last."""
        self._call("on_start")
        self.model.train()
        totals, start = self._totals(), time.perf_counter()
        for epoch in range(self.epoch, self.recipe.epochs):
            self._train_epoch(epoch, totals)
            self.epoch = epoch + 1
            if self.recipe.is_evaluated(self.epoch):
                nll, kl = self._means(totals)  # waits for the device
                self.seconds += time.perf_counter() - start
                self._record(nll, kl)
                totals, start = self._totals(), time.perf_counter()
        self._call("on_end")

    def evaluate(self) -> tuple[float, float]:
        """Mean NLL and KL of the test part in nats, with the same noise each time, and the training's untouched."""
        generator = torch.Generator(self.accelerator.device).manual_seed(self.recipe.seed_of(0, 0, 2))
        totals = self._totals()
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, len(self.dataset.test), self.recipe.batch_size):
                n = min(self.recipe.batch_size, len(self.dataset.test) - start)
                part = self._part(n)
                rng_state = self._draw_rng_state(part, n, generator)
                samples = self.dataset.test_part(slice(start + part.start, start + part.stop))
                output = self.model(**samples, rng_state=rng_state)
                self._count(totals, output.nll, output.kl)
        self.model.train()
        return self._means(totals)

    def save(self, folder: Path) -> None:
        """The model, and all it takes to resume. Raises CheckpointError."""
        scaler = self.accelerator.scaler
        progress = {
            "recipe": self.recipe.to_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "seconds": self.seconds,
            "history": self.history,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        # In this order: it is the state that a full disk refuses first, and then the old model is there, too.
        checkpoint.save_state(folder, self.model, self.optimizer, progress)
        checkpoint.save_model(self.model, folder)

    def resume(self, folder: Path) -> None:
        """Goes on where `save` was called last. Raises CheckpointError."""
        progress = checkpoint.read_progress(folder)
        try:
            self.epoch, self.steps = int(progress["epoch"]), int(progress["steps"])
            self.seconds, self.history = float(progress["seconds"]), list(progress["history"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{folder / checkpoint.STATE}: holds no training state") from None
        checkpoint.load_state(folder, self.model, self.optimizer)
        if self.accelerator.scaler is not None and progress.get("scaler"):
            self.accelerator.scaler.load_state_dict(progress["scaler"])

    def close(self) -> None:
        """Ends the processes' group, at a run's end: nothing can be trained with this any more.

        DistributedDataParallel goes first: freed last, it would free the group and wait for the threads of Gloo while
        it holds Python's lock, which a thread that frees a tensor just then waits for.
        """
        self._wrapped = None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def sample_batch(self) -> dict[str, Tensor]:
        """This process's part of a batch, x and condition, as training sees them."""
        indices = next(iter(self._batches(0)))
        return self._train_samples(indices[self._part(len(indices))])

    def _batches(self, epoch: int) -> Iterator[Tensor]:
        order = torch.Generator().manual_seed(self.recipe.seed_of(epoch))
        train = self.dataset.train
        pools = None if isinstance(train, Tensor) else train.pools(order)
        # Batch norm has no variance of one sample.
        least = 2 * self.accelerator.num_processes if self.recipe.batch_norm else 1
        return data.batches(len(train), self.recipe.batch_size, order, pools, least)

    def _part(self, n: int) -> slice:
        """Which of a batch's n samples are this process's: none, where there are more processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return slice(n * rank // world, n * (rank + 1) // world)

    def _train_samples(self, indices: Tensor) -> dict[str, Any]:
        """The model's arguments: x and, where there is one, the condition."""
        samples = {"x": self.dataset.train.index_select(0, indices.to(self.dataset.train.device))}
        if (labels := self.dataset.train_labels) is not None:
            samples["condition"] = labels.index_select(0, indices.to(labels.device))
        return samples

    def _draw_rng_state(self, part: slice, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Of this part of a batch of n samples. All processes draw the same numbers."""
        rng_state = draw_rng_state(self.accelerator.device, generator)
        return rng_state if self.accelerator.num_processes == 1 else state_of_part(rng_state, part.start, n)

    def _train_epoch(self, epoch: int, totals: Tensor) -> None:
        torch.manual_seed(self.recipe.seed_of(epoch, 0, 1))  # the latents' noise
        world = self.accelerator.num_processes
        for indices in self._batches(epoch):
            n = len(indices)
            part = self._part(n)
            output = self._wrapped(
                **self._train_samples(indices[part]), rng_state=self._draw_rng_state(part, n)
            )
            # The mean over the whole batch, once DistributedDataParallel has averaged the processes' gradients.
            loss = (output.nll + self.model.beta * output.kl).sum() * (world / n)
            self.accelerator.backward(loss)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._count(totals, output.nll, output.kl)
            self.steps += 1
            self._call("on_step")

    def _make_model(self, dataset: data.Dataset) -> HubVAE:
        config = self.recipe.model_config(dataset.shape)
        try:
            if dataset.columns:
                config["columns"] = [column.to_dict() for column in dataset.columns]
                config["encoder_mask"] = any(bool(part.isnan().any()) for part in dataset.dense_parts)
            model = HubVAE(**config, conditions=dataset.conditions, sparse=dataset.is_sparse)
            return model.to(self.accelerator.device)
        except (ValueError, TypeError) as error:
            raise TrainingError(str(error)) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "the networks do not fit in memory: a smaller --hidden or --latent may help"
            ) from None

    def _try_batch(self, dataset: data.Dataset) -> None:
        """A batch that cannot be had at all is found now, and not after its shuffles were made."""
        if dataset.is_sparse:
            return
        try:
            torch.empty(
                (math.ceil(self.recipe.batch_size / self.accelerator.num_processes), *dataset.shape),
                device=self.accelerator.device,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"{self.recipe.batch_size:,} samples do not fit in memory: a smaller --batch-size may help"
            ) from None

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            reason = divergence.explain(self.recipe, self.dataset)
            raise DivergenceError(f"the {what} is {loss} by epoch {self.epoch}: {reason}")

    def _record(self, nll: float, kl: float) -> None:
        loss = nll + self.recipe.beta * kl
        self._check_finite("loss", loss)
        test_nll, test_kl = self.evaluate()
        self._check_finite("test loss", test_nll + test_kl)
        row = {
            "epoch": self.epoch,
            "step": self.steps,
            "seconds": round(self.seconds, 3),
            "train_loss": loss,
            "train_nll": nll,
            "train_kl": kl,
            "test_nll": test_nll,
            "test_kl": test_kl,
            "test_elbo": -(test_nll + test_kl),
        }
        self.history.append(row)
        self._call("on_evaluate")

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def _totals(self) -> Tensor:
        return torch.zeros(3, device=self.accelerator.device)

    @staticmethod
    def _count(totals: Tensor, nll: Tensor, kl: Tensor) -> None:
        """Adds to (sum of NLLs, sum of KLs, samples) without waiting for the device."""
        totals[0] += nll.detach().sum()
        totals[1] += kl.detach().sum()
        totals[2] += nll.shape[0]

    def _means(self, totals: Tensor) -> tuple[float, float]:
        summed: Any = self.accelerator.reduce(totals, reduction="sum")
        nll, kl, n = summed.tolist()
        return nll / n, kl / n
