"""Elements a thread and warps a program, by device and kernel: data, read when a launch is prepared.

Nothing is measured at import or while running. More elements a thread spread what a program does once (20 instructions
an element of latent's forward pass in bfloat16 with eight elements a thread, 7 with 32), fewer take fewer registers.
The figures are from machine code counted for sm_90 (see scripts/): the fewest instructions with which a multiprocessor
still holds 512 threads or more. A device gets a table of its own, under the name of its architecture ("sm_90",
"gfx942"), when measurements say more.
"""

from __future__ import annotations

from typing import NamedTuple

import triton

from .launch import INTERPRETED


class Choice(NamedTuple):
    each: int = 8  # elements a thread, a power of two
    warps: int = 4  # of a program, a power of two; a warp counts 32 threads on AMD too


EIGHT = Choice()

# Of tensors of 16 bits, and of others. A likelihood may have an entry of its own.
DEFAULT = {
    "latent_forward": (Choice(32), Choice(16)),
    "latent_backward": (Choice(16), Choice(16)),
    # With eight and a prior it takes 216 registers on sm_90.
    "importance_backward": (Choice(4, 8), Choice(4, 8)),
    "noise": (Choice(32), Choice(16)),
    "categorical_forward": (Choice(32), Choice(16)),
    "categorical_backward": (Choice(16), Choice(16)),
    "likelihood_forward": (Choice(32), Choice(16)),
    "likelihood_backward": (Choice(16), Choice(16)),
    "likelihood_forward:poisson": (Choice(16), Choice(16)),
    "likelihood_forward:discretized_logistic": (Choice(16), Choice(16)),
    "likelihood_backward:discretized_logistic": (Choice(16), Choice(8)),
    "likelihood_forward:zero_inflated_negative_binomial": (Choice(8), Choice(8)),
    "likelihood_backward:zero_inflated_negative_binomial": (Choice(8), Choice(8)),
    "likelihood_forward:negative_binomial": (Choice(8), Choice(8)),
    "likelihood_backward:negative_binomial": (Choice(8), Choice(8)),
    # With eight the mixture of negative binomials takes 255 registers and spills on sm_80 and sm_90.
    "likelihood_forward:negative_binomial_mixture": (Choice(4, 8), Choice(4, 8)),
    "likelihood_backward:negative_binomial_mixture": (Choice(4, 8), Choice(4, 8)),
}
TABLE: dict[str, dict[str, tuple[Choice, Choice]]] = {}


def choose(name: str, itemsize: int, part: str = "") -> Choice:
    """The choice for a kernel, or for a likelihood's (`part`) where it has one of its own."""
    table = DEFAULT | TABLE.get(architecture(), {})
    found = table.get(f"{name}:{part}") or table.get(name) or (EIGHT, EIGHT)
    return found[itemsize > 2]


def architecture() -> str:
    if INTERPRETED:
        return ""
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
