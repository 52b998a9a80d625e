"""RoPE in Triton: one pass, from heads wherever they lie to heads in one piece.

Queries and keys come as views of the projection of all three. Turning them has to write them
anyway, so here they are written as (batch, heads, positions, width) without gaps. The gradient is
the cotangent turned back (`with_numpy`). Arithmetic is in float32, whatever the type of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.rope import with_torch

# Numbers that a program turns at once.
TILE = 1 << 11
_LARGEST_OFFSET = 2**31


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn features i and i + d/2 of x (batch, heads, positions, d); cos, sin (positions, d/2).

    What `triton_support.takes`; a PyTorch rung for the rest, the plain one where torch.compile
    fuses it by itself. cos and sin get no gradient.
    """
    if torch.compiler.is_compiling():
        return with_torch.rotate_half(x, cos.to(x.dtype), sin.to(x.dtype))
    if not _fits(x, cos, sin):
        return with_torch.fused_rotate_half(x, cos, sin)
    result: Tensor = _Rotation.apply(x, cos, sin, False)  # type: ignore[no-untyped-call]
    return result


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotate_half` for the features 2i and 2i + 1."""
    if torch.compiler.is_compiling():
        return with_torch.rotate_interleaved(x, cos.to(x.dtype), sin.to(x.dtype))
    if not _fits(x, cos, sin):
        return with_torch.complex_rotate_interleaved(x, cos, sin)
    result: Tensor = _Rotation.apply(x, cos, sin, True)  # type: ignore[no-untyped-call]
    return result


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return (
        triton_support.takes(x, cos, sin)
        and x.ndim == 4
        and x.numel() > 0
        and cos.shape == sin.shape == (x.shape[2], x.shape[3] // 2)
        and x.shape[3] % 2 == 0
    )


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turned(x, cos, sin, 1.0, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(cotangent, cos, sin, -1.0, ctx.interleaved), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float, interleaved: bool) -> Tensor:
    from firsthand.llm.kernels.rope import with_triton_kernels as kernels

    if x.stride(3) != 1 or x.shape[2] * x.stride(2) >= _LARGEST_OFFSET:
        x = x.contiguous()
    cos, sin = (t if t.stride(1) == 1 else t.contiguous() for t in (cos, sin))
    batch, heads, positions, width = x.shape
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    wide = triton_support.power_of_two(width // 2)
    rows = max(1, TILE // (2 * wide))
    with triton_support.at(x):
        kernels.turn[(-(-positions // rows) * batch * heads,)](
            *(x, cos, sin, output, sign, heads, positions),
            *(*x.stride()[:3], cos.stride(0), sin.stride(0)),
            HALF=width // 2,
            WIDE=wide,
            INTERLEAVED=interleaved,
            ROWS=rows,
            **triton_support.FUSED,
        )
    return output
