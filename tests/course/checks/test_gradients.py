"""Central differences accept what is right and name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from firsthand.course.checks.gradients import compare, numerical_gradients

TOLERANCE = 1e-5
# (name, forward of two arrays that broadcast, the two partial derivatives times the cotangent)
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "product": (lambda x, y: x * y, lambda x, y: y, lambda x, y: x),
    "tanh": (
        lambda x, y: np.tanh(x) + y,
        lambda x, y: 1 - np.tanh(x) ** 2,
        lambda x, y: np.ones_like(y),
    ),
    "exp": (
        lambda x, y: np.exp(x / 2) * y,
        lambda x, y: np.exp(x / 2) * y / 2,
        lambda x, y: np.exp(x / 2),
    ),
    "squares": (lambda x, y: x**2 - x * y**2, lambda x, y: 2 * x - y**2, lambda x, y: -2 * x * y),
}


@st.composite
def cases(draw: Any) -> tuple[Any, ...]:
    name = draw(st.sampled_from(sorted(FUNCTIONS)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = draw(st.sampled_from([(2, 3), (3, 2), (4, 3), (3, 5)]))
    x, y = generator.normal(size=(rows, columns)), generator.normal(size=columns)
    return name, x, y, generator.normal(size=(rows, columns))


def analytic(name: str, x: Any, y: Any, cotangent: Any) -> tuple[Any, Any]:
    _, by_x, by_y = FUNCTIONS[name]
    return by_x(x, y) * cotangent, (by_y(x, y) * cotangent).sum(axis=0)


@given(cases())
def test_the_right_gradient_is_accepted(case: tuple[Any, ...]) -> None:
    name, x, y, cotangent = case
    numeric = numerical_gradients(FUNCTIONS[name][0], (x, y), cotangent, 1e-5)
    for argument, (got, expected) in enumerate(
        zip(analytic(name, x, y, cotangent), numeric, strict=True)
    ):
        assert compare(got, expected, argument, TOLERANCE) is None


@given(cases(), st.sampled_from([-1.0, 0.5, 2.0, 3.0, 0.25, 0.0]))
def test_a_constant_factor_is_named(case: tuple[Any, ...], factor: float) -> None:
    name, x, y, cotangent = case
    right = analytic(name, x, y, cotangent)[0]
    assume(np.count_nonzero(np.abs(right) > 1e-2 * np.abs(right).max()) >= 2)
    assume(np.abs(right).max() > 1e-2)
    fault = compare(factor * right, right, 0, TOLERANCE)
    assert fault is not None
    words = "every entry is zero" if factor == 0 else f"every entry is {factor:.4g} times"
    assert words in (fault.class_ or "")
    assert fault.got == pytest.approx(factor * right[fault.index])
    assert fault.expected == right[fault.index]


@given(cases())
def test_a_sum_that_is_missing_over_a_broadcast_axis_is_named(case: tuple[Any, ...]) -> None:
    name, x, y, cotangent = case
    unsummed = FUNCTIONS[name][2](x, y) * cotangent
    fault = compare(unsummed, analytic(name, x, y, cotangent)[1], 1, TOLERANCE)
    assert fault is not None
    assert "broadcast is not summed" in (fault.class_ or "")
    assert fault.argument == 1


@given(st.integers(0, 2**32))
def test_a_transposed_gradient_is_named(seed: int) -> None:
    generator = np.random.default_rng(seed)
    square, oblong = generator.normal(size=(3, 3)), generator.normal(size=(2, 3))
    fault = compare(square.T.copy(), square, 0, TOLERANCE)
    assert fault is not None
    assert fault.class_ == "it is the transpose of the right one"
    fault = compare(oblong.T, oblong, 0, TOLERANCE)
    assert fault is not None
    assert fault.class_ == "it has the shape of the transpose"


@given(cases())
def test_a_fault_of_no_class_names_none(case: tuple[Any, ...]) -> None:
    name, x, y, cotangent = case
    right = analytic(name, x, y, cotangent)[0]
    got = right.copy()
    got[0, 0] += 1.0 + abs(got[0, 0])
    fault = compare(got, right, 0, TOLERANCE)
    assert fault is not None
    assert fault.index == (0, 0)
    assert fault.class_ is None


def test_an_inaccurate_gradient_is_no_factor_of_one() -> None:
    right = np.array([1.0, 2.0, -3.0])
    fault = compare(right * 1.00005, right, 0, TOLERANCE)
    assert fault is not None
    assert fault.class_ is None


def test_another_shape_is_said_without_a_cause() -> None:
    fault = compare(np.ones(7), np.ones(3), 0, TOLERANCE)
    assert fault is not None
    assert fault.class_ == "it has shape (7,), the input (3,)"


def test_nan_is_a_fault() -> None:
    fault = compare(np.array([1.0, np.nan]), np.array([1.0, 2.0]), 0, TOLERANCE)
    assert fault is not None
    assert fault.index == (1,)
    assert fault.class_ is None


def test_nothing_to_compare() -> None:
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), 0, TOLERANCE) is None
    assert compare(np.zeros(3), np.zeros(3), 0, TOLERANCE) is None


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_without_a_cotangent_it_is_the_derivative_entry_by_entry(numbers: list[float]) -> None:
    x = np.array(numbers)
    (found,) = numerical_gradients(np.sin, (x,), None, 1e-5)
    assert np.allclose(found, np.cos(x), atol=1e-8)


def test_the_point_itself_is_untouched_and_integers_do_not_truncate() -> None:
    x = np.array([1, 2, 3])
    (found,) = numerical_gradients(lambda v: v**2, (x,), np.ones(3), 1e-5)
    assert np.allclose(found, [2.0, 4.0, 6.0])
    assert x.tolist() == [1, 2, 3]
