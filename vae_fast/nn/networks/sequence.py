"""Recurrent encoders and decoders of token sequences: text, notes, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...checks import check_int, check_sizes
from ..condition import AddCondition, ConditionalSequential
from ..describe import Described

Output = tuple[Tensor, Tensor]


class GRU(nn.RNNBase):
    """nn.GRU with the batch first, which torch.compile traces as a whole: nn.GRU itself it does not.

    x (batch, length, features), state (layers, batch, hidden) -> (batch, length, hidden) and the last state. In both
    directions the state has twice the layers and the output twice the width.
    """

    def __init__(self, features: int, hidden: int, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__("GRU", features, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Output:
        if state is None:
            rows = self.num_layers * (1 + self.bidirectional)
            state = x.new_zeros((rows, x.shape[0], self.hidden_size))
        weights = tuple(self.parameters())
        keep = torch.is_grad_enabled()  # cuDNN's train: whether it keeps what the backward pass needs
        output: Output = torch.gru(
            x, state, weights, True, self.num_layers, 0.0, keep, self.bidirectional, True
        )
        return output


class Tokens(nn.Embedding):
    """An embedding of class numbers and of one token more, `unknown`, which stands for every negative number: padding,
    and whatever the likelihood leaves out."""

    def __init__(self, classes: int, width: int, further: int = 0) -> None:
        super().__init__(classes + 1 + further, width)
        self.unknown = classes

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.known(x))

    def known(self, x: Tensor) -> Tensor:
        x = x.long()
        return torch.where(x < 0, self.unknown, x)


class GRUEncoder(Described, nn.Module):
    """Tokens x (batch, length) of an integer dtype -> (batch, 2 latent), mu and logvar side by side.

    An embedding, a GRU in both directions, the mean of its outputs over all positions with a token (x is not negative),
    one linear layer.

    Args:
        classes: tokens are from 0 to classes - 1. Negative ones, such as -100 after a sequence's end, are padding.
        hidden: the width of each of the GRU's layers, all alike, or one number for one layer.
        embedding: the width of the embedding; by default `hidden`.
        conditions: the GRU's mean takes a condition: labels below this number, or as many numbers.

    Source: the mean in place of the last state keeps posteriors apart, Long, Cao & Cheung, "On posterior collapse and
    encoder feature dispersion in sequence VAEs", 2019.
    """

    def __init__(
        self,
        classes: int,
        hidden: int | Sequence[int],
        latent: int,
        *,
        embedding: int | None = None,
        conditions: int | None = None,
    ) -> None:
        super().__init__()
        width, layers = width_and_layers(hidden)
        classes, latent = check_int("classes", classes, 1), check_int("latent", latent)
        features = width if embedding is None else check_int("embedding", embedding, 1)
        self.embedding = Tokens(classes, features)
        self.gru = GRU(features, width, layers, bidirectional=True)
        self.condition = None if conditions is None else AddCondition(conditions, 2 * width)
        self.linear = nn.Linear(2 * width, 2 * latent)
        self.latent_shape, self.takes_condition = (latent,), conditions is not None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        outputs, _ = self.gru(self.embedding(x))
        is_token = (x >= 0).unsqueeze(-1)
        hidden = (outputs * is_token).sum(1) / is_token.sum(1).clamp_min(1)
        if self.condition is not None:
            hidden = self.condition(hidden, condition)
        moments: Tensor = self.linear(hidden)
        return moments


class _Recurrence(nn.Module):
    """z (batch, latent), target (batch, length) -> (batch, length, hidden): at each position, from z and the tokens
    before it."""

    takes_target = True

    def __init__(
        self,
        latent: int,
        width: int,
        layers: int,
        classes: int,
        features: int,
        word_dropout: float,
        conditions: int | None,
    ) -> None:
        super().__init__()
        self.embedding = Tokens(classes, features, further=1)
        self.start = classes + 1
        self.sizes = (layers * width, features)
        self.context = nn.Linear(latent, sum(self.sizes))
        self.condition = None if conditions is None else AddCondition(conditions, sum(self.sizes))
        self.gru = GRU(features, width, layers)
        self.word_dropout, self.takes_condition = word_dropout, conditions is not None

    def begin(self, z: Tensor, condition: Tensor | None) -> Output:
        """The GRU's state (layers, batch, hidden), and what is added to every input, (batch, 1, features)."""
        context = self.context(z)
        if self.condition is not None:
            context = self.condition(context, condition)
        state, shift = context.split(self.sizes, dim=1)
        state = state.tanh().unflatten(1, (self.gru.num_layers, self.gru.hidden_size))
        return state.transpose(0, 1).contiguous(), shift.unsqueeze(1)

    def forward(self, z: Tensor, condition: Tensor | None = None, target: Tensor | None = None) -> Tensor:
        if target is None:
            raise ValueError(
                "expected target to be the tokens (batch, length) that the outputs depend on, but got None; "
                "decoder.generate(z) makes tokens of its own"
            )
        state, shift = self.begin(z, condition)
        before = self.embedding.known(target[:, :-1])
        if self.training and self.word_dropout:
            dropped = torch.rand(before.shape, device=before.device) < self.word_dropout
            before = torch.where(dropped, self.embedding.unknown, before)
        start = before.new_full((before.shape[0], min(1, target.shape[1])), self.start)
        outputs, _ = self.gru(self.embedding(torch.cat((start, before), 1)) + shift, state)
        return outputs


class GRUDecoder(ConditionalSequential):
    """z (batch, latent) and tokens x (batch, length) -> logits (batch, length, classes) of the likelihood
    "categorical", at each position from z and the tokens of x before it (teacher forcing): decoder(z, target=x).

    z gives the GRU's first state and a shift of all its inputs. `generate` makes tokens from z alone.

    Args:
        hidden: the width of each of the GRU's layers, all alike, or one number for one layer.
        shape: (length, classes). Negative tokens of x, such as -100, are read as unknown.
        embedding: the width of the embedding; by default `hidden`.
        word_dropout: the part of x's tokens that are read as unknown in training, so that z is needed.
        conditions: takes a condition: labels below this number, or as many numbers.

    Source: Bowman et al., "Generating Sentences from a Continuous Space", 2016.
    """

    def __init__(
        self,
        latent: int,
        hidden: int | Sequence[int],
        shape: Sequence[int],
        *,
        embedding: int | None = None,
        word_dropout: float = 0.0,
        conditions: int | None = None,
    ) -> None:
        shape = check_sizes("shape", shape)
        if len(shape) != 2 or not shape[1]:
            raise ValueError(f"expected shape to be (length, classes), but got {shape}")
        if not 0 <= word_dropout <= 1:
            raise ValueError(f"expected word_dropout to be a number from 0 to 1, but got {word_dropout}")
        width, layers = width_and_layers(hidden)
        length, classes = shape
        features = width if embedding is None else check_int("embedding", embedding, 1)
        core = _Recurrence(
            check_int("latent", latent), width, layers, classes, features, word_dropout, conditions
        )
        super().__init__(core, nn.Linear(width, classes))
        self.data_shape = (length,)

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        *,
        length: int | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens (batch, length), one after the other: the most likely ones with temperature 0, else drawn from
        softmax(logits / temperature).

        Args:
            length: by default that of `shape`.
            generator: of z's device.
        """
        if temperature < 0:
            raise ValueError(f"expected temperature to be at least 0, but got {temperature}")
        length = self.data_shape[0] if length is None else check_int("length", length)
        core, last = cast("tuple[_Recurrence, nn.Linear]", tuple(self))
        state, shift = core.begin(z, condition)
        token = torch.full((z.shape[0], 1), core.start, device=z.device)
        tokens = [token[:, :0]]
        for _ in range(length):
            output, state = core.gru(core.embedding(token) + shift, state)
            logits = last(output)
            if temperature:
                noise = torch.empty_like(logits, dtype=torch.float32).exponential_(generator=generator)
                logits = logits.float() / temperature - noise.log()  # Gumbel's trick
            token = logits.argmax(-1)
            tokens.append(token)
        return torch.cat(tokens, 1)


def width_and_layers(hidden: int | Sequence[int]) -> tuple[int, int]:
    """Of a GRU."""
    sizes = check_sizes("hidden", hidden)
    if len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(f"expected hidden to be a width, or the same one for every layer, but got {hidden}")
    return sizes[0], len(sizes)
