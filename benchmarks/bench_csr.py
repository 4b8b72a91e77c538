"""The fused heads of counts, forward and backward, on a dense float32 target and on the same in CSR form.

    python -m benchmarks.bench_csr [--rows 8192] [--features 20000] [--hidden 128] [--density 0.05] [--rounds 5]

The fewest bytes: the layer's products are the same; of the target, what is stored instead of everything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import vae_fast


def counts(rows: int, features: int, density: float) -> Tensor:
    """torch.sparse_csr, int32 indices: sorted columns without replacement of every row, small counts."""
    each = max(1, round(features * density))
    col = torch.stack([torch.randperm(features)[:each].sort().values for _ in range(min(rows, 64))])
    col = col.repeat(-(-rows // len(col)), 1)[:rows].flatten().int()
    values = torch.poisson(torch.full((rows * each,), 2.0)) + 1
    crow = torch.arange(0, rows * each + 1, each, dtype=torch.int32)
    return torch.sparse_csr_tensor(crow, col, values.to(torch.uint16), (rows, features))


def bytes_of(csr: Tensor) -> int:
    return sum(t.numel() * t.itemsize for t in (csr.crow_indices(), csr.col_indices(), csr.values()))


def dense(csr: Tensor) -> Tensor:
    out = torch.zeros(csr.shape)
    rows = torch.repeat_interleave(torch.arange(csr.shape[0]), csr.crow_indices().diff())
    out[rows, csr.col_indices().long()] = csr.values().float()
    return out


def heads(args: argparse.Namespace) -> dict[str, Callable[[Tensor], list[Tensor]]]:
    hidden = (0.2 * torch.randn(args.rows, args.hidden)).requires_grad_()
    theta = torch.full((args.features,), 2.0, requires_grad=True)
    library = torch.full((args.rows,), 2000.0)

    def of(
        function: Callable[..., Tensor], outputs: int, *options: Tensor
    ) -> Callable[[Tensor], list[Tensor]]:
        weight = (0.1 * torch.randn(outputs, args.hidden)).requires_grad_()
        bias = torch.zeros(outputs, requires_grad=True)
        leaves = [hidden, weight, bias, *(o for o in options if o.requires_grad)]

        def step(target: Tensor) -> list[Tensor]:
            nll = function(hidden, weight, bias, target, *options, library=library)
            return [nll.detach(), *torch.autograd.grad(nll.mean(), leaves)]

        return step

    return {
        "negative binomial": of(vae_fast.linear_negative_binomial_nll, args.features, theta),
        "zero-inflated": of(vae_fast.linear_zero_inflated_negative_binomial_nll, 2 * args.features, theta),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {"rows": 8192, "features": 20000, "hidden": 128, "rounds": 5, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--density", type=float, default=0.05)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    csr = counts(args.rows, args.features, args.density)
    full = dense(csr)
    size = full.numel() * full.itemsize
    print(
        f"target: dense float32 {size / 1e6:.0f} MB, CSR {bytes_of(csr) / 1e6:.0f} MB, 1/{size / bytes_of(csr):.1f}"
    )
    for name, step in heads(args).items():
        for a, b in zip(step(full), step(csr), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
        times: dict[str, list[float]] = {"dense": [], "csr": []}
        for _ in range(args.rounds):  # in turns: what else the machine does meets both
            for which, target in (("dense", full), ("csr", csr)):
                begin = time.perf_counter()
                step(target)
                times[which].append(time.perf_counter() - begin)
        best = {which: min(found) for which, found in times.items()}
        middle = {which: statistics.median(found) for which, found in times.items()}
        print(
            f"{name:18} dense {best['dense']:.3f} s (median {middle['dense']:.3f}), "
            f"CSR {best['csr']:.3f} s (median {middle['csr']:.3f}), {best['dense'] / best['csr']:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
