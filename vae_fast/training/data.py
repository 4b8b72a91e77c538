"""Data sets: arrays of samples, kept in memory in their own dtype (uint8 stays uint8, meaning 255ths).

`load` takes "digits" (in scikit-learn), an IDX file (.gz too) or a folder of MNIST's four, .npy, .npz, or a folder of
images. Batches are gathered by index in one go: no workers, no copies of single samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import files
from .errors import DataError

DIGITS = "digits"  # the set that needs no download
TEST_FRACTION, MOST_TEST = (
    5,
    10_000,
)  # a set that comes without a test part gives a fifth, but no more than this
_SPLIT_SEED = 0  # the split belongs to the data: the same whatever the run's seed


@dataclass(frozen=True)
class Dataset:
    name: str
    train: Tensor  # (n, *shape): uint8 (255ths), bool or float32
    test: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """A sample's shape: (features,), (height, width) or (channels, height, width)."""
        return tuple(self.train.shape[1:])

    def reshaped(self, shape: tuple[int, ...]) -> Dataset:
        """Flat samples as images, say."""
        if math.prod(shape) != math.prod(self.shape):
            raise DataError(f"{self.name}: samples have shape {self.shape}, which cannot be read as {shape}")
        return replace(self, train=self.train.reshape(-1, *shape), test=self.test.reshape(-1, *shape))

    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value, uint8 as 255ths."""
        if not self.train.is_floating_point():
            return 0.0, 1.0
        lo, hi = torch.stack([torch.stack(torch.aminmax(part)) for part in (self.train, self.test)]).unbind(1)
        return lo.min().item(), hi.max().item()

    def has_fractions(self) -> bool:
        return self.train.is_floating_point() and any(
            bool((part != part.round()).any()) for part in (self.train, self.test)
        )

    def to(self, device: torch.device) -> Dataset:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def resolve(source: str) -> str:
    """A source that means the same from every folder."""
    return source if source == DIGITS else str(Path(source).expanduser().resolve())


def name_of(source: str) -> str:
    return Path(source).name.split(".")[0] or "data"


def load(source: str) -> Dataset:
    """The data set `source` names, split in train and test. Raises DataError."""
    if source == DIGITS:
        return _digits()
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{source}: no such file or folder (the embedded set is: {DIGITS})")
    try:
        train, test = files.read(path)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{source}: does not fit in memory") from None
    train = _checked(source, train)
    train, test = _split(source, train) if test is None else (train, _checked(source, test))
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{source}: train samples have shape {train.shape[1:]}, test samples {test.shape[1:]}"
        )
    return Dataset(name_of(source), torch.from_numpy(train), torch.from_numpy(test))


def check_support(dataset: Dataset, support: str, likelihood: str) -> None:
    """Raises DataError where the data are not what the likelihood is of, warns where they may not be."""
    lo, hi = dataset.limits()
    found = f"{dataset.name}: values from {lo:g} to {hi:g}, the {likelihood} likelihood takes"
    if support == "unit" and not 0 <= lo <= hi <= 1:
        raise DataError(f"{found} 0 to 1 (uint8: 255ths); use the gaussian one, or scale the values")
    if support == "counts" and lo < 0:
        raise DataError(f"{found} counts: whole numbers of at least 0")
    if support == "counts" and dataset.has_fractions():
        warnings.warn(
            f"{dataset.name}: holds fractions, the {likelihood} likelihood is of counts: whole numbers",
            stacklevel=3,
        )


def batches(
    n: int, batch_size: int, generator: torch.Generator | None, *, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """The indices of an epoch's batches: shuffled by the generator (None: in order), each sample once.

    A batch larger than the set is filled up with further shuffles of it: the epoch is that one batch. Of several
    processes each takes its own samples and as many as the others, wrapping around at the end.
    """
    if generator is None:
        order = torch.arange(n)
    else:
        rounds = math.ceil(batch_size * world / n)
        order = torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])
        order = order[: max(n, batch_size * world)]
    if world > 1:
        order = torch.cat([order, order[: -len(order) % world]])[rank::world]
    return iter(order.split(batch_size))


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(f"{DIGITS} come with scikit-learn: pip install scikit-learn") from None
    images = load_digits().images  # 8x8, sixteenths
    train, test = _split(DIGITS, np.rint(images * (255 / 16)).astype(np.uint8))
    return Dataset(DIGITS, torch.from_numpy(train), torch.from_numpy(test))


def _split(source: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(array)
    if n < 2:
        raise DataError(
            f"{source}: has {n} sample{'s' * (n != 1)}, it takes 2 at least (one to train, one to test)"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(n)
    held_out = min(max(1, n // TEST_FRACTION), MOST_TEST)
    return array[np.sort(order[held_out:])], array[np.sort(order[:held_out])]


def _checked(source: str, array: np.ndarray) -> np.ndarray:
    """An array of samples in a dtype that the ops read, once it is found to be one."""
    if array.ndim < 2:
        raise DataError(f"{source}: has shape {array.shape}, it takes (samples, features) or (samples, ...)")
    if array.size == 0:
        raise DataError(f"{source}: is empty, its shape is {array.shape}")
    if array.dtype.kind not in "buif":
        raise DataError(f"{source}: holds {array.dtype}, it takes numbers")
    if array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)  # channels last, as images often are in numpy
    if array.dtype not in (np.uint8, np.bool_):
        if not np.isfinite(array).all():
            raise DataError(f"{source}: holds NaN or infinite values")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{source}: holds values beyond float32")
    return np.ascontiguousarray(array)
