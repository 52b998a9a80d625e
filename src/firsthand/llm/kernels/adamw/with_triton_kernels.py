"""The Triton kernel of AdamW; `with_triton` launches it."""

from __future__ import annotations

import triton.language as tl

from firsthand.llm.kernels.triton_support import jit


@jit
def _block(
    p_here: tl.tensor,
    g_here: tl.tensor,
    m_here: tl.tensor,
    v_here: tl.tensor,
    left: tl.tensor,
    beta1: tl.tensor,
    share1: tl.tensor,
    beta2: tl.tensor,
    share2: tl.tensor,
    floor: tl.tensor,
    rate: tl.tensor,
    decay: tl.tensor,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    """The corrections stand in floor and rate, as in `foreach_adamw`."""
    i = tl.arange(0, BLOCK)
    if WHOLE:
        p, g = tl.load(p_here + i), tl.load(g_here + i)
        m, v = tl.load(m_here + i), tl.load(v_here + i)
    else:
        p, g = tl.load(p_here + i, i < left, 0.0), tl.load(g_here + i, i < left, 0.0)
        m, v = tl.load(m_here + i, i < left, 0.0), tl.load(v_here + i, i < left, 0.0)
    p, g, m, v = p.to(tl.float32), g.to(tl.float32), m.to(tl.float32), v.to(tl.float32)
    m = beta1 * m + share1 * g
    v = beta2 * v + share2 * (g * g)
    # p - d p with one rounding, not (1 - d) p, whose factor has lost d's last digits.
    p = p - (decay * p + rate * (m / (tl.sqrt(v) + floor)))
    p = p.to(p_here.dtype.element_ty)
    m = m.to(m_here.dtype.element_ty)
    v = v.to(v_here.dtype.element_ty)
    if WHOLE:
        tl.store(p_here + i, p)
        tl.store(m_here + i, m)
        tl.store(v_here + i, v)
    else:
        tl.store(p_here + i, p, i < left)
        tl.store(m_here + i, m, i < left)
        tl.store(v_here + i, v, i < left)


@jit
def update(
    table: tl.tensor,
    owners: tl.tensor,
    beta1: tl.tensor,
    share1: tl.tensor,
    beta2: tl.tensor,
    share2: tl.tensor,
    floor: tl.tensor,
    rate: tl.tensor,
    decay: tl.tensor,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of the tensor that owns it; P, G, M and V are the types of its four arrays."""
    row = table + tl.load(owners + tl.program_id(0)) * 6
    start = (tl.program_id(0) - tl.load(row + 5)) * BLOCK
    left = tl.load(row + 4) - start
    # What the host has checked, and the compiler must know to move 16 bytes at a time.
    p = tl.multiple_of(tl.load(row).to(tl.pointer_type(P)), 16) + start
    g = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(G)), 16) + start
    m = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(M)), 16) + start
    v = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(V)), 16) + start
    # A mask would keep the compiler from that, so only the last block of a tensor has one.
    if left >= BLOCK:
        _block(p, g, m, v, left, beta1, share1, beta2, share2, floor, rate, decay, BLOCK, True)
    else:
        _block(p, g, m, v, left, beta1, share1, beta2, share2, floor, rate, decay, BLOCK, False)
