"""The base class of likelihoods: p(x | z) from a decoder's output, its mean and its samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import first_batch
from ..describe import Described

# Samples that a start looks at, and the least probability or rate it takes from them: that of one in them all.
LOOKED_AT = 10_000
RARE = 1 / LOOKED_AT

Params = tuple[Tensor, ...]
Library = Tensor | float | None


class Likelihood(Described, nn.Module, ABC):
    """A distribution of x whose parameters are a decoder's output.

    The decoder returns `num_parameters` tensors of x's shape, or one tensor with them side by side along dim 1. A class
    that reads another shape says so.
    """

    name: ClassVar[str]  # the key in LIKELIHOODS; only the classes that it lists have one
    num_parameters = 1
    support = "real"  # x's values: "real", "unit" (0 to 1; uint8: 255ths), "counts" or "classes" (both: uint8 as it is)
    over_classes = False  # a softmax over the last dim: a layer that makes several of them is not fused
    takes_missing = False  # NaN in x is a missing entry
    binarize = False  # every pass draws x anew from its grey values: `observe`

    def split(self, output: Tensor | Sequence[Tensor]) -> Params:
        """The distribution's parameters, one tensor each, from what the decoder returned."""
        n = self.num_parameters
        if not isinstance(output, Tensor):
            params = tuple(output)
            if len(params) != n:
                raise ValueError(f"expected decoder to return {n} tensors for {self}, but got {len(params)}")
            return params
        if n == 1:
            return (output,)
        if output.ndim < 2 or output.shape[1] % n:
            raise ValueError(
                f"expected decoder to return a multiple of {n} along dim 1 for the {n} parameters of {self}, "
                f"but got shape {tuple(output.shape)}"
            )
        return output.chunk(n, dim=1)

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a parameter for x of `shape`, both without the batch."""
        return tuple(shape)

    def data_shape(self, params: Params) -> tuple[int, ...]:
        """The shape of x under these parameters, without the batch. Raises ValueError if there is none."""
        return tuple(params[0].shape[1:])

    def bind(self, shape: tuple[int, ...] | None) -> None:
        """Makes the parameters of x's shape. The VAE calls it when it is made; `shape` is None if it is not known."""

    @property
    def is_unbounded(self) -> bool:
        """Whether -log p has no lower bound where all samples are alike."""
        return False

    def start(self, x: Tensor) -> None:
        """Sets the likelihood's own parameters to their optimum under a decoder that returns the mean of x."""

    def output_of_mean(self, mean: Tensor) -> Tensor | None:
        """The decoder's first parameter, or first ones, under which p(x | z) has this mean, up to what it cannot reach:
        probabilities of 0 and 1, rates of 0. None where that is not known."""
        return None

    def start_bias(self, bias: Tensor, x: Tensor) -> None:
        """Fills the bias of a decoder's last layer, in the output's shape, so that p(x | z) starts around the mean of
        the samples x; NaN counts in no mean. What has no mean stays as it is, and so does the whole bias of a layer
        that makes one part of a sample at a time."""
        if bias.numel() != self.num_parameters * math.prod(self.parameter_shape(x.shape[1:])):
            return
        total = count = torch.zeros(())
        for part in x.split(1024):  # as floats they may be four times the size
            values = self.encoder_input(part)
            total, count = total + values.nansum(0, dtype=torch.float32), count + values.isfinite().sum(0)
        output = self.output_of_mean(total / count)
        if output is not None:
            set_finite(bias.view(-1)[: output.numel()], output.flatten())

    def observe(self, x: Tensor, rng_state: Tensor) -> Tensor:
        """The x that encoder and likelihood get: a draw under `binarize`, else x itself."""
        return x

    def check(self, x: Tensor, classes: int | None = None) -> None:
        """Raises TypeError or ValueError where the batch x is outside of the support. Warns where x may mean something
        else. Waits for the device. `classes` is the size of the decoder's last dim, None if it is not known."""
        first_batch.check(x, self, classes)

    def encoder_input(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x as the encoder gets it, in `dtype`: uint8 as 255ths, bool as 0 and 1. Without a dtype, uint8 and bool
        become torch's default dtype and other dtypes stay."""
        if x.dtype is not torch.uint8:
            if dtype is None and x.dtype is torch.bool:
                dtype = torch.get_default_dtype()
            return x if dtype is None else x.to(dtype)
        if dtype is None or dtype is torch.get_default_dtype():
            return x / 255  # one pass
        return x.to(dtype) / 255

    def encoder_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of `encoder_input` for x of `shape`, both without the batch."""
        return tuple(shape)

    def library(self, x: Tensor) -> Tensor | None:
        """The library size, each sample's number of counts, that the mean needs. None where it needs none."""
        return None

    @abstractmethod
    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        """-log p(x | z) in nats, shape (batch,); (draws, batch) where params have draws of z before the batch.

        mask, reduction: as in `vae_fast.bernoulli_nll`. False leaves an element of x out, "none" gives a number for
        each.
        """

    def plain_nll(self, params: Params, x: Tensor) -> Tensor | None:
        """-log p of each element in idiomatic PyTorch, which a run's speed is compared with. None: torch has none."""
        return None

    @property
    def has_linear_nll(self) -> bool:
        return True

    @abstractmethod
    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """`nll` of parameters that are a linear layer's outputs, one after the other, each in x's shape. hidden is
        (batch, H) or (draws, batch, H)."""

    @abstractmethod
    def mean(self, params: Params, library: Library = None) -> Tensor:
        """The mean of p(x | z), of x's shape."""

    def expectation(self, params: Params, library: Library = None) -> Tensor:
        """What is averaged over draws of z: the mean; of classes their probabilities."""
        return self.mean(params, library)

    def point(self, expectation: Tensor) -> Tensor:
        """x's values at `expectation`: the mean; of classes the most probable."""
        return expectation

    @abstractmethod
    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        """A draw from p(x | z), of x's shape."""


def spread_rows(x: Tensor) -> Tensor:
    """At most LOOKED_AT samples of x, evenly spaced."""
    return x[:: max(1, -(-len(x) // LOOKED_AT))]


def set_finite(out: Tensor, values: Tensor) -> None:
    """Fills `out` where the values are finite."""
    out.copy_(torch.where(values.isfinite(), values, out))


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers u in (0, 1), float32 at least, no nearer to 0 than to 1: log u and log(1 - u) are finite."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    u = torch.rand(like.shape, generator=generator, dtype=dtype, device=like.device)
    return u.clamp_min(torch.finfo(dtype).eps / 2)
