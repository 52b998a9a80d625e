"""How an array lies in memory: shape, strides and bytes.

A stride is the number of bytes from one element to the next along an axis. An array is a
start address, a shape and strides; a transpose or a slice changes these three and copies
nothing. Source: Harris et al. 2020, "Array programming with NumPy", section "NumPy arrays".
"""

import numpy as np
from numpy.typing import NDArray


def row_major_strides(shape: tuple[int, ...], itemsize: int = 8) -> tuple[int, ...]:
    """The strides in bytes of a row-major (C order) array.

    The last axis is dense: its stride is `itemsize`. An axis of length 0 counts as length 1.
    The strides of the shape () are ().

    Args:
        shape: the lengths of the axes, outermost first.
        itemsize: bytes of one element.
    Raises:
        ValueError: a negative length, or an itemsize below 1.
    """
    if itemsize < 1 or any(length < 0 for length in shape):
        raise ValueError(f"no row-major strides for shape {shape} and itemsize {itemsize}")
    strides = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def byte_offset(index: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The distance in bytes from the element at index (0, ..., 0) to the one at `index`.

    Args:
        index: a position on each axis, counted from 0.
        strides: bytes per step on each axis; may be 0 or negative.
    Raises:
        ValueError: `index` and `strides` differ in length.
    """
    if len(index) != len(strides):
        raise ValueError(f"index {index} and strides {strides} differ in length")
    offset = 0
    for position, stride in zip(index, strides, strict=True):
        offset += position * stride
    return offset


def is_row_major(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int = 8) -> bool:
    """Whether elements with these strides lie densely in row-major order.

    The stride of an axis of length 1 is never used, so it may have any value; an array
    without elements is always row-major. This is NumPy's `flags.c_contiguous`.

    Raises:
        ValueError: `shape` and `strides` differ in length.
    """
    if len(shape) != len(strides):
        raise ValueError(f"shape {shape} and strides {strides} differ in length")
    if 0 in shape:
        return True
    dense = row_major_strides(shape, itemsize)
    for length, stride, dense_stride in zip(shape, strides, dense, strict=True):
        if length > 1 and stride != dense_stride:
            return False
    return True


def span_bytes(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int = 8) -> int:
    """Bytes from the lowest to the highest address that an element occupies, both included.

    More than size * itemsize when the array skips elements, less when a stride of 0 makes
    elements coincide; 0 for an array without elements.

    Raises:
        ValueError: `shape` and `strides` differ in length.
    """
    if len(shape) != len(strides):
        raise ValueError(f"shape {shape} and strides {strides} differ in length")
    if 0 in shape:
        return 0
    span = itemsize
    for length, stride in zip(shape, strides, strict=True):
        span += (length - 1) * abs(stride)
    return span


def describe_layout(array: NDArray[np.generic]) -> str:
    """One line on an array: dtype, shape, strides, bytes spanned, order, and view or owner.

    Example: `float64, shape (3, 2), strides (8, 24), 48 bytes of elements in a span of 48,
    not row-major, view`.
    """
    span = span_bytes(array.shape, array.strides, array.itemsize)
    dense = is_row_major(array.shape, array.strides, array.itemsize)
    order = "row-major" if dense else "not row-major"
    memory = "owns its memory" if array.base is None else "view"
    return (
        f"{array.dtype}, shape {array.shape}, strides {array.strides}, "
        f"{array.nbytes} bytes of elements in a span of {span}, {order}, {memory}"
    )
