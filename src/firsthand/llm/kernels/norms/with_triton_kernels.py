"""The Triton kernels of RMSNorm; `with_triton` launches them. A program takes ROWS rows at once."""

from __future__ import annotations

import triton.language as tl

from firsthand.llm.kernels.triton_support import jit


@jit
def forward(
    x: tl.tensor,
    weight: tl.tensor,
    output: tl.tensor,
    roots: tl.tensor,
    rows: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The normed rows, and 1 / √(mean square + ε) of each."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (feature < WIDTH)[None, :]
    where = row[:, None] * WIDTH + feature[None, :]
    values = tl.load(x + where, inside, 0.0).to(tl.float32)
    scale = tl.load(weight + feature, feature < WIDTH, 0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(values * values, 1) / WIDTH + eps)
    tl.store(roots + row, r, row < rows)
    normed = values * r[:, None] * scale[None, :]
    tl.store(output + where, normed.to(output.dtype.element_ty), inside)


@jit
def backward(
    x: tl.tensor,
    weight: tl.tensor,
    roots: tl.tensor,
    cotangent: tl.tensor,
    dx: tl.tensor,
    partial: tl.tensor,
    rows: tl.tensor,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """dx of every num_programs-th tile of rows, and what these tiles add to dweight."""
    feature = tl.arange(0, WIDE)
    real = feature < WIDTH
    scale = tl.load(weight + feature, real, 0.0).to(tl.float32)
    total = tl.zeros([WIDE], tl.float32)
    program = tl.program_id(0)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & real[None, :]
        where = row[:, None] * WIDTH + feature[None, :]
        values = tl.load(x + where, inside, 0.0).to(tl.float32)
        g = tl.load(cotangent + where, inside, 0.0).to(tl.float32)
        r = tl.load(roots + row, row < rows, 0.0)
        normed = values * r[:, None]
        h = g * scale[None, :]
        along = tl.sum(h * normed, 1) / WIDTH
        gradient = r[:, None] * (h - normed * along[:, None])
        tl.store(dx + where, gradient.to(dx.dtype.element_ty), inside)
        total += tl.sum(g * normed, 0)
    tl.store(partial + program * WIDTH + feature, total, real)
