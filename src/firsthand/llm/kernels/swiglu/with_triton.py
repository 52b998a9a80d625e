"""silu(gate) · up in Triton: one pass over memory forward and one backward.

Operation by operation each intermediate result is written and read again; here they stay in
registers, in float32 whatever the type of the input, which alone is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.swiglu import with_torch

# Features of a row that a program takes.
PIECE = 1 << 10


def swiglu(both: Tensor) -> Tensor:
    """both: (..., 2 n), the gate and then the up half -> (..., n).

    What `triton_support.takes`; a PyTorch rung for the rest, the plain one where torch.compile
    fuses it by itself.
    """
    if torch.compiler.is_compiling():
        return with_torch.swiglu(both)
    if not triton_support.takes(both) or both.numel() == 0 or both.shape[-1] % 2:
        return with_torch.fused_swiglu(both)
    result: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return result


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        from firsthand.llm.kernels.swiglu import with_triton_kernels as kernels

        both = both.contiguous()
        output = both.new_empty((*both.shape[:-1], both.shape[-1] // 2))
        grid, constants = _sizes(output)
        with triton_support.at(both):
            kernels.forward[grid](both, output, **constants)
        ctx.save_for_backward(both)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        from firsthand.llm.kernels.swiglu import with_triton_kernels as kernels

        (both,) = ctx.saved_tensors
        gradient = torch.empty_like(both)
        grid, constants = _sizes(cotangent)
        with triton_support.at(both):
            kernels.backward[grid](both, cotangent.contiguous(), gradient, **constants)
        return gradient


def _sizes(output: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and the constants of both kernels."""
    width = output.shape[-1]
    piece = min(PIECE, triton_support.power_of_two(width))
    constants = {"WIDTH": width, "PIECE": piece, **triton_support.FUSED}
    return (output.numel() // width, -(-width // piece)), constants
