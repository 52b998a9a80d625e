"""Sums in registers, in LLVM's language: what the tiles of the INT8 product and of attention share.

Eight 32-bit lanes make a vector, so that AVX2 holds it in one register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

LANES = 8
BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)

# Two rows of a matrix whose blocks of 1, 2 and 4 lanes change places: what then stands in the first
# and in the second one.
_EXCHANGES = (
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
)


def nothing(kind: Any) -> Any:
    """A vector of zeros: INTS or FLOATS."""
    return ir.Constant(kind, [0] * LANES)


def sum_loop(
    builder: Any,
    last: Any,
    step: int,
    kind: Any,
    count: int,
    body: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """So many sums from zeros, over the places 0, step, 2 · step ... below last, which is above 0.

    Args:
        kind: of the sums, INTS or FLOATS.
        body: (place, the sums so far) -> the sums with what is at this place.
    """
    before = builder.block
    inside, after = builder.append_basic_block("sum"), builder.append_basic_block("summed")
    builder.branch(inside)
    builder.position_at_end(inside)
    place = builder.phi(LONG)
    place.add_incoming(LONG(0), before)
    totals = [builder.phi(kind) for _ in range(count)]
    for total in totals:
        total.add_incoming(nothing(kind), before)
    fresh = body(place, totals)
    following = builder.add(place, LONG(step))
    place.add_incoming(following, inside)
    for total, new in zip(totals, fresh, strict=True):
        total.add_incoming(new, inside)
    builder.cbranch(builder.icmp_signed("<", following, last), inside, after)
    builder.position_at_end(after)
    return fresh


def lane_sums(builder: Any, totals: list[Any], kind: Any, add: Callable[[Any, Any], Any]) -> Any:
    """The sums of up to eight vectors as one vector, by adding halves of pairs in a fixed order.

    Args:
        add: of the builder, for the kind.
    """
    level = totals + [nothing(kind)] * (LANES - len(totals))
    for even, odd in _EXCHANGES:
        level = [
            add(
                builder.shuffle_vector(a, b, ir.Constant(INTS, even)),
                builder.shuffle_vector(a, b, ir.Constant(INTS, odd)),
            )
            for a, b in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of eight vectors of eight, as vectors."""
    level = rows
    for step, pair in zip((1, 2, 4), _EXCHANGES, strict=True):
        turned = list(level)
        for first in (place for place in range(LANES) if not place & step):
            for place, lanes in zip((first, first + step), pair, strict=True):
                a, b = level[first], level[first + step]
                turned[place] = builder.shuffle_vector(a, b, ir.Constant(INTS, lanes))
        level = turned
    return level


def load(builder: Any, row: Any, place: Any, kind: Any, lanes: int, align: int) -> Any:
    """So many numbers of a kind from row[place] on."""
    vectors = ir.VectorType(kind, lanes).as_pointer()
    loaded = builder.load(builder.bitcast(builder.gep(row, [place]), vectors))
    loaded.align = align
    return loaded


def spread(builder: Any, number: Any) -> Any:
    """A vector of one float in all lanes."""
    first = builder.insert_element(nothing(FLOATS), number, INT(0))
    return builder.shuffle_vector(first, nothing(FLOATS), ir.Constant(INTS, [0] * LANES))


def intrinsic(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """LLVM's function of this name, declared in the module once."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)
