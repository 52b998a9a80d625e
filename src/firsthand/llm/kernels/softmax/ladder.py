"""The ladder of softmax."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.ladder import Inputs, Ladder, Outputs, Rung, Shape, by_elements
from firsthand.llm.kernels.softmax import with_numpy, with_torch


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """x: (rows, columns)."""
    return {"x": 3.0 * generator.standard_normal((shape["rows"], shape["columns"]))}


def oracle(x: np.ndarray, cotangent: np.ndarray) -> Outputs:
    """By the logarithm of the sum, and the gradient by the whole Jacobian of each row."""
    log_total = np.logaddexp.reduce(x, axis=-1, keepdims=True)
    p = np.exp(x - log_total)
    jacobians = p[:, :, None] * np.eye(x.shape[-1]) - p[:, :, None] * p[:, None, :]
    return [p, np.einsum("ri,rij->rj", cotangent, jacobians)]


# Per element: maximum, subtract, exp (counted as one), add, divide; backward two multiplications,
# an addition and a subtraction.
LADDER = Ladder(
    name="softmax",
    inputs=inputs,
    oracle=oracle,
    differentiable=("x",),
    flops=by_elements(5, 9, "rows", "columns", itemsize=1),
    bytes_moved=by_elements(2, 4, "rows", "columns"),
    shape={"rows": 2048, "columns": 1024},
    rungs=(
        Rung(
            "numpy",
            "numpy",
            with_numpy.softmax,
            by_elements(8, 16, "rows", "columns"),
            with_numpy.softmax_gradients,
        ),
        Rung(
            "numpy-online",
            "numpy",
            with_numpy.online_softmax,
            by_elements(7, 14, "rows", "columns"),
            with_numpy.online_softmax_gradients,
        ),
        Rung("torch", "torch", with_torch.softmax, by_elements(8, 20, "rows", "columns")),
        Rung(
            "torch-fused", "torch", with_torch.fused_softmax, by_elements(2, 5, "rows", "columns")
        ),
    ),
)
