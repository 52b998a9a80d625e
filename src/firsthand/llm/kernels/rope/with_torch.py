"""RoPE in PyTorch: operation by operation, and with a backward pass that keeps no copy of x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn features i and i + d/2 of x (..., positions, d); cos and sin are (positions, d/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn features 2i and 2i + 1 of x (..., positions, d); cos and sin are (positions, d/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return pairs.flatten(start_dim=-2)


def fused_rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_half` in three passes; the result has the strides of x. cos and sin get no gradient.

    Autograd would keep both halves of x; the backward pass needs only the angles.
    """
    result: Tensor = _RotateHalf.apply(x, cos.to(x.dtype), sin.to(x.dtype))  # type: ignore[no-untyped-call]
    return result


def complex_rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_interleaved` as a product of complex numbers: (a + ib)(cos θ + i sin θ).

    Half-precision x is turned in float32: PyTorch has no complex bfloat16.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turns = torch.complex(cos.to(wide.dtype), sin.to(wide.dtype))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]
    return torch.view_as_real(pairs * turns).flatten(start_dim=-2).to(x.dtype)


class _RotateHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(cotangent, cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    turned = x * torch.cat([cos, cos], dim=-1)
    turned[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    turned[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return turned
