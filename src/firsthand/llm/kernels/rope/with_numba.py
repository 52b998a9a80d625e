"""RoPE by compiled loops that read the heads where they lie and write them in one piece.

Queries come as a view of the projection of queries, keys and values. Turning them has to write
them anyway, so here they are written as (batch, heads, seq, width) without gaps, which attention
would have to do else. The gradient is the cotangent turned back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.rope import with_torch
from firsthand.llm.kernels.threads import by_rows, compiles, memory


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn features i and i + d/2 of x (batch, heads, positions, d); cos, sin (positions, d/2).

    float32 on a CPU; the PyTorch rung for the rest. cos and sin get no gradient.
    """
    if not compiles(x, cos, sin) or x.ndim != 4:
        return with_torch.fused_rotate_half(x, cos, sin)
    result: Tensor = _Rotation.apply(x, cos, sin, _half)  # type: ignore[no-untyped-call]
    return result


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotate_half` for the features 2i and 2i + 1."""
    if not compiles(x, cos, sin) or x.ndim != 4:
        return with_torch.complex_rotate_interleaved(x, cos, sin)
    result: Tensor = _Rotation.apply(x, cos, sin, _interleaved)  # type: ignore[no-untyped-call]
    return result


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, kernel: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.kernel = kernel
        return _turned(kernel, x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(ctx.kernel, cotangent, cos, -sin), None, None, None


def _turned(kernel: Callable[..., None], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.numel():
        return output
    x = x.detach()
    if x.stride(-1) != 1:
        x = x.contiguous()
    # The loops need to know that neighbours are neighbours: one axis, and the strides as numbers.
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    values = memory(x.as_strided((extent,), (1,)))
    angles = (memory(cos), memory(sin))
    by_rows(kernel, x.shape[0], x.numel(), values, x.stride(), *angles, memory(output))
    return output


@compiled
def _interleaved(
    first: int,
    last: int,
    x: AnyArray,
    strides: tuple[int, int, int, int],
    cos: AnyArray,
    sin: AnyArray,
    output: AnyArray,
) -> None:
    for b in range(first, last):
        for head in range(output.shape[1]):
            for t in range(output.shape[2]):
                start = b * strides[0] + head * strides[1] + t * strides[2]
                for i in range(cos.shape[1]):
                    even, odd = x[start + 2 * i], x[start + 2 * i + 1]
                    output[b, head, t, 2 * i] = even * cos[t, i] - odd * sin[t, i]
                    output[b, head, t, 2 * i + 1] = odd * cos[t, i] + even * sin[t, i]


@compiled
def _half(
    first: int,
    last: int,
    x: AnyArray,
    strides: tuple[int, int, int, int],
    cos: AnyArray,
    sin: AnyArray,
    output: AnyArray,
) -> None:
    half = cos.shape[1]
    for b in range(first, last):
        for head in range(output.shape[1]):
            for t in range(output.shape[2]):
                start = b * strides[0] + head * strides[1] + t * strides[2]
                for i in range(half):
                    one, other = x[start + i], x[start + half + i]
                    output[b, head, t, i] = one * cos[t, i] - other * sin[t, i]
                    output[b, head, t, half + i] = other * cos[t, i] + one * sin[t, i]
