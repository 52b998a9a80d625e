"""AdamW's update in NumPy, as it is written down."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import AnyArray


def adamw_update(
    parameter: AnyArray,
    gradient: AnyArray,
    first: AnyArray,
    second: AnyArray,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update, t = step counted from 1; all four of one shape, all but g change in place."""
    first *= beta1
    first += (1.0 - beta1) * gradient
    second *= beta2
    second += (1.0 - beta2) * gradient * gradient
    corrected_first = first / (1.0 - beta1**step)
    corrected_second = second / (1.0 - beta2**step)
    direction = corrected_first / (np.sqrt(corrected_second) + eps)
    parameter -= learning_rate * (direction + weight_decay * parameter)
