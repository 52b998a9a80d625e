"""Losses and their gradients with respect to the predictions, each a mean over the batch.

The two cross-entropies take logits, not probabilities: the logarithm of an exponential is
never formed, so they stay finite for logits of any size.
Source: Goodfellow, Bengio, Courville 2016, "Deep Learning", section 6.2.2.
"""

import numpy as np

from firsthand.llm.foundations.activations import log_softmax, sigmoid, softmax
from firsthand.llm.foundations.arrays import (
    Array,
    IntArray,
    require_class_targets,
    require_same_shape,
)


def mean_squared_error(predictions: Array, targets: Array) -> float:
    """The mean of (prediction - target)² over all elements.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("predictions", predictions, "targets", targets)
    errors = predictions - targets
    return float(np.mean(errors * errors))


def mean_squared_error_gradient(predictions: Array, targets: Array) -> Array:
    """The gradient of `mean_squared_error` with respect to `predictions`, in their shape.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("predictions", predictions, "targets", targets)
    errors = predictions - targets
    return 2.0 * errors / errors.size


def binary_cross_entropy(logits: Array, targets: Array) -> float:
    """The mean over all elements of -t log σ(z) - (1 - t) log(1 - σ(z)).

    Equal to max(z, 0) - t z + log(1 + exp(-|z|)), which is finite for any finite z.

    Args:
        logits: z, any shape.
        targets: t in [0, 1], in the same shape.
    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("logits", logits, "targets", targets)
    tail = np.log1p(np.exp(-np.abs(logits)))
    losses = np.maximum(logits, 0.0) - targets * logits + tail
    return float(np.mean(losses))


def binary_cross_entropy_gradient(logits: Array, targets: Array) -> Array:
    """The gradient of `binary_cross_entropy` with respect to `logits`, in their shape.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("logits", logits, "targets", targets)
    errors = sigmoid(logits) - targets
    return errors / errors.size


def cross_entropy(logits: Array, targets: IntArray) -> float:
    """The mean over the batch of -log softmax(logits)[target].

    Args:
        logits: (batch, classes).
        targets: (batch,), the index of the right class of each row.
    Returns:
        The loss in nats.
    Raises:
        ValueError: wrong shapes, an empty batch, or a class outside [0, classes).
        TypeError: targets that are not integers.
    """
    require_class_targets(logits, targets)
    rows = np.arange(len(targets))
    log_probabilities = log_softmax(logits)
    return -float(np.mean(log_probabilities[rows, targets]))


def cross_entropy_gradient(logits: Array, targets: IntArray) -> Array:
    """The gradient of `cross_entropy` with respect to `logits`: (batch, classes).

    Arguments and errors are those of `cross_entropy`.
    """
    require_class_targets(logits, targets)
    batch = len(targets)
    gradient = softmax(logits)
    gradient[np.arange(batch), targets] -= 1.0
    return gradient / batch
