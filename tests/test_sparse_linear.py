"""nn.SparseLinear: CSR rows against the dense product, in value and gradient."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from conftest import state
from vae_fast.nn import VAE, MLPDecoder, MLPEncoder, SparseLinear

BATCH, FEATURES, WIDTH = 5, 11, 4


def csr(dense: Tensor, index: torch.dtype = torch.int32) -> Tensor:
    x = dense.to_sparse_csr()
    parts = x.crow_indices().to(index), x.col_indices().to(index), x.values()
    return torch.sparse_csr_tensor(*parts, x.shape)


def counts(dtype: torch.dtype = torch.int32) -> Tensor:
    """With an empty row, an empty column and a full row."""
    x = torch.randint(0, 5, (BATCH, FEATURES), generator=torch.Generator().manual_seed(0))
    x[1], x[:, 3], x[2] = 0, 0, 2
    return x.to(dtype)


@pytest.fixture(params=["scipy", "torch"])
def transposed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setitem(sys.modules, "scipy.sparse", None)


@pytest.mark.usefixtures("transposed_by")
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("values", [torch.uint8, torch.int32, torch.float64])
@pytest.mark.parametrize("log1p", [False, True])
def test_is_the_dense_product(index: torch.dtype, values: torch.dtype, log1p: bool) -> None:
    torch.manual_seed(0)
    layer = SparseLinear(FEATURES, WIDTH, log1p=log1p).double()
    x = counts(values)
    scale = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    results = []
    for given in (x.double(), csr(x, index)):
        y = layer(given)
        results.append([y, *torch.autograd.grad((y * scale).sum(), layer.parameters())])
    torch.testing.assert_close(results[1], results[0])
    want = (x.double().log1p() if log1p else x.double()) @ layer.weight + layer.bias
    torch.testing.assert_close(results[0][0], want)


@pytest.mark.usefixtures("transposed_by")
@pytest.mark.parametrize("rows", [0, 3])
def test_without_a_count(rows: int) -> None:
    layer = SparseLinear(FEATURES, WIDTH)
    y = layer(csr(torch.zeros(rows, FEATURES)))
    torch.testing.assert_close(y, layer.bias.expand(rows, WIDTH))
    y.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros(FEATURES, WIDTH))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"expected x to have shape \(batch, 9\), but got \(5, 11\)"):
        SparseLinear(9, WIDTH)(csr(counts()))


@pytest.mark.parametrize(
    "likelihood", ["negative_binomial", "zero_inflated_negative_binomial", "multinomial"]
)
@pytest.mark.parametrize("fused_head", [False, True])
def test_vae(likelihood: str, fused_head: bool) -> None:
    """CSR batches give the dense ones' loss and gradients; with two draws."""
    torch.manual_seed(0)
    encoder = MLPEncoder(FEATURES, 6, 2, log1p=True, conditions=2, batch_norm=True, sparse=True)
    decoder = MLPDecoder(2, 6, FEATURES, 1 + (likelihood[0] == "z"), conditions=2)
    model = VAE(encoder, decoder, likelihood, num_samples=2, fused_head=fused_head)
    results = []
    for x in (counts(), csr(counts(torch.uint8))):
        output = model(x, condition=torch.arange(BATCH) % 2, rng_state=state())
        results.append([output.loss, *torch.autograd.grad(output.loss, model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32])
def test_encoder_and_library_of_a_vae(dtype: torch.dtype) -> None:
    model = VAE(MLPEncoder(FEATURES, 6, 2, log1p=True, sparse=True), MLPDecoder(2, 6, FEATURES), "poisson")
    x = counts()
    sparse = csr(x)
    sparse = torch.sparse_csr_tensor(
        sparse.crow_indices(), sparse.col_indices(), sparse.values().to(dtype), x.shape
    )
    torch.testing.assert_close(model.encode(sparse), model.encode(x))
    assert torch.equal(model.likelihood.library(sparse), x.sum(1).float())
    torch.testing.assert_close(model.reconstruct(sparse), model.reconstruct(x))
