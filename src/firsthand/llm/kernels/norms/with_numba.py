"""RMSNorm by compiled loops: each row is read from memory once forward and once backward.

y = r w ∘ x with r = (mean x² + ε)^(-1/2). With h = w ∘ g for the cotangent g,
dx = r h - x r³ (h·x) / d  and  dw = Σ over rows of r g ∘ x; r is the one number kept for a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.norms.with_torch import fused_rms_norm
from firsthand.llm.kernels.threads import array, by_rows, compiles, memory

# Rows whose share of dw is summed by itself: the same sums for any number of threads.
BLOCK = 64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x (..., d) over the root of its mean square, times weight (d,).

    float32 on a CPU; the PyTorch rung for the rest.
    """
    if not compiles(x, weight):
        return fused_rms_norm(x, weight, eps)
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        output, roots = torch.empty_like(x), x.new_empty(x.shape[:-1])
        ctx.save_for_backward(x, weight, roots)
        rows, r = array(x), memory(roots.view(-1))
        arguments = (rows, array(weight)[0], np.float32(eps), array(output), r)
        by_rows(_forward, len(rows), rows.size, *arguments)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, roots = ctx.saved_tensors
        dx, rows = torch.empty_like(x), array(x)
        blocks = -(-len(rows) // BLOCK)
        partial = x.new_zeros(blocks, x.shape[-1])
        inputs = (rows, array(weight)[0], memory(roots.view(-1)), array(cotangent))
        by_rows(_backward, blocks, rows.size, *inputs, array(dx), memory(partial))
        return dx, partial.sum(dim=0), None


@compiled
def _forward(
    first: int,
    last: int,
    x: AnyArray,
    weight: AnyArray,
    eps: np.float32,
    output: AnyArray,
    roots: AnyArray,
) -> None:
    width = x.shape[1]
    for row in range(first, last):
        squares = _ZERO
        for j in range(width):
            squares += x[row, j] * x[row, j]
        r = _ONE / np.sqrt(squares / np.float32(width) + eps)
        roots[row] = r
        for j in range(width):
            output[row, j] = x[row, j] * r * weight[j]


@compiled
def _backward(
    first: int,
    last: int,
    x: AnyArray,
    weight: AnyArray,
    roots: AnyArray,
    cotangent: AnyArray,
    dx: AnyArray,
    partial: AnyArray,
) -> None:
    rows, width = x.shape
    for block in range(first, last):
        for row in range(block * BLOCK, min(rows, block * BLOCK + BLOCK)):
            r = roots[row]
            along = _ZERO
            for j in range(width):
                along += cotangent[row, j] * weight[j] * x[row, j]
            pull = along * r * r / np.float32(width)
            for j in range(width):
                dx[row, j] = r * (cotangent[row, j] * weight[j] - x[row, j] * pull)
                partial[block, j] += cotangent[row, j] * x[row, j] * r
