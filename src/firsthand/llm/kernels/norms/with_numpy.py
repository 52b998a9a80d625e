"""RMSNorm and LayerNorm over the last axis in NumPy, forward and backward.

Both write x̂ = (x - μ) r and y = x̂ w, with μ = 0 for RMSNorm. With h = g w the gradient is

    dx = r (h - x̂ mean(h x̂))              for RMSNorm,
    dx = r (h - mean(h) - x̂ mean(h x̂))    for LayerNorm.

The term with x̂ is there because r depends on x: moving x along x̂ changes nothing.
Sources: Zhang & Sennrich 2019, section 4; Ba, Kiros, Hinton 2016, section 3.
"""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray, Outputs


def rms_norm(x: AnyArray, weight: AnyArray, eps: float = 1e-5) -> AnyArray:
    """x (..., d) over the root of its mean square, times weight (d,)."""
    return x * _reciprocal_root(x, eps) * weight


def rms_norm_gradients(
    x: AnyArray, weight: AnyArray, cotangent: AnyArray, eps: float = 1e-5
) -> Outputs:
    """The output, dx (..., d) and dweight (d,)."""
    r = _reciprocal_root(x, eps)
    normed = x * r
    h = cotangent * weight
    dx = r * (h - normed * (h * normed).mean(axis=-1, keepdims=True))
    return [normed * weight, dx, _summed(cotangent * normed)]


def layer_norm(x: AnyArray, weight: AnyArray, bias: AnyArray, eps: float = 1e-5) -> AnyArray:
    """x (..., d) less its mean, over its deviation, times weight (d,), plus bias (d,)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    result: AnyArray = centred * _reciprocal_root(centred, eps) * weight + bias
    return result


def layer_norm_gradients(
    x: AnyArray, weight: AnyArray, bias: AnyArray, cotangent: AnyArray, eps: float = 1e-5
) -> Outputs:
    """The output, dx (..., d), dweight (d,) and dbias (d,)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    r = _reciprocal_root(centred, eps)
    normed = centred * r
    h = cotangent * weight
    inner = (h * normed).mean(axis=-1, keepdims=True)
    dx = r * (h - h.mean(axis=-1, keepdims=True) - normed * inner)
    return [normed * weight + bias, dx, _summed(cotangent * normed), _summed(cotangent)]


def _reciprocal_root(x: AnyArray, eps: float) -> AnyArray:
    result: AnyArray = 1.0 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return result


def _summed(x: AnyArray) -> AnyArray:
    result: AnyArray = x.reshape(-1, x.shape[-1]).sum(axis=0)
    return result
