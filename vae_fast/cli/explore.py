"""`vae-fast explore`: serves the page to this machine alone."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path

from ..training.errors import TrainingError

LOOPBACK = "127.0.0.1"
PORT = 5006  # Bokeh's
_TRIES = 100  # ports, one after the other


def run_explore(
    folder: Path | None, source: str | None, labels: Path | None, port: int | None, browser: bool, cpu: bool
) -> None:
    try:
        import panel
    except ImportError:
        raise TrainingError("explore takes Panel: pip install 'vae_fast[explore]'") from None
    from ..explore.page import application
    from ..explore.scene import Scene
    from .trained import Run

    port = free_port() if port is None else check_free(port)
    run = Run(folder, source, cpu)
    page = application(Scene(run, labels))
    logging.getLogger("asyncio").addFilter(_is_no_closed_page)
    print(f"{run.folder}: http://{LOOPBACK}:{port}/ (Ctrl-C ends it)", flush=True)
    panel.serve(
        page,
        address=LOOPBACK,
        port=port,
        websocket_origin=[f"{LOOPBACK}:{port}", f"localhost:{port}"],
        show=browser,
        verbose=False,
    )


def _is_no_closed_page(record: logging.LogRecord) -> bool:
    """False for what tornado logs when a page is closed while something is drawn for it."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "WebSocketClosedError"


def free_port() -> int:
    """The first of PORT and the next ones that nothing listens on."""
    for port in range(PORT, PORT + _TRIES):
        if _why_not(port) is None:
            return port
    raise TrainingError(f"ports {PORT} to {PORT + _TRIES - 1} are taken: give --port another")


def check_free(port: int) -> int:
    if (error := _why_not(port)) is not None:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise TrainingError(f"port {port} {reason}: give --port another, or none for the next free one")
    return port


def _why_not(port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server does: not taken by what has ended
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error
    return None
