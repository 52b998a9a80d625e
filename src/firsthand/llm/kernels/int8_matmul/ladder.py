"""The ladder of the INT8 product."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels.int8_matmul import with_numba, with_numpy, with_torch
from firsthand.llm.kernels.int8_matmul.panels import PANEL
from firsthand.llm.kernels.ladder import (
    AnyArray,
    Cost,
    Costs,
    Inputs,
    Ladder,
    Outputs,
    Rung,
    Shape,
)


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """x int16 (m, k), w int8 (n, k), and a scale for each row of both."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    levels = with_numpy.activation_levels(k)
    return {
        "x": generator.integers(-levels, levels + 1, (m, k), dtype=np.int16),
        "x_scales": generator.uniform(0.5, 2.0, m),
        "w": generator.integers(-127, 128, (n, k), dtype=np.int8),
        "w_scales": generator.uniform(0.5, 2.0, n),
    }


def oracle(x: AnyArray, x_scales: AnyArray, w: AnyArray, w_scales: AnyArray) -> Outputs:
    """Each sum in integers of 64 bits."""
    sums = np.einsum("mk,nk->mn", x.astype(np.int64), w.astype(np.int64))
    return [sums * np.outer(x_scales, w_scales)]


def _bytes(weight: int, passes: int = 1, again: int = 0) -> Costs:
    """Bytes of a weight as multiplied, passes over the result, and readings of x beyond one.

    An array that is multiplied in another type is written and read once more in it.
    """

    def count(shape: Shape) -> int:
        m, n, k = shape["m"], shape["n"], shape["k"]
        readings = 1 + again * (-(-n // PANEL) - 1)
        wider = weight - 1
        return (
            2 * m * k * readings
            + 2 * m * k * min(wider, 1) * weight
            + n * k * (1 + 2 * wider)
            + 4 * m * n * passes
            + 4 * (m + n)
        )

    cost: Cost = count
    return Costs(cost, cost)


_FLOPS: Cost = lambda s: 2 * s["m"] * s["n"] * (s["k"] + 1)  # noqa: E731

LADDER = Ladder(
    name="int8_matmul",
    inputs=inputs,
    oracle=oracle,
    differentiable=(),
    flops=Costs(_FLOPS, _FLOPS),
    bytes_moved=_bytes(1),
    shape={"m": 64, "n": 2048, "k": 768},
    rungs=(
        Rung("numpy", "numpy", with_numpy.int8_matmul, _bytes(4, 5)),
        Rung("torch", "torch", with_torch.int8_matmul, _bytes(8, 7)),
        Rung("torch-dequantized", "torch", with_torch.dequantized_matmul, _bytes(4)),
        Rung("numba", "torch", with_numba.int8_matmul, _bytes(1, again=1)),
    ),
)
