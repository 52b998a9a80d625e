"""RoPE in NumPy. A rotation by θ is undone by one by -θ, so the gradient is RoPE with -sin.

Source: Su et al. 2021, "RoFormer", equations 15 and 34.
"""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray, Outputs


def rotate_half(x: AnyArray, cos: AnyArray, sin: AnyArray) -> AnyArray:
    """Turn features i and i + d/2 of x (..., positions, d); cos and sin are (positions, d/2)."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rotate_interleaved(x: AnyArray, cos: AnyArray, sin: AnyArray) -> AnyArray:
    """Turn features 2i and 2i + 1 of x (..., positions, d); cos and sin are (positions, d/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = odd * cos + even * sin
    return turned


def rotate_half_gradients(
    x: AnyArray, cos: AnyArray, sin: AnyArray, cotangent: AnyArray
) -> Outputs:
    """The output and dx."""
    return [rotate_half(x, cos, sin), rotate_half(cotangent, cos, -sin)]


def rotate_interleaved_gradients(
    x: AnyArray, cos: AnyArray, sin: AnyArray, cotangent: AnyArray
) -> Outputs:
    """The output and dx."""
    return [rotate_interleaved(x, cos, sin), rotate_interleaved(cotangent, cos, -sin)]
