"""Encoder and decoder from a short config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ...checks import check_sizes
from ..likelihoods import Likelihood, make_likelihood
from .conv import ConvDecoder, ConvEncoder
from .mlp import MLPDecoder, MLPEncoder
from .resnet import ResNetDecoder, ResNetEncoder
from .sequence import GRUDecoder, GRUEncoder

# Each one's default for `hidden`.
ARCHITECTURES = {"mlp": (400,), "conv": (32, 64), "resnet": (32, 64), "gru": (256,)}
# The options that each takes, beside `conditions`.
_OPTIONS = {
    "mlp": ("batch_norm", "dropout", "sparse"),
    "conv": ("dims",),
    "resnet": ("dims", "blocks"),
    "gru": ("word_dropout",),
}


def build_networks(
    shape: int | Sequence[int],
    likelihood: str | Likelihood = "bernoulli",
    *,
    architecture: str = "mlp",
    hidden: int | Sequence[int] | None = None,
    latent: int = 20,
    conditions: int | None = None,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) for samples of `shape` under `likelihood`; for counts the encoder takes log(1 + x).

    Args:
        shape: a sample's: (features,), (height, width), (channels, height, width), or (length,) of tokens.
        likelihood: a name in `vae_fast.nn.LIKELIHOODS`, or a Likelihood.
        architecture: "mlp", "conv", "resnet", or "gru" for tokens (the likelihood `nn.Categorical(classes)`).
        hidden: widths from x to z, the decoder's are the same from z to x: of layers, or of channels. By default
            400 (mlp), 32 and 64 (conv, resnet), 256 (gru).
        latent: the size of z.
        conditions: how many labels, or numbers, a condition has that both take.
        options: of the architecture. "mlp": batch_norm, dropout (of the encoder), sparse; "conv": dims; "resnet": dims,
            blocks; "gru": word_dropout (of the decoder).

    Raises:
        TypeError, ValueError: an architecture, an option or a shape that there is not.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"expected architecture to be one of {', '.join(ARCHITECTURES)}, but got {architecture!r}"
        )
    foreign = [name for name in options if name not in _OPTIONS[architecture]]
    if foreign:
        takers = [kind for kind, names in _OPTIONS.items() if foreign[0] in names]
        if not takers:
            raise TypeError(f"build_networks() got an unexpected keyword argument {foreign[0]!r}")
        raise ValueError(
            f"expected architecture to be {' or '.join(map(repr, takers))} for {', '.join(foreign)}, "
            f"but got {architecture!r}"
        )
    shape = check_sizes("shape", shape)
    hidden = check_sizes("hidden", ARCHITECTURES[architecture] if hidden is None else hidden)
    p_x = make_likelihood(likelihood)
    parameter, n, log1p = p_x.parameter_shape(shape), p_x.num_parameters, p_x.support == "counts"
    both: dict[str, Any] = {"conditions": conditions}
    if architecture == "mlp":
        features = math.prod(p_x.encoder_shape(shape))
        of_encoder = {name: options.pop(name) for name in ("dropout", "sparse") if name in options}
        return (
            MLPEncoder(features, hidden, latent, log1p=log1p, **both, **of_encoder, **options),
            MLPDecoder(latent, hidden[::-1], parameter, n, **both, **options),
        )
    if architecture == "gru":
        classes = getattr(p_x, "classes", None)
        if classes is None:
            raise ValueError(f"expected likelihood to be a Categorical with classes for 'gru', but got {p_x}")
        return (
            GRUEncoder(classes, hidden[::-1], latent, **both),
            GRUDecoder(latent, hidden, parameter, **both, **options),
        )
    Encoder, Decoder = (
        (ConvEncoder, ConvDecoder) if architecture == "conv" else (ResNetEncoder, ResNetDecoder)
    )
    return (
        Encoder(shape, hidden, latent, log1p=log1p, **both, **options),
        Decoder(latent, hidden, parameter, n, **both, **options),
    )
