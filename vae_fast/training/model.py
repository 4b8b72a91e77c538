"""A VAE that a JSON config describes, so that a checkpoint is enough to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import nn
from ..checks import check_clamp, check_int, check_sizes, python_value
from .sound import Sound
from .tables import Column, groups
from .text import Vocabulary


class HubVAE(nn.VAE):
    """`vae_fast.nn.VAE` with common networks, whose config is short.

    Args:
        shape: a sample's shape, (features,), (height, width) or (channels, height, width).
        architecture, hidden, latent: as in `vae_fast.nn.build_networks`.
        likelihood: a name in `vae_fast.nn.LIKELIHOODS`. For counts the encoder takes log(1 + x).
        batch_norm, dropout: of the MLPs' hidden layers (dropout: of the encoder's alone), as in scvi-tools.
        conditions: the names of the labels that encoder and decoder take as a condition.
        sparse: x may be rows of a torch.sparse_csr tensor: the MLP encoder begins with an `nn.SparseLinear`.
        vocabulary: of lines of text, as `text.Vocabulary.to_dict` gives it: the likelihood is `nn.Categorical`.
        sound: what the samples are spectrograms of, as `sound.Sound.to_dict` gives it.
        columns: those of a table, as `tables.Column.to_dict` gives them: the likelihood is `nn.MixedColumns`, whose
            encoder_mask is an option.
        dims: how many numbers a sample's size has, for "conv" and "resnet": 1 for signals, 2 for images.
        blocks: residual blocks at each size, for "resnet".
        word_dropout: tokens that a "gru" decoder does not read in training.
        objective: a name in `vae_fast.nn.OBJECTIVES`.
        objective_options: its arguments other than beta. The capacity of "capacity" grows from 0 to the number
            `capacity` in `steps` steps.
        beta, clamp, num_samples: as in `vae_fast.nn.VAE`.
        options: the likelihood's own, such as variance="learned" of "gaussian". None is its default.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        architecture: str = "mlp",
        hidden: Sequence[int] | None = None,
        latent: int = 20,
        likelihood: str = "bernoulli",
        beta: float = 1.0,
        clamp: Sequence[float] | None = None,
        num_samples: int | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
        conditions: Sequence[str] | None = None,
        sparse: bool = False,
        columns: Sequence[dict[str, Any]] = (),
        vocabulary: dict[str, Any] | None = None,
        sound: dict[str, Any] | None = None,
        dims: int | None = None,
        blocks: int | None = None,
        word_dropout: float = 0.0,
        objective: str = "elbo",
        objective_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        options = {name: python_value(value) for name, value in options.items() if value is not None}
        described = tuple(map(Column.of, columns))
        symbols = None if vocabulary is None else Vocabulary.of(vocabulary)
        if columns:
            if architecture != "mlp":
                raise ValueError(f"expected architecture to be 'mlp' for a table, but got {architecture!r}")
            if foreign := options.keys() - {"encoder_mask"}:
                raise TypeError(
                    f"expected no {', '.join(sorted(foreign))} for a table, whose columns have their own"
                )
            likelihood = "mixed_columns"
            p_x: nn.Likelihood = nn.MixedColumns(groups(described), **options)
        elif symbols is not None:
            likelihood, p_x = "categorical", nn.Categorical(symbols.classes)
        else:
            p_x = nn.likelihoods.make_likelihood(likelihood, **options)
        extras: dict[str, Any] = {
            "batch_norm": batch_norm,
            "dropout": dropout,
            "sparse": sparse,
            "dims": dims,
            "blocks": blocks,
            "word_dropout": word_dropout,
        }
        extras = {name: value for name, value in extras.items() if value}
        shape, latent = check_sizes("shape", shape), check_int("latent", latent)
        encoder, decoder = nn.build_networks(
            shape,
            p_x,
            architecture=architecture,
            hidden=hidden,
            latent=latent,
            conditions=len(conditions) if conditions else None,
            **extras,
        )
        hidden = check_sizes("hidden", nn.ARCHITECTURES[architecture] if hidden is None else hidden)
        bounds = check_clamp(clamp)
        if objective_options:
            loss: dict[str, Any] = {"objective": _objective(objective, beta, **objective_options)}
        else:
            loss = {"objective": objective, "beta": beta}
        super().__init__(encoder, decoder, p_x, clamp=bounds, num_samples=num_samples, **loss)
        self.config: dict[str, Any] = {
            "shape": list(shape),
            "architecture": architecture,
            "hidden": list(hidden),
            "latent": latent,
            "likelihood": likelihood,
            "beta": python_value(beta),
            "clamp": bounds and list(bounds),
            "num_samples": self.num_samples,
            **extras,
            **({"objective": objective} if objective != "elbo" else {}),
            **({"objective_options": dict(objective_options)} if objective_options else {}),
            **({"conditions": conditions} if conditions else {}),
            **({"columns": list(columns)} if columns else {}),
            **({"vocabulary": vocabulary} if vocabulary else {}),
            **({"sound": sound} if sound else {}),
            **options,
        }
        self.conditions = tuple(conditions or ())
        self.columns, self.vocabulary = described, symbols
        self.sound = None if sound is None else Sound.of(sound)
        self.shape = shape

    def arguments(self) -> dict[str, Any]:
        return self.config

    def to_config(self, omit: Sequence[str] = ()) -> dict[str, Any]:
        """The arguments alone, as all runs have had them."""
        if omit:
            raise ValueError(f"expected omit to be empty for a HubVAE, but got {', '.join(omit)}")
        return self.config

    @torch.no_grad()
    def generate_tokens(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Of a model of text: draws of p(x | z), (n, length), at z from the prior. `temperature` divides the
        logits; at 0 they are the most likely tokens."""
        z = self._sample_prior(n, self.latent_shape or (), condition, generator, 1.0)
        decoder = cast(nn.GRUDecoder, self.decoder)
        on_device = nn.inputs.on_device(generator, z.device)
        return decoder.generate(z, condition, temperature=temperature, generator=on_device)

    def each_condition(self, n: int) -> Tensor | None:
        """The labels of n samples, each in turn; None where the model takes none."""
        if not self.conditions:
            return None
        return torch.arange(n, device=next(self.parameters()).device) % len(self.conditions)


def _objective(name: str, beta: float, **options: Any) -> nn.Objective:
    kind = nn.OBJECTIVES[name]
    if kind is nn.Capacity and options.keys() & {"capacity", "steps"}:
        usual = nn.Capacity().capacity
        assert isinstance(usual, nn.LinearSchedule)
        steps, end = options.pop("steps", usual.steps), options.get("capacity", usual.end)
        options["capacity"] = nn.LinearSchedule(steps, 0.0, end)
    if "beta" in kind.__annotations__:
        options["beta"] = beta
    return kind(**options)
