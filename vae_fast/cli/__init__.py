"""The command `vae-fast`. What a user can cause ends in one line on stderr and a non-zero exit."""

from __future__ import annotations

import sys

# What the command imports beyond torch: the packages of the extra `train`.
_EXTRA = {
    "accelerate",
    "click",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "rich",
    "safetensors",
    "sklearn",
    "typer",
}


def main() -> None:
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        from .app import app

        status = app(arguments, prog_name="vae-fast", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        return _fail(f"{package} is not installed; the command takes: pip install 'vae_fast[train]'")
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        line = _user_error(error)
        if line is None:
            raise
        return _fail(line, 2 if hasattr(error, "format_message") else 1)


def _user_error(error: Exception) -> str | None:
    """The line for an error that is the user's to mend; None for one that is ours."""
    import torch
    import typer

    from ..training.errors import TrainingError

    if isinstance(error, TrainingError):
        return str(error)
    if isinstance(error, typer.Abort):
        return "aborted"
    if hasattr(error, "format_message"):  # a usage error, which typer keeps under changing names
        return f"{error.format_message()} (vae-fast --help, vae-fast COMMAND --help)"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        return "out of memory: a smaller --batch-size may help"
    return None


def _fail(line: str, status: int = 1) -> int:
    print(f"vae-fast: {' '.join(line.split())}", file=sys.stderr)
    return status
