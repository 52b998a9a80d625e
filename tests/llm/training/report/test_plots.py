"""Where lines and names come to lie."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.training.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Axis,
    _limits,
    _spread,
    draw,
    short,
    ticks,
)
from firsthand.llm.training.report.series import Plot, Series, thinned

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)
POSITIVE = st.floats(1e-9, 1e9)


def test_axis_by_hand() -> None:
    assert Axis(0, 10, 100, 0)(2.5) == 75
    assert Axis(1, 100, 0, 50, logarithmic=True)(10) == pytest.approx(25)


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "wanted"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (2.9, 7.6, False, [3, 4, 5, 6, 7]),
        (1e-5, 1.2e-3, False, [0.0002, 0.0004, 0.0006, 0.0008, 0.001, 0.0012]),
        (0.5, 2000, True, [1, 10, 100, 1000]),
        (0.02, 0.4, True, [0.03, 0.1, 0.3]),
    ],
)
def test_ticks_by_hand(low: float, high: float, logarithmic: bool, wanted: list[float]) -> None:
    assert ticks(low, high, logarithmic) == pytest.approx(wanted)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_linear_axes_have_a_few_ticks_within(values: list[float]) -> None:
    low, high = _limits(min(values), max(values), False)
    found = ticks(low, high, False)
    assert low <= min(values) <= max(values) <= high
    assert 1 <= len(found) <= 7
    room = 1e-6 * (high - low)
    assert all(low - room <= tick <= high + room for tick in found)


@given(st.lists(POSITIVE, min_size=1, max_size=5))
def test_logarithmic_axes_have_a_few_ticks_within(values: list[float]) -> None:
    low, high = _limits(min(values), max(values), True)
    found = ticks(low, high, True)
    assert 0 < low < min(values) <= max(values) < high
    assert 1 <= len(found) <= 9
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in found)


@given(st.lists(st.floats(-50, 400), min_size=1, max_size=60))
def test_names_stay_in_order_and_apart(wanted: list[float]) -> None:
    places = _spread(wanted)
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    heights = [places[k] for k in order]
    assert heights == sorted(heights)
    assert heights[0] >= TOP - 1e-6
    assert heights[-1] <= HEIGHT - BOTTOM + 1e-6
    room = HEIGHT - BOTTOM - TOP - 8
    gap = min(14, room / max(1, len(wanted) - 1))
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(heights))


def test_points_lie_where_the_axes_say() -> None:
    line = Series(name="training", points=((0, 0), (10, 5), (20, 10)))
    svg = str(draw(Plot(title="Loss", series=(line,))))
    found = re.search(r'<polyline class="train"[^>]*points="([^"]*)"', svg)
    assert found is not None
    pixels = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = pixels
    assert x0 == LEFT
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y0 > y1 > y2 > TOP
    assert x2 < WIDTH


@given(
    st.lists(st.lists(POSITIVE, min_size=1, max_size=4), min_size=1, max_size=14),
    st.booleans(),
)
def test_nothing_leaves_the_drawing(lines: list[list[float]], logarithmic: bool) -> None:
    series = tuple(
        Series(
            name=f"blocks.{n}",
            points=tuple(enumerate(ys)),
            role="layer",
            depth=n / len(lines),
        )
        for n, ys in enumerate(lines)
    )
    svg = str(draw(Plot(title="x", series=series, logarithmic=logarithmic)))
    assert "nan" not in svg
    for points in re.findall(r' points="([^"]*)"', svg):
        for pair in points.split():
            x, y = map(float, pair.split(","))
            assert LEFT - 0.1 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
    for x in re.findall(r'<text class="name[^>]* x="([\d.]+)"', svg):
        assert float(x) < WIDTH


def test_lines_differ_without_colour() -> None:
    layers = tuple(
        Series(name=f"blocks.{n}", points=((0, 1 + n), (1, 2 + n)), role="layer") for n in range(4)
    )
    svg = str(draw(Plot(title="x", series=layers)))
    assert len(set(re.findall(r'stroke-dasharray="([^"]*)"', svg))) == 4
    marked = Series(name="validation", points=((0, 1), (1, 2)), role="validation")
    assert str(draw(Plot(title="x", series=(marked,)))).count("<circle") == 2


def test_names_are_text() -> None:
    line = Series(name='<b>"&', points=((0, 1), (1, 2)))
    svg = str(draw(Plot(title="<i>", series=(line,))))
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "&lt;b&gt;" in svg


@given(st.integers(1, 2000), st.integers(1, 300))
def test_thinning_keeps_sums_and_extremes(count: int, most: int) -> None:
    points = tuple((float(k), math.sin(k)) for k in range(count))
    thin, band = thinned(points, most)
    assert len(thin) == min(count, most)
    if count <= most:
        assert thin == points
        assert band == ()
        return
    assert min(low for low, _ in band) == min(y for _, y in points)
    assert max(high for _, high in band) == max(y for _, y in points)
    assert all(
        low <= y <= high or math.isclose(low, high)
        for (_, y), (low, high) in zip(thin, band, strict=True)
    )
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00012345, "1.23e-4"),
        (-1e-9, "-1e-9"),
        (1.23456, "1.235"),
        (-3.5, "-3.5"),
        (9999, "9999"),
        (31_000, "31k"),
        (4_096_000, "4.096M"),
        (2e9, "2G"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text
