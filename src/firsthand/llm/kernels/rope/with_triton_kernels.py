"""The Triton kernel of RoPE; `with_triton` launches it."""

from __future__ import annotations

import triton.language as tl

from firsthand.llm.kernels.triton_support import jit


@jit
def turn(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    output: tl.tensor,
    sign: tl.tensor,
    heads: tl.tensor,
    positions: tl.tensor,
    x_batch: tl.tensor,
    x_head: tl.tensor,
    x_row: tl.tensor,
    cos_row: tl.tensor,
    sin_row: tl.tensor,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """ROWS positions of one head, by the angles or, with sign -1, back; output in one piece."""
    tiles = tl.cdiv(positions, ROWS)
    number = (tl.program_id(0) // tiles).to(tl.int64)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, WIDE)
    inside = (row < positions)[:, None] & (pair < HALF)[None, :]
    c = tl.load(cos + row[:, None] * cos_row + pair[None, :], inside, 0.0).to(tl.float32)
    s = tl.load(sin + row[:, None] * sin_row + pair[None, :], inside, 0.0).to(tl.float32) * sign
    source = x + number // heads * x_batch + number % heads * x_head + row[:, None] * x_row
    target = output + number * positions * (2 * HALF) + row[:, None] * (2 * HALF)
    if INTERLEAVED:
        # Whole rows in one piece, taken apart in registers: neighbours in memory stay together.
        both = tl.arange(0, 2 * WIDE)
        inside = (row < positions)[:, None] & (both < 2 * HALF)[None, :]
        pairs = tl.load(source + both[None, :], inside, 0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(pairs, [ROWS, WIDE, 2]))
        turned = tl.reshape(tl.join(a * c - b * s, b * c + a * s), [ROWS, 2 * WIDE])
        tl.store(target + both[None, :], turned.to(output.dtype.element_ty), inside)
    else:
        a = tl.load(source + pair[None, :], inside, 0.0).to(tl.float32)
        b = tl.load(source + HALF + pair[None, :], inside, 0.0).to(tl.float32)
        one, other = a * c - b * s, b * c + a * s
        tl.store(target + pair[None, :], one.to(output.dtype.element_ty), inside)
        tl.store(target + HALF + pair[None, :], other.to(output.dtype.element_ty), inside)
