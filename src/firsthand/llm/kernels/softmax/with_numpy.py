"""softmax over the last axis in NumPy, in three passes and in one with a running maximum."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray, Outputs


def softmax(x: AnyArray) -> AnyArray:
    """(..., n) -> (..., n), each row summing to 1; the row's maximum is taken off first.

    Without it exp overflows in float32 above 88.7; with it the largest exponent is 0.
    """
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    result: AnyArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def softmax_gradients(x: AnyArray, cotangent: AnyArray) -> Outputs:
    """The softmax p of x and dx = p (g - Σ p g), since dp_i/dx_j = p_i (δ_ij - p_j)."""
    p = softmax(x)
    inner = (p * cotangent).sum(axis=-1, keepdims=True)
    return [p, p * (cotangent - inner)]


def online_softmax(x: AnyArray, block: int = 128) -> AnyArray:
    """The same in blocks of columns: maximum and sum in one pass over x, then one to write.

    When a block raises the maximum from m to m', the sum so far is multiplied by exp(m - m').
    Source: Milakov & Gimelshein 2018, algorithm 3, by blocks.
    """
    maximum = np.full((*x.shape[:-1], 1), -np.inf, dtype=x.dtype)
    total = np.zeros_like(maximum)
    for start in range(0, x.shape[-1], block):
        piece = x[..., start : start + block]
        raised = np.maximum(maximum, piece.max(axis=-1, keepdims=True))
        total *= np.exp(maximum - raised)
        total += np.exp(piece - raised).sum(axis=-1, keepdims=True)
        maximum = raised
    result: AnyArray = np.exp(x - maximum) / total
    return result


def online_softmax_gradients(x: AnyArray, cotangent: AnyArray) -> Outputs:
    """As `softmax_gradients`, from `online_softmax`."""
    p = online_softmax(x)
    return [p, p * (cotangent - np.einsum("...i,...i->...", p, cotangent)[..., None])]
