"""The array types of this package and the argument checks that its functions share."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None


def require_same_shape(left_name: str, left: Array, right_name: str, right: Array) -> None:
    """Raise ValueError naming both shapes when `left` and `right` differ in shape."""
    if np.shape(left) != np.shape(right):
        raise ValueError(
            f"{left_name} and {right_name} differ in shape: {np.shape(left)} and {np.shape(right)}"
        )


def require_matmul_shapes(left: Array, right: Array) -> None:
    """Raise ValueError unless (..., rows, inner) @ (..., inner, columns) is defined."""
    shapes = f"{left.shape} and {right.shape}"
    if left.ndim < 2 or right.ndim < 2:
        raise ValueError(f"matmul needs at least two axes on both sides; the shapes are {shapes}")
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"matmul needs equal inner axes; {left.shape[-1]} and {right.shape[-2]} differ "
            f"in the shapes {shapes}"
        )


def require_class_targets(logits: Array, targets: IntArray) -> None:
    """Raise unless logits are (batch, classes) and targets (batch,) integers in [0, classes).

    Raises:
        ValueError: a wrong shape, an empty batch, or a class outside the range.
        TypeError: targets that are not integers.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "logits must be (batch, classes) and targets (batch,); "
            f"the shapes are {logits.shape} and {targets.shape}"
        )
    if targets.size == 0:
        raise ValueError(f"the batch is empty; logits have the shape {logits.shape}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be integers; their dtype is {targets.dtype}")
    classes = logits.shape[1]
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(
            f"targets must lie in [0, {classes}); they are {targets.min()} to {targets.max()}"
        )
