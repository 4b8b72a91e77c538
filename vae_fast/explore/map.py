"""The map of the test samples: a plot that tells where it is clicked."""

from __future__ import annotations

from collections.abc import Callable

from bokeh.events import Tap
from bokeh.models import Legend, LegendItem
from bokeh.plotting import figure

from ..training import pictures
from .scene import Map


class MapPlot:
    """Attributes:
    figure: Bokeh's.
    """

    def __init__(self, shown: Map, tapped: Callable[[float, float], None]) -> None:
        plot = figure(
            height=400,
            sizing_mode="stretch_width",
            match_aspect=True,
            tools="pan,wheel_zoom,reset,save",
            active_drag=None,  # else a phone's screen cannot be scrolled over the map
            toolbar_location="above",
            background_fill_color=None,
            border_fill_color=None,
        )
        plot.toolbar.logo = None
        plot.grid.grid_line_color = "#eeeeee"
        axes = ("z0", "z1") if shown.is_latent else ("first principal component", "second")
        plot.xaxis.axis_label, plot.yaxis.axis_label = axes
        names = [""] * len(shown.points) if shown.labels is None else shown.labels.tolist()
        items = []
        for name, members, colour in pictures.coloured(names):
            x, y = shown.points[members].T
            size = max(3, min(7, 4000 / len(names)))
            dots = plot.scatter(x, y, size=size, color=colour, alpha=0.7, line_width=0)
            items.append((name, LegendItem(label=name, renderers=[dots])))
        if shown.labels is not None:
            longest = max(len(name) for name, _ in items)
            legend = Legend(
                items=[item for _, item in items],
                ncols=max(1, 40 // (longest + 4)),
                click_policy="hide",
                border_line_color=None,
                padding=0,
                spacing=2,
                margin=4,
                glyph_width=14,
                label_text_font_size="12px",
            )
            plot.add_layout(legend, "below")
        self._mark = plot.scatter(
            [], [], size=16, marker="circle_cross", fill_alpha=0, line_color="black", line_width=2
        )
        plot.on_event(Tap, lambda event: tapped(event.x, event.y))
        self.figure = plot

    def mark(self, place: tuple[float, float] | None) -> None:
        x, y = ([], []) if place is None else ([place[0]], [place[1]])
        self._mark.data_source.data = {"x": x, "y": y}
