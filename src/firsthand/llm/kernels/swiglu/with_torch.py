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
    if not torch.is_grad_enabled():
        return _swiglu(both)
    result: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return result


def fused_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form by PyTorch's kernel, the other choice for the same place."""
    return functional.gelu(x, approximate="tanh")


def fused_relu_squared(x: Tensor) -> Tensor:
    """max(0, x)², the third choice: keeps r = max(0, x) alone, since the derivative is 2 r."""
    if not torch.is_grad_enabled():
        return functional.relu(x).square()
    result: Tensor = _ReLUSquared.apply(x)  # type: ignore[no-untyped-call]
    return result


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _swiglu(both)

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


class _ReLUSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = functional.relu(x)
        ctx.save_for_backward(rectified)
        squared: Tensor = rectified.square()
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        gradient: Tensor = cotangent * rectified
        return gradient.mul_(2.0)
