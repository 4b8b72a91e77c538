"""The likelihood of images in 256 levels of PixelCNN++: a mixture of discretized logistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import functional
from ...checks import number_of
from .base import Library, Likelihood, Params, uniform
from .discretized_logistic import cut_logistic_mean, draw_logistic, levels, unit

Read = Callable[[Tensor, Tensor], Tensor]  # mean and log-scale -> a value in [-1, 1]


class DiscretizedLogisticMixture(Likelihood):
    """Each pixel of x is one of 256 levels, grey (1, ...) or coloured (3, ...), as a mixture of K `components`, each
    a discretized logistic whose green and blue means shift with the values of the channels before.

    The decoder gives, along dim 1, 3K numbers for each grey pixel (K mixture logits, means, log-scales) or 10K for each
    coloured one (K mixture logits, and for each channel K means, log-scales and coefficients).

    Source: Salimans et al., "PixelCNN++", 2017; NVAE and VDVAE use it.
    """

    name = "discretized_logistic_mixture"
    support = "unit"

    def __init__(self, components: int = 10) -> None:
        super().__init__()
        number = number_of(components)
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"expected components to be an int of at least 1, but got {components!r}")
        self.components = number

    def extra_repr(self) -> str:
        return f"components={self.components}"

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) < 2 or shape[0] not in (1, 3):
            raise ValueError(
                f"expected x to be images of shape (channels, ...) with 1 or 3 channels for {self}, "
                f"but got {tuple(shape)}"
            )
        return ((10 if shape[0] == 3 else 3) * self.components, *shape[1:])

    def data_shape(self, params: Params) -> tuple[int, ...]:
        grey, colour = 3 * self.components, 10 * self.components
        n, *pixels = params[0].shape[1:] or (0,)
        if n not in (grey, colour):
            raise ValueError(
                f"expected decoder to return {grey} numbers for grey pixels or {colour} for coloured ones "
                f"along dim 1 for {self}, but got {n}"
            )
        return (3 if n == colour else 1, *pixels)

    def nll(self, params: Params, x: Tensor, mask: Tensor | None = None, reduction: str = "sample") -> Tensor:
        return functional.discretized_logistic_mixture_nll(params[0], x, mask=mask, reduction=reduction)

    @property
    def has_linear_nll(self) -> bool:
        return False

    def linear_nll(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        raise NotImplementedError

    def mean(self, params: Params, library: Library = None) -> Tensor:
        """In x's units. The channels shift with the means of those before, which is exact where nothing is cut off."""
        logits, *parts = self._parts(params[0])
        t = _channels(cut_logistic_mean, *parts)
        return unit((logits.softmax(1).unsqueeze(1) * t).sum(2))

    def sample(
        self, params: Params, generator: torch.Generator | None = None, library: Library = None
    ) -> Tensor:
        logits, *parts = self._parts(params[0])
        gumbel = -torch.log(-torch.log(uniform(logits, generator)))
        chosen = (logits + gumbel).argmax(1, keepdim=True).unsqueeze(1)
        chosen = chosen.expand(-1, parts[0].shape[1], *chosen.shape[2:])
        parts = [p.gather(2, chosen) for p in parts]
        t = _channels(lambda m, s: 2 * levels(draw_logistic(m, s, generator)) - 1, *parts)
        return unit(t.squeeze(2))

    def _parts(self, params: Tensor) -> tuple[Tensor, ...]:
        """Mixture logits (batch, K, *pixels); means, log-scales and coefficients (batch, channels, K, *pixels)."""
        k = self.components
        channels = 3 if params.shape[1] == 10 * k else 1
        rest = params[:, k:].unflatten(1, (channels, -1, k))
        return (
            params[:, :k],
            rest[:, :, 0],
            rest[:, :, 1],
            rest[:, :, -1].tanh(),
        )  # of grey, the last is not used


def _channels(read: Read, means: Tensor, log_scales: Tensor, coefficients: Tensor) -> Tensor:
    """The values of the channels, one after the other: each may shift the next."""
    first = read(means[:, 0], log_scales[:, 0])
    if means.shape[1] == 1:
        return first.unsqueeze(1)
    a, b, c = coefficients.unbind(1)
    second = read(means[:, 1] + a * first, log_scales[:, 1])
    third = read(means[:, 2] + b * first + c * second, log_scales[:, 2])
    return torch.stack([first, second, third], 1)
