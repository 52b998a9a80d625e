"""The stages of the CPU engine's token, timed: the same compiled functions, with a clock between.

`inference.cpu.step.take_part` runs a token as one compiled call, and nothing can look into it. The
driver here calls its stages in the same order for one row, on as many threads, and thread 0 reads
the clock after each. So the logits are the same bits, and the stages of a token add up to the whole
of the step. Waiting for the others is a stage of its own: a thread that had less to do waits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.audit.threads import AnyArray, clock, compiled, run_together
from firsthand.llm.inference.cpu.atomics import ZERO
from firsthand.llm.inference.cpu.calls import places
from firsthand.llm.inference.cpu.stages import (
    Cache,
    Shape,
    Work,
    added,
    attention,
    embed,
    gated,
    heads,
    logits,
    meet,
    normed,
    quantized,
)
from firsthand.llm.inference.cpu.weights import Weights
from firsthand.llm.inference.cpu_engine import CPUEngine

# In the order of a token. "queries, keys, values" has RoPE and the writing of the cache in it,
# "gate and up" the activation, the two other products the addition to the stream.
STAGES = (
    "embedding",
    "norms and grids",
    "queries, keys, values",
    "attention",
    "attention's output",
    "gate and up",
    "down",
    "logits",
    "meetings",
)
_EMBEDDING, _GRIDS, _QKV, _ATTENTION, _OUTPUT, _GATE, _DOWN, _LOGITS, _MEETINGS = range(9)
# A clock is read so often in a layer, and so often around the layers.
LAYER_READINGS, OTHER_READINGS = 14, 5


def stage_seconds(engine: CPUEngine, token: int, position: int, tokens: int) -> NDArray[np.float64]:
    """Seconds of each stage of so many tokens, all at one position of slot 0.

    Nothing else may use the engine meanwhile.

    Args:
        engine: what is in its cache before the position is seen.
        token: that is read, below the vocabulary.
        position: where it stands.
        tokens: at least 1.
    Returns:
        (tokens, stages), in the order of `STAGES`; thread 0's view.
    Raises:
        AuditError: the system starts no more threads.
    """
    shape, weights, cache, work = engine._crew._bound
    work.tokens[0], work.slots[0], work.positions[0] = token, 0, position
    work.wanted[0] = 0
    work.counters[:] = 0
    spent = np.zeros((tokens, len(STAGES)), np.int64)
    # The engine's stages meet at a place of the crew's numbers; `run_together` has only one.
    meetings = np.zeros(places(engine.threads), np.int64)
    run_together(
        _timed_steps,
        engine.threads,
        tokens,
        1,
        lambda thread: (shape, weights, cache, work, meetings, spent),
    )
    return np.multiply(spent, 1e-9, dtype=np.float64)


@compiled
def _timed_steps(
    thread: int,
    threads: int,
    _: AnyArray,
    times: AnyArray,
    rows: int,
    shape: Shape,
    weights: Weights,
    cache: Cache,
    work: Work,
    meetings: AnyArray,
    spent: AnyArray,
) -> None:
    """As `take_part` for one row whose logits are wanted, a token for each of `times`.

    Args:
        rows: 1. As a constant, it would have the compiler order sums in another way.
    """
    met: Any = ZERO
    source = len(work.tokens) + thread
    for token in range(len(times)):
        # Meeting once more also clears the counters of the stage before.
        met = meet(thread, threads, meetings, ZERO, met, work)
        began = clock()
        last = began
        row = spent[token]
        embed(thread, threads, rows, weights, work)
        last = _noted(thread, _EMBEDDING, last, row)
        for layer in range(shape.layers):
            normed(thread, threads, rows, weights.attention_norms[layer], shape, work)
            last = _noted(thread, _GRIDS, last, row)
            heads(thread, threads, met, source, rows, layer, shape, weights, cache, work)
            last = _noted(thread, _QKV, last, row)
            met = meet(thread, threads, meetings, ZERO, met, work)
            last = _noted(thread, _MEETINGS, last, row)
            attention(thread, threads, met, rows, layer, shape, cache, work)
            last = _noted(thread, _ATTENTION, last, row)
            met = meet(thread, threads, meetings, ZERO, met, work)
            last = _noted(thread, _MEETINGS, last, row)
            levels = shape.mix_levels
            quantized(thread, threads, rows, work.mixed, work.mix_integers, levels, work)
            last = _noted(thread, _GRIDS, last, row)
            w, steps = weights.mix[layer], weights.mix_scales[layer]
            added(thread, threads, met, source, rows, work.mix_integers, w, steps, work)
            last = _noted(thread, _OUTPUT, last, row)
            met = meet(thread, threads, meetings, ZERO, met, work)
            last = _noted(thread, _MEETINGS, last, row)
            normed(thread, threads, rows, weights.feed_forward_norms[layer], shape, work)
            last = _noted(thread, _GRIDS, last, row)
            gated(thread, threads, met, source, rows, layer, weights, work)
            last = _noted(thread, _GATE, last, row)
            met = meet(thread, threads, meetings, ZERO, met, work)
            last = _noted(thread, _MEETINGS, last, row)
            levels = shape.hidden_levels
            quantized(thread, threads, rows, work.hidden, work.hidden_integers, levels, work)
            last = _noted(thread, _GRIDS, last, row)
            w, steps = weights.down[layer], weights.down_scales[layer]
            added(thread, threads, met, source, rows, work.hidden_integers, w, steps, work)
            last = _noted(thread, _DOWN, last, row)
            met = meet(thread, threads, meetings, ZERO, met, work)
            last = _noted(thread, _MEETINGS, last, row)
        normed(thread, threads, rows, weights.final_norm, shape, work)
        last = _noted(thread, _GRIDS, last, row)
        logits(thread, threads, met, source, rows, weights, work)
        last = _noted(thread, _LOGITS, last, row)
        met = meet(thread, threads, meetings, ZERO, met, work)
        last = _noted(thread, _MEETINGS, last, row)
        if thread == 0:
            times[token] = last - began


@compiled
def _noted(thread: int, stage: int, last: int, row: AnyArray) -> int:
    """Add the time since the last reading to a stage; returns the present one."""
    now: int = clock()
    if thread == 0:
        row[stage] += now - last
    return now
