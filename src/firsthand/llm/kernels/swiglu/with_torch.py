"""silu(gate) · up in PyTorch: operation by operation, and keeping only its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def swiglu(both: Tensor) -> Tensor:
    """both: (..., 2 n), the gate and then the up half -> (..., n)."""
    gate, up = both.chunk(2, dim=-1)
    return functional.silu(gate) * up


def fused_swiglu(both: Tensor) -> Tensor:
    """The same; silu(gate) is computed again in the backward pass instead of being kept."""
    result: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return result


def fused_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form by PyTorch's kernel, the other choice for the same place."""
    return functional.gelu(x, approximate="tanh")


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        gradient = torch.empty_like(both)
        dgate, dup = gradient.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), cotangent, out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(cotangent * up, gate))
        return gradient
