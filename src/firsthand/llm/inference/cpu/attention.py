"""Attention of a few queries over an INT8 cache, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.exponential import exp32

AnyArray = NDArray[Any]

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)


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


@compiled
def attend(
    query: AnyArray,
    scale: np.float32,
    keys: AnyArray,
    key_scales: AnyArray,
    values: AnyArray,
    value_scales: AnyArray,
    seen: int,
    scores: AnyArray,
    out: AnyArray,
) -> None:
    """One head's output for one query: Σ_t softmax_t(scale · q · k_t) v_t.

    The step of a key's grid multiplies its score once, and the step of a value's grid its weight,
    so integers are read and nothing is written back.

    Args:
        query: float32 (width,).
        keys, values: int8 (capacity, width) of this head.
        key_scales, value_scales: float32 (capacity,).
        seen: how many of them, at least 1.
        scores: scratch, float32 (at least seen,).
        out: float32 (width,).
    """
    width = len(query)
    fours = seen // 4 * 4
    for t in range(0, fours, 4):
        a = b = c = d = _ZERO
        for i in range(width):
            q = query[i]
            a += q * np.float32(keys[t, i])
            b += q * np.float32(keys[t + 1, i])
            c += q * np.float32(keys[t + 2, i])
            d += q * np.float32(keys[t + 3, i])
        scores[t] = a
        scores[t + 1] = b
        scores[t + 2] = c
        scores[t + 3] = d
    for t in range(fours, seen):
        a = _ZERO
        for i in range(width):
            a += query[i] * np.float32(keys[t, i])
        scores[t] = a
    peak = np.float32(-np.inf)
    for t in range(seen):
        s = scores[t] * key_scales[t] * scale
        scores[t] = s
        peak = s if s > peak else peak
    total = _ZERO
    for t in range(seen):
        e = exp32(scores[t] - peak)
        total += e
        scores[t] = e * value_scales[t]
    for i in range(width):
        out[i] = _ZERO
    for t in range(0, fours, 4):
        a, b, c, d = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
        for i in range(width):
            out[i] += (
                a * np.float32(values[t, i])
                + b * np.float32(values[t + 1, i])
                + c * np.float32(values[t + 2, i])
                + d * np.float32(values[t + 3, i])
            )
    for t in range(fours, seen):
        a = scores[t]
        for i in range(width):
            out[i] += a * np.float32(values[t, i])
    inverse = _ONE / total
    for i in range(width):
        out[i] *= inverse
