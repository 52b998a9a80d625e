"""Activations, their derivatives, and softmax; all stable for arguments of any size.

Every derivative is a function of the activation's input. Nothing overflows: an exponential
is only taken of a number that is not positive.
Sources: Hendrycks & Gimpel 2016 (GELU, section 2); Elfwing et al. 2018 (SiLU, section 2);
Blanchard, Higham, Higham 2021 (log-sum-exp and softmax, section 1).
"""

import math

import numpy as np

from firsthand.llm.foundations.arrays import Array, require_same_shape

# The complement keeps its relative accuracy far in the tail, where 1 + erf(x) cancels to 0.
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    """The logistic function 1 / (1 + exp(-x)), elementwise; no overflow for any finite x."""
    decay = np.exp(-np.abs(x))
    numerator = np.where(np.less(x, 0.0), decay, 1.0)
    return numerator / (1.0 + decay)


def tanh(x: Array) -> Array:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x)), elementwise; no overflow for any finite x.

    Accurate to a few ulp near 0 as well, where the difference of exponentials cancels.
    """
    decay = np.expm1(-2.0 * np.abs(x))
    magnitude = -decay / (2.0 + decay)
    return np.sign(x) * magnitude


def relu(x: Array) -> Array:
    """max(x, 0), elementwise."""
    positive_part: Array = np.maximum(x, 0.0)
    return positive_part


def normal_cdf(x: Array) -> Array:
    """The probability that a standard normal variable is at most x, elementwise: erfc(-x/√2)/2."""
    tail: Array = _erfc(-np.asarray(x) / math.sqrt(2.0))
    return 0.5 * tail


def normal_density(x: Array) -> Array:
    """The density of the standard normal distribution, elementwise: exp(-x²/2) / √(2π)."""
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2.0 * math.pi)


def gelu(x: Array) -> Array:
    """x · Φ(x), elementwise, with the exact normal distribution function Φ (`normal_cdf`).

    Source: Hendrycks & Gimpel 2016, section 2 (the exact form, not the tanh approximation).
    """
    return x * normal_cdf(x)


def silu(x: Array) -> Array:
    """x · sigmoid(x), elementwise (also called swish). Source: Elfwing et al. 2018, section 2."""
    return x * sigmoid(x)


def sigmoid_derivative(x: Array) -> Array:
    """dσ/dx = σ(x) (1 - σ(x)), elementwise; keeps its relative accuracy for large x."""
    return sigmoid(x) * sigmoid(-np.asarray(x))


def tanh_derivative(x: Array) -> Array:
    """d tanh/dx = 1 - tanh(x)², elementwise."""
    value = tanh(x)
    return 1.0 - value * value


def relu_derivative(x: Array) -> Array:
    """1.0 where x > 0 and 0.0 elsewhere; at x = 0, where none exists, the value is 0.0."""
    return np.greater(x, 0.0).astype(np.float64)


def gelu_derivative(x: Array) -> Array:
    """Φ(x) + x φ(x), elementwise, with the normal distribution function Φ and density φ."""
    return normal_cdf(x) + x * normal_density(x)


def silu_derivative(x: Array) -> Array:
    """σ(x) + x σ'(x), elementwise."""
    return sigmoid(x) + x * sigmoid_derivative(x)


def softmax(logits: Array, axis: int = -1) -> Array:
    """exp(z_i) / Σ_j exp(z_j) along `axis`; no overflow for any finite logits.

    Returns:
        An array of the shape of `logits`, not negative, summing to 1 along `axis`.
    """
    largest = np.max(logits, axis=axis, keepdims=True)
    exponentials: Array = np.exp(logits - largest)
    total: Array = np.sum(exponentials, axis=axis, keepdims=True)
    return exponentials / total


def log_sum_exp(logits: Array, axis: int = -1) -> Array:
    """log Σ_j exp(z_j) along `axis`, which is removed; no overflow for any finite logits."""
    largest: Array = np.max(logits, axis=axis, keepdims=True)
    total: Array = np.sum(np.exp(logits - largest), axis=axis)
    return np.squeeze(largest, axis=axis) + np.log(total)


def log_softmax(logits: Array, axis: int = -1) -> Array:
    """z_i - log Σ_j exp(z_j) along `axis`, in the shape of `logits`; finite for finite logits."""
    shifted: Array = logits - np.max(logits, axis=axis, keepdims=True)
    total = np.sum(np.exp(shifted), axis=axis, keepdims=True)
    logarithm: Array = np.log(total)
    return shifted - logarithm


def softmax_backward(probabilities: Array, gradient: Array, axis: int = -1) -> Array:
    """The gradient of a loss with respect to the logits of a softmax (vector-Jacobian product).

    With p = softmax(z) the Jacobian is diag(p) - p pᵀ; it is symmetric and never built.

    Args:
        probabilities: p, the output of the softmax.
        gradient: dL/dp, in the same shape.
        axis: the axis of the softmax.
    Returns:
        dL/dz, in the same shape.
    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("probabilities", probabilities, "gradient", gradient)
    weighted: Array = probabilities * gradient
    mean: Array = np.sum(weighted, axis=axis, keepdims=True)
    return weighted - probabilities * mean
