"""Attention over an INT8 cache, compiled: of one query, or of a few that follow in a text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.inference.cpu.attention_tiles import WIDTH_MULTIPLE, mix_tile, score_tile
from firsthand.llm.kernels.compiling import compiled, ordered, separate
from firsthand.llm.kernels.exponential import exp32

AnyArray = NDArray[Any]

# Queries that share each key and value.
TOGETHER = 4

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_scores_1x8, _scores_1x1 = score_tile(1, 8), score_tile(1, 1)
_scores_4x2, _scores_4x1 = score_tile(TOGETHER, 2), score_tile(TOGETHER, 1)
_mix_1, _mix_4 = mix_tile(1), mix_tile(TOGETHER)


def padded_head(width: int) -> int:
    """The width of a head in memory."""
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


@compiled
def turn(x: AnyArray, cos: AnyArray, sin: AnyArray) -> None:
    """RoPE in place: (x_i, x_{i + width / 2}) turned by the angle of pair i.

    Args:
        x: (width,); cos, sin: (width / 2,), float32.
    """
    half = len(cos)
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cos[i] - second * sin[i]
        x[half + i] = second * cos[i] + first * sin[i]


@ordered
def attend(
    queries: AnyArray,
    row: int,
    positions: AnyArray,
    scale: np.float32,
    keys: AnyArray,
    key_scales: AnyArray,
    values: AnyArray,
    value_scales: AnyArray,
    scores: AnyArray,
    out: AnyArray,
) -> None:
    """One head's outputs: Σ_t softmax_t(scale · q · k_t) v_t, for one query or TOGETHER.

    The step of a key's grid multiplies its score once, and the step of a value's grid its weight,
    so integers are read and nothing is written back. A query's numbers do not depend on the others.

    Args:
        queries: float32 (rows, width) of this head; those of row, row + 1 ... are meant.
        positions: int32, of these queries: each sees one key more. Its length is 1 or TOGETHER.
        keys, values: int8 (capacity, width) of this head; width is `padded_head`.
        key_scales, value_scales: float32 (capacity,).
        scores: scratch, float32 (TOGETHER, at least as many as one sees).
        out: float32 (TOGETHER, width), the first of which are written.
    """
    count = len(positions)
    most: int = 0
    for i in range(count):
        most = max(most, positions[i] + 1)
    if count == 1:
        for t in range(0, most // 8 * 8, 8):
            _scores_1x8(queries, row, keys, t, scores)
        for t in range(most // 8 * 8, most):
            _scores_1x1(queries, row, keys, t, scores)
    else:
        for t in range(0, most // 2 * 2, 2):
            _scores_4x2(queries, row, keys, t, scores)
        for t in range(most // 2 * 2, most):
            _scores_4x1(queries, row, keys, t, scores)
    for i in range(count):
        seen = positions[i] + 1
        _weights(scores, i, scale, key_scales, value_scales, seen)
        for t in range(seen, most):
            scores[i, t] = _ZERO
    if count == 1:
        _mix_1(scores, values, most, out)
    else:
        _mix_4(scores, values, most, out)


@compiled
def _weights(
    scores: AnyArray,
    row: int,
    scale: np.float32,
    key_scales: AnyArray,
    value_scales: AnyArray,
    seen: int,
) -> None:
    """From products of integers' to what each value's integers count."""
    peak = np.float32(-np.inf)
    for t in range(seen):
        s = scores[row, t] * key_scales[t] * scale
        scores[row, t] = s
        peak = s if s > peak else peak
    total = _ZERO
    for t in range(seen):
        e = exp32(scores[row, t] - peak)
        total += e
        scores[row, t] = e
    inverse = _ONE / total
    for t in range(seen):
        scores[row, t] *= inverse * value_scales[t]


ATTEND = separate(
    attend,
    "void(f4[:,::1], i8, i4[::1], f4, i1[:,::1], f4[::1], i1[:,::1], f4[::1], f4[:,::1],"
    " f4[:,::1])",
)
