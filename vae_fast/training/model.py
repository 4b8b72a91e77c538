"""A VAE that a JSON config describes, so that a checkpoint is enough to make it again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from .. import nn
from ..checks import check_clamp, check_int, check_sizes, python_value

ARCHITECTURES = ("mlp", "conv")
DEFAULT_HIDDEN = {"mlp": (400,), "conv": (32, 64)}


class HubVAE(nn.VAE, PyTorchModelHubMixin, library_name="vae_fast"):
    """`vae_fast.nn.VAE` with common networks. save_pretrained and from_pretrained keep it in a folder.

    Args:
        shape: a sample's shape, (features,), (height, width) or (channels, height, width).
        architecture: "mlp" or "conv".
        hidden: widths from x to z (the decoder's are the same, reversed): of the layers, or the channels of the
            convolutions. By default 400, or 32 and 64.
        latent: the size of z.
        likelihood: a name in `vae_fast.nn.LIKELIHOODS`. For counts the encoder takes log(1 + x).
        batch_norm, dropout: of the MLPs' hidden layers (dropout: of the encoder's alone), as in scvi-tools.
        conditions: the names of the labels that encoder and decoder take as a condition; of the MLPs.
        sparse: x may be rows of a torch.sparse_csr tensor: the encoder begins with an `nn.SparseLinear`.
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
        **options: Any,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"expected architecture to be one of {', '.join(ARCHITECTURES)}, but got {architecture!r}"
            )
        shape, latent = check_sizes("shape", shape), check_int("latent", latent)
        hidden = check_sizes("hidden", DEFAULT_HIDDEN[architecture] if hidden is None else hidden)
        options = {name: python_value(value) for name, value in options.items() if value is not None}
        p_x = nn.likelihoods.make_likelihood(likelihood, **options)
        parameter, n, log1p = p_x.parameter_shape(shape), p_x.num_parameters, p_x.support == "counts"
        extras = {"batch_norm": batch_norm, "dropout": dropout, "conditions": conditions, "sparse": sparse}
        extras = {name: value for name, value in extras.items() if value}
        encoder: Any
        decoder: Any
        if architecture == "mlp":
            both: Any = {"conditions": len(conditions) if conditions else None, "batch_norm": batch_norm}
            encoder = nn.MLPEncoder(
                math.prod(shape), hidden, latent, log1p=log1p, dropout=dropout, sparse=sparse, **both
            )
            decoder = nn.MLPDecoder(latent, hidden[::-1], parameter, n, **both)
        elif extras:
            raise ValueError(f"expected architecture to be 'mlp' for {', '.join(extras)}, but got 'conv'")
        else:
            encoder = nn.ConvEncoder(shape, hidden, latent, log1p=log1p)
            decoder = nn.ConvDecoder(latent, hidden, parameter, n)
        bounds = check_clamp(clamp)
        super().__init__(encoder, decoder, p_x, beta=beta, clamp=bounds, num_samples=num_samples)
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
            **options,
        }
        self.conditions = tuple(conditions or ())
        self.shape = shape

    def each_condition(self, n: int) -> Tensor | None:
        """The labels of n samples, each in turn; None where the model takes none."""
        if not self.conditions:
            return None
        return torch.arange(n, device=next(self.parameters()).device) % len(self.conditions)
