"""The variational autoencoder: any encoder, any decoder, a likelihood by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..checks import (
    check_bool,
    check_clamp,
    check_int,
    check_num_samples,
    check_sizes,
    fresh_rng_state,
    number_of,
)
from ..functional import reparameterize
from ..likelihoods.csr import is_csr
from ..likelihoods.numerics import held_between
from ..output import VAEOutput
from . import first_batch
from .checks import batch_of, check_batch, check_beta
from .condition import call, check_condition, takes_condition, takes_target
from .fused import WithFusedHead
from .head import find_head, try_out
from .inputs import float_dtype, input_dtype, on_device
from .likelihoods import Likelihood, make_likelihood
from .likelihoods.base import Library, Params, spread_rows
from .objectives import Objective, make_objective
from .posterior import Posterior
from .pretrained import Pretrained
from .priors import Density, Moments, StandardNormal, draw, halves, make_prior
from .schedules import Schedule
from .sharding import gather_around, is_fsdp, run_as_forward


class VAE(Pretrained, WithFusedHead):
    """loss = mean over the batch of  -log p(x | z) + beta KL(q(z | x) || p(z)),  z ~ q(z | x); other objectives.

    Args:
        encoder: encoder(x) gives (mu, logvar), or one tensor with both side by side along dim 1.
        decoder: decoder(z) gives the likelihood's parameters in x's shape: one tensor, a tuple of them,
            or one tensor with them side by side along dim 1.
        likelihood: a name in `vae_fast.nn.LIKELIHOODS` ("bernoulli", logits; "gaussian", mean; ...), or a
            `vae_fast.nn.Likelihood`.
        prior: p(z): None for N(0, 1), a module such as `MixturePrior`, `VampPrior` or `ConditionalPrior`, or a pair of
            tensors (mu_p, logvar_p) that broadcast to mu.
        objective: what is minimised: "elbo", "free_bits", "capacity", "kl_balance", "beta_tc" or "iwae", or an object
            with options, `IWAE(50)`; a module of your own that makes a `VAEOutput` of a `Posterior` is one.
        beta: weight of the KL (Higgins et al., "beta-VAE", 2017), a number or a `Schedule`. 1 gives the evidence lower
            bound. For "beta_tc" that of the total correlation.
        clamp: (lo, hi), bounds of the encoder's log-variance, as torch.clamp.
        num_samples: draws of z for each x; nll is their mean. None: the objective's, or one.
        latent_shape: z's shape without the batch, for `generate`. By default the encoder's `latent_shape`.
        fused_head: whether a last nn.Linear of the decoder (an nn.Sequential, an nn.Unflatten after it or not) is
            computed together with the likelihood, some rows at a time, so that its outputs never exist as a whole.
            "auto" does so where it saves time or much memory; the results are the same to rounding. True raises where
            the decoder or the likelihood does not allow it. A layer that does more than nn.Linear when it is called
            (a hook, LoRA, a quantized one) is called, and likelihood and layer are computed apart: a warning, once,
            and `fused_head_reason` say why. Parametrizations, FSDP and tensor parallelism by outputs stay fused.
        validate: whether the first training batch is looked at: its dtype, and that its values are of the likelihood
            (no 0..255 under a Bernoulli, no negative counts). This waits for the device once; later batches are not
            looked at, nor is anything under torch.compile or export, or in eval mode. Set `model.validate = True` to
            have the next training batch looked at.
        likelihood_options: the likelihood's own, for "gaussian" variance=1.0, "learned", "feature" or "decoder".

    x (batch, ...) has a floating dtype, uint8 (255ths; for counts the number itself), bool, or an integer dtype. The
    likelihood reads it as it is; the encoder is given it in the dtype of its own parameters (class numbers as integers,
    for an nn.Embedding). For counts, x may be a torch.sparse_csr tensor (batch, features): encoder and likelihood are
    given it as it is, so the encoder begins with a `SparseLinear` (`MLPEncoder(..., sparse=True)`).

    `condition`, in all calls: labels (batch,) of an integer dtype, or numbers (batch, C) or broadcastable to that; one
    label or (C,) numbers are for all samples. Encoder and decoder are called network(x, condition), each that says by
    an attribute `takes_condition` that it takes one: `MLPEncoder(..., conditions=C)`, `MLPDecoder`,
    `ConditionalSequential`, or a module of your own.

    A decoder whose output at a position depends on x before it, such as `GRUDecoder`, says so by an attribute
    `takes_target` and is called decoder(z, target=x); `decode` is its `generate`.

    Raises:
        TypeError, ValueError: an option out of range; a decoder whose output is not what the likelihood takes. This is
            found here where the decoder can be tried out without data (its input being `latent_shape`), else in the
            first call. In the calls: a sample without its batch dimension; x of another shape than the decoder's
            output; in the first training call, values that the likelihood is not of.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if is_fsdp(cls):  # `generate` and `reconstruct` go through these
            gather_around(cls, ("encode", "decode", "elbo", "_p_z"))

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: str | Likelihood = "bernoulli",
        *,
        prior: nn.Module | tuple[Tensor, Tensor] | None = None,
        objective: str | Objective = "elbo",
        beta: float | Tensor | Schedule = 1.0,
        clamp: tuple[float, float] | None = None,
        num_samples: int | None = None,
        latent_shape: Sequence[int] | None = None,
        fused_head: bool | str = "auto",
        validate: bool = True,
        **likelihood_options: Any,
    ) -> None:
        super().__init__()
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            if not callable(network):
                raise TypeError(f"expected {name} to be an nn.Module, but got {network!r}")
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = make_likelihood(likelihood, **likelihood_options)
        self.prior = make_prior(prior)
        self.objective = make_objective(objective, beta)
        self.clamp = check_clamp(clamp)
        self.num_samples = None if num_samples is None else check_num_samples(num_samples)
        if latent_shape is None:
            latent_shape = getattr(encoder, "latent_shape", None)
        self.latent_shape = None if latent_shape is None else check_sizes("latent_shape", latent_shape)
        self.data_shape = self._find_data_shape()
        self.likelihood.bind(self.data_shape)
        self._set_fused_head(fused_head)
        # What is still to be done once. A set, which nn.DataParallel's copies of this module share with it.
        self._once = {"unfused"}
        self.validate = validate

    def arguments(self) -> dict[str, Any]:
        names = (
            "encoder",
            "decoder",
            "likelihood",
            "prior",
            "objective",
            "clamp",
            "num_samples",
            "latent_shape",
        )
        return {name: getattr(self, name) for name in (*names, "fused_head", "validate")}

    @property
    def beta(self) -> Any:
        """The objective's weight of the KL: a number, a tensor or a `Schedule`. Setting it sets the objective's."""
        return self.objective.beta

    @beta.setter
    def beta(self, beta: float | Tensor | Schedule) -> None:
        weight: Any = check_beta(beta)
        if isinstance(self.objective.beta, Schedule):
            del self.objective.beta  # nn.Module puts no number where a module is
        self.objective.beta = weight

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "beta":  # nn.Module would register a schedule here, past the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def validate(self) -> bool:
        """Whether the first training batch is looked at. Setting it to True has the next one looked at."""
        return self._validate

    @validate.setter
    def validate(self, validate: bool) -> None:
        self._validate = check_bool("validate", validate)
        (self._once.add if validate else self._once.discard)("first batch")

    def forward(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        rng_state: Tensor | None = None,
    ) -> VAEOutput:
        """One pass. The noise comes from torch's generator of the device, `generator` or `rng_state`."""
        objective, draws = self.objective, self.num_samples
        if draws is None:
            draws = getattr(objective, "num_samples", None)
        output: VAEOutput = objective(self._posterior(x, condition, draws, generator, rng_state))
        return output

    if TYPE_CHECKING:  # nn.Module's gives Any: with this an editor completes model(x).loss
        __call__ = forward

    def elbo(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        rng_state: Tensor | None = None,
    ) -> Tensor:
        """E_q[log p(x | z)] - KL in nats, shape (batch,): the mean over `num_samples` draws, without beta."""
        draws = self.num_samples if num_samples is None else num_samples
        posterior = self._posterior(x, condition, draws, generator, rng_state)
        z, kl = posterior.sample()
        return -(posterior.mean_nll(z) + kl)

    def encode(self, x: Tensor, *, condition: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
        """mu and (clamped) log-variance of q(z | x)."""
        check_batch("x", x, self.data_shape)
        mu, logvar = halves(self._moments(x, self._checked(condition, "x", x)))
        return mu, logvar if self.clamp is None else held_between(logvar, *self.clamp)

    def decode(
        self,
        z: Tensor,
        *,
        condition: Tensor | int | None = None,
        library: Library = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of p(x | z); of a decoder that takes a target, tokens, each the most likely after those before.

        library: for counts whose mean depends on it, the number of counts in each sample, (batch,) or one number; by
        default the likelihood's.
        sample: a draw of p(x | z) instead, made with the `generator`.
        """
        check_batch("z", z, self.latent_shape)
        condition = self._checked(condition, "z", z)
        dtype = input_dtype(self.decoder, z, "real")
        z = z if dtype is None else z.to(dtype)
        if sample:
            generator = on_device(generator, z.device)
        if takes_target(self.decoder):
            options: dict[str, Any] = {"temperature": 1.0, "generator": generator} if sample else {}
            tokens: Tensor = self.decoder.generate(z, condition, **options)  # type: ignore[operator]
            return tokens
        params = self._params(self._decode(z, condition))
        if sample:
            return self.likelihood.sample(params, generator, library)
        return self.likelihood.mean(params, library)

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        *,
        condition: Tensor | int | None = None,
        sample_z: bool = False,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of p(x | z) at z = mu, with x's own number of counts where it depends on that; with `sample_z` at a
        draw z ~ q(z | x), with `sample` a draw of p(x | z)."""
        z, logvar = self.encode(x, condition=condition)
        if sample_z:
            z = reparameterize(z, logvar, generator=on_device(generator, z.device))
        library = self.likelihood.library(x)
        return self.decode(z, condition=condition, library=library, sample=sample, generator=generator)

    @torch.no_grad()
    def generate(
        self,
        n: int,
        *,
        condition: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        library: Library = None,
        temperature: float = 1.0,
        sample: bool = False,
    ) -> Tensor:
        """The means of p(x | z) at `n` draws z ~ p(z), whose noise is made on the generator's device and multiplied by
        `temperature` (of a mixture prior, within its components); with `sample`, a draw of p(x | z) at each."""
        z = self.sample_prior(n, condition=condition, generator=generator, temperature=temperature)
        return self.decode(z, condition=condition, library=library, sample=sample, generator=generator)

    @torch.no_grad()
    def sample_prior(
        self,
        n: int,
        *,
        condition: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """`n` draws z ~ p(z), (n, *latent_shape): those that `generate` decodes."""
        if self.latent_shape is None:
            raise ValueError("latent_shape is not known: give it to VAE, or to the encoder as an attribute")
        return self._sample_prior(n, self.latent_shape, condition, generator, temperature)

    def _sample_prior(
        self,
        n: int,
        shape: Sequence[int],
        condition: Tensor | int | None,
        generator: torch.Generator | None,
        temperature: float,
    ) -> Tensor:
        if (number := number_of(temperature)) is None or not 0 <= number < math.inf:
            raise ValueError(
                f"expected temperature to be a finite number of at least 0, but got {temperature!r}"
            )
        decoder = self.decoder if isinstance(self.decoder, nn.Module) else self
        parameters = chain(decoder.parameters(), self.parameters())
        device = next((p.device for p in parameters), torch.get_default_device())
        noise = torch.randn(
            (check_int("n", n), *shape),
            generator=generator,
            dtype=float_dtype(decoder) or float_dtype(self),
            device=device if generator is None else generator.device,
        ).to(device)
        prior = self._p_z(self._checked(condition, "z", noise))
        return draw(prior, noise if number == 1 else noise * number, generator)

    def _posterior(
        self,
        x: Tensor,
        condition: Tensor | int | None,
        draws: int | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
    ) -> Posterior:
        check_batch("x", x, self.data_shape)
        condition = self._checked(condition, "x", x)
        if self._is_first() and not (self._classes is None and self.likelihood.support == "classes"):
            self._look_at(x, self._classes)
        if self.likelihood.binarize:
            if rng_state is None:  # one for x and z: their words of it are different ones
                rng_state, generator = fresh_rng_state("x", x, draws, generator), None
            x = self.likelihood.observe(x, rng_state)
        return self._infer(x, condition, draws, generator, rng_state)

    def _infer(
        self,
        x: Tensor,
        condition: Tensor | None,
        draws: int | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
    ) -> Posterior:
        """The posterior of an x that was checked and binarized."""
        return Posterior(self, x, condition, draws, generator, rng_state)

    def _p_z(self, condition: Tensor | None) -> Moments | Density | None:
        """What the prior's module gives for this condition."""
        prior = self.prior
        if type(prior) is StandardNormal:
            return None
        inputs = (condition,) if takes_condition(prior) else ()
        if getattr(prior, "takes_encoder", False):
            return prior(*inputs, encode=self.encode)
        return prior(*inputs)

    def _is_first(self) -> bool:
        return not torch.compiler.is_compiling() and self.training and "first batch" in self._once

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Starts from what is best where nothing is known of a sample: the likelihood's own parameters
        (`Likelihood.start`) and, of a decoder whose last layer is linear with a bias, that bias
        (`Likelihood.start_bias`): p(x | z) starts around the mean of x. Training then need not find it: with batches of
        thousands that is much of a run.

        Args:
            x: training samples, dense. Of more than 10,000 some 10,000 are looked at, evenly spaced.

        Raises:
            ValueError: x has no finite spread, where that is needed.
        """
        self.likelihood.start(x)
        place = find_head(self.decoder)
        if isinstance(place, str) or x.shape[1:] != self.data_shape or not len(x):
            return
        linear, *unflatten = cast(Any, list(cast(nn.Sequential, self.decoder))[place:])
        if linear.bias is not None:
            bias = unflatten[0](linear.bias.unsqueeze(0))[0] if unflatten else linear.bias
            self.likelihood.start_bias(bias, spread_rows(x))

    @property
    def takes_condition(self) -> bool:
        """Whether encoder, decoder or prior takes the `condition`."""
        return any(map(takes_condition, (self.encoder, self.decoder, self.prior)))

    def _checked(self, condition: Tensor | int | None, like: str, sample: Tensor) -> Tensor | None:
        if condition is None:
            return None
        if not self.takes_condition:
            raise ValueError(
                "expected no condition, because neither encoder nor decoder nor prior takes one: networks of "
                "vae_fast.nn do with conditions=, a module of your own with an attribute takes_condition = True "
                "and a forward(x, condition)"
            )
        return check_condition(condition, like, sample)

    def _decode(self, z: Tensor, condition: Tensor | None, target: Tensor | None = None) -> Any:
        return call(self.decoder, z, condition, target)

    def _look_at(self, x: Tensor, classes: int | None) -> None:
        """At the first training batch that holds something and whose values can be read."""
        x = x.values() if is_csr(x) else x
        if first_batch.can_be_read(x) and x.numel():
            self.likelihood.check(x, classes)
            self._once.discard("first batch")

    def _moments(self, x: Tensor, condition: Tensor | None) -> Any:
        encoder, likelihood = self.encoder, self.likelihood
        given = likelihood.encoder_input(x, input_dtype(encoder, x, likelihood.support))
        inputs = (given, condition) if condition is not None and takes_condition(encoder) else (given,)
        if torch.compiler.is_compiling():
            return encoder(*inputs)
        try:
            return encoder(*inputs)
        except (RuntimeError, IndexError, ValueError) as error:
            problem = self._problem_with(x)
            if problem is None or isinstance(error, torch.OutOfMemoryError):
                error.add_note(f"x has shape {tuple(x.shape)}, read as (batch, ...)")
                raise
            raise ValueError(f"{problem}; the encoder says: {str(error).partition(chr(10))[0]}") from error

    def _problem_with(self, x: Tensor) -> str | None:
        """What is likely to be wrong with x if the encoder fails."""
        parameter = next(self.encoder.parameters(), x) if isinstance(self.encoder, nn.Module) else x
        if parameter.device != x.device:
            return f"expected x to be on {parameter.device} like the encoder's parameters, but got {x.device}"
        if self.data_shape is not None and self.data_shape != x.shape[1:]:
            expected = batch_of(self.data_shape)
            return f"expected x to have shape {expected} as the decoder's output, but got {tuple(x.shape)}"
        return None

    def _nll(self, z: Tensor, x: Tensor, condition: Tensor | None, draws: int | None) -> Tensor:
        """(batch,), or (draws, batch). `condition` has a row for each of the draws."""
        rows = z if draws is None else z.flatten(0, 1)
        place = self._fused_place(x)
        if place is not None:
            nll_of_rows = partial(self._nll_of_rows, place, x, condition, draws)
            return run_as_forward(self.decoder, nll_of_rows, rows)
        params = self._params_of_rows(rows, x, condition, draws)
        if draws is None:
            return self.likelihood.nll(params, x)
        return self.likelihood.nll(tuple(p.unflatten(0, (draws, x.shape[0])) for p in params), x)

    def _params_of_rows(self, rows: Tensor, x: Tensor, condition: Tensor | None, draws: int | None) -> Params:
        """The likelihood's parameters; `rows` of z and `condition` have one for each of the draws."""
        return self._params(self._decode(rows, condition, self._target(x, draws)), x)

    def _params(self, output: Any, x: Tensor | None = None) -> Params:
        params = self.likelihood.split(output)
        shape = self.likelihood.data_shape(params)
        if x is not None and shape != x.shape[1:]:
            raise ValueError(
                f"expected x to have shape {batch_of(shape)} for the decoder's output, {self.likelihood} of {shape} "
                f"for each sample, but got {tuple(x.shape)}"
            )
        if (
            x is not None and self._classes is None and self._is_first()
        ):  # only now it is known how many there are
            self._look_at(x, params[0].shape[-1])
        return params

    def _find_data_shape(self) -> tuple[int, ...] | None:
        """x's shape without the batch, as the decoder has it; None if it cannot be known before the first call."""
        output = try_out(self.decoder, self.latent_shape)
        self._classes: int | None = None
        if output is None:
            return None
        params = self.likelihood.split(output)
        shape = self.likelihood.data_shape(params)
        self._outputs = sum(math.prod(p.shape[1:]) for p in params)  # numbers for each sample
        self._classes = params[0].shape[-1] if params[0].ndim else None
        n = getattr(self.encoder, "in_features", None)
        given = math.prod(self.likelihood.encoder_shape(shape))
        if isinstance(n, int) and given != n:
            raise ValueError(
                f"expected decoder to give {n} numbers for each sample, as many as the encoder takes, "
                f"but got {self.likelihood} of {shape}, {given} numbers"
            )
        return shape
