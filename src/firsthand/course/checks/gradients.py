"""Central differences in float64, and the names of the ways in which a gradient can be wrong.

The classes are those that can be told from the numbers alone (CHECKS.md, "Gradients"): a constant
ratio to the right one, a transposed one, a sum left out over a broadcast axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def numerical_gradients(
    forward: Callable[..., Any], inputs: tuple[Any, ...], cotangent: Any | None, step: float
) -> tuple[Array, ...]:
    """d(sum(cotangent * forward(*inputs)))/d(input) for each input, by central differences.

    Without a cotangent the function is elementwise and the result is its derivative. The error of a
    central difference is O(step**2) from truncation plus O(eps / step) from rounding.
    """
    points = [np.array(value, dtype=np.float64) for value in inputs]
    gradients = []
    for index, point in enumerate(points):
        gradient = np.zeros_like(point)
        for position in np.ndindex(point.shape):
            saved = point[position]
            point[position] = saved + step
            above = np.asarray(forward(*points), dtype=np.float64)
            point[position] = saved - step
            below = np.asarray(forward(*points), dtype=np.float64)
            point[position] = saved
            slope = (above - below) / (2 * step)
            if cotangent is None:
                gradient[position] = slope[position] if slope.shape else slope
            else:
                gradient[position] = float(np.sum(np.asarray(cotangent) * slope))
        gradients.append(gradient)
        points[index] = point
    return tuple(gradients)


@dataclass(frozen=True)
class GradientFault:
    """One wrong gradient. class_: the named class of fault, or None when no class fits."""

    argument: int
    index: tuple[int, ...]
    got: float
    expected: float
    class_: str | None


def compare(got: Array, expected: Array, argument: int, tolerance: float) -> GradientFault | None:
    """None where the gradients agree to `tolerance` relative to the largest expected entry."""
    got = np.asarray(got, dtype=np.float64)
    if got.shape != expected.shape:
        return GradientFault(argument, (), float("nan"), float("nan"), _shape_class(got, expected))
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    gaps = np.abs(got - expected)
    if got.size == 0 or float(np.max(gaps)) <= tolerance * scale:
        return None
    position = np.unravel_index(int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps))), got.shape)
    return GradientFault(
        argument=argument,
        index=tuple(int(i) for i in position),
        got=float(got[position]),
        expected=float(expected[position]),
        class_=_class_of(got, expected, tolerance * scale),
    )


def _shape_class(got: Array, expected: Array) -> str:
    if got.shape == expected.shape[::-1]:
        return "it has the shape of the transpose"
    if _repeats(expected.shape, got.shape):
        return (
            f"it has shape {got.shape}, the input {expected.shape}: "
            "an axis that was broadcast is not summed"
        )
    return f"it has shape {got.shape}, the input {expected.shape}"


def _repeats(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether broadcasting would repeat an array of the one shape into the other."""
    try:
        return small != large and np.broadcast_shapes(small, large) == large
    except ValueError:
        return False


def _class_of(got: Array, expected: Array, allowed: float) -> str | None:
    meaningful = np.abs(expected) > 1e-3 * max(float(np.max(np.abs(expected))), 1e-12)
    if np.count_nonzero(meaningful) >= 2:
        ratios = got[meaningful] / expected[meaningful]
        ratio = float(np.median(ratios))
        if np.all(np.abs(got - ratio * expected) <= allowed * max(1.0, abs(ratio))):
            if ratio == 0.0:
                return "every entry is zero"
            if abs(ratio - 1.0) > 1e-3:  # closer is an inaccuracy, not a factor
                return f"every entry is {ratio:.4g} times the right one"
    square = got.ndim == 2 and got.shape[0] == got.shape[1]
    if square and float(np.max(np.abs(got.T - expected))) <= allowed:
        return "it is the transpose of the right one"
    return None
