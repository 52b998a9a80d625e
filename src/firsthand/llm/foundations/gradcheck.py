"""Compare gradients with central differences, and say where they part and by how much.

(f(x + h) - f(x - h)) / 2h is off by h² f'''/6 plus a rounding error of about ε|f|/h, where ε is
2.2e-16. The sum is smallest near h = ε^(1/3), about 6e-6, and leaves about ε^(2/3), 4e-11.
Source: Press et al. 2007, "Numerical Recipes", section 5.7.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from firsthand.llm.foundations.arrays import Array, require_same_shape
from firsthand.llm.foundations.tensor_autograd import Tensor

STEP = 6e-6
TOLERANCE = 1e-6


def numerical_gradient(
    function: Callable[[Array], float], point: Array, step: float = STEP
) -> Array:
    """The gradient of `function` at `point` by central differences in float64.

    Each element is moved up and down by `step` · max(1, |element|) while the others stay.

    Args:
        function: takes an array in the shape of `point`, gives one number.
        point: any shape; left as it is.
    Returns:
        An array in the shape of `point`.
    Raises:
        ValueError: step is not positive.
    """
    if step <= 0:
        raise ValueError(f"the step must be positive: {step}")
    moved = np.array(point, dtype=np.float64)
    gradient = np.zeros(moved.shape)
    for index in np.ndindex(moved.shape):
        center = float(moved[index])
        reach = step * max(1.0, abs(center))
        moved[index] = center + reach
        above = function(moved.copy())
        moved[index] = center - reach
        below = function(moved.copy())
        moved[index] = center
        gradient[index] = (above - below) / (2.0 * reach)
    return gradient


def relative_error(left: Array, right: Array) -> float:
    """max |left - right| / max(|left|, |right|), both maxima over all elements.

    0.0 when both are all zeros or empty; infinity when one of them is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("left", left, "right", right)
    if not (np.all(np.isfinite(left)) and np.all(np.isfinite(right))):
        return float("inf")
    scale = max(np.max(np.abs(left), initial=0.0), np.max(np.abs(right), initial=0.0))
    difference = np.max(np.abs(left - right), initial=0.0)
    return float(difference / scale) if scale > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class GradcheckReport:
    """What a gradient check found.

    Attributes:
        passed: every argument's relative error is within the tolerance.
        argument: the name of the argument with the largest error.
        index: the element of it that is furthest off; None when the shape is wrong.
        got: the gradient there (NaN when there is none).
        expected: the central difference there.
        relative_error: `relative_error` of that argument; infinity for a wrong shape.
        pattern: how the whole gradient relates to the expected one, "" when nothing simple
            holds: a constant factor, the transpose, or a shape.
    """

    passed: bool
    argument: str
    index: tuple[int, ...] | None
    got: float
    expected: float
    relative_error: float
    pattern: str = ""

    def __str__(self) -> str:
        verdict = "agrees with" if self.passed else "differs from"
        place = self.argument if self.index is None else f"{self.argument}{list(self.index)}"
        text = (
            f"The gradient {verdict} central differences; the largest difference is at {place}: "
            f"got {self.got:.9g}, expected {self.expected:.9g}, "
            f"relative error {self.relative_error:.2e}."
        )
        return f"{text} {self.pattern}" if self.pattern else text


def gradcheck(
    function: Callable[..., Tensor] | Callable[..., Array],
    inputs: Sequence[ArrayLike],
    *,
    backward: Callable[..., Sequence[Array | None]] | None = None,
    names: Sequence[str] | None = None,
    step: float = STEP,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> GradcheckReport:
    """Check the gradients of a function of arrays against central differences.

    The output may have any shape: the checked number is sum(output · cotangent) with a random
    cotangent, so that errors in different outputs do not cancel.

    Args:
        function: without `backward`, takes one Tensor for each input and gives a Tensor, whose
            own `backward` is checked; with it, takes and gives arrays.
        inputs: one array for each argument.
        backward: takes the cotangent and then the arrays; gives one gradient for each input.
        names: the arguments' names for the report; default argument 0, argument 1, ...
        step: see `numerical_gradient`.
        tolerance: the largest relative error that passes.
        seed: of the cotangent.
    Returns:
        The report on the argument with the largest relative error.
    Raises:
        ValueError: no inputs, or a number of names or gradients that differs from theirs.
    """
    arrays = [np.array(each, dtype=np.float64) for each in inputs]
    labels = list(names) if names is not None else [f"argument {i}" for i in range(len(arrays))]
    if not arrays or len(labels) != len(arrays):
        raise ValueError(f"{len(arrays)} inputs and {len(labels)} names")

    def evaluate(points: Sequence[Array]) -> Array:
        if backward is not None:
            return np.asarray(function(*(point.copy() for point in points)), dtype=np.float64)
        output = function(*(Tensor(point) for point in points))
        if not isinstance(output, Tensor):
            raise TypeError(f"without `backward` the function must give a Tensor: {type(output)}")
        return output.data

    outputs = evaluate(arrays)
    # A stream of its own: inputs drawn with the same seed would equal the cotangent, and then
    # x.T @ cotangent is symmetric, which hides a transposed gradient.
    stream = np.random.default_rng((seed, 1))
    cotangent = np.asarray(stream.normal(size=outputs.shape))
    # Rounding in the two evaluations: below this a difference says nothing about the gradient.
    noise = 8.0 * np.finfo(np.float64).eps * float(np.sum(np.abs(outputs * cotangent))) / step
    if backward is not None:
        gradients = list(backward(cotangent.copy(), *(array.copy() for array in arrays)))
    else:
        gradients = _tensor_gradients(function, arrays, cotangent)
    if len(gradients) != len(arrays):
        raise ValueError(f"{len(arrays)} inputs but {len(gradients)} gradients")

    reports = []
    for position, (label, got) in enumerate(zip(labels, gradients, strict=True)):

        def objective(point: Array, position: int = position) -> float:
            points = [*arrays[:position], point, *arrays[position + 1 :]]
            return float(np.sum(evaluate(points) * cotangent))

        expected = numerical_gradient(objective, arrays[position], step)
        reports.append(_compare(label, got, expected, tolerance, noise))
    return max(reports, key=lambda report: (not report.passed, report.relative_error))


def _tensor_gradients(
    function: Callable[..., Tensor] | Callable[..., Array],
    arrays: Sequence[Array],
    cotangent: Array,
) -> list[Array | None]:
    tensors = [Tensor(array.copy(), requires_grad=True) for array in arrays]
    output = function(*tensors)
    if isinstance(output, Tensor) and output.requires_grad:
        output.backward(cotangent)
    return [tensor.grad for tensor in tensors]


def _compare(
    label: str, got: Array | None, expected: Array, tolerance: float, noise: float
) -> GradcheckReport:
    """The report on one argument. A missing gradient counts as zeros, as in a constant."""
    found = np.zeros(expected.shape) if got is None else np.asarray(got, dtype=np.float64)
    if found.shape != expected.shape:
        return GradcheckReport(
            passed=False,
            argument=label,
            index=None,
            got=float("nan"),
            expected=float("nan"),
            relative_error=float("inf"),
            pattern=f"Its shape is {found.shape}; the argument's shape is {expected.shape}.",
        )
    error = relative_error(found, expected)
    if np.max(np.abs(found - expected), initial=0.0) <= noise:
        error = 0.0
    passed = error <= tolerance
    if expected.size == 0:
        index, got_there, expected_there = None, 0.0, 0.0
    else:
        difference = np.where(np.isfinite(found), np.abs(found - expected), np.inf)
        index = tuple(int(each) for each in np.unravel_index(np.argmax(difference), found.shape))
        got_there, expected_there = float(found[index]), float(expected[index])
    return GradcheckReport(
        passed=passed,
        argument=label,
        index=index,
        got=got_there,
        expected=expected_there,
        relative_error=error,
        pattern="" if passed else _pattern(found, expected),
    )


def _pattern(found: Array, expected: Array) -> str:
    """One sentence on how a wrong gradient relates to the right one; "" when nothing holds."""
    square = found.ndim == 2 and found.shape[0] == found.shape[1]
    if square and relative_error(found.T, expected) < TOLERANCE:
        return "It is the transpose of the expected one."
    if not np.all(np.isfinite(found)):
        return "It is not finite everywhere."
    if not np.any(found):
        return "It is zero everywhere."
    factor = float(np.sum(found * expected) / max(float(np.sum(expected * expected)), 1e-300))
    if relative_error(found, factor * expected) < TOLERANCE:
        return f"It is {factor:.6g} times the expected one everywhere."
    return ""
