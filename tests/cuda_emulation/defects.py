"""Runs checks against modules that each have a defect planted: every one must fail. Called by test_cuda_emulation.py.

    python -m cuda_emulation.defects MODULE EXPRESSION [MODULE EXPRESSION ...]

Each runs in a fork, since a sanitizer ends the process. Prints a line for each: the exit status, 0 for a defect that
nobody saw, and what was seen.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

CHECKS = sorted(map(str, Path(__file__).parent.glob("checks_*.py")))
SEEN = ("ERROR: AddressSanitizer", "runtime error:", "cuda emulation:", "AssertionError", "E       assert")


def status(module: str, expression: str) -> str:
    """The exit status, and the line of the output that says what was seen."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.environ["VAE_FAST_CUDA_EMULATION"] = module
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            files = [path for path in CHECKS if Path(path).stem in expression.split()] or CHECKS
            code = pytest.main([*files, "-x", "-q", "-s", "-p", "no:cacheprovider", "-k", expression])
            sys.stdout.flush()
            os._exit(int(code))
        _, wait_status = os.waitpid(child, 0)
        output.seek(0)
        lines = output.read().splitlines()
    seen = [line for line in lines if any(word in line for word in SEEN)]
    return f"{os.waitstatus_to_exitcode(wait_status)} {seen[0].strip() if seen else 'nothing seen'}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    for module, expression in zip(arguments[::2], arguments[1::2], strict=True):
        print("status", status(module, expression), flush=True)
