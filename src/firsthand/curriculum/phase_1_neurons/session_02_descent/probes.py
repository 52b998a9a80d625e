"""Session 1.2: the calls that its Build and Debug steps make, and what they must return.

The oracles take another road than the reference: exact fractions, or the closed form on a bowl.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from firsthand.course.steps import Arguments, Generator

# --------------------------------------------------------------------------- mean-squared-error


def numbers(generator: Generator, *shape: int, around: float = 0.0) -> np.ndarray:
    """Values of scale about 1, two decimals, so that a failing call can be read."""
    return np.round(generator.normal(around, 1.0, size=shape), 2) + 0.0  # no negative zeros


def whole(generator: Generator, *shape: int) -> np.ndarray:
    """Small whole numbers from 1 up: sums and products of them are exact."""
    return generator.integers(1, 5, size=shape).astype(np.float64)


def wide(array: Any) -> np.ndarray:
    return np.asarray(array, dtype=np.longdouble)


def loss_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        (np.array([3.0]), np.array([1.0])),
        (np.array([1.0, 2.0]), np.array([2.0, 5.0])),
        (numbers(generator, 3), numbers(generator, 3, around=1.0)),
        (numbers(generator, 5), numbers(generator, 5)),
        (numbers(generator, 2, 4), numbers(generator, 2, 4)),
        (np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 4.0])),
        (np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])),
        (np.array([1.0, 2.0]), np.array([1.0])),
    ]


def loss_oracle(predictions: np.ndarray, targets: np.ndarray) -> float:
    """In exact fractions: a float is one, and so are sums and products of them."""
    if predictions.shape != targets.shape:
        raise ValueError("shapes differ")
    pairs = zip(predictions.ravel().tolist(), targets.ravel().tolist(), strict=True)
    squares = [(Fraction(p) - Fraction(t)) ** 2 for p, t in pairs]
    return float(sum(squares) / len(squares))


def errors_doubled(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 2, 4):
        targets, errors = numbers(generator, size), numbers(generator, size, around=2.0)
        groups.append(
            [
                (np.round(targets + errors, 2), targets),
                (np.round(targets + 2.0 * errors, 2), targets),
            ]
        )
    return groups


def predictions_and_targets_swapped(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 3):
        predictions, targets = numbers(generator, size), numbers(generator, size, around=2.0)
        groups.append([(predictions, targets), (targets, predictions)])
    return groups


# --------------------------------------------------------------------------- line-gradients


def line_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        (np.array([2.0]), np.array([1.0]), 3.0, 0.0),
        (np.array([1.0, 3.0]), np.array([2.0, 1.0]), 1.0, 0.5),
    ]
    for size in (3, 4, 7):
        weight, bias = (float(numbers(generator, around=middle)) for middle in (0.0, 2.0))
        probes.append(
            (numbers(generator, size, around=0.5), numbers(generator, size), weight, bias)
        )
    probes.append((np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0]), 1.0, 0.5))
    probes.append((np.array([[1.0], [2.0]]), np.array([1.0, 2.0]), 1.0, 0.5))
    return probes


def line_oracle(
    inputs: np.ndarray, targets: np.ndarray, weight: float, bias: float
) -> tuple[float, float]:
    """From the sums of the data: the loss is a polynomial in w and b, here in exact fractions."""
    if inputs.shape != targets.shape:
        raise ValueError("shapes differ")
    xs, ys = ([Fraction(value) for value in array.tolist()] for array in (inputs, targets))
    w, b, n = Fraction(weight), Fraction(bias), len(xs)
    sxx = sum(x * x for x in xs)
    sxy = sum(x * y for x, y in zip(xs, ys, strict=True))
    by_weight = 2 * (w * sxx + b * sum(xs) - sxy) / n
    by_bias = 2 * (w * sum(xs) + b * n - sum(ys)) / n
    return float(by_weight), float(by_bias)


def perfect_lines(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size, weight, bias in ((1, 2.0, 1.0), (3, -1.5, 0.5)):
        inputs = whole(generator, size)
        groups.append([(inputs, weight * inputs + bias, weight, bias)])
    return groups


def lines_written_twice(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size in (1, 3):
        inputs, targets = (
            numbers(generator, size, around=1.0),
            numbers(generator, size, around=-1.0),
        )
        twice = (np.tile(inputs, 2), np.tile(targets, 2), 0.5, 1.5)
        groups.append([(inputs, targets, 0.5, 1.5), twice])
    return groups


def close_pairs(one: Any, other: Any) -> bool:
    """Whether two pairs of gradients agree, part by part."""
    pairs = zip(one, other, strict=True)
    return len(one) == 2 and all(bool(np.allclose(a, b, rtol=0, atol=1e-9)) for a, b in pairs)


def line_loss(weight: Any, bias: Any, inputs: np.ndarray, targets: np.ndarray) -> Any:
    return np.mean((weight * inputs + bias - targets) ** 2)


# --------------------------------------------------------------------------- gradient-descent


def descent_probes(generator: Generator) -> Sequence[Arguments]:
    one, zero = np.array([1.0]), np.array([0.0])
    probes: list[Arguments] = [
        (np.array([4.0]), 0.5, 1, one, zero),
        (np.array([4.0]), 0.25, 2, one, zero),
        (np.array([1.0, -2.0]), 0.5, 0, np.array([1.0, 0.5]), np.array([0.0, 3.0])),
        (np.array(3.0), 0.1, 4, np.array(2.0), np.array(-1.0)),
    ]
    for shape, rate, steps in (((2,), 0.3, 3), ((3,), 0.7, 5), ((2, 4), 0.2, 6)):
        curvature = np.round(generator.uniform(0.5, 2.0, size=shape), 2)
        minimum = numbers(generator, *shape)
        distance = np.round(generator.uniform(0.5, 2.0, size=shape), 2)
        probes.append((np.round(minimum + distance, 2), rate, steps, curvature, minimum))
    probes.append((np.array([4.0]), 0.5, -1, one, zero))
    return probes


def descent_oracle(
    start: np.ndarray,
    learning_rate: float,
    steps: int,
    curvature: np.ndarray,
    minimum: np.ndarray,
) -> np.ndarray:
    """The closed form on a bowl, in extended precision: no update is made."""
    if steps < 0:
        raise ValueError("steps must not be negative")
    factor = 1 - np.longdouble(learning_rate) * wide(curvature)
    rows = [wide(minimum) + (wide(start) - wide(minimum)) * factor**k for k in range(steps + 1)]
    return np.array(rows, dtype=np.longdouble)


def longer_runs(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size, short, long in ((1, 1, 3), (2, 2, 5)):
        start, minimum = numbers(generator, size, around=2.0), numbers(generator, size)
        curvature = np.round(generator.uniform(0.5, 2.0, size=size), 2)
        groups.append(
            [(start, 0.4, short, curvature, minimum), (start, 0.4, long, curvature, minimum)]
        )
    return groups


def one_step_bowls(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for size, curvature in ((1, 1.0), (3, 2.0)):
        start, minimum = numbers(generator, size, around=3.0), numbers(generator, size)
        curvatures = np.full(size, curvature)
        groups.append([(start, 1.0 / curvature, 1, curvatures, minimum)])
    return groups


# --------------------------------------------------------------------------- linear-gradients


def linear_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        (np.array([[1.0, 2.0]]), np.array([1.0]), np.array([1.0, 1.0]), 0.5),
        (
            np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
            np.array([1.0, 0.0, 3.0]),
            np.array([2.0, -1.0]),
            1.0,
        ),
    ]
    for rows, features in ((4, 2), (3, 5), (6, 1), (5, 4)):
        bias = float(numbers(generator, around=3.0))
        inputs = numbers(generator, rows, features, around=0.5)
        targets, weights = numbers(generator, rows), numbers(generator, features)
        probes.append((inputs, targets, weights, bias))
    probes.append((np.ones((3, 2)), np.ones(4), np.ones(2), 0.0))
    probes.append((np.ones((3, 2)), np.ones(3), np.ones(4), 0.0))
    probes.append((np.ones((3, 2)), np.ones((3, 1)), np.ones(2), 0.0))
    return probes


def linear_oracle(
    inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, bias: float
) -> tuple[np.ndarray, float]:
    """Example by example and weight by weight, in exact fractions."""
    if inputs.shape != targets.shape + weights.shape or inputs.ndim != 2:
        raise ValueError("shapes do not fit")
    rows = [[Fraction(value) for value in row] for row in inputs.tolist()]
    w = [Fraction(value) for value in weights.tolist()]
    gradient, by_bias = [Fraction(0)] * len(w), Fraction(0)
    for row, target in zip(rows, targets.tolist(), strict=True):
        error = sum(a * b for a, b in zip(row, w, strict=True)) + Fraction(bias) - Fraction(target)
        slope = 2 * error / len(rows)
        gradient = [old + slope * x for old, x in zip(gradient, row, strict=True)]
        by_bias += slope
    return np.array([float(value) for value in gradient]), float(by_bias)


def perfect_models(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for rows, features in ((1, 2), (4, 3)):
        inputs = whole(generator, rows, features)
        weights = whole(generator, features)
        groups.append([(inputs, inputs @ weights + 1.5, weights, 1.5)])
    return groups


def rows_reordered(generator: Generator) -> Sequence[Sequence[Arguments]]:
    groups = []
    for rows, features in ((2, 1), (4, 3)):
        inputs, targets = numbers(generator, rows, features), numbers(generator, rows)
        weights = numbers(generator, features)
        turned = (inputs[::-1].copy(), targets[::-1].copy(), weights, 0.5)
        groups.append([(inputs, targets, weights, 0.5), turned])
    return groups


def linear_loss(weights: Any, bias: Any, inputs: np.ndarray, targets: np.ndarray) -> Any:
    return np.mean((inputs @ weights + bias - targets) ** 2)


# --------------------------------------------------------------------------- repair-update


def update_probes(generator: Generator) -> Sequence[Arguments]:
    probes: list[Arguments] = [
        ([np.array([1.0])], [np.array([4.0])], 0.5),
        ([np.array([1.0]), np.array([-2.0])], [np.array([2.0]), np.array([-4.0])], 0.1),
    ]
    for shapes, rate in ((((2,), (3,)), 0.3), (((4, 3), (3,), (2,)), 0.05), (((), (5,)), 1.5)):
        parameters = [numbers(generator, *shape, around=2.0) for shape in shapes]
        gradients = [numbers(generator, *shape, around=-3.0) for shape in shapes]
        probes.append(([*map(np.asarray, parameters)], [*map(np.asarray, gradients)], rate))
    probes.append(([], [], 0.1))
    probes.append(([np.ones(2), np.ones(3)], [np.ones(2)], 0.1))
    probes.append(([np.ones((3, 1))], [np.ones(3)], 0.1))
    return probes


def update_oracle(
    parameters: Sequence[np.ndarray], gradients: Sequence[np.ndarray], learning_rate: float
) -> list[np.ndarray]:
    if len(parameters) != len(gradients):
        raise ValueError("lengths differ")
    rate = np.longdouble(learning_rate)
    updated = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if np.shape(parameter) != np.shape(gradient):
            raise ValueError("shapes differ")
        updated.append(np.subtract(wide(parameter), rate * wide(gradient)))
    return updated
