"""Errors that a user can cause: the command prints their one line, without a traceback."""

from __future__ import annotations

import re
import struct

import torch


class TrainingError(Exception):
    """Something outside the program is not as it must be. The message is one line."""


class DataError(TrainingError):
    """The data cannot be read, or is not what a VAE can be trained on."""


class CheckpointError(TrainingError):
    """The checkpoint cannot be read or written, or is none."""


class DivergenceError(TrainingError):
    """The loss is infinite or NaN."""


# What says nothing to a user: an object, bytes, a name in the library's code.
_REPR = re.compile(r"""<\w[^>]*>|\bb['"]|local variable|invalid literal""")
_OF_CODE = (ArithmeticError, AttributeError, LookupError, NameError, TypeError, struct.error)


def reason(error: BaseException, otherwise: str = "damaged") -> str:
    """Why a library cannot read a file, as it says it in its first line; `otherwise` where that is of its own code."""
    text = str(error).strip().partition("\n")[0]
    return otherwise if not text or isinstance(error, _OF_CODE) or _REPR.search(text) else text


def is_out_of_memory(error: Exception) -> bool:
    """Whether a tensor was too large: for the memory, or even for the number of its bytes."""
    texts = ("allocate memory", "calculation overflowed", "multiplication overflow")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(t in str(error) for t in texts)


def is_lost_process(error: BaseException) -> bool:
    """Whether it says that the connection to another process of the run is gone, as Gloo's and NCCL's errors do."""
    return isinstance(error, RuntimeError) and any(
        t in str(error) for t in ("gloo/transport", "ncclRemoteError")
    )
