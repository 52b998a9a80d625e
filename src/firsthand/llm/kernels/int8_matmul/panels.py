"""The INT8 product over many rows: tiles, a panel of weights at a time. Compiled; no PyTorch.

A panel is so many weight rows that they stay in the innermost cache while all activation rows
pass: weights then come from memory once for each call, whatever the number of activation rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.kernels.compiling import compiled, inlined
from firsthand.llm.kernels.int8_matmul.tiles import STEP, dot_tile

AnyArray = NDArray[Any]

# Weight rows of a panel: 24 KB at a width of 768.
PANEL = 32
# Rows are padded with zeros to a multiple of this: the step of the loop for one row.
_UNROLLED = 4
ROW_MULTIPLE = STEP * _UNROLLED
# Integers that a caller's scratch for sums must hold.
SUMS = 8

_ZERO = np.float32(0.0)
_LEAST_PEAK = np.float32(1e-30)
# Most rows of activations that share a weight's way through the registers: eight sums, the weight
# and a product leave some of the sixteen free; the activations come from the innermost cache.
_MOST_ROWS = 8
# The first rows to pass a panel find it in memory, and ask for what comes next.
_AHEAD = 2048
_FIRST = [dot_tile(1, 1, _UNROLLED, _AHEAD), *(dot_tile(m, 1, 1, _AHEAD) for m in range(2, 9))]
_first_1, _first_2, _first_3, _first_4, _first_5, _first_6, _first_7, _first_8 = _FIRST
_LATER = [dot_tile(m, 1) for m in range(1, 9)]
_later_1, _later_2, _later_3, _later_4, _later_5, _later_6, _later_7, _later_8 = _LATER


def padded(width: int) -> int:
    """The width of a row in memory."""
    return -(-width // ROW_MULTIPLE) * ROW_MULTIPLE


@inlined
def scaled(total: np.int32, w_scale: np.float32, x_scale: np.float32) -> np.float32:
    """An integer sum as a number, in the order of the NumPy rung, which sums must not change."""
    return np.float32(np.float32(np.float32(total) * w_scale) * x_scale)


@inlined
def _divided(a: np.float32, b: np.float32) -> np.float32:
    """a / b rounded once; the loops' own arithmetic may take a · (1 / b)."""
    return np.float32(a / b)


@compiled
def quantize_row(x: AnyArray, levels: np.float32, integers: AnyArray) -> np.float32:
    """As `quantize_rows` for one row; returns its scale, NaN if a number of x is not finite.

    No integer can say NaN, and a broken model has to show.

    Args:
        x: (k,), float32.
        integers: (at least k,), int16; what lies behind k stays as it is.
    """
    peak = nothing = _ZERO
    for k in range(len(x)):
        size = abs(x[k])
        peak = size if size > peak else peak
        nothing += x[k] * _ZERO
    if not peak >= _LEAST_PEAK:
        for k in range(len(x)):
            integers[k] = 0
        return nothing
    inverse = _divided(levels, peak)
    for k in range(len(x)):
        integers[k] = np.int16(np.int32(np.rint(x[k] * inverse)))
    return _divided(peak, levels) + nothing


@compiled
def _first(size: int, x: AnyArray, m: int, w: AnyArray, n: int, sums: AnyArray) -> None:
    if size == 8:
        _first_8(x, m, w, n, sums)
    elif size == 7:
        _first_7(x, m, w, n, sums)
    elif size == 6:
        _first_6(x, m, w, n, sums)
    elif size == 5:
        _first_5(x, m, w, n, sums)
    elif size == 4:
        _first_4(x, m, w, n, sums)
    elif size == 3:
        _first_3(x, m, w, n, sums)
    elif size == 2:
        _first_2(x, m, w, n, sums)
    else:
        _first_1(x, m, w, n, sums)


@compiled
def _later(size: int, x: AnyArray, m: int, w: AnyArray, n: int, sums: AnyArray) -> None:
    if size == 8:
        _later_8(x, m, w, n, sums)
    elif size == 7:
        _later_7(x, m, w, n, sums)
    elif size == 6:
        _later_6(x, m, w, n, sums)
    elif size == 5:
        _later_5(x, m, w, n, sums)
    elif size == 4:
        _later_4(x, m, w, n, sums)
    elif size == 3:
        _later_3(x, m, w, n, sums)
    elif size == 2:
        _later_2(x, m, w, n, sums)
    else:
        _later_1(x, m, w, n, sums)


@compiled
def panel_products(
    x: AnyArray,
    x_scales: AnyArray,
    row: int,
    rows: int,
    w: AnyArray,
    w_scales: AnyArray,
    first: int,
    last: int,
    sums: AnyArray,
    out: AnyArray,
    column: int,
) -> None:
    """out[i, column + j] = the product of activation row `row + i` and weight row `first + j`.

    Args:
        x, x_scales: int16 (m, k), float32 (m,); k is a multiple of ROW_MULTIPLE.
        row, rows: the activation rows taken.
        w, w_scales: int8 (n, k), float32 (n,).
        first, last: the weight rows taken.
        sums: scratch, int32, at least SUMS.
        out: float32 (at least rows, at least column + last - first).
    """
    shift = column - first
    # As even as can be: 10 rows are twice 5, and not 8 and 2.
    tiles = (rows + _MOST_ROWS - 1) // _MOST_ROWS
    for tile in range(tiles):
        start, end = rows * tile // tiles, rows * (tile + 1) // tiles
        size, m = end - start, row + start
        for n in range(first, last):
            if tile == 0:
                _first(size, x, m, w, n, sums)
            else:
                _later(size, x, m, w, n, sums)
            for i in range(size):
                out[start + i, n + shift] = scaled(sums[i], w_scales[n], x_scales[m + i])
