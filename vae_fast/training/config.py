"""What a run is made from. The same recipe gives the same run, bit for bit, on one machine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from .. import nn
from .errors import CheckpointError, TrainingError

MOST = 2**31 - 1  # of anything that is counted
LARGEST = 1e38  # near float32's largest number
MOST_SKIPPED = 100  # epochs without an evaluation, and so without a checkpoint, unless evaluate_every says so
WORD_DROPOUT = 0.3  # of text: without it the decoder learns to do without z
# The command's names of torch.optim's classes, and of the ways of the learning rate.
OPTIMIZERS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}
LR_SCHEDULES = ("constant", "cosine", "linear", "plateau")
PLATEAU = {"lr_factor": 0.1, "lr_patience": 10}  # the defaults of torch's ReduceLROnPlateau
# What a recipe can ask for by name. kl_balance takes a learned prior; text and tables have a likelihood of their own.
OBJECTIVES = tuple(name for name in nn.OBJECTIVES if name != "kl_balance")
LIKELIHOODS = tuple(name for name in nn.LIKELIHOODS if name != "categorical")
_OF_DATA = ("categorical", "mixed_columns")
TRACKERS = ("tensorboard", "wandb", "mlflow")
LIKELIHOOD_OPTIONS = ("variance", "scale", "theta", "link", "components", "binarize")
# The arguments of nn.OBJECTIVES' classes by the options that give them. `steps` is of Capacity's schedule.
OBJECTIVE_OPTIONS = {
    "free_bits": {"free_bits": "nats", "free_bits_per": "per"},
    "capacity": {"capacity": "capacity", "capacity_steps": "steps", "gamma": "gamma"},
    "beta_tc": {"alpha": "alpha", "gamma": "gamma"},
    "iwae": {"iwae_gradient": "gradient"},
}
_WORDS = {"free_bits_per": ("dimension", "element", "sample"), "iwae_gradient": ("total", "path", "dreg")}
_OF_OBJECTIVES = tuple(dict.fromkeys(name for options in OBJECTIVE_OPTIONS.values() for name in options))
_OF_ALL = ("architecture", "hidden", "latent", "likelihood", "objective", "beta", "clamp", "num_samples")
MODEL = (*_OF_ALL, "batch_norm", "dropout", "word_dropout", *LIKELIHOOD_OPTIONS)  # the arguments of HubVAE


@dataclass(frozen=True)
class Recipe:
    data: str = "digits"
    shape: tuple[int, ...] | None = None  # reads the samples as this shape
    epochs: int = 100
    batch_size: int = 1024  # of all processes together
    lr: float = 1e-3
    lr_schedule: str = "constant"  # "cosine", "linear": to 0 at the end; "plateau": by the evaluations
    lr_factor: float | None = None  # of plateau; None is PLATEAU's
    lr_patience: int | None = None  # evaluations without a better ELBO
    lr_warmup: float = 0.0  # epochs in which the learning rate grows from 0
    optimizer: str = "adam"
    weight_decay: float | None = None  # None is the optimizer's own
    clip_grad: float | None = None  # the largest norm of a step's gradients
    accumulate: int = 1  # the parts of a batch that are computed one after another
    ema: float | None = None  # the decay of averaged weights, which are evaluated and saved
    seed: int = 0
    architecture: str = "mlp"
    hidden: tuple[int, ...] | None = None
    latent: int = 20
    likelihood: str = "bernoulli"
    variance: float | str | None = None  # these are of one or some likelihoods; None is their default
    scale: float | str | None = None
    theta: float | str | None = None
    link: str | None = None
    components: int | None = None
    binarize: str | None = None  # "dynamic": drawn anew in every pass; "static": once, by the seed
    objective: str = "elbo"
    beta: float = 1.0
    kl_warmup: float = 0.0  # epochs in which the KL's weight grows from 0 to beta
    free_bits: float | None = None  # these are of one or some objectives; None is their default
    free_bits_per: str | None = None
    capacity: float | None = None
    capacity_steps: int | None = None
    alpha: float | None = None
    gamma: float | None = None
    iwae_gradient: str | None = None
    clamp: tuple[float, float] | None = None
    num_samples: int | None = None
    batch_norm: bool = False
    dropout: float = 0.0
    batch_key: str | None = None  # the column of an .h5ad's obs that is the condition
    stream: bool | None = None  # read the data by chunks; None: where they do not fit in memory
    split_seed: int = 0  # of the held-out part, where the data have none
    columns: tuple[str, ...] = ()  # NAME:KIND of a table's columns
    max_length: int | None = None  # of a line of text
    sample_rate: int | None = None  # of sounds
    seconds: float | None = None
    word_dropout: float | None = None  # of a model of text; None is WORD_DROPOUT
    mixed_precision: str = "no"
    fsdp: bool = False  # several processes share the weights, and not only each batch
    cuda_graph: bool = False  # each step of a whole batch is replayed from a recorded one
    evaluate_every: int | None = None  # epochs; by default a hundredth of them, 100 at most
    patience: int | None = None  # evaluations without a better ELBO that end the run
    best: bool = False  # the weights that are kept are those of the best evaluation
    save_every: int | None = None  # epochs between weights that are kept beside, in epoch-N/
    track: tuple[str, ...] = ()  # what else is told of each evaluation: TRACKERS

    def __post_init__(self) -> None:
        counts = (
            "epochs",
            "batch_size",
            "accumulate",
            "latent",
            "components",
            "num_samples",
            "capacity_steps",
        )
        more = ("evaluate_every", "patience", "lr_patience", "save_every", "max_length", "sample_rate")
        for name in (*counts, *more):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise TrainingError(f"expected {name} to be from 1 to {MOST}, but got {value}")
        for name in ("hidden", "shape"):
            sizes = getattr(self, name)
            if sizes is not None and not (sizes and min(sizes) >= 1 and max(sizes) <= MOST):
                raise TrainingError(f"expected {name} to have sizes from 1 to {MOST}, but got {sizes}")
        rows = self.batch_size * (self.num_samples or 1)
        if rows >= 2**32:
            raise TrainingError(
                "expected batch_size times num_samples, the draws of z in a batch, to be fewer than 2**32 "
                f"for the noise, but got {rows}"
            )
        if not 0 < self.lr < math.inf:
            raise TrainingError(f"expected lr to be a finite number above 0, but got {self.lr}")
        self._check_training()
        if not 0 <= self.dropout < 1:
            raise TrainingError(f"expected dropout to be a number from 0 to below 1, but got {self.dropout}")
        if self.word_dropout is not None and not 0 <= self.word_dropout <= 1:
            raise TrainingError(
                f"expected word_dropout to be a number from 0 to 1, but got {self.word_dropout}"
            )
        if self.seconds is not None and not 0 < self.seconds <= MOST:
            raise TrainingError(f"expected seconds to be a number above 0, but got {self.seconds}")
        for name in ("beta", "free_bits", "capacity", "alpha", "gamma"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LARGEST:
                raise TrainingError(f"expected {name} to be a number from 0 to {LARGEST:g}, but got {value}")
        for name in ("variance", "scale", "theta"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 1 / LARGEST <= value <= LARGEST:
                raise TrainingError(
                    f"expected {name} to be a number from {1 / LARGEST:g} to {LARGEST:g}, but got {value}"
                )
        if self.clamp is not None and not self.clamp[0] <= self.clamp[1]:
            raise TrainingError(f"expected clamp to have lo <= hi, but got {self.clamp}")
        for name in ("seed", "split_seed"):
            if not 0 <= getattr(self, name) < 2**64:
                raise TrainingError(
                    f"expected {name} to be from 0 to 2**64 - 1, but got {getattr(self, name)}"
                )
        if self.binarize not in (None, "dynamic", "static"):
            raise TrainingError(f"expected binarize to be dynamic or static, but got {self.binarize}")
        if self.binarize and self.likelihood != "bernoulli":
            raise TrainingError(f"the likelihood {self.likelihood} does not take binarize: bernoulli does")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise TrainingError(
                f"expected mixed_precision to be no, bf16 or fp16, but got {self.mixed_precision}"
            )

    def _check_training(self) -> None:
        if self.objective == "kl_balance":
            raise TrainingError(
                "expected an objective for the prior N(0, 1), but got 'kl_balance': give Trainer a model of your own"
            )
        chosen = {"optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES, "objective": OBJECTIVES}
        chosen["likelihood"] = LIKELIHOODS
        for name, known in chosen.items():
            value = getattr(self, name)
            if value not in known and not (name == "likelihood" and value in _OF_DATA):
                raise TrainingError(f"expected {name} to be one of {', '.join(known)}, but got {value!r}")
        if unknown := [name for name in self.track if name not in TRACKERS]:
            raise TrainingError(f"expected track to be some of {', '.join(TRACKERS)}, but got {unknown[0]!r}")
        for name in ("lr_warmup", "kl_warmup"):
            if not 0 <= getattr(self, name) <= self.epochs:
                raise TrainingError(
                    f"expected {name} to be from 0 to the {self.epochs} epochs, but got {getattr(self, name)}"
                )
        if self.weight_decay is not None and not 0 <= self.weight_decay <= LARGEST:
            raise TrainingError(
                f"expected weight_decay to be a number from 0 to {LARGEST:g}, but got {self.weight_decay}"
            )
        if self.clip_grad is not None and not 0 < self.clip_grad <= LARGEST:
            raise TrainingError(
                f"expected clip_grad to be a number above 0 and at most {LARGEST:g}, but got {self.clip_grad}"
            )
        if self.accumulate > self.batch_size:
            raise TrainingError(
                f"expected accumulate to be at most the batch size {self.batch_size}, but got {self.accumulate}"
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise TrainingError(f"expected ema to be a number from 0 to below 1, but got {self.ema}")
        if self.fsdp and self.cuda_graph:
            raise TrainingError(
                "expected cuda_graph to be off for fsdp, but got True: it replays a step of one process"
            )
        self._check_plateau()
        self._check_objective()

    def _check_plateau(self) -> None:
        if self.lr_schedule != "plateau":
            if (name := next((n for n in PLATEAU if getattr(self, n) is not None), None)) is not None:
                raise TrainingError(
                    f"expected lr_schedule to be plateau for {name}, but got {self.lr_schedule!r}"
                )
            return
        factor, patience = self.plateau
        if not 0 <= factor < 1:
            raise TrainingError(f"expected lr_factor to be a number from 0 to below 1, but got {factor}")
        if self.patience is not None and self.patience <= patience:
            raise TrainingError(
                f"expected patience to be above lr_patience {patience}, for the learning rate to fall before the run "
                f"ends, but got {self.patience}"
            )

    @property
    def plateau(self) -> tuple[float, int]:
        """The factor and the patience of the schedule plateau."""
        factor, patience = (PLATEAU[n] if getattr(self, n) is None else getattr(self, n) for n in PLATEAU)
        return float(factor), int(patience)

    def _check_objective(self) -> None:
        name = self.objective
        if name == "iwae" and self.num_samples is None:
            raise TrainingError("expected num_samples to be given for the objective iwae")
        if name == "beta_tc" and self.num_samples is not None:
            raise TrainingError(
                f"expected num_samples to be left out for the objective beta_tc, but got {self.num_samples}"
            )
        if "beta" not in nn.OBJECTIVES[name].__annotations__ and (self.beta != 1 or self.kl_warmup):
            changed = f"beta={self.beta}" if self.beta != 1 else f"kl_warmup={self.kl_warmup}"
            raise TrainingError(f"the objective {name} has no weight of the KL, but got {changed}")
        for option in _OF_OBJECTIVES:
            value, takers = getattr(self, option), [n for n, of in OBJECTIVE_OPTIONS.items() if option in of]
            if value is None:
                continue
            if name not in takers:
                raise TrainingError(
                    f"the objective {name} does not take {option}: {' and '.join(takers)} "
                    f"{'do' if len(takers) > 1 else 'does'}"
                )
            if value not in _WORDS.get(option, (value,)):
                raise TrainingError(
                    f"expected {option} to be one of {', '.join(_WORDS[option])}, but got {value!r}"
                )

    def model_config(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The arguments of HubVAE."""
        config = {name: getattr(self, name) for name in MODEL}
        is_dynamic = True if self.binarize == "dynamic" else None
        arguments = OBJECTIVE_OPTIONS.get(self.objective, {})
        options = {argument: getattr(self, name) for name, argument in arguments.items()}
        options = {argument: value for argument, value in options.items() if value is not None}
        config |= {"objective_options": options, "word_dropout": self.word_dropout or 0.0}
        return {"shape": shape, **config, "binarize": is_dynamic}

    def check_without_model(self) -> None:
        """TrainingError where the recipe says something of a model that is given."""
        of_models = {*MODEL, *_OF_OBJECTIVES}
        own = (f.name for f in fields(self) if f.name in of_models and getattr(self, f.name) != f.default)
        if (name := next(own, None)) is not None:
            raise TrainingError(
                f"expected {name} to be left out where a model is given, but got {getattr(self, name)!r}"
            )

    def of_text(self) -> Recipe:
        """For lines of text, which have one likelihood and one architecture."""
        dropout = WORD_DROPOUT if self.word_dropout is None else self.word_dropout
        return replace(self, architecture="gru", likelihood="categorical", word_dropout=dropout)

    def reading(self) -> dict[str, Any]:
        """The options of `data.load`."""
        names = ("batch_key", "stream", "columns", "split_seed", "max_length", "sample_rate", "seconds")
        return {name: getattr(self, name) for name in names}

    @property
    def static_seed(self) -> int | None:
        """Of the bits that grey values are drawn as once and for all; None where they are not."""
        return self.seed_of(0, 0, 3) if self.binarize == "static" else None

    def seed_of(self, *path: int) -> int:
        """A seed of its own for a part of the run, (epoch, rank) say: so that resuming needs no generator's state."""
        state = np.random.SeedSequence([self.seed, *path]).generate_state(1, np.uint64)
        return int(state[0]) >> 1  # NumPy 1 shifts no uint64 by an int

    def is_evaluated(self, epoch: int) -> bool:
        every = self.evaluate_every or min(max(1, self.epochs // 100), MOST_SKIPPED)
        return epoch % every == 0 or epoch == self.epochs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        try:
            known = {f.name for f in fields(cls)}
            known_values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
            }
            if isinstance(
                is_dynamic := known_values.get("binarize"), bool
            ):  # of a run before there was "static"
                known_values["binarize"] = "dynamic" if is_dynamic else None
            return cls(**known_values)
        except (TypeError, AttributeError, TrainingError) as error:
            raise CheckpointError(f"the saved recipe cannot be read ({error})") from None
