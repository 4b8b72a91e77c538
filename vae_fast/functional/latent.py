"""A sample of the latent variable and its KL divergence."""

from __future__ import annotations

from torch import Tensor

from ..backends.contract import Generators
from ..checks import (
    check_clamp,
    check_constant,
    check_dim,
    check_pair,
    check_parametrization,
    check_prior,
    check_reduction,
    check_tensor,
    resolve_rng_state,
    shape_of,
)
from ..ops.latent import latent


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    prior: tuple[Tensor, Tensor] | Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """A sample of N(mu, sigma^2) and its KL divergence from the prior, in one pass; sigma = exp(logvar / 2).

        z  = mu + sigma eps,   eps ~ N(0, 1)
        kl = sum (mu^2 + expm1(logvar) - logvar) / 2                                 prior N(0, 1)
        kl = sum (expm1(d) - d + (mu - mu_p)^2 exp(-logvar_p)) / 2,  d = logvar - logvar_p

    The sums run over all dims but the first. The noise is never stored: backward makes it again from `rng_state`.
    Arithmetic is in float32, or in float64 if mu, logvar or the prior is. NaN and infinities propagate.

    The second argument, raw, may mean something else than the log-variance:

        parametrization   sigma                      with this epsilon in
        "logvar"          sqrt(exp(raw) + epsilon)   scvi-tools: 1e-4
        "logstd"          exp(raw) + epsilon         NVAE: 1e-2; VDVAE and PyTorch Geometric: 0
        "softplus"        softplus(raw) + epsilon    Oobleck of stable-audio-tools: 1e-4
        "std"             raw + epsilon              torch.distributions.Normal, Pyro: 0

    and z may be shifted and scaled as a diffusion model wants its latents: z = (mu + sigma eps - shift) scale.

    Args:
        mu: (batch, ...), float32, bfloat16, float16 or float64, any strides. (batch,) is one element per sample.
        logvar: the shape of mu; the natural log of the variance, or raw of the parametrization.
        num_samples: k draws per sample instead of one; z is (k, batch, ...).
        prior: another diagonal Gaussian, with gradients: (mu_p, logvar_p), each broadcastable to mu, which no
            parametrization and no clamp changes; or one tensor [mu_p | raw_p] along dim 1, whose halves broadcast to
            mu and are read as mu and logvar are: parametrization, epsilon, clamp and soft_clamp.
        clamp: (lo, hi) for logvar, as torch.clamp: the bounds are rounded to logvar's dtype, the gradient is 1 on them
            and 0 outside.
        reduction: "sample" gives a KL for each sample, "none" one for each element, in mu's shape.
        generator: where the noise comes from, on mu's device; by default torch's own generator of that device, so
            that torch.manual_seed repeats a run. A list, one a sample, draws each sample's noise from its own, so
            that a sample is the same in any batch. (torch.compile takes no generator= here, and Inductor draws other
            numbers than eager from the same seed: pass rng_state for the same noise in both. A CUDA graph that is
            captured with a generator of your own needs torch's graph.register_generator_state(generator) first.)
        rng_state: int64 (seed, offset) of shape (2,), or (batch, 2) for one per sample: reproduces the noise exactly
            (`vae_fast.noise`). (seed, offset, first_row, rows) of shape (4,): this batch's part of the noise of a batch
            of `rows` samples, from sample first_row on.
        noise: a constant to take for eps, in z's shape. At most one of noise, rng_state and generator.
        parametrization: "logvar", "logstd", "softplus" or "std"; outside of its domain ("std" below 0) KL is NaN.
        epsilon: what is added as the table says, at least 0.
        soft_clamp: c > 0 takes c tanh(mu / c) for mu and c tanh(raw / c) for raw, before anything else (NVAE: 5). Not
            together with clamp.
        shift, scale: constants, numbers or tensors broadcastable to mu ((C, 1, 1) for one a channel), for z alone. By
            default 0 and 1. diffusers: shift=latents_mean, scale=scaling_factor / latents_std.

    Returns:
        z: (batch, ...) or (k, batch, ...), in mu's dtype and layout.
        kl: (batch,), or mu's shape with reduction="none", in nats; float32 (float64 for float64 inputs). 0 for samples
            without elements.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match, or a value out of range.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, equation 10 and appendix B.
    """
    check_pair(mu, logvar)
    prior = check_prior(prior, mu)
    clamp = check_clamp(clamp)
    form = _form(parametrization, epsilon, soft_clamp, clamp)
    affine = None if shift is None and scale is None else _affine(shift, scale, mu)
    rng_state = resolve_rng_state(mu, mu.shape, num_samples, generator, rng_state, noise)
    return latent(  # type: ignore[return-value]
        mu,
        logvar,
        prior=prior,
        rng_state=rng_state,
        noise=noise,
        clamp=clamp,
        num_samples=num_samples,
        per_element=reduction != "sample" and check_reduction(reduction),
        form=form,
        affine=affine,
    )


def reparameterize_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    num_samples: int | None = None,
    prior: tuple[Tensor, Tensor] | Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    reduction: str = "sample",
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """`reparameterize_kl` of moments = [mu | logvar], or [mu | raw], along `dim`: an encoder's last layer.

    Nothing is sliced or copied, and the gradient is one packed tensor.

    Args:
        moments: (batch, ...), of even size along dim; otherwise as mu.
        dim: where mu and logvar follow each other; any dim but the first.
        num_samples, prior, clamp, reduction, generator, rng_state, noise, parametrization, epsilon, soft_clamp, shift,
            scale: as in `reparameterize_kl`; shapes as of mu, that is of one half of moments. A prior of one tensor
            has its halves along `dim`, counted as in moments.

    Returns:
        z: the shape of mu, or (k, *mu.shape).
        kl: as there.

    Raises:
        TypeError, ValueError: as `reparameterize_kl`; ValueError for an odd size along dim.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, equation 10 and appendix B.
    """
    check_tensor("moments", moments)
    check_dim(moments, dim)
    if moments.shape[dim] % 2:
        raise ValueError(
            f"expected moments to have an even size along dim {dim}, but got shape {shape_of(moments)}"
        )
    mu = moments.narrow(dim, 0, moments.shape[dim] // 2)
    prior = check_prior(prior, mu, dim)
    clamp = check_clamp(clamp)
    form = _form(parametrization, epsilon, soft_clamp, clamp)
    affine = None if shift is None and scale is None else _affine(shift, scale, mu)
    rng_state = resolve_rng_state(mu, mu.shape, num_samples, generator, rng_state, noise)
    return latent(  # type: ignore[return-value]
        moments,
        None,
        dim,
        prior=prior,
        rng_state=rng_state,
        noise=noise,
        clamp=clamp,
        num_samples=num_samples,
        per_element=reduction != "sample" and check_reduction(reduction),
        form=form,
        affine=affine,
    )


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    clamp: tuple[float, float] | None = None,
    generator: Generators = None,
    rng_state: Tensor | None = None,
    noise: Tensor | None = None,
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
    shift: Tensor | float | None = None,
    scale: Tensor | float | None = None,
) -> Tensor:
    """z = (mu + sigma eps - shift) scale: the sample of `reparameterize_kl` without the KL divergence.

    Arguments, errors and source as there. Returns z, (batch, ...) or (num_samples, batch, ...).
    """
    check_pair(mu, logvar)
    clamp = check_clamp(clamp)
    form = _form(parametrization, epsilon, soft_clamp, clamp)
    affine = None if shift is None and scale is None else _affine(shift, scale, mu)
    rng_state = resolve_rng_state(mu, mu.shape, num_samples, generator, rng_state, noise)
    z, _ = latent(
        mu,
        logvar,
        rng_state=rng_state,
        noise=noise,
        clamp=clamp,
        num_samples=num_samples,
        want_kl=False,
        form=form,
        affine=affine,
    )
    return z  # type: ignore[return-value]


def kl_divergence(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior: tuple[Tensor, Tensor] | Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    reduction: str = "sample",
    parametrization: str = "logvar",
    epsilon: float = 0,
    soft_clamp: float | None = None,
) -> Tensor:
    """KL(N(mu, sigma^2) || prior), in nats: the KL divergence of `reparameterize_kl` without a sample.

    Exact near the prior, where the textbook form 1 + logvar - mu^2 - exp(logvar) is all rounding error. Arguments,
    errors and source as there. Returns kl, (batch,) or with reduction="none" mu's shape, float32 (float64 for float64
    inputs).
    """
    check_pair(mu, logvar)
    per_element = reduction != "sample" and check_reduction(reduction)
    prior, clamp = check_prior(prior, mu), check_clamp(clamp)
    form = _form(parametrization, epsilon, soft_clamp, clamp)
    _, kl = latent(mu, logvar, prior=prior, clamp=clamp, want_z=False, per_element=per_element, form=form)
    return kl  # type: ignore[return-value]


def _form(
    parametrization: str, epsilon: float, soft_clamp: float | None, clamp: tuple[float, float] | None
) -> tuple[str, float, float | None] | None:
    # Their defaults have no float: torch.compile would make an input of it.
    if parametrization == "logvar" and soft_clamp is None and epsilon == 0:
        return None
    return check_parametrization(parametrization, epsilon, soft_clamp, clamp)


def _affine(
    shift: Tensor | float | None, scale: Tensor | float | None, mu: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    return check_constant("shift", shift, mu), check_constant("scale", scale, mu)
