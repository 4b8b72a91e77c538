"""-log p(x | z) of counts: independent Poisson variables."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_per_sample
from ..likelihoods.csr import Csr
from ..ops.linear_likelihood import linear_likelihood
from ._elementwise import elementwise_nll
from ._layer import check_layer


def poisson_nll(
    mean: Tensor,
    target: Tensor | Csr,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "sample",
) -> Tensor:
    """-log p(target | mean) of independent Poisson variables, per sample.

        nll = sum mu - x log mu + log x!,   mu = mean + 1e-8

    The sum runs over all dims but the first. The 1e-8, as in scvi-tools, keeps a mean of 0 finite. Accurate where mu
    and x are large and nearly equal, and the textbook form cancels.

    Args:
        mean: (batch, ...) or draws as in `bernoulli_nll`, at least 0, float32, bfloat16, float16 or float64, any
            strides.
        target: x in mean's shape, counts: float, uint8 (the number itself, not 255ths), bool, int16, int32 or int64.
            (batch, features) may be a torch.sparse_csr tensor, of uint16 too, and of int32 or int64 indices: nothing is
            read of what it does not store, and it is never made dense as a whole. The columns of a row ascend, as
            torch's invariants have it; the nll of a row whose columns do not is NaN. `vae_fast.Csr` has its tensors for
            a graph of torch.compile, which takes no sparse tensor.
        mask: bool, broadcastable to target. False leaves the element out: it adds nothing and its gradient is 0, even
            where its target or parameter is NaN or infinite.
        weight: (batch,), a factor for each sample's nll.
        reduction: "sample" gives a loss for each sample, "none" one for each element, in target's shape.

    Returns:
        nll: (batch,), or as `reduction` says, in nats, the constant log x! included; float32 (float64 if an input is).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not match.

    Source: Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018 (scvi-tools).
    """
    return elementwise_nll("poisson", "mean", mean, target, mask, weight, reduction, of_counts=True)


def linear_poisson_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    *,
    library: Tensor | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`poisson_nll` of a mean whose logarithm is linear in hidden.

        mean = exp(o),  o = hidden weight^T + bias;   with a library, mean = library softmax(o), over all features

    library is (batch,), positive: the size of each sample, as in scvi-tools (there exp(library)); it may have a
    gradient. Other arguments, memory and errors as `linear_bernoulli_nll`; formula and source as `poisson_nll`.
    """
    check_layer(hidden, weight, bias, target, mask, sample_weight, heads=(1,), of_counts=True)
    check_per_sample("library", library, target)
    return linear_likelihood(
        "poisson", hidden, weight, bias, target, library=library, mask=mask, sample_weight=sample_weight
    )
