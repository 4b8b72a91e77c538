"""What a run is made from. The same recipe gives the same run, bit for bit, on one machine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .errors import CheckpointError, TrainingError

MOST = 2**31 - 1  # of anything that is counted
LARGEST = 1e38  # near float32's largest number
MOST_SKIPPED = 100  # epochs without an evaluation, and so without a checkpoint, unless evaluate_every says so
LIKELIHOOD_OPTIONS = ("variance", "scale", "theta", "link", "components", "binarize")


@dataclass(frozen=True)
class Recipe:
    data: str = "digits"
    shape: tuple[int, ...] | None = None  # reads the samples as this shape
    epochs: int = 100
    batch_size: int = 1024  # of all processes together
    lr: float = 1e-3
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
    binarize: bool | None = None
    beta: float = 1.0
    clamp: tuple[float, float] | None = None
    num_samples: int | None = None
    batch_norm: bool = False
    dropout: float = 0.0
    batch_key: str | None = None  # the column of an .h5ad's obs that is the condition
    stream: bool | None = None  # read the data by chunks; None: where they do not fit in memory
    columns: tuple[str, ...] = ()  # NAME:KIND of a table's columns
    mixed_precision: str = "no"
    evaluate_every: int | None = None  # epochs; by default a hundredth of them, 100 at most

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent", "components", "num_samples", "evaluate_every"):
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
        if not 0 <= self.dropout < 1:
            raise TrainingError(f"expected dropout to be a number from 0 to below 1, but got {self.dropout}")
        if not 0 <= self.beta <= LARGEST:
            raise TrainingError(f"expected beta to be a number from 0 to {LARGEST:g}, but got {self.beta}")
        for name in ("variance", "scale", "theta"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 1 / LARGEST <= value <= LARGEST:
                raise TrainingError(
                    f"expected {name} to be a number from {1 / LARGEST:g} to {LARGEST:g}, but got {value}"
                )
        if self.clamp is not None and not self.clamp[0] <= self.clamp[1]:
            raise TrainingError(f"expected clamp to have lo <= hi, but got {self.clamp}")
        if not 0 <= self.seed < 2**64:
            raise TrainingError(f"expected seed to be from 0 to 2**64 - 1, but got {self.seed}")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise TrainingError(
                f"expected mixed_precision to be no, bf16 or fp16, but got {self.mixed_precision}"
            )

    def model_config(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The arguments of HubVAE."""
        names = ("architecture", "hidden", "latent", "likelihood", "beta", "clamp", "num_samples")
        names_of_all = (*names, "batch_norm", "dropout", *LIKELIHOOD_OPTIONS)
        return {"shape": shape, **{name: getattr(self, name) for name in names_of_all}}

    def seed_of(self, *path: int) -> int:
        """A seed of its own for a part of the run, (epoch, rank) say: so that resuming needs no generator's state."""
        return int(np.random.SeedSequence([self.seed, *path]).generate_state(1, np.uint64)[0] >> 1)

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
            return cls(**known_values)
        except (TypeError, AttributeError, TrainingError) as error:
            raise CheckpointError(f"the saved recipe cannot be read ({error})") from None
