"""The stages of a token through the decoder, compiled: what each thread of the crew does in each.

A row is one token of one text, so one row is a step of decoding, as many as there are texts a step
of a batch, and the tokens of a prompt its prefill. In a stage every thread computes its own share
of the outputs and reads what all wrote in the stage before; `meet` ends it. Nothing is allocated.

For one row, the small work before a product (norm and quantization) is done by every thread for
itself, which costs less than meeting once more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.inference.cpu.atomics import ZERO, barrier, forget_portions, take_portion
from firsthand.llm.inference.cpu.attention import ATTEND, TOGETHER, turn
from firsthand.llm.inference.cpu.calls import ARRIVALS
from firsthand.llm.inference.cpu.weights import Weights
from firsthand.llm.kernels.compiling import inner
from firsthand.llm.kernels.exponential import exp32
from firsthand.llm.kernels.int8_matmul.panels import PANEL, PANEL_PRODUCTS, quantize_row

AnyArray = NDArray[Any]

# Weight rows of a portion when there is one row of activations: some microseconds' reading.
ROW_PANEL = 64

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_CACHE_LEVELS = np.float32(127.0)
_panel_products, _attend_at = PANEL_PRODUCTS.call, ATTEND.call


class Shape(NamedTuple):
    """Sizes, as `ModelConfig` names them; levels are the activations' largest integers."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    eps: np.float32
    score_scale: np.float32
    model_levels: np.float32
    mix_levels: np.float32
    hidden_levels: np.float32


class Cache(NamedTuple):
    """Keys after RoPE, and values: int8 (layers, slots, kv_heads, capacity, padded width).

    The steps of their grids are float32 (layers, slots, kv_heads, capacity).
    """

    keys: AnyArray
    key_scales: AnyArray
    values: AnyArray
    value_scales: AnyArray


class Work(NamedTuple):
    """What a call reads and writes besides weights and cache; made once.

    Attributes:
        tokens, slots, positions: int32 (rows,), of each row.
        wanted: int32, the rows whose logits are asked for.
        logits: float32 (wanted, vocab).
        stream: float32 (rows, d_model), the residual stream.
        queries: float32 (heads, rows, padded width), after RoPE.
        mixed: float32 (rows, heads · width), what attention gives.
        hidden: float32 (rows, d_ff).
        model_integers, mix_integers, hidden_integers: int16, (rows + threads, padded width): the
            quantized inputs of products; the last rows are for each thread alone.
        scales: float32 (rows + threads,), of these.
        normed: float32 (threads, d_model), scratch.
        block, other_block: float32 (threads, rows, widest panel), scratch.
        scores, outputs: float32 (threads, TOGETHER, capacity), (threads, TOGETHER, padded width),
            scratch.
        sums: int32 (threads, widest panel, SUMS), scratch.
        counters: int64, see `take_portion`; 0 before a call.
        panel_products, attend: where these two functions lie, which do most of the work.
    """

    tokens: AnyArray
    slots: AnyArray
    positions: AnyArray
    wanted: AnyArray
    logits: AnyArray
    stream: AnyArray
    queries: AnyArray
    mixed: AnyArray
    hidden: AnyArray
    model_integers: AnyArray
    mix_integers: AnyArray
    hidden_integers: AnyArray
    scales: AnyArray
    normed: AnyArray
    block: AnyArray
    other_block: AnyArray
    scores: AnyArray
    outputs: AnyArray
    sums: AnyArray
    counters: AnyArray
    panel_products: np.int64
    attend: np.int64


@inner
def meet(thread: int, threads: int, numbers: AnyArray, before: int, met: int, work: Work) -> int:
    """The end of a stage; returns how often the threads have met."""
    forget_portions(work.counters, met, thread, threads)
    return barrier(numbers, ARRIVALS, threads, met, before)


@inner
def _own_rows(thread: int, threads: int, rows: int, work: Work) -> tuple[int, int, int]:
    """The rows that a thread prepares, first and last, and what to add for their place.

    A single row is prepared by every thread, in a place of its own.
    """
    if rows == 1:
        return 0, 1, len(work.tokens) + thread
    return rows * thread // threads, rows * (thread + 1) // threads, 0


@inner
def _next_panel(
    thread: int, threads: int, met: int, rows: int, last: int, work: Work
) -> tuple[int, int]:
    """The next weight rows of so many for this thread; none are left when the first is `last`."""
    size = ROW_PANEL if rows == 1 else PANEL
    panel = take_portion(work.counters, met, thread, threads, (last + size - 1) // size)
    if panel < 0:
        return last, last
    return panel * size, min(last, panel * size + size)


@inner
def gathered(wanted: int, work: Work) -> None:
    """Move the rows asked for to the front, with their queries, positions and slots.

    They are in order, so none is overwritten before it is moved.
    """
    for place in range(wanted):
        row = work.wanted[place]
        if row == place:
            continue
        work.positions[place], work.slots[place] = work.positions[row], work.slots[row]
        for i in range(work.stream.shape[1]):
            work.stream[place, i] = work.stream[row, i]
        for head in range(work.queries.shape[0]):
            for i in range(work.queries.shape[2]):
                work.queries[head, place, i] = work.queries[head, row, i]


@inner
def embed(thread: int, threads: int, rows: int, weights: Weights, work: Work) -> None:
    """The tokens' embeddings into the stream.

    Of a single row every thread writes all, the same numbers to the same place.
    """
    first, last, _ = _own_rows(thread, threads, rows, work)
    for row in range(first, last):
        token = work.tokens[row]
        step = weights.embedding_scales[token]
        for i in range(work.stream.shape[1]):
            work.stream[row, i] = np.float32(weights.embedding[token, i]) * step


@inner
def normed(thread: int, threads: int, rows: int, norm: AnyArray, shape: Shape, work: Work) -> None:
    """RMSNorm and quantization of the stream: for one row by each thread into its own place."""
    first, last, target = _own_rows(thread, threads, rows, work)
    width = work.stream.shape[1]
    scratch = work.normed[thread]
    for row in range(first, last):
        squares = _ZERO
        for i in range(width):
            squares += work.stream[row, i] * work.stream[row, i]
        factor = _ONE / np.sqrt(squares / np.float32(width) + shape.eps)
        for i in range(width):
            scratch[i] = work.stream[row, i] * factor * norm[i]
        place = target + row
        work.scales[place] = quantize_row(scratch, shape.model_levels, work.model_integers[place])


@inner
def quantized(
    thread: int,
    threads: int,
    rows: int,
    x: AnyArray,
    integers: AnyArray,
    levels: np.float32,
    work: Work,
) -> None:
    """The rows of x on their grids, as `normed` does."""
    first, last, target = _own_rows(thread, threads, rows, work)
    for row in range(first, last):
        place = target + row
        work.scales[place] = quantize_row(x[row], levels, integers[place])


@inner
def heads(
    thread: int,
    threads: int,
    met: int,
    source: int,
    rows: int,
    layer: int,
    shape: Shape,
    weights: Weights,
    cache: Cache,
    work: Work,
) -> None:
    """Queries, keys and values, a head at a time: product, RoPE, into the cache."""
    total = shape.heads + 2 * shape.kv_heads
    block = work.block[thread]
    width = shape.width
    while True:
        head = take_portion(work.counters, met, thread, threads, total)
        if head < 0:
            return
        _panel_products(
            work.panel_products, work.model_integers, work.scales, source, rows,
            weights.qkv[layer], weights.qkv_scales[layer], head * width, head * width + width,
            work.sums[thread], block, ZERO,
        )  # fmt: skip
        for row in range(rows):
            position, slot = work.positions[row], work.slots[row]
            x = block[row, :width]
            if head < shape.heads + shape.kv_heads:
                turn(x, weights.cos[position], weights.sin[position])
            if head < shape.heads:
                for i in range(width):
                    work.queries[head, row, i] = x[i]
            elif head < shape.heads + shape.kv_heads:
                shared = head - shape.heads
                cache.key_scales[layer, slot, shared, position] = quantize_row(
                    x, _CACHE_LEVELS, cache.keys[layer, slot, shared, position]
                )
            else:
                shared = head - shape.heads - shape.kv_heads
                cache.value_scales[layer, slot, shared, position] = quantize_row(
                    x, _CACHE_LEVELS, cache.values[layer, slot, shared, position]
                )


@inner
def attention(
    thread: int,
    threads: int,
    met: int,
    rows: int,
    layer: int,
    shape: Shape,
    cache: Cache,
    work: Work,
) -> None:
    """A portion is a few rows of one head."""
    groups = (rows + TOGETHER - 1) // TOGETHER
    while True:
        portion = take_portion(work.counters, met, thread, threads, groups * shape.heads)
        if portion < 0:
            return
        head, group = portion // groups, portion % groups
        first, last = group * TOGETHER, min(rows, (group + 1) * TOGETHER)
        slot = work.slots[first]
        together = last - first == TOGETHER
        for row in range(first, last):
            together = together and work.slots[row] == slot
        if together:
            _attend(thread, head, first, last, layer, shape, cache, work)
        else:
            for row in range(first, last):
                _attend(thread, head, row, row + 1, layer, shape, cache, work)


@inner
def _attend(
    thread: int,
    head: int,
    first: int,
    last: int,
    layer: int,
    shape: Shape,
    cache: Cache,
    work: Work,
) -> None:
    """One head of one row, or of TOGETHER rows of one text."""
    slot, out = work.slots[first], work.outputs[thread]
    shared = head * shape.kv_heads // shape.heads
    _attend_at(
        work.attend, work.queries[head], first, work.positions[first:last], shape.score_scale,
        cache.keys[layer, slot, shared], cache.key_scales[layer, slot, shared],
        cache.values[layer, slot, shared], cache.value_scales[layer, slot, shared],
        work.scores[thread], out,
    )  # fmt: skip
    for row in range(first, last):
        for i in range(shape.width):
            work.mixed[row, head * shape.width + i] = out[row - first, i]


@inner
def added(
    thread: int,
    threads: int,
    met: int,
    source: int,
    rows: int,
    integers: AnyArray,
    w: AnyArray,
    w_scales: AnyArray,
    work: Work,
) -> None:
    """A product added to the stream; each thread has columns of its own."""
    last = w.shape[0]
    block = work.block[thread]
    while True:
        start, end = _next_panel(thread, threads, met, rows, last, work)
        if start == last:
            return
        _panel_products(
            work.panel_products, integers, work.scales, source, rows, w, w_scales, start, end,
            work.sums[thread], block, ZERO,
        )  # fmt: skip
        for row in range(rows):
            for i in range(end - start):
                work.stream[row, start + i] += block[row, i]


@inner
def gated(
    thread: int,
    threads: int,
    met: int,
    source: int,
    rows: int,
    layer: int,
    weights: Weights,
    work: Work,
) -> None:
    """silu(gate) · up into `hidden`."""
    last = weights.gate.shape[1]
    gates, ups = work.block[thread], work.other_block[thread]
    while True:
        start, end = _next_panel(thread, threads, met, rows, last, work)
        if start == last:
            return
        _panel_products(
            work.panel_products, work.model_integers, work.scales, source, rows,
            weights.gate[layer], weights.gate_scales[layer], start, end,
            work.sums[thread], gates, ZERO,
        )  # fmt: skip
        _panel_products(
            work.panel_products, work.model_integers, work.scales, source, rows,
            weights.up[layer], weights.up_scales[layer], start, end,
            work.sums[thread], ups, ZERO,
        )  # fmt: skip
        for row in range(rows):
            for i in range(end - start):
                z = gates[row, i]
                work.hidden[row, start + i] = z / (_ONE + exp32(-z)) * ups[row, i]


@inner
def logits(
    thread: int, threads: int, met: int, source: int, rows: int, weights: Weights, work: Work
) -> None:
    last = weights.output.shape[0]
    while True:
        start, end = _next_panel(thread, threads, met, rows, last, work)
        if start == last:
            return
        _panel_products(
            work.panel_products, work.model_integers, work.scales, source, rows, weights.output,
            weights.output_scales, start, end, work.sums[thread], work.logits, start,
        )  # fmt: skip
