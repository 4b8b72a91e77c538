"""Measures vae_fast against eager PyTorch, torch.compile and JAX, compares two records, writes the report.

python -m benchmarks          in a checkout
vae-fast bench                where vae_fast is installed, which brings this package as vae_fast_benchmarks
"""

from __future__ import annotations


def main(arguments: list[str], prog_name: str) -> int:
    """Runs the command and returns its exit status; raises what `vae_fast.cli` says in one line."""
    from .command import app

    status = app(arguments, prog_name=prog_name, standalone_mode=False)
    return status if isinstance(status, int) else 0
