"""A tile of the INT8 product in registers: M rows of activations times N rows of weights.

Both operands lie row by row along the sum, so nothing is rearranged: each of the M · N sums has a
vector of its own, eight partial sums wide, and the loop goes over the row in pieces of 16. With
x86's AVX2 one instruction, `vpmaddwd`, multiplies 16 pairs of 16-bit integers and adds neighbours.
A tile of M x N loads M + N vectors for M · N of these, so larger tiles wait less for the caches,
until the 16 registers are full.

Numba's own loops keep one sum per loop at best; LLVM then loses the instruction among several
sums, so the tile is written in LLVM's language. Source: Goto & van de Geijn 2008, sections 4 and 5
(register blocks); Intel, "Intrinsics Guide", `_mm256_madd_epi16`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types

from firsthand.llm.kernels.compiling import emitted

# Integers of one step along the sum; rows are padded with zeros to a multiple.
STEP = 16

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_SUMS = ir.VectorType(_INT, STEP // 2)
_PADDWD = "llvm.x86.avx2.pmadd.wd"
# From eight vectors to the vector of their sums: the lanes of a pair that meet at each level.
_HALVES = (
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
)


def has_pair_products() -> bool:
    """Whether this processor has AVX2's `vpmaddwd`; elsewhere LLVM makes the sums as it can."""
    return bool(binding.get_host_cpu_features().get("avx2", False))


def dot_tile(rows: int, columns: int, unrolled: int = 1, ahead: int = 0) -> Callable[..., None]:
    """A compiled function (x, row, w, column, sums) -> None.

    It writes Σ_k x[row + i, k] · w[column + j, k] to sums[i · columns + j].

    Args:
        rows, columns: of the tile.
        unrolled: steps in one turn of the loop.
        ahead: bytes of w to ask of memory in advance, for a w that comes from there; 0 is none.

    The function takes x as int16 (m, k), w as int8 (n, k) and sums as int32, all C-contiguous; k
    is a multiple of STEP · unrolled and above 0. Of several sums it writes a multiple of eight,
    zeros behind the last.
    """

    @emitted
    def tile(context: Any, x: Any, row: Any, w: Any, column: Any, sums: Any) -> Any:
        signature = types.void(x, types.int64, w, types.int64, sums)

        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, right, out = (
                target.make_array(signature.args[place])(target, builder, arguments[place])
                for place in (0, 2, 4)
            )
            width = builder.extract_value(right.shape, 1)
            places = [builder.mul(arguments[place], width) for place in (1, 3)]
            function = _tile_function(builder.module, rows, columns, unrolled, ahead)
            data = [
                builder.bitcast(array.data, taken.type)
                for array, taken in zip((left, right, out), function.args[:3], strict=True)
            ]
            starts = [builder.gep(data[i], [places[i]]) for i in range(2)]
            builder.call(function, [*starts, data[2], width])
            return target.get_dummy_value()

        return signature, generate

    return tile


def _tile_function(module: Any, rows: int, columns: int, unrolled: int, ahead: int) -> Any:
    """`void (int16 *x, int8 *w, int32 *sums, int64 width)` in this module.

    A function that is not inlined: beside other code in one function, LLVM keeps some of the sums
    in memory, and the loop takes twice as long.
    """
    name = f"firsthand_dot_tile_{rows}x{columns}_{unrolled}_{ahead}"
    if name in module.globals:
        return module.globals[name]
    kinds = [kind.as_pointer() for kind in (_SHORT, _BYTE, _INT)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*kinds, _LONG]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    x, w, out, width = function.args
    left = [builder.gep(x, [builder.mul(width, _LONG(i))]) for i in range(rows)]
    right = [builder.gep(w, [builder.mul(width, _LONG(j))]) for j in range(columns)]
    _store_sums(builder, _loop(builder, left, right, width, unrolled, ahead), out)
    builder.ret_void()
    return function


def _loop(
    builder: Any, left: list[Any], right: list[Any], width: Any, unrolled: int, ahead: int
) -> list[Any]:
    """The loop along the sum: a vector of partial sums for each pair of rows."""
    before = builder.block
    body, after = builder.append_basic_block("step"), builder.append_basic_block("summed")
    builder.branch(body)
    builder.position_at_end(body)
    k = builder.phi(_LONG)
    k.add_incoming(_LONG(0), before)
    kept = [builder.phi(_SUMS) for _ in range(len(left) * len(right))]
    for total in kept:
        total.add_incoming(ir.Constant(_SUMS, [0] * (STEP // 2)), before)
    totals = list(kept)
    for turn in range(unrolled):
        place = builder.add(k, _LONG(STEP * turn))
        weights = [
            builder.sext(_load(builder, row, place, _BYTE), ir.VectorType(_SHORT, STEP))
            for row in right
        ]
        for i, row in enumerate(left):
            x = _load(builder, row, place, _SHORT)
            for j, w in enumerate(weights):
                here = i * len(right) + j
                totals[here] = builder.add(totals[here], _pair_products(builder, x, w))
    if ahead:
        arguments = [_BYTE.as_pointer(), _INT, _INT, _INT]
        fetch = _function(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
        for row in right:
            # To be read, kept in the outer caches only, data.
            place = builder.gep(row, [builder.add(k, _LONG(ahead))])
            builder.call(fetch, [place, _INT(0), _INT(2), _INT(1)])
    following = builder.add(k, _LONG(STEP * unrolled))
    k.add_incoming(following, body)
    for total, fresh in zip(kept, totals, strict=True):
        total.add_incoming(fresh, body)
    builder.cbranch(builder.icmp_signed("<", following, width), body, after)
    builder.position_at_end(after)
    return totals


def _store_sums(builder: Any, totals: list[Any], out: Any) -> None:
    """The sum of each vector, eight vectors at a time by adding halves of pairs; one by itself."""
    if len(totals) == 1:
        add = _function(builder, "llvm.vector.reduce.add.v8i32", _INT, [_SUMS])
        builder.store(builder.call(add, totals), out)
        return
    nothing = ir.Constant(_SUMS, [0] * (STEP // 2))
    for first in range(0, len(totals), 8):
        level = totals[first : first + 8]
        level += [nothing] * (8 - len(level))
        for even, odd in _HALVES:
            level = [
                builder.add(
                    builder.shuffle_vector(a, b, ir.Constant(_SUMS, even)),
                    builder.shuffle_vector(a, b, ir.Constant(_SUMS, odd)),
                )
                for a, b in zip(level[::2], level[1::2], strict=True)
            ]
        place = builder.bitcast(builder.gep(out, [_LONG(first)]), _SUMS.as_pointer())
        builder.store(level[0], place).align = 4


def _load(builder: Any, row: Any, place: Any, kind: Any) -> Any:
    kinds = ir.VectorType(kind, STEP).as_pointer()
    loaded = builder.load(builder.bitcast(builder.gep(row, [place]), kinds))
    loaded.align = 1
    return loaded


def _pair_products(builder: Any, x: Any, w: Any) -> Any:
    """x0 w0 + x1 w1, x2 w2 + x3 w3, ... in 32 bits."""
    if has_pair_products():
        multiply = _function(builder, _PADDWD, _SUMS, [x.type, w.type])
        return builder.call(multiply, [x, w])
    nothing = ir.Constant(x.type, ir.Undefined)
    halves = []
    for first in (0, 1):
        picked = ir.Constant(_SUMS, list(range(first, STEP, 2)))
        pair = [builder.sext(builder.shuffle_vector(v, nothing, picked), _SUMS) for v in (x, w)]
        halves.append(builder.mul(*pair))
    return builder.add(*halves)


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)
