"""Backward rules for arrays: each takes dL/d(output) and gives dL/d(input).

`gradient` is always dL/d(output) in the output's shape; the result always has the input's
shape. No rule changes its arguments. Source: Giles 2008, "Collected matrix derivative
results for forward and reverse mode algorithmic differentiation", section 2.
"""

from types import EllipsisType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.foundations.arrays import Array, Axis, IntArray, Shape, require_matmul_shapes
from firsthand.llm.foundations.losses import cross_entropy_gradient

IndexItem: TypeAlias = int | slice | EllipsisType | NDArray[np.integer] | NDArray[np.bool_] | None
Index: TypeAlias = IndexItem | list[int] | tuple[IndexItem | list[int], ...]


def unbroadcast(gradient: Array, shape: Shape) -> Array:
    """Sum a gradient over the axes along which an array of `shape` was broadcast.

    Args:
        gradient: in the broadcast shape.
        shape: the shape before broadcasting.
    Returns:
        An array of `shape`.
    Raises:
        ValueError: `shape` does not broadcast to the gradient's shape.
    """
    if np.broadcast_shapes(gradient.shape, shape) != gradient.shape:
        raise ValueError(f"shape {shape} does not broadcast to {gradient.shape}")
    added = gradient.ndim - len(shape)
    summed = gradient.sum(axis=tuple(range(added)))
    stretched = tuple(axis for axis, length in enumerate(shape) if length == 1)
    result: Array = summed.sum(axis=stretched, keepdims=True)
    return result


def matmul_backward(gradient: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """The gradients of `left @ right` with respect to both sides.

    For 2-D arrays dL/dA = G Bᵀ and dL/dB = Aᵀ G; leading axes are a batch and may have been
    broadcast.

    Args:
        gradient: (..., rows, columns).
        left: (..., rows, inner).
        right: (..., inner, columns).
    Returns:
        Two arrays in the shapes of `left` and `right`.
    Raises:
        ValueError: the shapes do not fit.
    """
    require_matmul_shapes(left, right)
    left_gradient = gradient @ np.swapaxes(right, -1, -2)
    right_gradient = np.swapaxes(left, -1, -2) @ gradient
    return unbroadcast(left_gradient, left.shape), unbroadcast(right_gradient, right.shape)


def _restore_axes(gradient: Array, shape: Shape, axis: Axis, keepdims: bool) -> Array:
    """`gradient` with the reduced axes put back as axes of length 1."""
    if axis is None or keepdims:
        return gradient
    axes = axis if isinstance(axis, tuple) else (axis,)
    return np.expand_dims(gradient, tuple(each % len(shape) for each in axes))


def sum_backward(gradient: Array, shape: Shape, axis: Axis = None, keepdims: bool = False) -> Array:
    """The gradient of a sum: every summed element receives the gradient of its sum.

    Args:
        gradient: in the shape of the sum.
        shape: the shape of the input.
        axis: the axis or axes of the sum; None for all.
        keepdims: whether the sum kept its axes with length 1.
    Returns:
        An array of `shape` with memory of its own.
    """
    restored = _restore_axes(gradient, shape, axis, keepdims)
    return np.array(np.broadcast_to(restored, shape))


def mean_backward(
    gradient: Array, shape: Shape, axis: Axis = None, keepdims: bool = False
) -> Array:
    """The gradient of a mean; arguments and result as for `sum_backward`."""
    spread = sum_backward(gradient, shape, axis, keepdims)
    count = spread.size / gradient.size
    return spread / count


def max_backward(
    gradient: Array, inputs: Array, axis: Axis = None, keepdims: bool = False
) -> Array:
    """The gradient of a maximum: it goes to the largest element; ties share it equally.

    Args:
        gradient: in the shape of the maximum.
        inputs: the array whose maximum was taken.
        axis: the axis or axes of the maximum; None for all.
        keepdims: whether the maximum kept its axes with length 1.
    Returns:
        An array in the shape of `inputs`.
    """
    largest = inputs.max(axis=axis, keepdims=True)
    winners: Array = (inputs == largest).astype(np.float64)
    ties: Array = winners.sum(axis=axis, keepdims=True)
    shares = winners / ties
    return shares * sum_backward(gradient, inputs.shape, axis, keepdims)


def index_backward(gradient: Array, shape: Shape, index: Index) -> Array:
    """The gradient of `inputs[index]`: an element taken several times sums its gradients.

    Args:
        gradient: in the shape of `inputs[index]`.
        shape: the shape of `inputs`.
        index: whatever NumPy accepts between brackets.
    Returns:
        An array of `shape`, 0 where nothing was taken.
    """
    result = np.zeros(shape)
    np.add.at(result, index, gradient)  # type: ignore[arg-type]
    return result


def softmax_cross_entropy_backward(logits: Array, targets: IntArray) -> Array:
    """The gradient of the mean cross-entropy of softmax(logits): (p - one_hot) / batch.

    Args:
        logits: (batch, classes).
        targets: (batch,) integers.
    Raises:
        ValueError, TypeError: as `losses.cross_entropy`.
    """
    return cross_entropy_gradient(logits, targets)
