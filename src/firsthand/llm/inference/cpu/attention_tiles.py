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

LANES = 8
# Widths of heads are multiples of this: two vectors of eight.
WIDTH_MULTIPLE = 2 * LANES

_BYTE, _LONG, _FLOAT = ir.IntType(8), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_NOTHING = ir.Constant(_VECTOR, [0.0] * LANES)
# From eight vectors to the vector of their sums: the lanes of a pair that meet at each level.
_HALVES = (
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
)


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
            q, width = _matrix(target, builder, signature.args[0], q, _FLOAT)
            k, _ = _matrix(target, builder, signature.args[2], k, _BYTE)
            out, capacity = _matrix(target, builder, signature.args[4], out, _FLOAT)
            left = [_row(builder, q, builder.add(row, _LONG(i)), width) for i in range(rows)]
            right = [_row(builder, k, builder.add(t, _LONG(j)), width) for j in range(keys)]
            sums = _sums(builder, _products(builder, left, right, width))
            kind = ir.VectorType(_FLOAT, keys).as_pointer()
            for i in range(rows):
                lanes = ir.Constant(
                    ir.VectorType(ir.IntType(32), keys), list(range(i * keys, (i + 1) * keys))
                )
                place = builder.gep(_row(builder, out, _LONG(i), capacity), [t])
                picked = builder.shuffle_vector(sums, _NOTHING, lanes)
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
            w, capacity = _matrix(target, builder, signature.args[0], w, _FLOAT)
            v, width = _matrix(target, builder, signature.args[1], v, _BYTE)
            out, _ = _matrix(target, builder, signature.args[3], out, _FLOAT)
            left = [_row(builder, w, _LONG(i), capacity) for i in range(rows)]
            targets = [_row(builder, out, _LONG(i), width) for i in range(rows)]

            def block(builder: Any, k: Any, vectors: int) -> None:
                sums = _mixed(builder, left, builder.gep(v, [k]), width, seen, vectors)
                for place, (i, j) in enumerate((i, j) for i in range(rows) for j in range(vectors)):
                    at = builder.gep(targets[i], [builder.add(k, _LONG(j * LANES))])
                    kind = _VECTOR.as_pointer()
                    builder.store(sums[place], builder.bitcast(at, kind)).align = 4

            # Eight sums hide how long one addition takes; a single row has to be wide for them.
            wide = 8 // rows
            step = _LONG(wide * LANES)
            whole = builder.mul(builder.udiv(width, step), step)
            _blocks(builder, _LONG(0), whole, wide, block)
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
            q = _load(builder, row, k, _FLOAT)
            fresh += [
                _fused(builder, q, key, totals[i * len(right) + j]) for j, key in enumerate(keys)
            ]
        return fresh

    return _loop(builder, _LONG(0), width, LANES, len(left) * len(right), step)


def _mixed(
    builder: Any, left: list[Any], values: Any, width: Any, seen: Any, vectors: int
) -> list[Any]:
    """For each row of weights so many vectors of its output, along the tokens."""

    def step(t: Any, totals: list[Any]) -> list[Any]:
        row = _row(builder, values, t, width)
        parts = [_floats(builder, row, _LONG(j * LANES)) for j in range(vectors)]
        fresh = []
        for i, weights in enumerate(left):
            weight = builder.load(builder.gep(weights, [t]))
            spread = builder.insert_element(_NOTHING, weight, ir.IntType(32)(0))
            same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            spread = builder.shuffle_vector(spread, _NOTHING, same)
            fresh += [
                _fused(builder, spread, part, totals[i * vectors + j])
                for j, part in enumerate(parts)
            ]
        return fresh

    return _loop(builder, _LONG(0), seen, 1, len(left) * vectors, step)


def _loop(
    builder: Any,
    first: Any,
    last: Any,
    step: int,
    count: int,
    body: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """So many sums, from 0, over a range that is not empty."""
    before = builder.block
    inside, after = builder.append_basic_block("sum"), builder.append_basic_block("summed")
    builder.branch(inside)
    builder.position_at_end(inside)
    place = builder.phi(_LONG)
    place.add_incoming(first, before)
    totals = [builder.phi(_VECTOR) for _ in range(count)]
    for total in totals:
        total.add_incoming(_NOTHING, before)
    fresh = body(place, totals)
    following = builder.add(place, _LONG(step))
    place.add_incoming(following, inside)
    for total, new in zip(totals, fresh, strict=True):
        total.add_incoming(new, inside)
    builder.cbranch(builder.icmp_signed("<", following, last), inside, after)
    builder.position_at_end(after)
    return fresh


def _blocks(
    builder: Any, first: Any, last: Any, vectors: int, block: Callable[[Any, Any, int], None]
) -> None:
    """`block` at each multiple of so many vectors from first to last, perhaps none."""
    before = builder.block
    head, inside = builder.append_basic_block("blocks"), builder.append_basic_block("block")
    after = builder.append_basic_block("blocked")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(_LONG)
    k.add_incoming(first, before)
    builder.cbranch(builder.icmp_signed("<", k, last), inside, after)
    builder.position_at_end(inside)
    block(builder, k, vectors)
    following = builder.add(k, _LONG(vectors * LANES))
    k.add_incoming(following, builder.block)
    builder.branch(head)
    builder.position_at_end(after)


def _sums(builder: Any, totals: list[Any]) -> Any:
    """The sums of up to eight vectors as one vector."""
    level = totals + [_NOTHING] * (LANES - len(totals))
    for even, odd in _HALVES:
        kind = ir.VectorType(ir.IntType(32), LANES)
        level = [
            builder.fadd(
                builder.shuffle_vector(a, b, ir.Constant(kind, even)),
                builder.shuffle_vector(a, b, ir.Constant(kind, odd)),
            )
            for a, b in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]


def _fused(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """a · b + total, rounded once."""
    name = "llvm.fma.v8f32"
    known = builder.module.globals.get(name)
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(known or ir.Function(builder.module, kind, name), [a, b, total])


def _floats(builder: Any, row: Any, place: Any) -> Any:
    """Eight bytes as floats."""
    return builder.sitofp(_load(builder, row, place, _BYTE), _VECTOR)


def _load(builder: Any, row: Any, place: Any, kind: Any) -> Any:
    vectors = ir.VectorType(kind, LANES).as_pointer()
    loaded = builder.load(builder.bitcast(builder.gep(row, [place]), vectors))
    loaded.align = 1 if kind is _BYTE else 4
    return loaded
