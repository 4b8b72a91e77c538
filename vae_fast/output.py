"""What a VAE returns. It is here, and not in nn, so that `import vae_fast` is all that torch.export.load asks for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import _register_namedtuple


class VAEOutput(NamedTuple):
    loss: Tensor  # scalar: the batch mean of nll + beta kl
    nll: Tensor  # (batch,) -log p(x | z) in nats, the mean over draws
    kl: Tensor  # (batch,) KL(q(z | x) || N(0, 1)) in nats
    z: Tensor  # (batch, ...), or (num_samples, batch, ...)


_register_namedtuple(VAEOutput, serialized_type_name="vae_fast.nn.VAEOutput")
