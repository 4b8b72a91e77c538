"""What one does with latents: paths between two, single dimensions, directions of an attribute, which are used.

Plain tensors in and out, in z's dtype, with gradients. mu, logvar and z are (batch, ...) as `VAE.encode` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import functional
from ..checks import check_bool, check_int, check_is_tensor, check_shape, shape_of

__all__ = ["active_units", "attribute_direction", "interpolate", "kl_per_dimension", "traverse"]


def interpolate(start: Tensor, end: Tensor, steps: int = 8, *, spherical: bool = False) -> Tensor:
    """Latents on the way from `start` to `end`, both included.

    Linear: (1 - t) start + t end. Spherical, of each sample as one vector with the angle w between the two:
    sin((1 - t) w) / sin(w) start + sin(t w) / sin(w) end, which keeps the length that draws of a normal prior have;
    linear where the two are parallel.

    Args:
        start, end: (batch, ...), of one shape.
        steps: at least 2.

    Returns:
        (steps, batch, ...)

    Raises:
        TypeError, ValueError: no tensors, other shapes, too few steps; spherical between opposite vectors, where no way
            is the shortest.

    Source: Shoemake, "Animating rotation with quaternion curves", 1985; White, "Sampling Generative Networks", 2016.
    """
    _check_latents("start", start)
    check_is_tensor("end", end)
    check_shape("end", end, "start", start.shape)
    t = torch.linspace(0, 1, check_int("steps", steps, least=2), dtype=start.dtype, device=start.device)
    t = t.view(-1, *[1] * start.ndim)
    if not check_bool("spherical", spherical):
        return torch.lerp(start, end, t)
    a, b = start.flatten(1), end.flatten(1)
    a, b = (v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny) for v in (a, b))
    # By the chords: an acos of the product loses half of the digits at small angles.
    angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
    angle = angle.view(-1, *[1] * (start.ndim - 1))
    sine = angle.sin()
    nearly = torch.finfo(start.dtype).eps ** 0.5
    if bool((angle > torch.pi - nearly).any()):
        raise ValueError("expected start and end not to be opposite vectors for spherical=True")
    sine = torch.where(angle < nearly, torch.ones_like(sine), sine)
    way = ((1 - t) * angle).sin() / sine * start + (t * angle).sin() / sine * end
    return torch.where(angle < nearly, torch.lerp(start, end, t), way)


def traverse(
    z: Tensor, dims: Sequence[int] | None = None, *, span: tuple[float, float] = (-3.0, 3.0), steps: int = 7
) -> Tensor:
    """One latent with single dimensions set to values across `span`: row d of a grid has dims[d] changed.

    Args:
        z: one latent, (1, ...).
        dims: of the flattened latent; negative ones count from its end. None: all.
        span: first and last value, in units of z; the prior's standard deviation is 1.
        steps: values, at least 2.

    Returns:
        (len(dims), steps, ...): flatten(0, 1) is a batch for `VAE.decode`.

    Raises:
        TypeError, ValueError: no such dimension, more than one latent, too few steps.

    Source: Higgins et al., "beta-VAE", 2017.
    """
    _check_latents("z", z)
    if z.shape[0] != 1:
        raise ValueError(f"expected z to be one latent of shape (1, ...), but got {shape_of(z)}")
    size = z[0].numel()
    chosen = range(size) if dims is None else [check_int("dims", d, least=-size) for d in dims]
    if any(d >= size for d in chosen):
        raise ValueError(f"expected dims to be less than {size}, but got {list(chosen)}")
    values = torch.linspace(*span, check_int("steps", steps, least=2), dtype=z.dtype, device=z.device)
    grid = z.reshape(1, 1, size).repeat(len(chosen), len(values), 1)
    for row, d in enumerate(chosen):
        grid[row, :, d] = values
    return grid.view(len(chosen), len(values), *z.shape[1:])


def attribute_direction(mu: Tensor, has_attribute: Tensor) -> Tensor:
    """From samples without an attribute to those with it: the difference of their mean mu, of one latent's shape.

    `z + strength * attribute_direction(mu, labels == 3)` steers z by it.

    Args:
        mu: (batch, ...)
        has_attribute: (batch,), bool.

    Raises:
        TypeError, ValueError: another dtype or shape; all samples have it, or none.

    Source: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", 2016.
    """
    _check_latents("mu", mu)
    check_is_tensor("has_attribute", has_attribute)
    if has_attribute.dtype != torch.bool:
        raise TypeError(f"expected has_attribute to be bool, but got {has_attribute.dtype}")
    check_shape("has_attribute", has_attribute, "mu's batch", mu.shape[:1])
    count = int(has_attribute.sum())
    if not 0 < count < len(mu):
        raise ValueError(f"expected samples with and without the attribute, but {count} of {len(mu)} have it")
    return mu[has_attribute].mean(0) - mu[~has_attribute].mean(0)


def active_units(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latent dimensions are used: those whose mu varies over the data, Var_x(mu(x)) > threshold.

    Args:
        mu: of a whole data set, (batch, ...) with at least two samples.
        threshold: 0.01 is that of the source.

    Returns:
        bool, of one latent's shape; .sum() is their number.

    Source: Burda et al., "Importance Weighted Autoencoders", 2016.
    """
    _check_latents("mu", mu)
    if len(mu) < 2:
        raise ValueError(f"expected mu to have at least two samples, but got {shape_of(mu)}")
    wide = mu if mu.dtype == torch.float64 else mu.float()
    return wide.var(0) > threshold


def kl_per_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp logvar) || N(0, 1)) of each latent dimension in nats, mean over the batch, of one latent's shape."""
    return functional.kl_divergence(mu, logvar, reduction="none").mean(0)


def _check_latents(name: str, z: Tensor) -> None:
    check_is_tensor(name, z)
    if not z.is_floating_point():
        raise TypeError(f"expected {name} to have a floating dtype, but got {z.dtype}")
    if z.ndim < 2:
        raise ValueError(f"expected {name} to have shape (batch, ...), but got {shape_of(z)}")
