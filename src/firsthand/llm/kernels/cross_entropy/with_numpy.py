"""Projection and cross-entropy in NumPy, with all logits at once and by chunks of tokens.

With p = softmax(h Wᵀ) and e the one-hot target, the gradient of the logits is p - e, hence
dh = (p - e) W and dW = (p - e)ᵀ h, both sums over tokens: chunks give the same.
"""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray, Outputs


def linear_cross_entropy(hidden: AnyArray, weight: AnyArray, targets: AnyArray) -> AnyArray:
    """The sum of the losses in nats, () -> scalar, from the whole (tokens, vocabulary) logits."""
    losses, _ = _losses_and_errors(hidden, weight, targets)
    result: AnyArray = losses.sum()
    return result


def linear_cross_entropy_gradients(
    hidden: AnyArray, weight: AnyArray, targets: AnyArray, cotangent: AnyArray
) -> Outputs:
    """The sum of the losses, dhidden and dweight."""
    losses, errors = _losses_and_errors(hidden, weight, targets)
    return [losses.sum(), cotangent * (errors @ weight), cotangent * (errors.T @ hidden)]


def chunked_cross_entropy(
    hidden: AnyArray, weight: AnyArray, targets: AnyArray, chunk: int = 256
) -> AnyArray:
    """The same with the logits of `chunk` tokens at a time."""
    total = hidden.dtype.type(0.0)
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        total += _losses_and_errors(hidden[rows], weight, targets[rows])[0].sum()
    return np.asarray(total)


def chunked_cross_entropy_gradients(
    hidden: AnyArray, weight: AnyArray, targets: AnyArray, cotangent: AnyArray, chunk: int = 256
) -> Outputs:
    """The sum of the losses, dhidden and dweight, chunk by chunk."""
    total = hidden.dtype.type(0.0)
    dhidden, dweight = np.empty_like(hidden), np.zeros_like(weight)
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        losses, errors = _losses_and_errors(hidden[rows], weight, targets[rows])
        total += losses.sum()
        dhidden[rows] = errors @ weight
        dweight += errors.T @ hidden[rows]
    return [np.asarray(total), cotangent * dhidden, cotangent * dweight]


def _losses_and_errors(
    hidden: AnyArray, weight: AnyArray, targets: AnyArray
) -> tuple[AnyArray, AnyArray]:
    """The loss of each token and p - e, both 0 where the target is negative."""
    logits = hidden @ weight.T
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    rows, real = np.arange(len(targets)), targets >= 0
    safe = np.where(real, targets, 0)
    errors = np.exp(log_p)
    errors[rows, safe] -= 1.0
    return -log_p[rows, safe] * real, errors * real[:, None]
