"""silu(gate) · up in NumPy. With s = σ(gate): dgate = g up s (1 + gate (1 - s)), dup = g gate s.

Source: Shazeer 2020, "GLU Variants Improve Transformer", section 2.
"""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray, Outputs


def swiglu(both: AnyArray) -> AnyArray:
    """both: (..., 2 n), the gate and then the up half -> (..., n)."""
    gate, up = np.split(both, 2, axis=-1)
    result: AnyArray = gate * _sigmoid(gate) * up
    return result


def swiglu_gradients(both: AnyArray, cotangent: AnyArray) -> Outputs:
    """The output and the gradient of `both`, in its shape."""
    gate, up = np.split(both, 2, axis=-1)
    s = _sigmoid(gate)
    dgate = cotangent * up * s * (1.0 + gate * (1.0 - s))
    return [gate * s * up, np.concatenate([dgate, cotangent * gate * s], axis=-1)]


def _sigmoid(z: AnyArray) -> AnyArray:
    # exp only of what is at most 0: it underflows to 0 and never overflows.
    small = np.exp(-np.abs(z))
    return np.where(z >= 0.0, 1.0, small) / (1.0 + small)
