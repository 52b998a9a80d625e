import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from firsthand.llm.foundations.gradcheck import (
    GradcheckReport,
    gradcheck,
    numerical_gradient,
    relative_error,
)
from firsthand.llm.foundations.tensor_autograd import Tensor

GENERATOR = np.random.default_rng(0)
LEFT, RIGHT, ROW = (GENERATOR.normal(size=shape) for shape in ((4, 3), (3, 3), (3,)))


def affine(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return x @ w + b


def affine_backward(g: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    return [g @ w.T, x.T @ g, g.sum(axis=0)]


def check(wrong: Callable[[list[np.ndarray]], Sequence[np.ndarray | None]]) -> GradcheckReport:
    return gradcheck(
        affine,
        [LEFT, RIGHT, ROW],
        backward=lambda *arguments: wrong(affine_backward(*arguments)),
        names=["x", "w", "b"],
    )


def test_a_right_gradient_passes() -> None:
    report = check(lambda gradients: gradients)
    assert report.passed
    assert report.relative_error < 1e-8
    assert report.pattern == ""
    assert "agrees with" in str(report)


@pytest.mark.parametrize(
    ("wrong", "argument", "pattern"),
    [
        (lambda g: [-g[0], g[1], g[2]], "x", "-1 times"),
        (lambda g: [g[0], g[1], 2 * g[2]], "b", "2 times"),
        (lambda g: [g[0], g[1] / 4, g[2]], "w", "0.25 times"),
        (lambda g: [g[0], g[1].T, g[2]], "w", "transpose"),
        (lambda g: [g[0], 0 * g[1], g[2]], "w", "zero everywhere"),
        (lambda g: [None, g[1], g[2]], "x", "zero everywhere"),
        (lambda g: [g[0] + np.nan, g[1], g[2]], "x", "not finite"),
    ],
)
def test_a_wrong_gradient_is_named(
    wrong: Callable[[list[np.ndarray]], Sequence[np.ndarray | None]], argument: str, pattern: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check(wrong)
    assert not report.passed
    assert report.argument == argument
    assert pattern in report.pattern
    assert "differs from" in str(report)


def test_one_wrong_element_is_found_with_both_values() -> None:
    def spoil(gradients: list[np.ndarray]) -> list[np.ndarray]:
        gradients[1] = gradients[1].copy()
        gradients[1][2, 1] += 0.5
        return gradients

    report = check(spoil)
    assert not report.passed
    assert (report.argument, report.index, report.pattern) == ("w", (2, 1), "")
    assert report.got - report.expected == pytest.approx(0.5, rel=1e-6)
    assert "w[2, 1]" in str(report)


def test_a_gradient_not_summed_over_the_broadcast_axis_has_the_wrong_shape() -> None:
    report = gradcheck(
        affine,
        [LEFT, RIGHT, ROW],
        backward=lambda g, x, w, b: [g @ w.T, x.T @ g, g],
    )
    assert not report.passed
    assert (report.argument, report.index) == ("argument 2", None)
    assert report.pattern == "Its shape is (4, 3); the argument's shape is (3,)."


def test_a_gradient_overwritten_where_it_must_add_fails() -> None:
    right = gradcheck(lambda x: x * x + x, [ROW], backward=lambda g, x: [g * (2 * x + 1)])
    last_path_only = gradcheck(lambda x: x * x + x, [ROW], backward=lambda g, x: [g])
    assert right.passed
    assert not last_path_only.passed


def test_errors_that_cancel_in_the_sum_are_seen() -> None:
    # Reversed gradients have the same sum: a cotangent of ones would miss this.
    report = gradcheck(lambda x: 3 * x, [ROW], backward=lambda g, x: [3 * g[::-1]])
    assert not report.passed


def test_tensor_functions_are_checked_through_backward() -> None:
    report = gradcheck(lambda x, w, b: (x @ w + b).tanh(), [LEFT, RIGHT, ROW])
    assert report.passed
    assert gradcheck(lambda x: x * 0.0 + 1.0, [ROW]).passed

    def scaled(x: Tensor) -> Tensor:
        return Tensor.from_operation(x.data * 3.0, (x,), lambda gradient: (6.0 * gradient,))

    report = gradcheck(scaled, [ROW])
    assert not report.passed
    assert "2 times" in report.pattern

    def forgetful(x: Tensor) -> Tensor:
        return Tensor(x.data * 3.0)

    assert "zero everywhere" in gradcheck(forgetful, [ROW]).pattern


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_verdict_does_not_depend_on_the_scale(scale: float) -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return scale * x**2

    right = gradcheck(function, [ROW], backward=lambda g, x: [2 * scale * g * x])
    wrong = gradcheck(function, [ROW], backward=lambda g, x: [-2 * scale * g * x])
    assert right.passed
    assert not wrong.passed


def test_arguments_stay_as_they_are() -> None:
    def spoiling(x: np.ndarray) -> np.ndarray:
        x += 1.0
        return x

    point = np.zeros((2, 3))
    assert gradcheck(spoiling, [point], backward=lambda g, x: [g]).passed
    numerical_gradient(lambda x: float(spoiling(x).sum()), point)
    assert not point.any()


def test_numerical_gradient_of_a_cubic() -> None:
    point = np.array([[1.0, -2.0], [0.0, 10.0]])
    got = numerical_gradient(lambda x: float(np.sum(x**3)), point)
    np.testing.assert_allclose(got, 3 * point**2, rtol=1e-7, atol=1e-7)


def test_relative_error_by_hand() -> None:
    assert relative_error(np.array([1.0, 4.0]), np.array([1.0, 5.0])) == 0.2
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.zeros(2), np.full(2, 1e-300)) == 1.0
    assert relative_error(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert relative_error(np.zeros(0), np.zeros(0)) == 0.0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        relative_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="positive"):
        numerical_gradient(lambda x: 0.0, ROW, step=0.0)
    with pytest.raises(ValueError, match="0 inputs"):
        gradcheck(affine, [])
    with pytest.raises(ValueError, match="1 inputs and 2 names"):
        gradcheck(lambda x: x, [ROW], names=["x", "y"])
    with pytest.raises(ValueError, match="1 inputs but 2 gradients"):
        gradcheck(lambda x: x, [ROW], backward=lambda g, x: [g, g])
    with pytest.raises(TypeError, match="must give a Tensor"):
        gradcheck(lambda x: x.data, [ROW])
