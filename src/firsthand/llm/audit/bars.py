"""Bars as inline SVG: each begins where the one above it ends, so that lengths add up.

Widths and colours are those of `training.report.plots`, and so is the page's style sheet. What was
predicted is a line across the bar's row at its own length; nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from firsthand.llm.audit.machine_tables import seconds_text
from firsthand.llm.training.report.plots import WIDTH

_ROW, _BAR, _TOP, _BOTTOM = 22, 12, 4, 22
_NAMES, _VALUES = 158, 66
_LEAST = 1.0


@dataclass(frozen=True)
class Bar:
    """A part of a whole.

    Attributes:
        name: what stands before it.
        value: its length, at least 0.
        predicted: another length, marked where it ends if that is within the drawing.
        whole: it begins at 0 and not behind the one above, such as the sum of all.
        text: of the value; "" shows it as seconds.
    """

    name: str
    value: float
    predicted: float | None = None
    whole: bool = False
    text: str = ""


def draw_bars(title: str, bars: Sequence[Bar]) -> Markup:
    """An <svg> element, its values said in words for screen readers."""
    if not bars or not any(bar.value > 0 for bar in bars):
        return Markup('<p class="note">No value can be drawn.</p>')
    starts, reach = [], 0.0
    for bar in bars:
        starts.append(0.0 if bar.whole else reach)
        reach = reach if bar.whole else reach + max(0.0, bar.value)
    longest = max(start + bar.value for start, bar in zip(starts, bars, strict=True))
    height = _TOP + _ROW * len(bars) + _BOTTOM
    scale = (WIDTH - _NAMES - _VALUES) / longest
    parts = [
        _row(place, bar, _NAMES + start * scale, scale)
        for place, (bar, start) in enumerate(zip(bars, starts, strict=True))
    ]
    words = "; ".join(f"{bar.name} {_text(bar)}" for bar in bars)
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="plot">{}</svg>'
    ).format(WIDTH, height, f"{title}. {words}", Markup("").join(parts))


def _row(place: int, bar: Bar, x: float, scale: float) -> Markup:
    top = _TOP + place * _ROW
    width = max(_LEAST, max(0.0, bar.value) * scale)
    kind = "reference" if bar.whole else "train"
    marked, end = Markup(""), x + width
    at = None if bar.predicted is None else x + bar.predicted * scale
    if at is not None and at <= WIDTH - _VALUES:
        end = max(end, at)
        marked = Markup(
            '<line class="validation" style="stroke: var(--hue)" stroke-width="2" x1="{:.1f}" '
            'x2="{:.1f}" y1="{}" y2="{}"/>'
        ).format(at, at, top + 1, top + _BAR + 7)
    return Markup(
        '<text x="{}" y="{}" text-anchor="end">{}</text>'
        '<rect class="{}" style="fill: var(--hue)" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>'
        '{}<text x="{:.1f}" y="{}">{}</text>'
    ).format(
        _NAMES - 8, top + 14, bar.name, kind, x, top + 4, width, _BAR, marked, end + 6, top + 14,
        _text(bar),
    )  # fmt: skip


def _text(bar: Bar) -> str:
    return bar.text or seconds_text(bar.value) if bar.value >= 0 else f"-{seconds_text(-bar.value)}"
