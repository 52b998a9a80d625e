"""A plot as inline SVG: axes, lines, and names at the ends of the lines.

Colours come from the page's style sheet, so the same drawing serves light and dark. No line is told
by its colour alone: validation has marks, a reference is dashed, layers differ in their dashes, and
every line is named where it ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from firsthand.llm.training.report.series import Plot, Series

WIDTH, HEIGHT = 500, 280
LEFT, TOP, BOTTOM = 58, 12, 34
LABEL = 14  # height of a name
_LETTER = 7.7  # width of a letter of a name
# A name of the x axis that fits to the left of it, in letters.
_SHORT_NAME = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (self._turned(value) - self._turned(self.low)) / (
            self._turned(self.high) - self._turned(self.low)
        )
        return self.start + share * (self.end - self.start)

    def _turned(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def draw(plot: Plot) -> Markup:
    """The plot as an <svg> element with its data said in words for screen readers."""
    if not plot.series:
        return Markup('<p class="note">No value can be drawn.</p>')
    labels = [_shown_name(series) for series in plot.series]
    right = min(190.0, max(len(label) for label in labels) * _LETTER + 14)
    xs = [x for series in plot.series for x, _ in series.points]
    ys = [y for series in plot.series for _, y in series.points]
    for series in plot.series:
        ys += [edge for pair in series.band for edge in pair]
    low, high = _limits(min(ys), max(ys), plot.logarithmic)
    widest = max(xs) if max(xs) > min(xs) else min(xs) + 1
    x_axis = Axis(min(xs), widest, LEFT, WIDTH - right, plot.x_logarithmic)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP, plot.logarithmic)
    parts = [*_grid(x_axis, y_axis, plot.x_name)]
    places = _spread([y_axis(series.points[-1][1]) for series in plot.series])
    for number, (series, label, place) in enumerate(zip(plot.series, labels, places, strict=True)):
        parts += _line(series, number, x_axis, y_axis)
        parts.append(_name(series, label, place, x_axis, y_axis))
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="plot">{}</svg>'
    ).format(WIDTH, HEIGHT, _in_words(plot), Markup("").join(parts))


def ticks(low: float, high: float, logarithmic: bool, most: int = 5) -> list[float]:
    """Round values from low to high: powers of ten, or 1, 2 and 5 times one.

    Between powers of ten that are too few come 2 and 5 times, and linear steps where the whole
    range is narrow.
    """
    if logarithmic:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            found = [f * 10.0**e for e in exponents for f in factors]
            found = [value for value in found if low * 0.999 <= value <= high * 1.001]
            if len(found) >= 3:
                return found[:: -(-len(found) // (most + 1))]
    span = high - low
    raw = span / most
    size = 10.0 ** math.floor(math.log10(raw))
    unit = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.8)
    first = math.ceil(low / unit - 1e-9)
    return [k * unit for k in range(first, math.floor(high / unit + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis or a table, in about six characters."""
    size = abs(value)
    if value == 0:
        return "0"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    if size >= 1e-3:
        return f"{value:.4g}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _limits(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        room = max(0.03, 0.04 * math.log10(high / low))
        return low / 10**room, high * 10**room
    room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    # An axis that nearly reaches zero says more when it does.
    return (0.0 if 0 <= low < 0.15 * high else low - room), high + room


def _grid(x_axis: Axis, y_axis: Axis, x_name: str) -> list[Markup]:
    parts = []
    for value in ticks(y_axis.low, y_axis.high, y_axis.logarithmic):
        y = round(y_axis(value), 1)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                LEFT, x_axis.end, y, y
            )
        )
        parts.append(_text(LEFT - 6, y + 4.5, short(value), "end"))
    for value in ticks(x_axis.low, x_axis.high, x_axis.logarithmic, 4):
        parts.append(_text(x_axis(value), HEIGHT - BOTTOM + 17, short(value), "middle"))
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            LEFT, x_axis.end, HEIGHT - BOTTOM, HEIGHT - BOTTOM
        )
    )
    below = HEIGHT - BOTTOM + 17
    if len(x_name) <= _SHORT_NAME:
        parts.append(_text(LEFT - 14, below, x_name, "end"))
    else:
        parts.append(_text(x_axis.end + 12, below, x_name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _line(series: Series, number: int, x_axis: Axis, y_axis: Axis) -> list[Markup]:
    parts = []
    pixels = [(x_axis(x), y_axis(y)) for x, y in series.points]
    if series.band:
        xs = [x for x, _ in pixels]
        under = [(x, y_axis(low)) for x, (low, _) in zip(xs, series.band, strict=True)]
        over = [(x, y_axis(high)) for x, (_, high) in zip(xs, series.band, strict=True)]
        parts.append(
            Markup('<polygon class="band {}" points="{}"/>').format(
                series.role, _path([*under, *reversed(over)])
            )
        )
    dashes = _DASHES[number % len(_DASHES)] if series.role == "layer" else ""
    if len(pixels) > 1:
        parts.append(
            Markup(
                '<polyline class="{}" style="--depth:{:.3f}" stroke-dasharray="{}" points="{}"/>'
            ).format(series.role, series.depth, dashes, _path(pixels))
        )
    if series.role == "validation" or len(pixels) == 1:
        marks = pixels if len(pixels) <= 40 else pixels[:: -(-len(pixels) // 40)]
        parts += [
            Markup(
                '<circle class="{}" style="--depth:{:.3f}" cx="{:.1f}" cy="{:.1f}" r="3"/>'
            ).format(series.role, series.depth, x, y)
            for x, y in marks
        ]
    return parts


def _name(series: Series, label: str, place: float, x_axis: Axis, y_axis: Axis) -> Markup:
    """The name beside the end of its line, with a stroke to it where it had to move."""
    x, y = series.points[-1]
    begin = (x_axis(x) + 2, y_axis(y))
    edge = x_axis.end + 7
    return Markup(
        '<polyline class="lead" points="{}"/><text class="name {}" style="--depth:{:.3f}" '
        'x="{:.1f}" y="{:.1f}">{}</text>'
    ).format(
        _path([begin, (edge, place)]),
        series.role,
        series.depth,
        edge + 2,
        place + 4.5,
        label,
    )


def _path(pixels: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)


def _shown_name(series: Series) -> str:
    return series.label or f"{series.name.removeprefix('blocks.')} {short(series.points[-1][1])}"


def _spread(wanted: list[float]) -> list[float]:
    """Heights near the wanted ones, in their order, at least a line of text apart."""
    low, high = TOP + 4.0, HEIGHT - BOTTOM - 4.0
    gap = min(LABEL, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    places = [min(max(wanted[k], low), high) for k in order]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + gap)
    if places and places[-1] > high:
        places[-1] = high
        for k in range(len(places) - 2, -1, -1):
            places[k] = min(places[k], places[k + 1] - gap)
    result = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        result[index] = place
    return result


def _in_words(plot: Plot) -> str:
    lines = [
        f"{series.name}: from {short(series.points[0][1])} at {plot.x_name} "
        f"{short(series.points[0][0])} to {short(series.points[-1][1])} at {plot.x_name} "
        f"{short(series.points[-1][0])}"
        for series in plot.series
    ]
    return str(escape(f"{plot.title}. ")) + "; ".join(lines)
