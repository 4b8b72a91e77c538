"""The command `vae-fast`. What a user can cause ends in one line on stderr and a non-zero exit."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

# What the command imports beyond torch: the packages of the extra `train`.
_EXTRA = {
    "accelerate",
    "click",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "psutil",
    "rich",
    "safetensors",
    "sklearn",
    "typer",
}


# What makes its tensors smaller, by command.
_SMALLER = {"train": "--batch-size", "generate": "-n", "reconstruct": "-n"}


def main() -> None:
    warnings.formatwarning = _format_warning
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    try:
        from .app import app

        status = app(arguments, prog_name="vae-fast", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        if command == "doctor":  # which is there for those who miss something
            from .doctor import run_doctor

            return run_doctor()
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        return _fail(f"{package} {state}; the command takes: pip install 'vae_fast[train]'")
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        line = _user_error(error, command)
        if line is None:
            raise
        return _fail(line, 2 if hasattr(error, "format_message") else 1)


def _user_error(error: Exception, command: str) -> str | None:
    """The line for an error that is the user's to mend; None for one that is ours."""
    import typer

    from ..training.errors import TrainingError, is_lost_process, is_out_of_memory
    from .flags import OTHERS, as_written

    if isinstance(error, TrainingError):
        return as_written(str(error), names=OTHERS.get(command, ()))
    if isinstance(error, typer.Abort):
        return "aborted"
    if hasattr(error, "format_message"):  # a usage error, which typer keeps under changing names
        known = getattr(getattr(error, "ctx", None), "command_path", "vae-fast")
        return f"{error.format_message()} ({known} --help)"
    if is_lost_process(error):
        return "another process of this run has ended"
    if is_out_of_memory(error):
        return "out of memory" + (f": a smaller {_SMALLER[command]} may help" if command in _SMALLER else "")
    return None


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A line for a warning of vae_fast's; others keep the place where they come from."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"vae-fast: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _fail(line: str, status: int = 1) -> int:
    print(f"vae-fast: {' '.join(line.split())}", file=sys.stderr)
    return status
