"""Errors that a user can cause: the command prints their one line, without a traceback."""

from __future__ import annotations


class TrainingError(Exception):
    """Something outside the program is not as it must be. The message is one line."""


class DataError(TrainingError):
    """The data cannot be read, or is not what a VAE can be trained on."""


class CheckpointError(TrainingError):
    """The checkpoint cannot be read or written, or is none."""
