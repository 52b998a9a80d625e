"""The Triton kernels of SwiGLU; `with_triton` launches them. A program takes a piece of a row."""

from __future__ import annotations

import triton.language as tl

from firsthand.llm.kernels.triton_support import jit


@jit
def forward(both: tl.tensor, output: tl.tensor, WIDTH: tl.constexpr, PIECE: tl.constexpr) -> None:
    """silu(gate) · up."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    inside = feature < WIDTH
    both += row * (2 * WIDTH)
    gate = tl.load(both + feature, inside, 0.0).to(tl.float32)
    up = tl.load(both + WIDTH + feature, inside, 0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(output + row * WIDTH + feature, product.to(output.dtype.element_ty), inside)


@jit
def backward(
    both: tl.tensor,
    cotangent: tl.tensor,
    gradient: tl.tensor,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
) -> None:
    """With s = σ(z): (z s)' = s + z s (1 - s)."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    inside = feature < WIDTH
    both += row * (2 * WIDTH)
    gradient += row * (2 * WIDTH)
    gate = tl.load(both + feature, inside, 0.0).to(tl.float32)
    up = tl.load(both + WIDTH + feature, inside, 0.0).to(tl.float32)
    g = tl.load(cotangent + row * WIDTH + feature, inside, 0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    silu = gate * s
    dgate = g * up * (s + silu * (1.0 - s))
    tl.store(gradient + feature, dgate.to(gradient.dtype.element_ty), inside)
    tl.store(gradient + WIDTH + feature, (g * silu).to(gradient.dtype.element_ty), inside)
