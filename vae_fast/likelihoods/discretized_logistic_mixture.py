"""-log p(x) of a mixture of discretized logistics, in plain PyTorch: PixelCNN++ (Salimans et al., 2017), section 2."""

from __future__ import annotations

import torch
from torch import Tensor

from .discretized_logistic import d_discretized_logistic, discretized_logistic
from .numerics import arithmetic_dtype, read, total, weighted, widest
from .spec import Parameter, Spec


def unpack(params: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Mixture logits (batch, K, pixels); means, log-scales and coefficients (batch, channels, K, pixels)."""
    if channels == 1:
        logits, means, log_scales = params.unflatten(1, (3, -1)).unbind(1)
        return logits, means[:, None], log_scales[:, None], None
    components = params.shape[1] // 10
    logits, rest = params.split((components, 9 * components), 1)
    means, log_scales, coefficients = rest.unflatten(1, (3, 3, components)).unbind(2)
    return logits, means, log_scales, coefficients


def tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(x) and its derivative, in a form that autograd differentiates without cancellation far from 0."""
    e = torch.exp(-2 * x.abs())
    far = torch.sign(x) * (1 - e) / (1 + e)
    return torch.where(x.abs() < 1, torch.tanh(x), far), 4 * e / (1 + e) ** 2


def condition(means: Tensor, coefficients: Tensor | None, t: Tensor) -> Tensor:
    """The means given the channels before: green on red, blue on red and green. t is (batch, channels, 1, pixels)."""
    if coefficients is None:
        return means
    (k, _), (red, green, _) = tanh(coefficients), t.unbind(1)
    shifts = (torch.zeros_like(k[:, 0]), k[:, 0] * red, k[:, 1] * red + k[:, 2] * green)
    return means + torch.stack(shifts, 1)


def discretized_logistic_mixture_nll(
    params: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log sum_k softmax(logits)_k prod_channels P_k(x | channels before), in float64: a scale may be e^-7."""
    if params.ndim > target.ndim:  # draws
        lead = params.shape[:2]
        x = target.expand(lead[0], *target.shape).flatten(0, 1)
        if mask is not None:
            mask = mask.expand(*lead, 1, *target.shape[2:]).flatten(0, 1)
        nll = discretized_logistic_mixture_nll(params.flatten(0, 1), x, mask=mask, reduction=reduction)
        nll = nll.unflatten(0, lead)
        return weighted(nll, weight, nll.ndim - 1)
    wide = read(target, params, mask=mask, dtype=widest(params))
    x, p = (v.flatten(2) if v.ndim > 2 else v[..., None] for v in wide)
    logits, means, log_scales, coefficients = unpack(p, x.shape[1])
    t = (2 * x - 1)[:, :, None]
    log_p = -discretized_logistic(t, condition(means, coefficients, t), log_scales).sum(1)
    joint = torch.log_softmax(logits, 1) + log_p
    # Apart from the largest: beside it the logarithm of the sum may be lost, and with it logsumexp's gradient.
    largest = joint.detach().amax(1, keepdim=True).clamp(min=torch.finfo(joint.dtype).min)
    nll = -largest[:, 0] - torch.log(torch.exp(joint - largest).sum(1))
    if mask is not None:
        shape = (target.shape[0], 1, *target.shape[2:])
        nll = torch.where(mask.expand(shape).reshape(nll.shape), nll, 0.0)
    if reduction == "none":
        nll = nll.view(target.shape[0], *target.shape[2:])
    nll = total(nll, None, None, reduction).to(arithmetic_dtype(params, target))
    return weighted(nll, weight, nll.ndim)


def derivatives(params: Tensor, target: Tensor) -> Tensor:
    """The derivative of each pixel's nll by each of its parameters, in params' shape (batch, parameters, pixels)."""
    x, p = read(target, params, dtype=widest(params))
    logits, means, log_scales, coefficients = unpack(p, x.shape[1])
    t = (2 * x - 1)[:, :, None]
    means = condition(means, coefficients, t)
    log_p = -discretized_logistic(t, means, log_scales).sum(1)
    prior = torch.softmax(logits, 1)
    posterior = torch.softmax(torch.log_softmax(logits, 1) + log_p, 1)
    by_mean, by_scale = d_discretized_logistic(x[:, :, None], means, log_scales)
    largest = torch.finfo(p.dtype).max
    by_scale = by_scale.clamp(-largest, largest)  # finite, so that a posterior of 0 makes it 0
    by_mean, by_scale = posterior[:, None] * by_mean, posterior[:, None] * by_scale
    parts = [by_mean, by_scale]
    if coefficients is not None:
        red, green, _ = t.unbind(1)
        _, of_green, of_blue = by_mean.unbind(1)
        by_k = torch.stack((of_green * red, of_blue * red, of_blue * green), 1)
        parts.append(by_k * tanh(coefficients)[1])
    return torch.cat((prior - posterior, torch.stack(parts, 2).flatten(1, 3)), 1)


DISCRETIZED_LOGISTIC_MIXTURE = Spec(
    "discretized_logistic_mixture",
    (Parameter("params"),),
    support="unit",
    nll=discretized_logistic_mixture_nll,
    op="mixture",
    source='Salimans et al., "PixelCNN++", 2017',
)
