import math
import warnings
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firsthand.llm.foundations import activations
from firsthand.llm.foundations.activations import (
    log_softmax,
    log_sum_exp,
    softmax,
    softmax_backward,
)

# Both tails, the neighbourhood of 0, and ordinary values.
POINTS = np.array(
    [-1e4, -745.2, -80.0, -20.0, -6.0, -1.5, -0.3, -1e-9, 0.0, 1e-9, 0.3, 1.5, 6.0, 20.0, 80.0, 1e4]
)
Exact = Callable[[mpmath.mpf], mpmath.mpf]


def _cdf(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2


EXACT: dict[str, Exact] = {
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "relu": lambda x: max(x, mpmath.mpf(0)),
    "normal_cdf": _cdf,
    "normal_density": lambda x: mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi),
    "gelu": lambda x: x * _cdf(x),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
}
DERIVATIVES = ["sigmoid", "tanh", "relu", "gelu", "silu"]


@pytest.fixture(autouse=True)
def _no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", EXACT)
def test_values_agree_with_50_digits(name: str) -> None:
    values = getattr(activations, name)(POINTS)
    with mpmath.workdps(50):
        expected = np.array([float(EXACT[name](mpmath.mpf(x))) for x in POINTS])
    np.testing.assert_allclose(values, expected, rtol=5e-14, atol=1e-300)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_agree_with_50_digits(name: str) -> None:
    points = POINTS[POINTS != 0.0] if name == "relu" else POINTS
    values = getattr(activations, f"{name}_derivative")(points)
    with mpmath.workdps(50):
        step = mpmath.mpf(10) ** -15
        expected = np.array(
            [
                float((EXACT[name](x + step) - EXACT[name](x - step)) / (2 * step))
                for x in map(mpmath.mpf, points)
            ]
        )
    np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-15)


def test_derivative_of_relu_at_zero_is_zero() -> None:
    assert activations.relu_derivative(np.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", [*EXACT, *(f"{name}_derivative" for name in DERIVATIVES)])
def test_shape_kept_and_arguments_untouched(name: str) -> None:
    x = np.linspace(-3.0, 3.0, 6).reshape(2, 1, 3)
    before = x.copy()
    assert getattr(activations, name)(x).shape == (2, 1, 3)
    np.testing.assert_array_equal(x, before)
    assert getattr(activations, name)(np.zeros((0, 2))).shape == (0, 2)


LOGITS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
    elements=st.floats(-1e4, 1e4, allow_subnormal=False),
)


@given(LOGITS, st.data())
def test_softmax_family_agrees_with_50_digits(logits: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-logits.ndim, logits.ndim - 1))
    probabilities = softmax(logits, axis)
    logarithms = log_softmax(logits, axis)
    totals = log_sum_exp(logits, axis)
    assert totals.shape == probabilities.sum(axis=axis).shape
    rows = np.moveaxis(logits, axis, -1).reshape(-1, logits.shape[axis])
    got_p = np.moveaxis(probabilities, axis, -1).reshape(rows.shape)
    got_log = np.moveaxis(logarithms, axis, -1).reshape(rows.shape)
    with mpmath.workdps(50):
        for row, p, log_p, total in zip(rows, got_p, got_log, totals.ravel(), strict=True):
            exact = [mpmath.mpf(float(z)) for z in row]
            top = max(exact)
            log_total = top + mpmath.log(sum(mpmath.exp(z - top) for z in exact))
            assert float(abs(log_total - mpmath.mpf(float(total)))) <= 1e-11
            for z, got, got_l in zip(exact, p, log_p, strict=True):
                assert float(got) == pytest.approx(
                    float(mpmath.exp(z - log_total)), rel=1e-11, abs=1e-300
                )
                assert float(got_l) == pytest.approx(float(z - log_total), rel=1e-12, abs=1e-11)


def test_softmax_of_a_worked_example() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]])
    assert log_sum_exp(np.array([1e4, 1e4])) == pytest.approx(1e4 + math.log(2), rel=1e-15)


@given(LOGITS, st.data())
def test_softmax_backward_is_the_jacobian_product(logits: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-logits.ndim, logits.ndim - 1))
    probabilities = softmax(logits / 1e3, axis)
    gradient = np.random.default_rng(logits.size).normal(size=logits.shape)
    got = np.moveaxis(softmax_backward(probabilities, gradient, axis), axis, -1)
    p_rows, g_rows = np.moveaxis(probabilities, axis, -1), np.moveaxis(gradient, axis, -1)
    for index in np.ndindex(p_rows.shape[:-1]):
        p = p_rows[index]
        jacobian = np.diag(p) - np.outer(p, p)
        np.testing.assert_allclose(got[index], jacobian @ g_rows[index], atol=1e-14)


def test_softmax_backward_names_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        softmax_backward(np.ones((2, 3)), np.ones((3, 2)))
