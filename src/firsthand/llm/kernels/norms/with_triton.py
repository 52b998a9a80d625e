"""RMSNorm in Triton: one pass over x forward, one over x and the cotangent backward.

The mathematics are in `with_numpy`. A row never leaves the registers between its sum of squares
and its output, and 1 / √(mean square + ε) is kept for it. dweight is a sum over all rows: each of
a fixed number of programs adds up its rows in registers and writes one row of partial sums, which
PyTorch adds; no atomic additions, so the same numbers in each run. Arithmetic is in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.norms.with_torch import fused_rms_norm

# A wider row does not fit the registers of one program.
WIDEST = 1 << 14
# Numbers that a program works on at once; more make dependent loads wait for each other less.
TILE = 1 << 12
# The same sums on every GPU; several programs for each of Hopper's 132 multiprocessors.
PROGRAMS = 1 << 9


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x (..., d) over the root of its mean square, times weight (d,), in the type of x.

    What `triton_support.takes`, up to WIDEST features; the PyTorch rung for the rest.
    """
    fits = triton_support.takes(x, weight) and x.numel() > 0 and x.shape[-1] <= WIDEST
    if not fits or weight.shape != x.shape[-1:]:
        return fused_rms_norm(x, weight, eps)
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        from firsthand.llm.kernels.norms import with_triton_kernels as kernels

        x, weight = x.contiguous(), weight.contiguous()
        output = torch.empty_like(x)
        rows, constants = _sizes(x)
        roots = x.new_empty(rows, dtype=torch.float32)
        tiles = -(-rows // constants["ROWS"])
        with triton_support.at(x):
            kernels.forward[(tiles,)](x, weight, output, roots, rows, eps, **constants)
        ctx.save_for_backward(x, weight, roots)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        from firsthand.llm.kernels.norms import with_triton_kernels as kernels

        x, weight, roots = ctx.saved_tensors
        dx = torch.empty_like(x)
        rows, constants = _sizes(x)
        programs = min(PROGRAMS, -(-rows // constants["ROWS"]))
        partial = x.new_empty(programs, x.shape[-1], dtype=torch.float32)
        arguments = (x, weight, roots, cotangent.contiguous(), dx, partial, rows)
        with triton_support.at(x):
            kernels.backward[(programs,)](*arguments, **constants)
        return dx, partial.sum(dim=0).to(weight.dtype), None


def _sizes(x: Tensor) -> tuple[int, dict[str, int]]:
    """The rows, and the constants of both kernels."""
    width = x.shape[-1]
    wide = triton_support.power_of_two(width)
    constants = {"WIDTH": width, "WIDE": wide, "ROWS": max(1, TILE // wide), **triton_support.FUSED}
    return x.numel() // width, {**constants, "num_warps": 8 if wide <= TILE else 16}
