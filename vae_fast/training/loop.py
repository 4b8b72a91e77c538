"""The training loop. Accelerate places it: devices, processes, mixed precision."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import nn
from ..backends.reference.rng import draw_rng_state, state_of_part
from . import checkpoint, data, divergence, graph, preparing, sharding
from .config import Recipe
from .errors import CheckpointError, DivergenceError, TrainingError
from .optimization import lr_of, make_optimizer, set_lr, top_lr, warm_up_kl

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
    """Trains a VAE as a recipe says: batches shuffled anew in every epoch, evaluation on the validation part where the
    data have one, else on the test part.

    model: an `nn.VAE` of your own networks, with an objective of its own. Without one the recipe's HubVAE is made.

    All randomness comes from the recipe's seed and the epoch's number, so that a resumed run is the same as one that
    was never interrupted. Several processes share each batch, its noise and its loss, so that their number changes
    nothing but rounding. Nothing waits for the device but the evaluations.

    Attributes for callbacks: recipe, model (what is trained), result (what is kept of it: averaged weights, the best
    ones), dataset, accelerator, epoch (finished ones), steps, seconds (of training alone), history (a row for each
    evaluation), test (at the end, what `result` gives on the test part).

    With the recipe's `fsdp` and several processes the weights are sharded. `evaluate`, `save`, `save_weights` and
    `resume` then take all processes, and so does a call of `model`: one process alone would wait for the others for
    ever. `result` is a whole copy that each process has and may call by itself. It is there in `on_evaluate`, in
    `on_end` and after `fit`; at other times it raises TrainingError.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: data.Dataset,
        *,
        model: nn.VAE | None = None,
        callbacks: Sequence[Callback] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        sharding.check()
        self._is_given = model is not None
        if model is not None:
            recipe.check_without_model()
        else:
            if recipe.likelihood == "discretized_logistic_mixture" and len(dataset.shape) == 2:
                dataset = dataset.reshaped((1, *dataset.shape))  # grey images are of one channel
            if dataset.columns:
                recipe = replace(recipe, likelihood="mixed_columns")
            if dataset.vocabulary:
                recipe = recipe.of_text()
        if recipe.static_seed is not None:
            dataset = dataset.binarized(recipe.static_seed)
        # A resumed run reads, and so shuffles, as this one.
        self.recipe = recipe = replace(recipe, stream=dataset.is_streamed)
        self.accelerator = accelerator or make_accelerator(recipe)
        device = self.accelerator.device
        self.dataset = dataset.to(device)
        torch.manual_seed(recipe.seed)
        self.model: nn.VAE
        if model is None:
            self.model = preparing.make_model(recipe, dataset, device)
            data.check_support(dataset, self.model.likelihood.support, recipe.likelihood)
            self.model.validate = False  # all of the data have just been looked at
        else:
            self.model = model.to(device)
            data.check_support(dataset, model.likelihood.support, type(model.likelihood).__name__)
        preparing.try_batch(recipe, dataset, self.accelerator)
        if model is None:
            preparing.start(self.model, self.dataset)
        preparing.check_objective(recipe, self.model, self.accelerator.num_processes)
        self._steps_per_epoch = data.count_batches(len(dataset.train), recipe.batch_size, self._least)
        if recipe.kl_warmup:
            warm_up_kl(self.model, recipe.kl_warmup, self._steps_per_epoch)
        self._schedules = [module for module in self.model.modules() if isinstance(module, nn.Schedule)]
        # Now: at the end it would be too late to find that a part has no description.
        self._config = checkpoint.config_of(self.model)
        self._shards: sharding.Shards | None = None
        if recipe.fsdp and self.accelerator.num_processes > 1:  # else there is nothing to shard
            self._shards = sharding.Shards(self.model, self.accelerator)
        self.averaged: AveragedModel | None = None
        self._best: nn.VAE | None = None
        self._whole: nn.VAE | None = None  # `result` where it is sharded
        self._copy_model()
        self._wrapped: Any
        if self._shards is None:
            self._parameters: list[Tensor] = list(self.model.parameters())
            self.optimizer = make_optimizer(recipe, self._parameters, device)
            self._wrapped, self._optimizer = self.accelerator.prepare(self.model, self.optimizer)
        else:
            self._shards.shard(self.model)
            self._parameters = self._shards.parameters(self.model)
            self.optimizer = make_optimizer(recipe, self._parameters, device, is_sharded=True)
            # As a model for evaluation: it gets the precision, and no DistributedDataParallel around it.
            self._wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
            self._optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self._graph: graph.StepGraph | None = None
        if recipe.cuda_graph:
            graph.check(recipe, device, self.accelerator.num_processes, dataset.is_sparse)
            self._graph = graph.StepGraph(self._step, device)
        self.callbacks = tuple(callbacks)
        self.epoch, self.steps, self.seconds = 0, 0, 0.0
        self.history: list[Row] = []
        self.test: Row = {}
        self._top_lr = recipe.lr

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def images(self) -> int:
        """Training samples seen, by all processes."""
        return self.epoch * max(self.recipe.batch_size, len(self.dataset.train))

    @property
    def result(self) -> nn.VAE:
        """The model that `save` writes: the best one, else that of the averaged weights, else the trained one. Of
        sharded ones a whole copy. Raises TrainingError where there is none, see above."""
        if self._shards is None:
            return self._kept
        if self._whole is None:
            raise TrainingError(
                "sharded weights are gathered for on_evaluate and on_end: result is not there now"
            )
        return self._whole

    @property
    def _kept(self) -> nn.VAE:
        return self._evaluated if self._best is None else self._best

    @property
    def _evaluated(self) -> nn.VAE:
        return self.model if self.averaged is None else cast(nn.VAE, self.averaged.module)

    @property
    def monitor(self) -> str:
        """The part whose ELBO tells which evaluation is the best."""
        return "test" if self.dataset.valid is None else "valid"

    @property
    def best_row(self) -> Row:
        """The evaluation with the highest ELBO, the first of equals."""
        return max(self.history, key=lambda row: row[f"{self.monitor}_elbo"])

    @property
    def is_stopped(self) -> bool:
        """Whether as many evaluations as the recipe's `patience` were no better than the best before them."""
        if self.recipe.patience is None or not self.history:
            return False
        best = self.best_row["epoch"]
        return sum(row["epoch"] > best for row in self.history) >= self.recipe.patience

    def fit(self) -> None:
        """Trains from the last finished epoch to the recipe's last."""
        self._whole = None
        self._call("on_start")
        self.model.train()
        totals, start = self._totals(), time.perf_counter()
        while self.epoch < self.recipe.epochs and not self.is_stopped:
            self._train_epoch(self.epoch, totals)
            self.epoch += 1
            if self.recipe.is_evaluated(self.epoch):
                means = self._means(totals)  # waits for the device
                self.seconds += time.perf_counter() - start
                self._record(means)
                totals, start = self._totals(), time.perf_counter()
            self._call("on_epoch")
        self._measure_result()
        self._whole = self._gathered()
        self._call("on_end")

    def evaluate(self, part: str = "test", model: nn.VAE | None = None) -> tuple[float, float]:
        """Mean NLL and KL of a part in nats, with the same noise each time, and the training's untouched. `model`: by
        default what is trained, or its averaged weights."""
        model = self._evaluated if model is None else model
        generator = torch.Generator(self.accelerator.device).manual_seed(self.recipe.seed_of(0, 0, 2))
        totals, count, was_training = self._totals(), len(getattr(self.dataset, part)), model.training
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, count, self.recipe.batch_size):
                n = min(self.recipe.batch_size, count - start)
                place = self._part(n)
                rng_state = self._draw_rng_state(place, n, generator)
                samples = self.dataset.samples(part, slice(start + place.start, start + place.stop))
                output = model(**samples, rng_state=rng_state)
                self._count(totals, output, place.stop - place.start)
        model.train(was_training)
        sharding.reshard(model)
        nll, kl, _ = self._means(totals)
        return nll, kl

    def save(self, folder: Path) -> None:
        """The model, and all it takes to resume: the main process writes it. Raises CheckpointError."""
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
        checkpoint.save_state(
            folder, self.model, self.optimizer, progress, self._copies, is_writer=self.is_main
        )
        checkpoint.save_model(self._kept, folder, self._config, is_writer=self.is_main)

    def save_weights(self, folder: Path) -> None:
        """The model as it would be evaluated now, without what it takes to resume: the main process writes it. Raises
        CheckpointError."""
        checkpoint.save_model(self._evaluated, folder, self._config, is_writer=self.is_main)

    def resume(self, folder: Path) -> None:
        """Goes on where `save` was called last. Raises CheckpointError."""
        progress = checkpoint.read_progress(folder)
        try:
            self.epoch, self.steps = int(progress["epoch"]), int(progress["steps"])
            self.seconds, self.history = float(progress["seconds"]), list(progress["history"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{folder / checkpoint.STATE}: holds no training state") from None
        checkpoint.load_state(folder, self.model, self.optimizer, self._copies)
        if self.accelerator.scaler is not None and progress.get("scaler"):
            self.accelerator.scaler.load_state_dict(progress["scaler"])

    def all_as_main(self, is_so: bool) -> bool:
        """What the main process says, for all: whether it is time to do what takes all processes. All ask."""
        if self.accelerator.num_processes == 1:
            return is_so
        said: Any = broadcast(torch.tensor(is_so, dtype=torch.int32, device=self.accelerator.device))
        return bool(said)

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
        return data.batches(len(train), self.recipe.batch_size, order, pools, self._least)

    @property
    def _least(self) -> int:
        """The samples of the smallest batch: batch norm has no variance of one."""
        return 2 * self.accelerator.num_processes * self.recipe.accumulate if self.recipe.batch_norm else 1

    def _part(self, n: int) -> slice:
        """Which of a batch's n samples are this process's: none, where there are more processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return slice(n * rank // world, n * (rank + 1) // world)

    def _train_samples(self, indices: Tensor) -> dict[str, Any]:
        """The model's arguments: x and, where there is one, the condition."""
        samples = {"x": data.select(self.dataset.train, indices)}
        if (labels := self.dataset.train_labels) is not None:
            samples["condition"] = labels.index_select(0, indices.to(labels.device))
        return samples

    def _draw_rng_state(self, part: slice, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Of this part of a batch of n samples. All processes draw the same numbers."""
        rng_state = draw_rng_state(self.accelerator.device, generator)
        return rng_state if part == slice(0, n) else state_of_part(rng_state, part.start, n)

    def _train_epoch(self, epoch: int, totals: Tensor) -> None:
        torch.manual_seed(self.recipe.seed_of(epoch, 0, 1))  # the latents' noise
        self._top_lr = top_lr(self.recipe, [row[f"{self.monitor}_elbo"] for row in self.history])
        for indices in self._batches(epoch):
            self._train_step(indices, totals)
            self.steps += 1
            self._call("on_step")

    def _train_step(self, indices: Tensor, totals: Tensor) -> None:
        recipe = self.recipe
        n, mine = len(indices), self._part(len(indices))
        if recipe.lr_schedule != "constant" or recipe.lr_warmup:
            set_lr(self.optimizer, lr_of(recipe, self.steps, self._steps_per_epoch, self._top_lr))
        rng_state = draw_rng_state(self.accelerator.device, None)
        if self._graph is not None and n == recipe.batch_size:
            totals += self._graph(self._train_samples(indices), rng_state)
        else:
            self._accumulate(indices, mine, rng_state, totals)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def _step(self, samples: dict[str, Any], rng_state: Tensor) -> Tensor:
        """A whole batch of one process: what a graph holds."""
        output = self._wrapped(**samples, rng_state=rng_state)
        self.accelerator.backward(output.loss)
        self._update()
        counts = self._totals()
        self._count(counts, output, len(samples["x"]))
        return counts

    def _accumulate(self, indices: Tensor, mine: slice, rng_state: Tensor, totals: Tensor) -> None:
        n = len(indices)
        if self._shards is not None:
            self._shards.share_buffers()
        parts = self._parts(mine, n)
        for part in parts[:-1]:
            with self._no_sync():
                self._backward(indices, part, n, rng_state, totals)
            for schedule in self._schedules:  # which count passes: all parts are of one step
                schedule.step -= 1
        self._backward(indices, parts[-1], n, rng_state, totals)
        self._update()

    @contextmanager
    def _no_sync(self) -> Iterator[None]:
        """A pass whose gradients the processes do not share yet."""
        if self._shards is None:
            with self.accelerator.no_sync(self._wrapped):
                yield
        else:
            self._wrapped.set_requires_gradient_sync(False)
            yield
            self._wrapped.set_requires_gradient_sync(True)

    def _update(self) -> None:
        if self._shards is not None:
            self._shards.finish_gradients()
        if self.recipe.clip_grad is not None:  # of sharded gradients the norm is of all shards
            self.accelerator.clip_grad_norm_(self._parameters, self.recipe.clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _backward(self, indices: Tensor, part: slice, n: int, rng_state: Tensor, totals: Tensor) -> None:
        """Adds the gradients of a part of a batch of n samples."""
        count = part.stop - part.start
        if count < n:
            # A process without samples takes one, which counts nothing: all have the same gradients to share.
            part = part if count else slice(0, 1)
            rng_state = state_of_part(rng_state, part.start, n)
        output = self._wrapped(**self._train_samples(indices[part]), rng_state=rng_state)
        # The mean over the whole batch, once the processes' gradients are averaged, by DistributedDataParallel or FSDP.
        share = self.accelerator.num_processes * count / n
        self.accelerator.backward(output.loss if share == 1 else output.loss * share)
        if count:
            self._count(totals, output, count)

    def _parts(self, mine: slice, n: int) -> list[slice]:
        """This process's samples of a batch of n in parts that are computed one after another. Sharded, all processes
        have as many parts, some without a sample: each pass gathers parameters."""
        count, most = mine.stop - mine.start, -(-n // self.accelerator.num_processes)
        parts = min(self.recipe.accumulate, most)
        ends = [mine.start + count * i // parts for i in range(parts + 1)]
        found = [slice(start, stop) for start, stop in pairwise(ends)]
        if self._shards is not None:
            return found
        return [part for part in found if part.start < part.stop] or [mine]

    def _copy_model(self) -> None:
        """Makes what keeps weights beside the trained ones. Before Accelerate changes the model's forward: a copy of
        that would compute with the original's weights. Each is sharded before the next one is made."""
        if self.recipe.ema is not None:
            average = get_ema_multi_avg_fn(self.recipe.ema)
            if self._shards is not None:
                average = sharding.by_parts(average)
            self.averaged = AveragedModel(self.model, multi_avg_fn=average)
            self.averaged.requires_grad_(False).eval()
            if self._shards is not None:
                self._shards.shard(self._evaluated)
        if self.recipe.best:
            self._best = copy.deepcopy(self.model).requires_grad_(False).eval()
            if self._shards is not None:
                self._shards.shard(self._best)

    @property
    def _copies(self) -> dict[str, torch.nn.Module]:
        copies = {"averaged": self.averaged, "best": self._best}
        return {name: module for name, module in copies.items() if module is not None}

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            reason = "a smaller learning rate may help"
            if not self._is_given:
                reason = divergence.explain(self.recipe, self.dataset)
            raise DivergenceError(f"the {what} is {loss} by epoch {self.epoch}: {reason}")

    def _record(self, means: tuple[float, float, float]) -> None:
        nll, kl, loss = means
        self._check_finite("loss", loss)
        part = self.monitor
        held_out = self._measures(part, *self.evaluate(part))
        self._check_finite(f"{part} loss", -held_out[f"{part}_elbo"])
        row = {
            "epoch": self.epoch,
            "step": self.steps,
            "seconds": round(self.seconds, 3),
            "train_loss": loss,
            "train_nll": nll,
            "train_kl": kl,
            **held_out,
        }
        self.history.append(row)
        if self._best is not None and self.best_row is row:
            self._best.load_state_dict(self._evaluated.state_dict())
        if self.callbacks:
            self._whole = self._gathered()
        self._call("on_evaluate")
        self._whole = None

    def _gathered(self) -> nn.VAE | None:
        return None if self._shards is None else self._shards.whole(self._kept)

    def _measure_result(self) -> None:
        """`test`: that of the evaluation which is kept, or of the test part where it was not looked at until now."""
        if self.monitor == "valid":
            self.test = self._measures("test", *self.evaluate("test", self._kept))
        elif self.history:
            row = self.history[-1] if self._best is None else self.best_row
            self.test = {name: value for name, value in row.items() if name.startswith("test_")}

    @staticmethod
    def _measures(part: str, nll: float, kl: float) -> Row:
        return {f"{part}_nll": nll, f"{part}_kl": kl, f"{part}_elbo": -(nll + kl)}

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def _totals(self) -> Tensor:
        return torch.zeros(4, device=self.accelerator.device)

    @staticmethod
    def _count(totals: Tensor, output: nn.VAEOutput, n: int) -> None:
        """Adds to (sums of NLL, KL and loss, samples) without waiting for the device."""
        totals[0] += output.nll.detach().sum()
        totals[1] += output.kl.detach().sum()
        totals[2].add_(output.loss.detach(), alpha=n)
        totals[3] += n

    def _means(self, totals: Tensor) -> tuple[float, float, float]:
        summed: Any = self.accelerator.reduce(totals, reduction="sum")
        nll, kl, loss, n = summed.tolist()
        return nll / n, kl / n, loss / n
