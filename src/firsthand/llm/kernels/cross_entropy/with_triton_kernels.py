"""The Triton kernel of cross-entropy; `with_triton` launches it."""

from __future__ import annotations

import triton.language as tl

from firsthand.llm.kernels.triton_support import jit


@jit
def errors(
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    vocabulary: tl.tensor,
    PIECE: tl.constexpr,
    WANTED: tl.constexpr,
) -> None:
    """The loss of one row of logits and, if wanted, p - e in their place.

    Both are 0 where the target is negative, and the loss is NaN where it is no token.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    target = tl.load(targets + row)
    token = tl.arange(0, PIECE)
    highest = tl.full([PIECE], float("-inf"), tl.float32)
    total = tl.zeros([PIECE], tl.float32)
    # A running maximum and sum for each place in a piece; they meet at the end. The first piece
    # reaches each place that is real, so no maximum that counts stays at -inf.
    for start in range(0, vocabulary, PIECE):
        here = tl.load(logits + start + token, start + token < vocabulary, float("-inf"))
        here = here.to(tl.float32)
        raised = tl.maximum(highest, here)
        shift = tl.where(raised == float("-inf"), 0.0, raised)
        total = total * tl.exp(highest - shift) + tl.exp(here - shift)
        highest = raised
    top = tl.max(highest, 0)
    log_total = tl.log(tl.sum(total * tl.exp(highest - top), 0)) + top
    known = (target >= 0) & (target < vocabulary)
    own = tl.load(logits + target, known, float("nan")).to(tl.float32)
    tl.store(losses + row, tl.where(target < 0, 0.0, log_total - own))
    if WANTED:
        # Nobody may overwrite the target's logit while another thread still reads it.
        tl.debug_barrier()
        counts = (target >= 0).to(tl.float32)
        for start in range(0, vocabulary, PIECE):
            inside = start + token < vocabulary
            here = tl.load(logits + start + token, inside, float("-inf")).to(tl.float32)
            p = tl.exp(here - log_total) - tl.where(start + token == target, 1.0, 0.0)
            tl.store(logits + start + token, (p * counts).to(logits.dtype.element_ty), inside)
