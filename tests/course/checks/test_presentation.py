"""Values and calls as text: what is shown can be pasted into Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from firsthand.course.checks.comparison import value_distance
from firsthand.course.checks.presentation import (
    MOST_ELEMENTS,
    call_text,
    first_difference,
    forbidden_text,
    result_text,
    value_text,
)
from firsthand.course.checks.requests import Opaque, Raised, Returned

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=2)
ATOMS = (
    st.floats()
    | st.integers(-(10**12), 10**12)
    | st.booleans()
    | st.none()
    | st.text(max_size=6)
    | arrays.arrays(np.float64, SHAPES)
    | arrays.arrays(np.float32, SHAPES, elements=st.floats(-8, 8, width=32))
    | arrays.arrays(np.int64, SHAPES, elements=st.integers(-(10**9), 10**9))
    | arrays.arrays(np.bool_, SHAPES)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


def pasted(text: str) -> Any:
    """What a learner gets who has imported NumPy and pastes the text."""
    return eval(text, {"np": np})


@given(VALUES)
def test_a_shown_value_pastes_back_to_itself(value: Any) -> None:
    back = pasted(value_text(value))
    assert value_distance(back, value) < 1e-5


DTYPES = st.sampled_from([np.float64, np.float32, np.int64, np.int8, np.bool_])


@given(arrays.arrays(DTYPES, SHAPES))
def test_shape_and_dtype_survive(array: Any) -> None:
    back = pasted(value_text(array))
    assert back.shape == array.shape
    assert back.dtype == array.dtype


def test_a_call_pastes() -> None:
    arguments = (np.array([[1.0, -2.5]]), (2, 3), 1e-05, "text", np.float64(0.1))
    text = call_text("part", arguments)
    assert text == "part(np.array([[1., -2.5]]), (2, 3), 1e-05, 'text', 0.1)"
    got = eval(text, {"np": np, "part": lambda *received: received})
    assert value_distance(got, arguments) == 0.0


def test_long_arrays_are_cut_and_say_so() -> None:
    text = value_text(np.arange(MOST_ELEMENTS + 1.0).reshape(5, 5))
    assert text.startswith("<float64 array of shape (5, 5): 0, 1, 2,")
    assert "..." in text
    assert "<" not in value_text(np.arange(float(MOST_ELEMENTS)))
    assert value_text("x" * 1000).endswith(" ...")


def test_what_is_no_value() -> None:
    assert value_text(Opaque("Tensor")) == "<Tensor object>"
    assert value_text(math.sqrt) == "sqrt"
    assert result_text(Raised("ValueError", "no", 3)) == "ValueError: no"
    assert result_text(Raised("ValueError", "", 3)) == "ValueError"
    assert result_text(Returned((1.0,), ())) == "(1.0,)"


def test_the_first_difference_is_the_largest() -> None:
    expected = (1.0, np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    got = (1.0, np.array([[1.0, 2.5, 3.0], [4.0, 5.0, 9.0]]))
    assert first_difference(got, expected, 1e-6) == "[1][1, 2]: got 9.0, expected 6.0"
    assert first_difference(expected, expected, 1e-6) is None
    assert first_difference(got, expected, 5.0) is None
    nan = np.array([np.nan, 7.0])
    assert first_difference(nan, np.array([1.0, 2.0]), 1e-6) == "[0]: got np.nan, expected 1.0"
    assert first_difference(2.0, 1.0, 1e-6) is None  # one number: got and expected say it


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    for shown in (value, np.array([value, 1.0])):
        assert "np." in value_text(shown)
        assert value_distance(pasted(value_text(shown)), shown) == 0.0


def test_a_forbidden_method_is_shown_as_it_is_written() -> None:
    assert forbidden_text("method:dot") == ".dot()"
    assert forbidden_text("numpy.dot") == "numpy.dot"
