"""The INT8 product in NumPy: what every other rung computes to the last bit.

A weight row has one scale, and so has an activation row, so the product of integers is scaled
once, after the sum: y[m, n] = (Σ_k x[m, k] · w[n, k]) · scale_w[n] · scale_x[m]. Weights have 8
bits because they are what decoding reads from memory; activations have as many levels as a 32-bit
sum can hold, for a processor multiplies pairs of 16-bit integers (x86: `vpmaddwd`) as fast as
pairs of 8-bit ones and the finer grid costs nothing.

Source: Jacob et al. 2018, section 2.2 (sums in 32 bits); Dettmers et al. 2022, section 2 (a scale
for each row of both sides).
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int8, Int16
from numpy.typing import NDArray

AnyArray = NDArray[Any]

# The largest weight: -128 is not used, so that the grid is symmetric.
WEIGHT_LEVELS = 127
_ACCUMULATOR = 2**31 - 1


def activation_levels(width: int) -> int:
    """The largest activation integer for which no sum over `width` products leaves 32 bits.

    32,767 up to a width of 516, 22,017 at 768, 8,256 at 2,048.
    """
    return min(2**15 - 1, _ACCUMULATOR // (WEIGHT_LEVELS * width))


def quantize_rows(
    x: Float32[AnyArray, "m k"], levels: int
) -> tuple[Int16[AnyArray, "m k"], Float32[AnyArray, " m"]]:
    """Each row on its own grid of 2 · levels + 1 steps: x ≈ integers · scale.

    Args:
        x: finite.
        levels: the largest integer, at most 32,767.

    Returns:
        The integers, rounded half to even, and a scale for each row; both 0 for a row of zeros.
    """
    peaks = np.abs(x).max(axis=1, initial=0.0).astype(np.float32)
    most = np.float32(levels)
    # A row so small that its scale would have no inverse in float32 counts as zero.
    used = peaks >= np.float32(1e-30)
    inverses = np.divide(most, peaks, out=np.zeros_like(peaks), where=used)
    scales = np.where(used, peaks / most, np.float32(0.0))
    return np.rint(x * inverses[:, None]).astype(np.int16), scales


def int8_matmul(
    x: Int16[AnyArray, "m k"],
    x_scales: Float32[AnyArray, " m"],
    w: Int8[AnyArray, "n k"],
    w_scales: Float32[AnyArray, " n"],
) -> Float32[AnyArray, "m n"]:
    """The product of both, scaled: first by the weight's scale, then by the activation's.

    Args:
        x: at most `activation_levels(k)` in absolute value.
        w: as `torch.nn.Linear` keeps it, a row for each output.
        x_scales, w_scales: float32; in float64 the result is too.
    """
    sums = x.astype(np.int32) @ w.astype(np.int32).T
    return sums.astype(w_scales.dtype) * w_scales * x_scales[:, None]
