"""What a section of the page shows: samples as a picture or a table, and their downloads."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import panel as pn
from torch import Tensor

from ..training import pictures
from .scene import Scene, npy

_STYLE = """
img { display: block; max-width: 100%; height: auto; margin: 4px 0; }
figure { margin: 0; }
figcaption, p { color: #6b7280; margin: 0; overflow-wrap: anywhere; }
.wrong { color: #b91c1c; }
.values { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; }
th, td { padding: 2px 12px 2px 0; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
"""


class View:
    """Samples, and buttons that download what is seen.

    Attributes:
        column: what Panel lays out.
        z: of what is seen, (n, ...); None where nothing is.
    """

    def __init__(self, scene: Scene, name: str, with_z: bool = False) -> None:
        self._scene = scene
        self._pane = html()
        self._samples: Tensor | None = None
        self.z: Tensor | None = None
        self._picture: bytes | None = None
        files: dict[str, Callable[[], bytes]] = {}
        if pictures.can_draw(scene.model):
            files[f"{name}.png"] = lambda: self._picture or b""
        files[name + scene.suffix] = lambda: b"" if self._samples is None else scene.file(self._samples)
        if with_z:
            files["z.npy"] = lambda: b"" if self.z is None else npy(self.z)
        self.column = column(
            self._pane, pn.FlexBox(*(_download(file, made) for file, made in files.items()), margin=(0, 5))
        )

    def show(self, z: Tensor, samples: Tensor, title: str, caption: str, names: Sequence[str] = ()) -> None:
        """`names`: of several samples, for a table's columns."""
        self.z, self._samples = z, samples
        self._picture = self._scene.picture(samples, title)
        if self._picture is not None:
            source = base64.b64encode(self._picture).decode()
            content = f'<img src="data:image/png;base64,{source}" alt="{escape(caption)}">'
        else:
            header, rows = self._scene.table(samples)
            lines = [["", *names]] if names else []
            lines += [[name, *(row[i] for row in rows)] for i, name in enumerate(header)]
            content = f'<div class="values"><table>{"".join(map(_line, lines))}</table></div>'
        self._pane.object = f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"

    def fail(self, reason: str) -> None:
        self.z = self._samples = self._picture = None
        self._pane.object = f'<p class="wrong">{escape(reason)}</p>'


def html(text: str = "") -> Any:
    return pn.pane.HTML(text, stylesheets=[_STYLE], sizing_mode="stretch_width")


def column(*parts: Any) -> Any:
    return pn.Column(*parts, sizing_mode="stretch_width")


def button(name: str, do: Callable[[], None], **options: Any) -> Any:
    found = pn.widgets.Button(name=name, **options)
    found.on_click(lambda event: do())
    return found


def _download(name: str, content: Callable[[], bytes]) -> Any:
    # Without Panel's icon= : those come from a server elsewhere.
    return pn.widgets.FileDownload(
        callback=lambda: io.BytesIO(content()), filename=name, label=f"↓ {name}", width=102, margin=5
    )


def _line(cells: list[str]) -> str:
    first, *rest = map(escape, cells)
    return f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
