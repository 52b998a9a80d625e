"""Gradients of a straight line and of a linear model, and descent along them.

On a quadratic with curvature λ one step multiplies the distance to the minimum by 1 - ηλ,
so descent converges for a learning rate η below 2 / λ and diverges above.
Source: Goodfellow, Bengio, Courville 2016, "Deep Learning", section 4.3.
"""

from collections.abc import Callable, Sequence

import numpy as np

from firsthand.llm.foundations.arrays import Array, require_same_shape


def line_gradients(
    inputs: Array, targets: Array, weight: float, bias: float
) -> tuple[float, float]:
    """The gradients (dL/dw, dL/db) of L = mean((w x + b - y)²).

    Args:
        inputs: x, (n,).
        targets: y, (n,).
        weight: w.
        bias: b.
    Raises:
        ValueError: inputs and targets differ in shape.
    """
    require_same_shape("inputs", inputs, "targets", targets)
    errors = weight * inputs + bias - targets
    weight_gradient = 2.0 * np.mean(errors * inputs)
    bias_gradient = 2.0 * np.mean(errors)
    return float(weight_gradient), float(bias_gradient)


def linear_gradients(
    inputs: Array, targets: Array, weights: Array, bias: float
) -> tuple[Array, float]:
    """The gradients (dL/dw, dL/db) of L = mean((X w + b - y)²).

    Args:
        inputs: X, (n, d).
        targets: y, (n,).
        weights: w, (d,).
        bias: b.
    Returns:
        dL/dw (d,) and dL/db.
    Raises:
        ValueError: the shapes do not fit.
    """
    if inputs.shape != targets.shape + weights.shape:
        raise ValueError(
            f"inputs {inputs.shape} must be (n, d) for targets (n,) = {targets.shape} "
            f"and weights (d,) = {weights.shape}"
        )
    errors = inputs @ weights + bias - targets
    weight_gradient = 2.0 * (inputs.T @ errors) / len(targets)
    bias_gradient = 2.0 * np.mean(errors)
    return weight_gradient, float(bias_gradient)


def descent_step(
    parameters: Sequence[Array], gradients: Sequence[Array], learning_rate: float
) -> list[Array]:
    """New parameters after one step against the gradient: p - η g for each pair.

    Raises:
        ValueError: the sequences differ in length, or a pair in shape.
    """
    if len(parameters) != len(gradients):
        raise ValueError(f"{len(parameters)} parameters but {len(gradients)} gradients")
    updated = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        require_same_shape("parameter", parameter, "gradient", gradient)
        updated.append(parameter - learning_rate * gradient)
    return updated


def gradient_descent(
    gradient: Callable[[Array], Array], start: Array, learning_rate: float, steps: int
) -> Array:
    """The path of gradient descent.

    Args:
        gradient: gives the gradient at a point, in the point's shape.
        start: the first point, any shape.
        learning_rate: η.
        steps: the number of steps; 0 is allowed.
    Returns:
        (steps + 1, *start.shape): the start and the point after each step.
    Raises:
        ValueError: steps is negative.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative: {steps}")
    point = np.array(start, dtype=np.float64)
    path = [point]
    for _ in range(steps):
        point = point - learning_rate * gradient(point)
        path.append(point)
    return np.stack(path)


def quadratic_divergence_threshold(curvature: float) -> float:
    """The learning rate above which descent on L = ½ λ x² diverges, for curvature λ.

    Raises:
        ValueError: the curvature is not positive.
    """
    if curvature <= 0:
        raise ValueError(f"the curvature must be positive: {curvature}")
    return 2.0 / curvature
