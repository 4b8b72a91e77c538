"""The page, laid out with Panel: one `Page` for each visitor of a `Scene`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn

from ..training.errors import TrainingError
from .map import MapPlot
from .scene import Point, Scene
from .view import View, button, column, html

SHOWN = 10  # sliders that are not folded away
_LAYOUT = (Path(__file__).parent / "page.html").read_text()


def application(scene: Scene) -> Callable[[], Any]:
    """What Panel's server calls for each visitor."""
    pn.extension()
    return lambda: Page(scene).template


class Page:
    """What one visitor sees. The state is one Point; whatever changes it has all that shows it drawn again."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.point = scene.zero(0 if scene.model.conditions else None)
        self._is_setting = False  # a slider is moved by the page, not by its visitor
        self._waiting: set[str] = set()
        kind = "half" if scene.map is None else ""
        sections = [
            ("sample", "Decoded sample", kind, self._sample()),
            ("latents", "Latents", kind, self._latents()),
        ]
        if scene.map is not None:
            sections.append(("map", "Map of the test samples", "map", self._map()))
        sections.append(("between", "From one sample to another", "half", self._between()))
        if scene.names:
            sections.append(("towards", "Towards a label", "half", self._towards()))
        self.template = pn.Template(_LAYOUT)
        for name, _, _, content in sections:
            self.template.add_panel(name, content)
        self.template.add_variable("sections", [section[:3] for section in sections])
        self.template.add_variable("run", str(scene.run.folder))
        self.template.add_variable("facts", scene.facts)
        note = scene.missing and f"No map and no labels, as the data are not there: {scene.missing}"
        self.template.add_variable("note", note)
        self.template.title = f"{scene.run.folder.name}: vae-fast explore"
        self._draw_sample()
        self._draw_way()
        if scene.names:
            self._draw_steered()

    # The decoded sample

    def _sample(self) -> Any:
        self._view = View(self.scene, "sample", with_z=True)
        conditions = self.scene.model.conditions
        self._condition = pn.widgets.Select(
            name="Condition", options={name: i for i, name in enumerate(conditions)}, visible=bool(conditions)
        )
        self._condition.param.watch(lambda event: self._set_condition(event.new), "value")
        return column(self._condition, self._view.column)

    def _draw_sample(self) -> None:
        z, condition = self.point.z, self.point.condition
        self._view.show(z, self.scene.decode(z, condition), "mean of p(x | z)", self.point.name)

    def _set_condition(self, condition: int) -> None:
        if not self._is_setting:
            self.show(self.point._replace(condition=condition))

    # The latents

    def _latents(self) -> Any:
        scene = self.scene
        reset = button("Reset to 0", lambda: self.show(scene.zero(self.point.condition)))
        draw = button("Draw from the prior", self._next_draw, button_type="primary")
        self._seed = pn.widgets.IntInput(value=0, start=0, end=2**31 - 1, width=90)
        self._seed.param.watch(lambda event: self._draw_prior(), "value")
        self._is_drawn = False  # the first draw has the seed that is there, a further one the next
        self._sliders: dict[int, Any] = {}
        shown = min(SHOWN, scene.in_use)
        first, rest = scene.dims[:shown], scene.dims[shown:]
        seed = pn.Row(pn.pane.HTML("seed", margin=(10, 0, 0, 5)), self._seed)
        parts = [pn.FlexBox(draw, seed, reset), *map(self._slider, first)]
        if rest:
            more = scene.in_use - shown
            title = f"{len(rest)} more" + ("" if scene.kl is None else f", {more or 'none'} of them in use")
            # The sliders are made when the card opens: hundreds of them take seconds.
            card = pn.Card(title=title, collapsed=True, sizing_mode="stretch_width")
            card.param.watch(lambda event: self._unfold(card, rest), "collapsed")
            parts.append(card)
        if scene.kl is not None:
            parts.append(html("<p>Beside each dimension: its KL in nats, mean over the test samples.</p>"))
        return column(*parts)

    def _unfold(self, card: Any, dims: list[int]) -> None:
        if not card.objects:
            card.objects = [self._slider(d) for d in dims]

    def _slider(self, d: int) -> Any:
        kl, span = self.scene.kl, self.scene.spans[d]
        name = f"z{d}" if kl is None else f"z{d} · {kl[d]:.2f}"
        value = float(self.point.z.flatten()[d])
        span = max(span, math.ceil(abs(value)))
        slider = pn.widgets.FloatSlider(
            name=name, start=-span, end=span, step=0.01, value=value, sizing_mode="stretch_width"
        )
        slider.param.watch(lambda event: self._move(d, event.new), "value")
        self._sliders[d] = slider
        return slider

    def _move(self, d: int, value: float) -> None:
        if self._is_setting:
            return
        z = self.point.z.clone()
        z.view(-1)[d] = value
        self.show(Point(z, self.point.condition, "as the sliders are"), moved=True)

    def _next_draw(self) -> None:
        if self._is_drawn:
            self._seed.value += 1  # which draws
        else:
            self._draw_prior()

    def _draw_prior(self) -> None:
        self._is_drawn = True
        self.show(self.scene.draw(self._seed.value, self.point.condition))

    # The map

    def _map(self) -> Any:
        shown, n = self.scene.map, len(self.scene.run.dataset.test)
        assert shown is not None
        self._plot = MapPlot(shown, lambda x, y: self.show(self.scene.at(x, y, self.point.condition)))
        hint = (
            "A click decodes the point itself."
            if shown.is_latent
            else "A click decodes mu of the test sample that is nearest on this map (PCA): a point of a projection "
            "has no latent of its own."
        )
        if len(shown.numbers) < n:
            hint += f" The map has {len(shown.numbers):,} of the {n:,} test samples."
        number = pn.widgets.IntInput(
            name=f"Show a test sample, 0 to {n - 1}", value=None, start=0, end=n - 1, placeholder="its number"
        )
        number.param.watch(lambda event: self._show_sample(event.new), "value")
        plot = pn.pane.Bokeh(self._plot.figure, sizing_mode="stretch_width")
        return column(html(f"<p>{hint}</p>"), plot, number)

    def _show_sample(self, number: int | None) -> None:
        if number is not None:
            self.show(self.scene.sample(number))

    # From one sample to another

    def _between(self) -> Any:
        self._start, self._end = self.scene.two()
        start = button("Start at the decoded sample", lambda: self._set_ends(start=self.point))
        end = button("End at the decoded sample", lambda: self._set_ends(end=self.point))
        self._spherical = pn.widgets.RadioButtonGroup(
            name="Way", options={"Straight line": False, "Great circle": True}, value=False, width=220
        )
        self._spherical.param.watch(lambda event: self._draw_way(), "value")
        self._way = View(self.scene, "way")
        return column(pn.FlexBox(start, end, self._spherical), self._way.column)

    def _set_ends(self, start: Point | None = None, end: Point | None = None) -> None:
        self._start, self._end = start or self._start, end or self._end
        self._draw_way()

    def _draw_way(self) -> None:
        start, end = self._start, self._end
        try:
            z = self.scene.between(start, end, self._spherical.value)
        except TrainingError as error:  # opposite vectors, between which no great circle is the shortest
            self._way.fail(str(error))
            return
        names = [f"{i / (len(z) - 1):.0%}" for i in range(len(z))]
        samples = self.scene.decode(z, start.condition)
        self._way.show(z, samples, "along the way, 0% to 100%", f"from {start.name} to {end.name}", names)

    # Towards a label

    def _towards(self) -> Any:
        self._label = pn.widgets.Select(name="Label", options=self.scene.names, width=160)
        self._strength = pn.widgets.FloatSlider(
            name="Strength", start=-4, end=4, step=0.1, value=2, width=300
        )
        for widget in (self._label, self._strength):
            widget.param.watch(lambda event: self._later(self._draw_steered, 40), "value")
        self._steered = View(self.scene, "steered")
        take = button("Make the last one the decoded sample", self._take_steered)
        return column(pn.FlexBox(self._label, self._strength, take), self._steered.column)

    def _draw_steered(self) -> None:
        label, strength = self._label.value, self._strength.value
        try:
            z = self.scene.towards(self.point, label, strength)
        except TrainingError as error:  # all training samples have the label, or none
            self._steered.fail(str(error))
            return
        names = [f"{strength * i / (len(z) - 1):.2g}" for i in range(len(z))]
        caption = (
            f"from {self.point.name}; 1 is the difference of the mean latents with label {label} and without"
        )
        samples = self.scene.decode(z, self.point.condition)
        self._steered.show(z, samples, f"strength, 0 to {strength:g}", caption, names)

    def _take_steered(self) -> None:
        if self._steered.z is not None:
            name = f"{self._strength.value:g} towards {self._label.value}"
            self.show(Point(self._steered.z[-1:], self.point.condition, name))

    # What all of them share

    def show(self, point: Point, moved: bool = False) -> None:
        """Makes the point what is shown. `moved`: by a slider, which is where it should be."""
        self.point = point
        if not moved:
            self._is_setting = True
            try:
                for d, slider in self._sliders.items():
                    value = float(point.z.flatten()[d])
                    if abs(value) > slider.end:
                        slider.start, slider.end = -math.ceil(abs(value)), math.ceil(abs(value))
                    slider.value = value
                if point.condition is not None:
                    self._condition.value = point.condition
            finally:
                self._is_setting = False
        if self.scene.map is not None:
            self._plot.mark(self.scene.place(self.point))
        self._later(self._draw_sample, 20)
        if self.scene.names:
            self._later(self._draw_steered, 150)

    def _later(self, draw: Callable[[], None], milliseconds: int) -> None:
        """Draws once for all changes until then: a slider that is dragged sends more of them than can be drawn."""
        name = draw.__name__
        if name in self._waiting:
            return
        self._waiting.add(name)

        def run() -> None:
            self._waiting.discard(name)
            draw()

        pn.state.curdoc.add_timeout_callback(run, milliseconds)
