"""silu(gate) · up by compiled loops: one pass over memory forward and one backward.

PyTorch makes an array of each intermediate result; here they stay in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.swiglu.with_torch import fused_swiglu
from firsthand.llm.kernels.threads import array, by_rows, compiles

_ONE = np.float32(1.0)


def swiglu(both: Tensor) -> Tensor:
    """both: (..., 2 n), the gate and then the up half -> (..., n).

    float32 on a CPU; the PyTorch rung for the rest.
    """
    if not compiles(both):
        return fused_swiglu(both)
    result: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return result


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both = both.contiguous()
        ctx.save_for_backward(both)
        output = both.new_empty((*both.shape[:-1], both.shape[-1] // 2))
        rows = array(both)
        by_rows(_forward, len(rows), rows.size, rows, array(output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gradient = torch.empty_like(both)
        rows = array(both)
        by_rows(_backward, len(rows), rows.size, rows, array(cotangent), array(gradient))
        return gradient


@compiled
def _forward(first: int, last: int, both: AnyArray, output: AnyArray) -> None:
    width = output.shape[1]
    for row in range(first, last):
        for j in range(width):
            gate = both[row, j]
            output[row, j] = gate / (_ONE + exp32(-gate)) * both[row, width + j]


@compiled
def _backward(
    first: int, last: int, both: AnyArray, cotangent: AnyArray, gradient: AnyArray
) -> None:
    """With s = σ(z): (z s)' = s + z s (1 - s)."""
    width = cotangent.shape[1]
    for row in range(first, last):
        for j in range(width):
            gate = both[row, j]
            s = _ONE / (_ONE + exp32(-gate))
            silu = gate * s
            gradient[row, j] = cotangent[row, j] * both[row, width + j] * (s + silu - silu * s)
            gradient[row, width + j] = cotangent[row, j] * silu
