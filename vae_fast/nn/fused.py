"""A decoder's last layer computed together with the likelihood: when, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import bool_of
from .checks import warn
from .condition import repeated, run, takes_target
from .head import ends_in_linear, find_head
from .likelihoods import Likelihood
from .sharding import run_head

# fused_head="auto" fuses a layer that makes as many numbers for a batch: 16 MB of float32, which is one chunk of the
# fused op. Measured on a CPU with four likelihoods and hidden 128: as fast there, 1.1 to 1.7 times as fast with five
# times as many, 0.8 to 1 times with a tenth.
FUSED_NUMBERS = 1 << 22


class WithFusedHead(nn.Module):
    """The part of `VAE` that knows of the fused head."""

    decoder: nn.Module
    likelihood: Likelihood
    fused_head: bool | str
    data_shape: tuple[int, ...] | None
    _outputs: int
    _once: set[str]

    @property
    def fused_head_reason(self) -> str | None:
        """Why the decoder's last layer and the likelihood are not computed together; None where they are (with "auto",
        for large batches)."""
        if self.fused_head is False:
            return "fused_head is False"
        head = self._head()
        return head if isinstance(head, str) else None

    def _set_fused_head(self, fused_head: bool | str) -> None:
        flag = bool_of(fused_head)
        self.fused_head = fused_head if flag is None else flag
        if not isinstance(self.fused_head, bool) and self.fused_head != "auto":
            raise ValueError(f'expected fused_head to be True, False or "auto", but got {self.fused_head!r}')
        if self.fused_head is True:
            if not self.likelihood.has_linear_nll:
                raise ValueError(
                    f"expected likelihood to have a fused head for fused_head=True, but got {self.likelihood}"
                )
            if isinstance(reason := self._head(), str):
                raise ValueError(
                    "expected decoder to be an nn.Sequential for fused_head=True, with an nn.Linear at its end, "
                    "an nn.Unflatten of dim 1 after it or not (not for softmaxes), without hooks, "
                    f"but {reason}"
                )

    def _head(self) -> int | str:
        """Where in the decoder the layer is that can be computed with the likelihood, or why none can."""
        if not self.likelihood.has_linear_nll:
            return f"{type(self.likelihood).__name__} has no fused head"
        return find_head(self.decoder, flat=self.likelihood.over_classes)

    def _fused_place(self, x: Tensor) -> int | None:
        """Where in the decoder the layer is that is computed with the likelihood; None if none is."""
        if self.fused_head is False:
            return None
        fits = x.shape[1:] == self.data_shape
        head = self._head() if fits else "x has another shape than the layer's output"
        if self.fused_head is True:
            if isinstance(head, str):
                self._warn_unfused(
                    f"fused_head is True, but likelihood and last layer are computed apart: {head}"
                )
            return head if isinstance(head, int) else None
        is_large = fits and x.shape[0] * self._outputs >= FUSED_NUMBERS
        if torch.compiler.is_compiling():
            from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes sympy along

            # A batch of any size: the plain decoder, instead of a graph for one side of the bound alone.
            is_large = statically_known_true(is_large)
        if isinstance(head, int):
            return head if is_large else None
        if is_large and self.likelihood.has_linear_nll and ends_in_linear(self.decoder):
            self._warn_unfused(
                f"likelihood and last layer are computed apart, which takes more time and memory: {head}; "
                "fused_head=False leaves out this warning"
            )
        return None

    def _warn_unfused(self, message: str) -> None:
        if not torch.compiler.is_compiling() and "unfused" in self._once:
            self._once.discard("unfused")
            warn(message)

    def _nll_of_rows(
        self, place: int, x: Tensor, condition: Tensor | None, draws: int | None, rows: Tensor
    ) -> Tensor:
        """By the fused head."""
        layers: list[Any] = list(self.decoder)  # type: ignore[call-overload]
        hidden, linear = run(layers[:place], rows, condition, self._target(x, draws)), layers[place]
        if draws is not None:
            hidden = hidden.unflatten(0, (draws, x.shape[0]))
        return run_head(
            linear, lambda h: self.likelihood.linear_nll(h, linear.weight, linear.bias, x), hidden
        )

    def _target(self, x: Tensor, draws: int | None) -> Tensor | None:
        """x for the rows of a decoder that takes it: a row for each draw."""
        return repeated(x, draws) if takes_target(self.decoder) else None
