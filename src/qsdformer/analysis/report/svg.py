"""Small charts as inline SVG that takes its colours from the page, so that dark mode works.

Every chart is `WIDTH` units wide and scales with its column. Series are coloured by the classes
s0, s1, ... of the page's style sheet.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

WIDTH = 420
HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
LETTER = 7.5  # widest width of a tick's digit
LABEL_WIDTH = 170  # of horizontal bars' names
BAR = 15  # height of a horizontal bar with its gap

Points = Sequence[tuple[float, float]]


def escape(text: str) -> str:
    """Text safe inside HTML and attributes."""
    return html.escape(text, quote=True)


@dataclass
class Axes:
    """A plotting area with ranges, ticks and axis titles; shapes are appended to `parts`."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_title: str = ""
    y_title: str = ""
    x_log: bool = False
    y_log: bool = False
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A range without extent, as of a single epoch, still needs ticks.
        self.x, self.y = (r if r[1] > r[0] else (r[0], r[0] + 1) for r in (self.x, self.y))

    def px(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x
        if self.x_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def py(self, value: float) -> float:
        """Vertical position of a value."""
        low, high = self.y
        if self.y_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Points, series: int, title: str) -> None:
        """A line through points."""
        path = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        self.parts.append(
            f'<polyline class="line s{series}" points="{path}"><title>{escape(title)}</title>'
            "</polyline>"
        )

    def dot(self, x: float, y: float, series: int, title: str) -> None:
        """A dot with a tooltip."""
        self.parts.append(
            f'<circle class="dot s{series}" cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="4.5">'
            f"<title>{escape(title)}</title></circle>"
        )

    def box(self, x: tuple[float, float], y: tuple[float, float], css: str, title: str) -> None:
        """A rectangle in data units with a tooltip."""
        left, right = self.px(x[0]), self.px(x[1])
        top, bottom = self.py(y[1]), self.py(y[0])
        self.parts.append(
            f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{max(0.0, bottom - top):.1f}"><title>{escape(title)}</title></rect>'
        )

    def text(self, x: float, y: float, text: str, css: str = "") -> None:
        """Text at a place in data units."""
        self.parts.append(_text(self.px(x), self.py(y), text, css))

    def render(self, label: str, x_ticks: Mapping[float, str] | None = None) -> str:
        """The finished chart."""
        ticks = x_ticks if x_ticks is not None else ticks_of(*self.x, log=self.x_log)
        grid = []
        for value, name in ticks_of(*self.y, log=self.y_log).items():
            y = self.py(value)
            grid.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            grid.append(_text(LEFT - 5, y + 4, name, "end"))
        end = 0.0
        for value, name in ticks.items():
            room = LETTER / 2 * len(name)
            x = min(max(self.px(value), room), WIDTH - room)
            if x - room >= end:  # a tick's text that would overlap the last one's is left out
                grid.append(_text(x, HEIGHT - BOTTOM + 15, name, "mid"))
                end = x + room
        middle = (LEFT + WIDTH - RIGHT) / 2
        grid.append(_text(middle, HEIGHT - 5, self.x_title, "mid soft"))
        turned = f'transform="rotate(-90 11 {HEIGHT / 2})"'
        grid.append(_text(11, HEIGHT / 2, self.y_title, "mid soft", turned))
        return svg(HEIGHT, [*grid, *self.parts], label)


def svg(height: float, parts: Sequence[str], label: str) -> str:
    """An SVG element of the standard width."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def ticks_of(low: float, high: float, *, log: bool = False) -> dict[float, str]:
    """Three to seven round values in a range, with their text; `log`: for a logarithmic axis."""
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1,), (1, 2, 5)):
            values = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
            if len(values) >= 3:
                return {v: _number(v) for v in values}
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12)))
    while (high - low) / step < 3:
        step /= 2
    while (high - low) / step > 6:
        step *= 2
    first = math.ceil(low / step - 1e-9)
    values = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return {v: _number(v) for v in values}


def _number(value: float) -> str:
    """A tick's value with all its digits, and none of the rounding of binary fractions."""
    return f"{value:,.10g}"


def legend(names: Sequence[str]) -> str:
    """Coloured names of the series, as HTML."""
    items = "".join(
        f'<span><i class="s{i % 8}"></i>{escape(name)}</span>' for i, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def lines(
    series: Mapping[str, Points], x_title: str, y_title: str, *, y_from: float | None = None
) -> str:
    """Line chart of several series, with a dot where a series is a single point."""
    points = [p for values in series.values() for p in values]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low = min(ys) if y_from is None else y_from
    axes = Axes((min(xs), max(xs)), (low, max(ys)), x_title, y_title)
    for i, (name, values) in enumerate(series.items()):
        if len(values) == 1:
            axes.dot(*values[0], i % 8, name)
        else:
            axes.line(values, i % 8, name)
    ticks = ticks_of(*axes.x)
    if all(float(x).is_integer() for x in xs):
        ticks = {x: name for x, name in ticks.items() if x.is_integer()}
    return axes.render(f"{y_title} over {x_title}", ticks) + legend(list(series))


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], x_title: str, y_title: str
) -> str:
    """Grouped bars: a value of every series for each group."""
    top = max(v for values in series.values() for v in values)
    axes = Axes((-0.6, len(groups) - 0.4), (0, top), x_title, y_title)
    width = 0.84 / len(series)
    for i, (name, values) in enumerate(series.items()):
        for group, value in enumerate(values):
            left = group - 0.42 + i * width
            tip = f"{name}, {groups[group]}: {value:.3f}"
            axes.box((left, left + width * 0.92), (0, value), f"bar s{i % 8}", tip)
    return axes.render(y_title, dict(enumerate(groups))) + legend(list(series))


def scatter(points: Mapping[str, tuple[float, float]], x_title: str, y_title: str) -> str:
    """Named points on a logarithmic horizontal axis."""
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    margin = (max(ys) - min(ys)) * 0.1 or 0.5
    axes = Axes(
        (min(xs) / 1.3, max(xs) * 1.3),
        (min(ys) - margin, max(ys) + margin),
        x_title,
        y_title,
        x_log=True,
    )
    for i, (name, (x, y)) in enumerate(points.items()):
        axes.dot(x, y, i % 8, f"{name}: {x:.4g}, {y:.2f}")
    return axes.render(f"{y_title} against {x_title}") + legend(list(points))


def rate_bars(rates: Mapping[str, float]) -> str:
    """Horizontal bars of shares in [0, 1], one below the other."""
    parts = []
    room = WIDTH - LABEL_WIDTH - 44
    for i, (name, rate) in enumerate(rates.items()):
        y = i * BAR
        length = room * rate
        parts.append(
            f'<rect class="bar s0" x="{LABEL_WIDTH}" y="{y + 2}" width="{length:.1f}" '
            f'height="{BAR - 4}"><title>{escape(name)}: {rate:.3f}</title></rect>'
        )
        parts.append(_text(LABEL_WIDTH - 5, y + BAR - 4, name, "end small"))
        parts.append(_text(LABEL_WIDTH + length + 4, y + BAR - 4, f"{rate:.2f}", "small"))
    return svg(len(rates) * BAR + 4, parts, "firing rate of every neuron layer")


def stacked(rows: Mapping[str, Mapping[str, float]], captions: Mapping[str, str]) -> str:
    """Horizontal stacked bars, each filling the width, with a caption above each."""
    kinds = list(next(iter(rows.values())))
    parts, y = [], 0
    for name, shares in rows.items():
        total = sum(shares.values()) or 1.0
        parts.append(_text(2, y + 13, captions[name], ""))
        x = 0.0
        for i, kind in enumerate(kinds):
            width = shares[kind] / total * WIDTH
            tip = f"{name}, {kind}: {shares[kind] / total:.1%}"
            parts.append(
                f'<rect class="bar s{i % 8}" x="{x:.1f}" y="{y + 18}" width="{width:.1f}" '
                f'height="16"><title>{escape(tip)}</title></rect>'
            )
            x += width
        y += 44
    return svg(y, parts, "energy by kind of operation") + legend(kinds)


def raster(layers: Mapping[str, np.ndarray]) -> str:
    """Binary spikes (neurons, steps) of several layers side by side, a mark a spike."""
    gap, parts = 14.0, []
    width = (WIDTH - gap * (len(layers) - 1)) / len(layers)
    rows = max(spikes.shape[0] for spikes in layers.values())
    cell = 4.2
    for i, (name, spikes) in enumerate(layers.items()):
        left = i * (width + gap)
        column = width / spikes.shape[1]
        parts.append(
            f'<rect class="frame" x="{left:.1f}" y="16" width="{width:.1f}" '
            f'height="{rows * cell:.1f}"/>'
        )
        parts.append(_text(left + width / 2, 11, name, "mid small"))
        marks = "".join(
            f"M{left + step * column + 1:.1f} {16 + neuron * cell + cell / 2:.1f}h{column - 2:.1f}"
            for neuron, step in np.argwhere(spikes > 0)
        )
        parts.append(f'<path class="spikes s{i % 8}" d="{marks}"/>')
        bottom = 16 + rows * cell + 13
        for step in (0, spikes.shape[1] - 1):
            centre = left + (step + 0.5) * column
            parts.append(_text(centre, bottom, str(step + 1), "mid small"))
    return svg(16 + rows * cell + 18, parts, "spikes over virtual time steps")


def picture(values: np.ndarray, *, colour: bool = False) -> str:
    """An <img> of values (H, W) or (H, W, 3) in [0, 1], PNG in the page itself.

    With `colour` a dark-to-light heat map, else grey levels.
    """
    values = np.clip(values, 0, 1)
    if colour:
        stops = np.array([[13, 8, 60], [125, 30, 110], [230, 90, 60], [252, 230, 140]]) / 255
        places = np.linspace(0, 1, len(stops))
        values = np.stack([np.interp(values, places, stops[:, c]) for c in range(3)], axis=-1)
    image = Image.fromarray((values * 255).round().astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{encoded}">'


def _text(x: float, y: float, text: str, css: str, extra: str = "") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" {extra}>{escape(text)}</text>'
