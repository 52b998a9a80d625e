"""The INT8 product over many rows: tiles, a panel of weights at a time. Compiled; no PyTorch.

A panel is so many weight rows that they stay in the innermost cache while all activation rows
pass: weights then come from memory once for each call, whatever the number of activation rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.kernels.compiling import compiled, inlined, ordered, separate
from firsthand.llm.kernels.int8_matmul.tiles import (
    STEP,
    SUMS,
    UNROLLED,
    dot_rows,
    dot_tiles,
    scale_tile,
)

AnyArray = NDArray[Any]

# Weight rows of a panel: 24 KB at a width of 768.
PANEL = 32
# Rows are padded with zeros to a multiple of this: the step of the loop for one row.
ROW_MULTIPLE = STEP * UNROLLED

_ZERO = np.float32(0.0)
_LEAST_PEAK = np.float32(1e-30)
# Longest piece of a sum that a tile takes at once: eight rows of it are 12 KB. Two logical cores
# may share the innermost cache of 32 KB, and what does not fit there comes at half the speed.
_PIECE = 768
# Bytes that a single row of activations asks for in advance.
_AHEAD = 1024
_rows = dot_rows(ahead=_AHEAD)
# The first rows to pass a panel find it in memory.
_first = dot_tiles(from_memory=True)
_later = dot_tiles(from_memory=False)


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
        integers: (at least k,), of a kind that holds the levels; what lies behind k stays.
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
        integers[k] = np.int32(np.rint(x[k] * inverse))
    return _divided(peak, levels) + nothing


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
        sums: scratch, int32 (at least last - first, SUMS).
        out: float32 (at least rows, at least column + last - first).
    """
    shift = column - first
    if rows == 1:
        eights = first + (last - first) // SUMS * SUMS
        for n in range(first, eights, SUMS):
            _rows(x, row, w, n, sums)
            for j in range(SUMS):
                out[0, n + j + shift] = scaled(sums[0, j], w_scales[n + j], x_scales[row])
        first = eights
    # As even as can be: 10 rows are twice 5, and not 8 and 2.
    tiles = (rows + SUMS - 1) // SUMS
    for tile in range(tiles):
        start, end = rows * tile // tiles, rows * (tile + 1) // tiles
        _tile_sums(x, row + start, end - start, w, first, last, tile == 0, sums)
        eights = first
        if end - start == SUMS:
            eights += (last - first) // SUMS * SUMS
            _scale_eights(sums, w_scales, first, eights, x_scales, row + start, out, start, column)
        for i in range(start, end):
            for n in range(eights, last):
                total = sums[n - first, i - start]
                out[i, n + shift] = scaled(total, w_scales[n], x_scales[row + i])


@ordered
def _scale_eights(
    sums: AnyArray,
    w_scales: AnyArray,
    first: int,
    last: int,
    x_scales: AnyArray,
    row: int,
    out: AnyArray,
    i: int,
    column: int,
) -> None:
    """out[i + a, column + j] = `scaled` sums[j, a]: weight rows from `first` on, eight rows."""
    for n in range(first, last, SUMS):
        j = n - first
        scale_tile(sums, j, w_scales, n, x_scales, row, out, i, column + j)


@compiled
def _tile_sums(
    x: AnyArray,
    row: int,
    rows: int,
    w: AnyArray,
    first: int,
    last: int,
    from_memory: bool,
    sums: AnyArray,
) -> None:
    """sums[j, i] = the sum of activation row `row + i` and weight row `first + j`, up to SUMS rows.

    Piece by piece, so that a piece of the rows stays while all weights of the panel pass.
    """
    for j in range(last - first):
        for i in range(SUMS):
            sums[j, i] = 0
    width = w.shape[1]
    units = width // ROW_MULTIPLE
    pieces = (width + _PIECE - 1) // _PIECE
    for piece in range(pieces):
        begin = units * piece // pieces * ROW_MULTIPLE
        end = units * (piece + 1) // pieces * ROW_MULTIPLE
        for n in range(first, last):
            if from_memory:
                _first(x, row, rows, w, n, begin, end, sums, n - first)
            else:
                _later(x, row, rows, w, n, begin, end, sums, n - first)


PANEL_PRODUCTS = separate(
    panel_products,
    "void(i2[:,::1], f4[::1], i8, i8, i1[:,::1], f4[::1], i8, i8, i4[:,::1], f4[:,::1], i8)",
)
