"""How far two results are apart, and which forms count as the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from firsthand.course.checks.comparison import (
    LOOSEST,
    SAFETY,
    TIGHTEST,
    all_finite,
    changed_arguments,
    form_mismatch,
    kind_of,
    leaf_distance,
    leaves,
    result_distance,
    tolerance_from,
    value_distance,
)
from firsthand.course.checks.requests import Opaque, Raised, Returned

NUMBERS = st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)
VALUES = st.recursive(
    NUMBERS
    | st.booleans()
    | st.none()
    | st.text(max_size=3)
    | arrays.arrays(np.float64, arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_a_value_is_at_no_distance_from_itself_and_has_its_own_form(value: Any) -> None:
    assert value_distance(value, value) == 0.0
    assert form_mismatch(value, value) is None


@given(arrays.arrays(np.float64, (2, 3), elements=st.floats(-1e3, 1e3)), st.floats(1e-3, 10.0))
def test_the_distance_is_the_largest_gap_over_the_largest_value(value: Any, gap: float) -> None:
    moved = value.copy()
    moved[1, 2] += gap
    scale = max(1.0, float(np.abs(value).max()))
    assert leaf_distance(moved, value) == pytest.approx(gap / scale, rel=1e-6)
    assert value_distance({"w": [moved]}, {"w": [value]}) == leaf_distance(moved, value)


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_a_float_is_measured_as_its_array_is(one: float, other: float) -> None:
    assert leaf_distance(one, other) == leaf_distance(np.array(one), np.array(other))


@pytest.mark.parametrize(
    ("got", "expected", "distance"),
    [
        (math.nan, math.nan, 0.0),
        (math.inf, math.inf, 0.0),
        (-math.inf, math.inf, math.inf),
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), 0.0),
        (np.array([np.nan, 1.0]), np.array([1.0, np.nan]), math.inf),
        (np.array([np.nan, 1.0]), np.array([np.nan, 2.0]), 0.5),
        (-math.nan, math.nan, 0.0),
        (np.zeros((2, 3)), np.zeros((3, 2)), math.inf),
        (np.zeros(0), np.zeros(0), 0.0),
        ("a", "a", 0.0),
        ("a", "b", math.inf),
        (None, 0.0, math.inf),
        (True, 1, math.inf),
        (Opaque("set"), Opaque("set"), 0.0),
        (Opaque("set"), Opaque("list"), math.inf),
        ((1.0,), [1.0], 0.0),
        ((1.0, 2.0), (1.0,), math.inf),
        ({"a": 1.0}, {"b": 1.0}, math.inf),
        (np.longdouble(1.0), 1.0, 0.0),
        (3, 2.0, 0.5),
    ],
)
def test_distances(got: Any, expected: Any, distance: float) -> None:
    assert value_distance(got, expected) == distance


def test_a_large_integer_or_unsigned_one_does_not_wrap() -> None:
    assert leaf_distance(np.uint8(1), np.uint8(2)) == 0.5
    assert leaf_distance(np.array([0], np.uint8), np.array([200], np.uint8)) == 1.0


FLOAT_LIKE = [0.5, np.float64(0.5), np.array(0.5)]


@pytest.mark.parametrize("got", FLOAT_LIKE)
@pytest.mark.parametrize("expected", FLOAT_LIKE)
def test_float_numpy_float_and_0d_array_are_one_form(got: Any, expected: Any) -> None:
    assert form_mismatch(got, expected) is None


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (np.zeros(3, np.float32), np.zeros(3), "dtype float32 instead of float64"),
        (np.zeros(3, np.float16), np.zeros(3, np.float32), "dtype float16 instead of float32"),
        (np.zeros(3, np.int64), np.zeros(3), "dtype int64 instead of float64"),
        (np.zeros(3), np.zeros(3, np.int64), "dtype float64 instead of int64"),
        (np.zeros(3), np.zeros(3, bool), "dtype float64 instead of bool"),
        (np.zeros((2, 3)), np.zeros((3, 2)), r"shape (2, 3) instead of (3, 2)"),
        ([0.0, 0.0], np.zeros(2), "a list of 2 instead of a float64 array of shape (2,)"),
        (np.zeros(1), 0.0, "a float64 array of shape (1,) instead of a number"),
        (None, 0.0, "None instead of a number"),
        (True, 1.0, "a bool instead of a number"),
        (1, True, "an int instead of a bool"),
        (0.5, 1, "a float instead of a whole number"),
        ((1.0,), (1.0, 2.0), "1 items instead of 2"),
        (1.0, (1.0,), "a float instead of a tuple of 1"),
        ((1.0, "x"), (1.0, 2.0), "a str at [1] instead of a number"),
        ({"w": 1.0}, {"v": 1.0}, "a dict of 1 instead of a dict with the keys ['v']"),
        (
            {"w": (1.0, np.zeros(2))},
            {"w": (1.0, np.zeros(3))},
            "shape (2,) at ['w'][1] instead of (3,)",
        ),
        (Opaque("Tensor"), np.zeros(2), "an object of type Tensor instead of a float64 array"),
        (Opaque("set"), None, "an object of type set instead of None"),
        (1, "one", "an int instead of a str"),
        (np.complex128(1j), 1.0, "a complex128 number instead of a number"),
        (np.zeros(2, complex), np.zeros(2), "dtype complex128 instead of float64"),
    ],
)
def test_forms_that_differ_are_said(got: Any, expected: Any, words: str) -> None:
    assert words in (form_mismatch(got, expected) or "")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (2.0, 2),
        (2, 2.0),
        (np.int32(2), 2),
        (np.bool_(True), True),
        ([1.0, 2.0], (1.0, 2.0)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros(3), np.zeros(3, np.longdouble)),
        (np.zeros(3, np.longdouble), np.zeros(3)),
        (np.zeros(3, np.int32), np.zeros(3, np.int64)),
        (np.float64(0.1), np.longdouble(0.1)),
    ],
)
def test_unusual_but_right_forms_pass(got: Any, expected: Any) -> None:
    assert form_mismatch(got, expected) is None


def test_a_longdouble_oracle_is_met_by_the_nearest_double() -> None:
    exact = np.longdouble(1) / np.longdouble(3)
    assert 0 < value_distance(float(exact), exact) < TIGHTEST
    many = np.arange(1, 4, dtype=np.longdouble) / 7
    assert value_distance(many.astype(np.float64), many) < TIGHTEST


@given(st.lists(st.floats(0.0, 1e3), max_size=5))
def test_the_tolerance_keeps_away_from_the_nearest_mistake(distances: list[float]) -> None:
    tolerance = tolerance_from(distances)
    assert TIGHTEST <= tolerance <= LOOSEST
    nearest = min((d for d in distances if d > 0.0), default=math.inf)
    if tolerance > TIGHTEST:
        assert tolerance * SAFETY <= nearest * (1 + 1e-12)


def test_the_tolerance_is_a_hundredth_of_the_distance() -> None:
    assert tolerance_from([0.5, 3e-6, math.inf]) == pytest.approx(3e-8)
    assert tolerance_from([]) == LOOSEST
    assert tolerance_from([0.0]) == LOOSEST  # the author's check refuses such a mistake
    assert tolerance_from([1e-12]) == TIGHTEST


def test_an_exception_is_a_result_too() -> None:
    value, error = Returned(1.0, ()), Raised("ValueError", "no", 3)
    assert result_distance(error, Raised("ValueError", "other words", None)) == 0.0
    assert result_distance(error, Raised("TypeError", "no", 3)) == math.inf
    assert result_distance(value, error) == result_distance(error, value) == math.inf
    assert result_distance(value, Returned(0.5, ())) == 0.5


def test_changed_arguments_are_counted_from_zero() -> None:
    before = (np.ones(2), 3.0, [np.zeros(1)])
    after = (np.ones(2), 3.0, [np.ones(1)])
    assert changed_arguments(before, after) == (2,)
    assert changed_arguments(before, before) == ()
    assert changed_arguments((np.ones(2),), (np.ones(3),)) == (0,)


def test_leaves_have_paths() -> None:
    value = {"a": [1.0, (2.0,)], "b": "text"}
    assert [leaf.path for leaf in leaves(value)] == ["['a'][0]", "['a'][1][0]", "['b']"]
    assert [leaf.value for leaf in leaves(5)] == [5]


@pytest.mark.parametrize(
    ("value", "finite"),
    [
        ((1.0, np.ones(2)), True),
        ([np.array([1.0, np.inf])], False),
        ({"a": math.nan}, False),
        (np.float32("nan"), False),
        ("text", True),
        ((np.zeros(2, int), True, None), True),
    ],
)
def test_finite(value: Any, finite: bool) -> None:
    assert all_finite(value) is finite


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.int32(1), "a int32 number"),
        ([1], "a list of 1"),
        (1, "an int"),
        (np.bool_(1), "a bool"),
        (None, "None"),
    ],
)
def test_kinds(value: Any, words: str) -> None:
    assert kind_of(value) == words
