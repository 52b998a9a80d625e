"""The two products of attention in registers: queries by int8 keys, weights by int8 values.

A few queries share each key and value once it is a float. Which other queries stand beside it
changes nothing in a query's own arithmetic: a score is eight partial sums along the width, added
in one fixed order, and an output adds one value after the other. So a text's numbers are the same,
to the last bit, read alone or with others, which loops left to the compiler do not promise. Hence
LLVM's language, as in `kernels.int8_matmul.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from firsthand.llm.kernels.compiling import emitted
from firsthand.llm.kernels.vectors import (
    BYTE,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    LONG,
    intrinsic,
    lane_sums,
    load,
    nothing,
    spread,
    sum_loop,
)

# Widths of heads are multiples of this: two vectors.
WIDTH_MULTIPLE = 2 * LANES


def score_tile(rows: int, keys: int) -> Callable[..., None]:
    """A compiled function (queries, row, keys, t, scores) -> None.

    It writes Σ_k queries[row + i, k] · keys[t + j, k] to scores[i, t + j], i below rows, j below
    keys.

    Args:
        rows, keys: of the tile, rows · keys at most 8.

    The function takes queries as float32 (m, width), keys as int8 (n, width) and scores as float32
    (at least rows, at least t + keys), all C-contiguous; width is a multiple of WIDTH_MULTIPLE.
    """

    @emitted
    def tile(context: Any, queries: Any, row: Any, kept: Any, t: Any, scores: Any) -> Any:
        signature = types.void(queries, types.int64, kept, types.int64, scores)

        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            q, row, k, t, out = arguments
            q, width = _matrix(target, builder, signature.args[0], q, FLOAT)
            k, _ = _matrix(target, builder, signature.args[2], k, BYTE)
            out, capacity = _matrix(target, builder, signature.args[4], out, FLOAT)
            left = [_row(builder, q, builder.add(row, LONG(i)), width) for i in range(rows)]
            right = [_row(builder, k, builder.add(t, LONG(j)), width) for j in range(keys)]
            products = _products(builder, left, right, width)
            sums = lane_sums(builder, products, FLOATS, builder.fadd)
            kind = ir.VectorType(FLOAT, keys).as_pointer()
            for i in range(rows):
                lanes = ir.Constant(ir.VectorType(INT, keys), list(range(i * keys, (i + 1) * keys)))
                place = builder.gep(_row(builder, out, LONG(i), capacity), [t])
                picked = builder.shuffle_vector(sums, nothing(FLOATS), lanes)
                builder.store(picked, builder.bitcast(place, kind)).align = 4
            return target.get_dummy_value()

        return signature, generate

    return tile


def mix_tile(rows: int) -> Callable[..., None]:
    """A compiled function (weights, values, seen, out) -> None.

    It writes Σ_t weights[i, t] · values[t, k] to out[i, k], i below rows, t below seen.

    The function takes weights as float32 (at least rows, at least seen), values as int8
    (n, width) and out as float32 (at least rows, width), all C-contiguous; width is a multiple of
    WIDTH_MULTIPLE, seen at least 1.
    """

    @emitted
    def tile(context: Any, weights: Any, values: Any, seen: Any, out: Any) -> Any:
        signature = types.void(weights, values, types.int64, out)

        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            w, v, seen, out = arguments
            w, capacity = _matrix(target, builder, signature.args[0], w, FLOAT)
            v, width = _matrix(target, builder, signature.args[1], v, BYTE)
            out, _ = _matrix(target, builder, signature.args[3], out, FLOAT)
            left = [_row(builder, w, LONG(i), capacity) for i in range(rows)]
            targets = [_row(builder, out, LONG(i), width) for i in range(rows)]

            def block(builder: Any, k: Any, vectors: int) -> None:
                sums = _mixed(builder, left, builder.gep(v, [k]), width, seen, vectors)
                for place, (i, j) in enumerate((i, j) for i in range(rows) for j in range(vectors)):
                    at = builder.gep(targets[i], [builder.add(k, LONG(j * LANES))])
                    kind = FLOATS.as_pointer()
                    builder.store(sums[place], builder.bitcast(at, kind)).align = 4

            # Eight sums hide how long one addition takes; a single row has to be wide for them.
            wide = 8 // rows
            step = LONG(wide * LANES)
            whole = builder.mul(builder.udiv(width, step), step)
            _blocks(builder, LONG(0), whole, wide, block)
            if wide > 2:
                _blocks(builder, whole, width, 2, block)
            return target.get_dummy_value()

        return signature, generate

    return tile


def _matrix(target: Any, builder: Any, kind: Any, array: Any, element: Any) -> tuple[Any, Any]:
    """A pointer to the first element, and the length of a row."""
    made = target.make_array(kind)(target, builder, array)
    data = builder.bitcast(made.data, element.as_pointer())
    return data, builder.extract_value(made.shape, 1)


def _row(builder: Any, data: Any, row: Any, width: Any) -> Any:
    return builder.gep(data, [builder.mul(row, width)])


def _products(builder: Any, left: list[Any], right: list[Any], width: Any) -> list[Any]:
    """For each pair of rows the vector of its partial sums, along the width."""

    def step(k: Any, totals: list[Any]) -> list[Any]:
        keys = [_floats(builder, row, k) for row in right]
        fresh = []
        for i, row in enumerate(left):
            q = load(builder, row, k, FLOAT, LANES, 4)
            fresh += [
                _fused(builder, q, key, totals[i * len(right) + j]) for j, key in enumerate(keys)
            ]
        return fresh

    return sum_loop(builder, width, LANES, FLOATS, len(left) * len(right), step)


def _mixed(
    builder: Any, left: list[Any], values: Any, width: Any, seen: Any, vectors: int
) -> list[Any]:
    """For each row of weights so many vectors of its output, along the tokens."""

    def step(t: Any, totals: list[Any]) -> list[Any]:
        row = _row(builder, values, t, width)
        parts = [_floats(builder, row, LONG(j * LANES)) for j in range(vectors)]
        fresh = []
        for i, weights in enumerate(left):
            weight = builder.load(builder.gep(weights, [t]))
            same = spread(builder, weight)
            fresh += [
                _fused(builder, same, part, totals[i * vectors + j]) for j, part in enumerate(parts)
            ]
        return fresh

    return sum_loop(builder, seen, 1, FLOATS, len(left) * vectors, step)


def _blocks(
    builder: Any, first: Any, last: Any, vectors: int, block: Callable[[Any, Any, int], None]
) -> None:
    """`block` at each multiple of so many vectors from first to last, perhaps none."""
    before = builder.block
    head, inside = builder.append_basic_block("blocks"), builder.append_basic_block("block")
    after = builder.append_basic_block("blocked")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(LONG)
    k.add_incoming(first, before)
    builder.cbranch(builder.icmp_signed("<", k, last), inside, after)
    builder.position_at_end(inside)
    block(builder, k, vectors)
    following = builder.add(k, LONG(vectors * LANES))
    k.add_incoming(following, builder.block)
    builder.branch(head)
    builder.position_at_end(after)


def _fused(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """a · b + total, rounded once."""
    return builder.call(intrinsic(builder, "llvm.fma.v8f32", FLOATS, [FLOATS] * 3), [a, b, total])


def _floats(builder: Any, row: Any, place: Any) -> Any:
    """Eight bytes as floats."""
    return builder.sitofp(load(builder, row, place, BYTE, LANES, 1), FLOATS)
