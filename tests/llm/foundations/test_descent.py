import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.foundations.descent import (
    descent_step,
    gradient_descent,
    line_gradients,
    linear_gradients,
    quadratic_divergence_threshold,
)
from firsthand.llm.foundations.gradcheck import numerical_gradient


@given(st.integers(1, 9), st.integers(0, 99))
def test_line_gradients_against_differences(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, count))
    point = generator.normal(size=2)
    expected = numerical_gradient(lambda p: float(np.mean((p[0] * x + p[1] - y) ** 2)), point)
    assert line_gradients(x, y, *point) == pytest.approx(tuple(expected), rel=1e-7, abs=1e-8)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_linear_gradients_against_differences(count: int, features: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(count, features)), generator.normal(size=count)
    point = generator.normal(size=features + 1)
    expected = numerical_gradient(lambda p: float(np.mean((x @ p[:-1] + p[-1] - y) ** 2)), point)
    weights, bias = linear_gradients(x, y, point[:-1], float(point[-1]))
    np.testing.assert_allclose([*weights, bias], expected, rtol=1e-7, atol=1e-8)


def test_a_step_gives_new_arrays() -> None:
    parameters = [np.array([1.0, 2.0]), np.array(3.0)]
    updated = descent_step(parameters, [np.array([10.0, -10.0]), np.array(1.0)], 0.1)
    np.testing.assert_allclose(updated[0], [0.0, 3.0])
    assert float(updated[1]) == pytest.approx(2.9)
    assert parameters[0].tolist() == [1.0, 2.0]


@given(st.floats(0.1, 10.0), st.integers(0, 12))
def test_path_on_a_quadratic_is_geometric(curvature: float, steps: int) -> None:
    rate = 0.3 / curvature
    start = np.array([2.0, -1.0])
    path = gradient_descent(lambda point: curvature * point, start, rate, steps)
    expected = start * (0.7 ** np.arange(steps + 1))[:, None]
    assert path.shape == (steps + 1, 2)
    np.testing.assert_allclose(path, expected, rtol=1e-12)
    assert start.tolist() == [2.0, -1.0]


@given(st.floats(0.01, 100.0))
def test_the_threshold_separates_convergence_from_divergence(curvature: float) -> None:
    threshold = quadratic_divergence_threshold(curvature)
    for factor, grows in [(0.95, False), (1.05, True)]:
        path = gradient_descent(lambda p: curvature * p, np.array(1.0), factor * threshold, 20)
        assert (abs(path[-1]) > 1.0) == grows


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        line_gradients(np.ones(3), np.ones(2), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(3,\).*\(4,\)"):
        linear_gradients(np.ones((3, 2)), np.ones(3), np.ones(4), 0.0)
    with pytest.raises(ValueError, match="2 parameters but 1 gradients"):
        descent_step([np.ones(1), np.ones(1)], [np.ones(1)], 0.1)
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        descent_step([np.ones(2)], [np.ones(1)], 0.1)
    with pytest.raises(ValueError, match="-1"):
        gradient_descent(lambda p: p, np.ones(1), 0.1, -1)
    with pytest.raises(ValueError, match="positive"):
        quadratic_divergence_threshold(0.0)
