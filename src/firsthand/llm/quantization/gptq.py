"""GPTQ: weights are rounded column by column, and those still to come take up the error.

Rounding each weight to the nearest point minimizes the error of the weights. What counts is the
error of the outputs on real inputs, for a row Σ ((w - q) x)² = (w - q) H (w - q)ᵀ with H = Σ x xᵀ.
When column i is rounded, that is smallest if the columns F after it move by

    δ = -(w_i - q_i) / [H⁻¹]_ii · [H⁻¹]_iF        (H⁻¹ of what is left)

The rows of an upper Cholesky factor U of H⁻¹ hold all these [H⁻¹]_iF / √[H⁻¹]_ii at once, so H is
inverted a single time. Columns are taken in blocks, and all behind a block is updated in one
product.

Source: Frantar et al. 2023, "GPTQ", section 3 and algorithm 1; the step is Hassibi & Stork 1993.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.schemes import Floats, QuantizedMatrix, Scheme, grid_of

BLOCK = 128


def gptq(
    weight: Floats,
    hessian: NDArray[np.float64],
    scheme: Scheme,
    *,
    damping: float = 0.01,
    activation_order: bool = False,
    block: int = BLOCK,
    name: str = "the matrix",
) -> QuantizedMatrix:
    """A matrix on the grid of its scheme, the outputs rather than the weights kept close.

    The grid is that of rounding to the nearest, taken from the weights as they are: so any order
    of columns goes with any scheme.

    Args:
        weight: (rows, cols), finite.
        hessian: (cols, cols), Σ x xᵀ over the inputs.
        scheme: of the grid.
        damping: this share of the mean of the diagonal is added to it; more damping is nearer to
            rounding to the nearest.
        activation_order: the columns with the largest diagonal first, while there is most left
            to take up their error; else in order.
        block: columns between two updates of all the rest.
        name: for messages.
    Raises:
        QuantizationError: as `grid_of`; a Hessian of another shape, not finite, or that no such
            damping makes invertible.
    """
    grid = grid_of(weight, scheme, name)
    columns = weight.shape[1]
    if hessian.shape != (columns, columns) or not np.isfinite(hessian).all():
        raise QuantizationError(
            f"{name}: GPTQ needs a finite Hessian of {columns} x {columns}; this one is "
            f"{' x '.join(map(str, hessian.shape))}"
        )
    diagonal = hessian.diagonal()
    if not diagonal.any():  # inputs of zeros: any weights give the same outputs
        values = grid.rounded(weight)
        return QuantizedMatrix(values, grid.scales, grid.zeros, grid.group_size)
    order = np.argsort(-diagonal, kind="stable") if activation_order else np.arange(columns)
    upper = _inverse_factor(hessian[np.ix_(order, order)], damping, name)
    left = weight.astype(np.float64)[:, order]
    values = np.empty(weight.shape, np.int8)
    zeros = None if grid.zeros is None else grid.zeros.astype(np.float64)
    scales = grid.scales.astype(np.float64)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        errors = np.empty((len(weight), last - first))
        for i in range(first, last):
            group = int(order[i]) // grid.group_size
            integers = grid.rounded(left[:, i : i + 1], group)[:, 0]
            offset = 0.0 if zeros is None else zeros[:, group]
            values[:, order[i]] = integers
            error = (left[:, i] - (integers - offset) * scales[:, group]) / upper[i, i]
            errors[:, i - first] = error
            left[:, i:last] -= error[:, None] * upper[i, i:last]
        left[:, last:] -= errors @ upper[first:last, last:]
    return QuantizedMatrix(values, grid.scales, grid.zeros, grid.group_size)


def _inverse_factor(hessian: NDArray[np.float64], damping: float, name: str) -> NDArray[np.float64]:
    """Upper triangular U with Uᵀ U = (H + λ)⁻¹."""
    damped = hessian.copy()
    damped[np.diag_indices_from(damped)] += damping * float(hessian.diagonal().mean())
    try:
        lower = np.linalg.cholesky(damped)
        inverse = np.linalg.inv(lower)
        factor: NDArray[np.float64] = np.linalg.cholesky(inverse.T @ inverse)
    except np.linalg.LinAlgError as error:
        raise QuantizationError(
            f"{name}: its Hessian cannot be inverted with a damping of {damping:g}; take more "
            "calibration text or more damping"
        ) from error
    return factor.T
