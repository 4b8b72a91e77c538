"""The kernels of contract.py on an extension: tensors go in as (address, dtype code, strides), None where absent.

Codes are looked up by name in the tables that an extension exports.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch  # before the extensions: its OpenMP runtime is the one to share
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ...likelihoods import ELEMENTWISE
from ...likelihoods.csr import Csr
from ..contract import KERNELS, PARAMETRIZATIONS, Clamp, Parametrization, Prior

_View = tuple[int, int, tuple[int, ...]] | None


def _load(name: str, what_helps: str) -> tuple[Any, str | None]:
    """The extension, or None and why it is not here."""
    full_name = f"{__package__}.{name}"
    try:
        extension = importlib.import_module(full_name)
    except ImportError as error:
        return None, f"the extension {full_name} is not built or does not load ({error}); {what_helps}"
    tables = [getattr(extension, name, ()) for name in ("kernels", "likelihoods", "parametrizations")]
    if (
        tuple(tables[0]) != KERNELS
        or set(tables[1]) != set(ELEMENTWISE)
        or set(tables[2]) != set(PARAMETRIZATIONS)
    ):
        return None, f"the extension {full_name} was built from other sources; {what_helps}"
    return extension, None


def _state(rng_state: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A dense rng_state (to be kept alive), its address, and its words; 0 of them for one state per sample."""
    if rng_state is None:
        return None, 0, 2
    rng_state = rng_state.contiguous()
    return rng_state, rng_state.data_ptr(), 0 if rng_state.dim() == 2 else rng_state.shape[0]


def _draws(sampled: Tensor | None, mu: Tensor) -> int:
    return sampled.shape[0] if sampled is not None and sampled.dim() > mu.dim() else 1


def _mixture_sizes(params: Tensor, target: Tensor) -> tuple[int, int, int, int]:
    """(batch, channels, components, pixels)"""
    batch, channels, pixels = target.shape
    return batch, channels, params.shape[1] // (3 if channels == 1 else 10), pixels


class Engine:
    """A backend over one extension. `where` is what its kernels are told about where to run."""

    def __init__(self, extension: ModuleType | None, reason: str | None) -> None:
        self._reason = reason
        self.use(extension)

    def use(self, extension: Any) -> None:
        self.extension = extension
        tables = extension is not None
        self.likelihoods: dict[str, int] = extension.likelihoods if tables else {}
        self.parametrizations: dict[str, int] = extension.parametrizations if tables else {}
        self.of_counts: frozenset[str] = frozenset(extension.of_counts) if tables else frozenset()
        codes: dict[str, int] = extension.dtypes if tables else {}
        # count8 is torch's uint8, whose bytes are numbers and not 255ths.
        self.dtypes = {getattr(torch, name): code for name, code in codes.items() if name != "count8"}
        self._count8 = codes.get("count8", -1)

    def where(self, tensor: Tensor) -> Any:
        raise NotImplementedError

    def unavailable_reason(self) -> str | None:
        """Why this backend cannot run here, or None if it can. Touches no device."""
        return self._reason

    def details(self) -> dict[str, Any]:
        """What was built and what is used."""
        raise NotImplementedError

    def _view(self, tensor: Tensor | None) -> _View:
        if tensor is None:
            return None
        return tensor.data_ptr(), self.dtypes[tensor.dtype], tensor.stride()

    def _counts(self, tensor: Tensor | Csr) -> Any:
        """A uint8 tensor holds numbers. The strides of sparse counts are those of their rows by sample and position."""
        if isinstance(tensor, Csr):
            crow, col, values, _ = tensor.parts
            code = self._count8 if values.dtype is torch.uint8 else self.dtypes[values.dtype]
            return values.data_ptr(), code, (0, 1), crow.data_ptr(), col.data_ptr(), col.dtype is torch.int64
        code = self._count8 if tensor.dtype is torch.uint8 else self.dtypes[tensor.dtype]
        return tensor.data_ptr(), code, tensor.stride()

    def latent_forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior,
        rng_state: Tensor | None,
        noise: Tensor | None,
        clamp: Clamp,
        *,
        z: Tensor | None,
        kl: Tensor | None,
        form: Parametrization | None = None,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        view = self._view
        prior_mu, prior_logvar = prior or (None, None)
        _alive, state, words = _state(rng_state)
        self.extension.latent_forward(
            self.where(mu),
            mu.shape,
            _draws(z, mu),
            view(mu),
            view(logvar),
            view(prior_mu),
            view(prior_logvar),
            state,
            words,
            view(noise),
            clamp,
            form and (self.parametrizations[form.name], *form[1:]),
            None if shift is None else view(shift),
            None if scale is None else view(scale),
            view(z),
            view(kl),
        )

    def latent_backward(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior,
        rng_state: Tensor | None,
        noise: Tensor | None,
        clamp: Clamp,
        *,
        grad_mu: Tensor | None,
        grad_logvar: Tensor | None,
        grad_prior: tuple[Tensor | None, Tensor | None] | None,
        form: Parametrization | None = None,
        scale: Tensor | None = None,
    ) -> None:
        view = self._view
        prior_mu, prior_logvar = prior or (None, None)
        grad_prior_mu, grad_prior_logvar = grad_prior or (None, None)
        _alive, state, words = _state(rng_state)
        self.extension.latent_backward(
            self.where(mu),
            mu.shape,
            _draws(grad_z, mu),
            view(grad_z),
            view(grad_kl),
            view(mu),
            view(logvar),
            view(prior_mu),
            view(prior_logvar),
            state,
            words,
            view(noise),
            clamp,
            form and (self.parametrizations[form.name], *form[1:]),
            None if scale is None else view(scale),
            view(grad_mu),
            view(grad_logvar),
            view(grad_prior_mu),
            view(grad_prior_logvar),
        )

    def noise_fill(self, eps: Tensor, rng_state: Tensor) -> None:
        _alive, state, words = _state(rng_state)
        self.extension.noise_fill(self.where(eps), eps.shape[1:], eps.shape[0], state, words, self._view(eps))

    def likelihood_forward(
        self,
        likelihood: str,
        params: tuple[Tensor, ...],
        target: Tensor | Csr,
        mask: Tensor | None,
        rng_state: Tensor | None,
        *,
        nll: Tensor,
        draws: int | None = None,
    ) -> None:
        view = self._view
        _alive, state, words = _state(rng_state)
        self.extension.likelihood_forward(
            self.where(nll),
            target.shape,
            draws,
            self.likelihoods[likelihood],
            tuple(map(view, params)),
            self._counts(target) if likelihood in self.of_counts or isinstance(target, Csr) else view(target),
            view(mask),
            state,
            words,
            view(nll),
        )

    def likelihood_backward(
        self,
        likelihood: str,
        params: tuple[Tensor, ...],
        target: Tensor | Csr,
        mask: Tensor | None,
        rng_state: Tensor | None,
        grad_nll: Tensor,
        *,
        grads: tuple[Tensor | None, ...],
        draws: int | None = None,
    ) -> None:
        if draws == 0:
            for grad in grads:
                if grad is not None:
                    grad.zero_()
            return
        view = self._view
        _alive, state, words = _state(rng_state)
        self.extension.likelihood_backward(
            self.where(grad_nll),
            target.shape,
            draws,
            self.likelihoods[likelihood],
            tuple(map(view, params)),
            self._counts(target) if likelihood in self.of_counts or isinstance(target, Csr) else view(target),
            view(mask),
            state,
            words,
            view(grad_nll),
            tuple(map(view, grads)),
        )

    def categorical_forward(
        self, logits: Tensor, target: Tensor | Csr, *, nll: Tensor, lse: Tensor, total: Tensor
    ) -> None:
        view = self._view
        self.extension.categorical_forward(
            self.where(logits),
            logits.shape,
            view(logits),
            self._counts(target),
            view(nll),
            view(lse),
            view(total),
        )

    def categorical_backward(
        self,
        logits: Tensor,
        target: Tensor | Csr,
        lse: Tensor,
        total: Tensor,
        grad_nll: Tensor,
        *,
        grad_logits: Tensor,
    ) -> None:
        view = self._view
        self.extension.categorical_backward(
            self.where(logits),
            logits.shape,
            view(logits),
            self._counts(target),
            view(lse),
            view(total),
            view(grad_nll),
            view(grad_logits),
        )

    def mixture_forward(
        self,
        params: Tensor,
        target: Tensor,
        mask: Tensor | None,
        *,
        nll: Tensor,
        grad_params: Tensor | None = None,
    ) -> None:
        view = self._view
        self.extension.mixture_forward(
            self.where(params),
            _mixture_sizes(params, target),
            view(params),
            view(target),
            view(mask),
            view(nll),
            view(grad_params),
        )

    def mixture_backward(
        self, params: Tensor, target: Tensor, mask: Tensor | None, grad_nll: Tensor, *, grad_params: Tensor
    ) -> None:
        view = self._view
        self.extension.mixture_backward(
            self.where(params),
            _mixture_sizes(params, target),
            view(params),
            view(target),
            view(mask),
            view(grad_nll),
            view(grad_params),
        )


class CpuEngine(Engine):
    """csrc/cpu: AVX2 and AVX-512 kernels on torch's OpenMP threads, and the memory of large outputs."""

    def __init__(self) -> None:
        super().__init__(*_load("_cpu", "install a C++17 compiler and reinstall vae_fast from source"))

    def where(self, tensor: Tensor) -> int:
        """The number of threads."""
        return torch.get_num_threads()

    def details(self) -> dict[str, Any]:
        if self.extension is None:
            return {}
        return {
            "isa": self.extension.isa(),
            "isas": self.extension.available_isas(),
            "openmp": self.extension.has_openmp(),
            "threads": torch.get_num_threads(),
            "cache_mb": self.extension.cache_limit() >> 20,
        }

    def empty_strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """torch.empty_strided for large outputs: reuses the memory of freed ones, where malloc would give it back to
        the system and every step would pay for its pages again (z and gradient of 100 MB: a third more time).
        VAE_FAST_CACHE_MB bounds what is kept (1024).

        torch does not resize storages over memory of others: it raises "not resizable" for a larger `resize_`, an
        `out=` that has to grow, or `untyped_storage().resize_(0)`. FSDP, FSDP2 and activation offloading resize none of
        these; VAE_FAST_CACHE_MB=0 leaves all memory to torch.
        """
        if not self.extension.cache_limit():
            return torch.empty_strided(shape, strides, dtype=dtype)
        return from_dlpack(self.extension.empty_strided(shape, strides, self.dtypes[dtype]))

    def empty_cache(self) -> None:
        """Gives the memory that is kept for outputs back to the system."""
        if self.extension is not None:
            self.extension.empty_cache()


class CudaEngine(Engine):
    """csrc/cuda: one launch an op on torch's current stream, no synchronisation, no hidden copies."""

    def __init__(self) -> None:
        extension, reason = _load(
            "_cuda", "reinstall vae_fast from source where nvcc is, with VAE_FAST_CUDA=1"
        )
        if reason is None and not torch.version.cuda:
            reason = "this PyTorch was built without CUDA"
        super().__init__(extension, reason)

    def where(self, tensor: Tensor) -> tuple[int, int, Scratch]:
        """The tensor's device, torch's current stream there, and where a launch gets scratch memory from."""
        device = tensor.device.index
        stream: int = torch._C._cuda_getCurrentRawStream(device)
        return device, stream, Scratch(tensor.device)

    def details(self) -> dict[str, Any]:
        if self.extension is None:
            return {}
        return {"architectures": self.extension.architectures, "toolkit": self.extension.toolkit}

    def mixture_forward(
        self,
        params: Tensor,
        target: Tensor,
        mask: Tensor | None,
        *,
        nll: Tensor,
        grad_params: Tensor | None = None,
    ) -> None:
        """The gradient is a launch of its own: on a GPU the components are evaluated again rather than kept."""
        super().mixture_forward(params, target, mask, nll=nll)
        if grad_params is not None:
            ones = nll.new_ones(()).expand(len(params))
            self.mixture_backward(params, target, mask, ones, grad_params=grad_params)


class Scratch:
    """Memory for sums that several blocks share: float64 partial sums, and 32-bit zeros. Most launches ask for none.

    It lives until the launch is queued, and torch gives it to later work of the same stream only. Nothing is kept from
    call to call: kept zeros would lie in the private pool of whichever CUDA graph is being recorded, and torch.compile
    raises when it finds them there.

    One allocation, cleared as a whole: 3 us of the host, 6 us for two (measured on a CPU); the partial sums are 1 MB a
    gradient at most.
    """

    __slots__ = ("device", "memory")

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, partials: int, tickets: int) -> tuple[int, int]:
        self.memory = torch.zeros(partials + (tickets + 1) // 2, dtype=torch.float64, device=self.device)
        address = self.memory.data_ptr()
        return address, address + 8 * partials


cpu = CpuEngine()
cuda = CudaEngine()
