"""The whole decoder for some rows, compiled: the stages in order, and the meetings between."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from firsthand.llm.inference.cpu.atomics import ZERO, barrier
from firsthand.llm.inference.cpu.calls import (
    ARRIVALS,
    arrivals_before,
    next_call,
    rows_of,
    threads_of,
    wanted_of,
)
from firsthand.llm.inference.cpu.stages import (
    Cache,
    Shape,
    Work,
    added,
    attention,
    embed,
    gated,
    gathered,
    heads,
    logits,
    meet,
    normed,
    quantized,
)
from firsthand.llm.inference.cpu.weights import Weights
from firsthand.llm.kernels.compiling import compiled

AnyArray = NDArray[Any]


@compiled
def take_part(
    thread: int, numbers: AnyArray, shape: Shape, weights: Weights, cache: Cache, work: Work
) -> None:
    """A thread's part of the calls: thread 0 of one, the others of all until they park.

    Args:
        thread: from 0 to the crew's threads - 1.
        numbers: of the crew, see `cpu.calls`.
    """
    while True:
        call = next_call(thread, numbers)
        if call < 0:
            return
        threads, before = threads_of(call), arrivals_before(numbers)
        met: int = ZERO
        rows, wanted = rows_of(numbers), wanted_of(numbers)
        # Every thread prepares a single row for itself; of many each prepares some, and they meet.
        many = rows > 1
        source = 0 if many else len(work.tokens) + thread
        embed(thread, threads, rows, weights, work)
        if many:
            met = meet(thread, threads, numbers, before, met, work)
        for layer in range(shape.layers):
            normed(thread, threads, rows, weights.attention_norms[layer], shape, work)
            if many:
                met = meet(thread, threads, numbers, before, met, work)
            heads(thread, threads, met, source, rows, layer, shape, weights, cache, work)
            met = meet(thread, threads, numbers, before, met, work)
            if layer == shape.layers - 1 and wanted < rows:
                # The others have left their keys and values, which is all that they are for.
                if wanted == 0:
                    break
                if thread == 0:
                    gathered(wanted, work)
                met = meet(thread, threads, numbers, before, met, work)
                rows, many = wanted, wanted > 1
                source = 0 if many else len(work.tokens) + thread
            attention(thread, threads, met, rows, layer, shape, cache, work)
            met = meet(thread, threads, numbers, before, met, work)
            levels = shape.mix_levels
            quantized(thread, threads, rows, work.mixed, work.mix_integers, levels, work)
            if many:
                met = meet(thread, threads, numbers, before, met, work)
            w, steps = weights.mix[layer], weights.mix_scales[layer]
            added(thread, threads, met, source, rows, work.mix_integers, w, steps, work)
            met = meet(thread, threads, numbers, before, met, work)
            normed(thread, threads, rows, weights.feed_forward_norms[layer], shape, work)
            if many:
                met = meet(thread, threads, numbers, before, met, work)
            gated(thread, threads, met, source, rows, layer, weights, work)
            met = meet(thread, threads, numbers, before, met, work)
            levels = shape.hidden_levels
            quantized(thread, threads, rows, work.hidden, work.hidden_integers, levels, work)
            if many:
                met = meet(thread, threads, numbers, before, met, work)
            w, steps = weights.down[layer], weights.down_scales[layer]
            added(thread, threads, met, source, rows, work.hidden_integers, w, steps, work)
            met = meet(thread, threads, numbers, before, met, work)
        if wanted:
            normed(thread, threads, rows, weights.final_norm, shape, work)
            if many:
                met = meet(thread, threads, numbers, before, met, work)
            logits(thread, threads, met, source, rows, weights, work)
        barrier(numbers, ARRIVALS, threads, met, before)
        if thread == 0:
            return
