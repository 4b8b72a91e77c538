"""The registry: which backend serves, and what happens when one is missing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch

import vae_fast
from conftest import HANG, NATIVE, TRITON, needs_native
from vae_fast import backends

X = torch.zeros(4, 3)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where neither a compiler nor a GPU was found."""
    for name in ("cpu", "cuda", "triton"):
        monkeypatch.setitem(backends._reasons, name, f"{name} was not built")
    monkeypatch.setattr(backends, "_warned", set())
    backends._resolved.clear()
    yield
    monkeypatch.undo()
    backends._resolved.clear()


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=HANG
    )


def test_auto() -> None:
    assert vae_fast.info()["used"]["cpu"] == ("cpu" if NATIVE else "reference")
    assert vae_fast.info()["forced"] is None


def test_context_nests_and_restores() -> None:
    with vae_fast.backend("reference"):
        assert vae_fast.info()["forced"] == "reference"
        with vae_fast.backend("auto"):
            assert vae_fast.info()["forced"] is None
            with vae_fast.backend("twin"):
                assert backends.resolve("latent", X).__name__.endswith("twin")
            with contextlib.suppress(KeyError), vae_fast.backend("twin"):
                raise KeyError
            assert vae_fast.info()["forced"] is None
        assert backends.resolve("latent", X) is vae_fast.reference
    assert vae_fast.info()["forced"] is None


def test_context_as_decorator() -> None:
    @vae_fast.backend("reference")
    def forced() -> str | None:
        return vae_fast.info()["forced"]

    assert [forced(), forced()] == ["reference"] * 2
    assert vae_fast.info()["forced"] is None


def test_choice_is_seen_in_every_thread() -> None:
    """autograd runs backward in threads of its own on a GPU."""
    seen = []
    with vae_fast.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.resolve("latent", X)))
        thread.start()
        thread.join()
    assert seen == [vae_fast.reference]


def test_float64_is_served_by_the_reference(kernels: str) -> None:
    assert backends.resolve("latent", X, X.double()) is vae_fast.reference
    assert backends.resolve("latent", X, None, X.half()) is not vae_fast.reference


def test_forcing_a_missing_backend_says_why(missing: None) -> None:
    with pytest.raises(RuntimeError, match="backend 'cpu' is not available: cpu was not built"):
        vae_fast.backend("cpu")
    with pytest.raises(ValueError, match=r"to be one of cpu, cuda, triton, reference.* got 'fpga'"):
        vae_fast.backend("fpga")


def test_auto_falls_back_with_one_warning(missing: None) -> None:
    with pytest.warns(UserWarning, match="slow reference backend for cpu tensors .*cpu was not built"):
        vae_fast.reparameterize_kl(X, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_fast.reparameterize_kl(X, X)
        vae_fast.bernoulli_nll(X, X)


def test_choosing_the_reference_does_not_warn(missing: None) -> None:
    with warnings.catch_warnings(), vae_fast.backend("reference"):
        warnings.simplefilter("error")
        vae_fast.reparameterize_kl(X, X)


@pytest.mark.skipif(TRITON, reason="with the interpreter, Triton takes CPU tensors")
def test_wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hint in (("cuda", ""), ("triton", ".*TRITON_INTERPRET=1")):
        monkeypatch.setitem(backends._reasons, name, None)
        with (
            vae_fast.backend(name),
            pytest.raises(RuntimeError, match=f"{name}' does not take cpu tensors{hint}"),
        ):
            vae_fast.reparameterize_kl(X, X)


def test_info() -> None:
    info = vae_fast.info()
    assert list(info["backends"]) == ["cpu", "cuda", "triton", "reference", "twin"]
    for entry in info["backends"].values():
        assert entry["available"] == (entry["reason"] is None)
    text = repr(info)
    assert vae_fast.__version__ in text and torch.__version__ in text
    assert all(name in text for name in ("cpu", "cuda", "triton", "reference"))


def test_info_tells_the_reason(missing: None) -> None:
    assert vae_fast.info()["backends"]["cuda"] == {"available": False, "reason": "cuda was not built"}
    assert "not available: cuda was not built" in repr(vae_fast.info())


@needs_native
def test_info_tells_the_details() -> None:
    assert "isa" in vae_fast.info()["backends"]["cpu"]


def test_environment() -> None:
    code = "import vae_fast; print(vae_fast.info()['forced'])"
    assert python(code, VAE_FAST_BACKEND="reference").stdout.strip() == "reference"
    assert python(code, VAE_FAST_BACKEND="auto").stdout.strip() == "None"
    assert python(code, VAE_FAST_BACKEND="").stdout.strip() == "None"
    run = python(
        "import torch, vae_fast; vae_fast.kl_divergence(*[torch.zeros(1, 1)] * 2)", VAE_FAST_BACKEND="fpga"
    )
    assert run.returncode != 0 and "VAE_FAST_BACKEND" in run.stderr and "'fpga'" in run.stderr
