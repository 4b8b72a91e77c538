"""One line that has another library compute with vae_fast: `vae_fast.integrations.<library>.patch()`.

Each module needs its library, and is imported when it is asked for.
"""

from importlib import import_module
from typing import Any

__all__ = ["diffusers", "pyro", "pythae", "scvi"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
